"""Who is at the screen, as far as the hospital's proxy tells, and what they may do. The audit names them.

Bedside has no accounts of its own: on one machine there is one local user, behind a proxy the headers that the settings
name. Knows nothing of Streamlit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.config import Settings

LOCAL_USER, LOCAL_ROLE = "local user", "clinician"


@dataclass(frozen=True, slots=True)
class Actor:
    name: str
    roles: frozenset[str]

    def has_any(self, roles: str) -> bool:
        """Whether one of the roles, with commas between, is the actor's."""
        return not self.roles.isdisjoint(_split(roles))


def find_actor(headers: Mapping[str, str], settings: Settings) -> Actor:
    """A header that the settings name and the request lacks gives no role: then nothing is permitted."""
    name = headers.get(settings.user_header, "unnamed user") if settings.user_header else LOCAL_USER
    if not settings.role_header:
        return Actor(name, frozenset({LOCAL_ROLE}))
    return Actor(name, _split(headers.get(settings.role_header, "")))


def _split(roles: str) -> frozenset[str]:
    return frozenset(role.strip().casefold() for role in roles.split(",") if role.strip())
