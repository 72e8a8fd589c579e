"""YAML as data that is reviewed by people: plain values only, and no key given twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the base is chosen here
    """Safe YAML that also refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"the key {twice[0]!r} is given twice near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def load_strict(data: bytes) -> Any:
    """The value a YAML file holds. Raises yaml.YAMLError or UnicodeDecodeError."""
    return yaml.load(data, Loader=_StrictLoader)
