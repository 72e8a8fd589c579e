"""Whether a claim only says that the record does not say. Knows nothing of passages."""

from __future__ import annotations

import re

from safety.claims import unmarked
from safety.words import plain

# The subject that says, then that it does not say, then at most what. No second statement may ride along.
_SOURCE = r"(?:passage|record|document|note|source|text|chart|letter)s?"
_ABSTENTION = re.compile(
    r"(?:i(?:'m| am) sorry[,.]? (?:but )?)?(?:(?:the|these|this|those|any of the|none of the)\s+)?"
    rf"(?:given |provided |available |numbered )?(?:patient's |medical )?{_SOURCE}\s+"
    r"(?:(?:do|does|did)(?:\s+not|n't)\s+(?:say|state|mention|contain|hold|specify|record|include|"
    r"provide|give|document|"
    r"show|answer|describe|list|indicate|address)|(?:say|contain|give|hold)s?\s+(?:nothing|no information))"
    r"(?P<rest>(?:\s+[^\s,;:.!?]+){0,22})\s*[.!]?",
    re.IGNORECASE,
)
_ABSTENTION_OTHER = re.compile(
    rf"(?:(?:this|that|it) is not (?:stated|mentioned|documented|recorded|given) in the {_SOURCE}"
    rf"|(?:not|nothing) (?:stated|mentioned|documented|recorded|found) in the {_SOURCE}"
    rf"|i (?:cannot|can't|could not) find (?:this|that|it|the answer) in the {_SOURCE}"
    r"|(?:根据)?(?:所给|提供的|上述|现有)?的?(?:病历|记录|资料|文档|段落|文中|材料)[里中内]?[均并]?(?:没有|未|无)(?:明确)?"
    r"(?:提到|提及|说明|记载|记录|给出|包含|相关(?:信息|记录|内容))[^，,；;。但]{0,24})\s*[.!。！]?",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"^\s*(?:how|when|why|what|which|where|who|whether|if|this|that|it|the answer|an answer|enough|any information|"
    r"information|the information|anything)\b",
    re.IGNORECASE,
)
# A second statement, and an instruction: neither may ride along with an abstention.
_STATEMENT = re.compile(
    r"\b(?:is|are|was|were|has|have|had|because|stop|and (?:he|she|it|they|the))\b",
    re.IGNORECASE,
)
_RIDER = re.compile(
    r"\b(?:but|however|although|though|yet|so \w+|therefore|instead|usually|typically|generally|"
    r"should|must|recommend\w*|"
    r"take|give|start|safe|normal)\b",
    re.IGNORECASE,
)


def is_abstention(claim: str) -> bool:
    """Whether a claim says that the record does not say, and nothing else."""
    text = plain(unmarked(claim)).strip()
    match = _ABSTENTION.fullmatch(text)
    if match:
        rest = match.group("rest")
        return not _RIDER.search(rest) and bool(_ABOUT.search(rest) or not _STATEMENT.search(rest))
    return bool(_ABSTENTION_OTHER.fullmatch(text))


def abstention_object(claim: str) -> str:
    """What an abstention says is not in the record ("allergies"); "" where it names nothing that can be looked up."""
    text = plain(unmarked(claim)).strip()
    match = _ABSTENTION.fullmatch(text)
    rest = match.group("rest") if match else ""
    return "" if _ABOUT.search(rest) else re.sub(r"^\s*(?:any|the|a|an|his|her|their|of|no)\b", "", rest).strip()
