"""Where lines, passages and questions begin in a prompt, as rules over what its tokens look like.

One table for two readers: `split_lines` applies it to tokens, `reader.py` writes it into the first layer's weights. A
line is a sentence, a list item or a table row. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_STOPS = frozenset({".", "!", "?", ".)", ").", "?)"})
_WIDE_STOPS = ("。", "！", "？")
_TITLES = frozenset({"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "vs", "No", "approx"})
_ENDS = frozenset({".", ".\n", ".\n\n", "\n", "\n\n", "。", "。\n\n", "。\n", " ."})


def bare(token: str) -> str:
    """The token without space around it and without a full stop that it holds beside other text, as in Chinese."""
    text = token.strip()
    return text.strip("".join(_WIDE_STOPS)) or text


MARKS: Mapping[str, Callable[[str], bool]] = {
    "breaks": lambda t: t.endswith("\n"),
    "breaks_for_sure": lambda t: t.endswith("\n") and (t.strip()[-1:] in tuple(".!?。！？") or t.count("\n") > 1),
    "wide_stop": lambda t: t.endswith(_WIDE_STOPS),
    "wide_start": lambda t: t.startswith(_WIDE_STOPS) and bare(t) != t.strip(),
    "stop": lambda t: t.strip() in _STOPS,
    "bracket": lambda t: t == "[",
    "cites": lambda t: t == " [",
    "bullet": lambda t: t.strip() in ("-", "•", "*"),
    "heads": lambda t: t == "[" or t.strip() in ("#", "##", "###"),
    "colon": lambda t: t == ":",
    "opens_turn": lambda t: t == "</role>",
    "system": lambda t: t == "EM",
    "title": lambda t: t.strip() in _TITLES,
    "say": lambda t: t == " say",
    "digit": lambda t: len(t) == 1 and t in "123456789",
    "lower": lambda t: t[:1].isascii() and t[:1].islower(),
    "capital": lambda t: t[:1] == " " and t[1:2].isupper(),
    "role": lambda t: t == "<role>",
    "ends_turn": lambda t: t == "<|role_end|>",
    "question": lambda t: t == "Question",
    "the": lambda t: t == " The",
    "cited": lambda t: t == "].",
    "pure": lambda t: t in _ENDS,
}  # what a token is, by its text; "heads" begins a heading, "system" ends
# the word SYSTEM, "pure" is an end and nothing else

Seen = tuple[int, str]
"""A mark and where: 0 the token itself, 1 the one before, 2 the one before that."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`target` holds where all that is wanted is seen and nothing else of what is unwanted."""

    target: str
    wanted: tuple[Seen, ...]
    unwanted: tuple[Seen, ...] = ()


RULES: tuple[Rule, ...] = (
    Rule("starts", ((1, "breaks"),), ((0, "lower"), (1, "breaks_for_sure"))),  # a wrapped line goes on in lower case
    Rule("starts", ((1, "breaks_for_sure"),)),
    Rule("starts", ((1, "wide_stop"),), ((0, "ends_turn"),)),
    Rule("starts", ((0, "wide_start"),)),
    Rule("starts", ((1, "stop"), (0, "capital")), ((2, "title"),)),
    Rule("starts", ((1, "bullet"), (2, "breaks"))),
    Rule("starts", ((1, "opens_turn"),)),
    Rule("starts", ((0, "the"), (1, "colon"), (2, "say"))),
    Rule("abstains", ((0, "the"), (1, "colon"), (2, "say"))),  # the sentence that the instructions give
    Rule("opens", ((0, "digit"), (1, "bracket"), (2, "breaks"))),  # a passage, at its number
    Rule("opens", ((0, "digit"), (1, "bracket"), (2, "opens_turn"))),
    Rule("leaves", ((0, "question"), (1, "breaks"))),  # the passages
    Rule("leaves", ((0, "question"), (1, "opens_turn"))),
    Rule("leaves", ((0, "role"),)),
    Rule("numbered", ((0, "digit"), (1, "cites"))),  # a citation, all but its end
    Rule("finished", ((0, "stop"), (1, "say"))),  # an answer
    Rule("finished", ((0, "cited"),)),
    Rule("origin", ((0, "opens_turn"), (1, "system"))),  # one place in a prompt, and the one after it
    Rule("landmark", ((1, "opens_turn"), (2, "system"))),
)


def list_marks(distance: int) -> list[str]:
    """The marks that some rule looks for so many tokens back."""
    asked = [seen for rule in RULES for seen in (*rule.wanted, *rule.unwanted)]
    return [name for name in MARKS if (distance, name) in asked]


@dataclass(frozen=True, slots=True)
class Lines:
    """Of each token: the number of its line, its passage (0: none), and whether its line is a heading."""

    line: tuple[int, ...]
    passage: tuple[int, ...]
    is_heading: tuple[bool, ...]


def split_lines(tokens: Sequence[str]) -> Lines:
    """tokens: the texts of a prompt's tokens."""
    line: list[int] = []
    passage: list[int] = []
    is_heading: list[bool] = []
    number, key, heading = -1, 0, False
    for place, token in enumerate(tokens):
        if holds("starts", tokens, place):
            number, heading = number + 1, MARKS["heads"](token)
        if holds("opens", tokens, place):
            key = int(token)
        elif holds("leaves", tokens, place):
            key = 0
        line.append(number)
        passage.append(key)
        is_heading.append(heading)
    return Lines(tuple(line), tuple(passage), tuple(is_heading))


def holds(target: str, tokens: Sequence[str], place: int) -> bool:
    def is_seen(seen: Seen) -> bool:
        distance, mark = seen
        return place >= distance and MARKS[mark](tokens[place - distance])

    return any(
        all(map(is_seen, rule.wanted)) and not any(map(is_seen, rule.unwanted))
        for rule in RULES
        if rule.target == target
    )
