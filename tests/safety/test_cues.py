"""Cues: tried only where a word begins as one of them does, and found all the same."""

from __future__ import annotations

import pytest

from safety import assertion, calm, medication
from safety.cues import Cue, Phrases
from safety.rule_files import load_rules

CUES = {
    f"{module.__name__}.{name}.{key}": cue
    for module in (assertion, calm, medication)
    for name, value in vars(module).items()
    for key, cue in (value.items() if isinstance(value, dict) else [("", value)])
    if isinstance(cue, Cue)
}
TEXTS = [text.lower() for rule in load_rules().rules for text in (*rule.examples.fires, *rule.examples.must_not_fire)]


@pytest.mark.parametrize("name", CUES)
def test_no_cue_is_left_untried(name: str) -> None:
    cue = CUES[name]
    for text in TEXTS:
        every = set(Phrases.spans(cue, text))
        assert every <= set(cue.spans(text)), text
        assert cue.is_in(text) is bool(every), text


def test_a_cue_that_may_begin_with_anything_is_searched() -> None:
    cue = Cue({"en": [r"\w+ weeks ago", "before"], "zh": []}, extra=r"\(old\)")
    assert cue.spans("seen two weeks ago (old)") == [(5, 18), (19, 24)]
    assert cue.is_in("six weeks ago")
    assert cue.is_in("seen before")
    assert not cue.is_in("two weeks of pain")
