"""What a match must hold: read rightly, and no phrase is left untried that would have matched."""

from __future__ import annotations

import pytest

from safety.beginnings import WORD
from safety.concepts import _phrases, find_concepts
from safety.required import all_required, required
from safety.rule_files import load_rules
from safety.sentences import sentence_spans


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        (r"throat (?:is )?closing", {"closing"}),
        (r"(?:slurred|garbled) talk", {"slurred", "garbled"}),
        (r"(?:left|right) arm", {"left", "right"}),
        (r"(?:in|on) (?:the )?icu\b", {"icu"}),
        (r"no pulse(?! oximeter)", {"pulse"}),
        (r"(?:fever)?rash", {"rash"}),
        (r"[3-5]\d ?%", {"3", "4", "5"}),
        (r"胸口.{0,4}痛", {"胸"}),
    ],
)
def test_parts(pattern: str, parts: set[str]) -> None:
    assert required(pattern) == parts


def test_what_a_match_holds_beside_its_beginning() -> None:
    pattern = r"(?:pain|ache) (?:in|round) (?:the )?(?:jaw|arm)"
    assert required(pattern, {"pain", "ache"}) == {"jaw", "arm"}
    assert required(r"painful\b", {"pain"}) == {"painful"}
    assert all_required(pattern) == [{"pain", "ache"}, {"in", "round"}, {"jaw", "arm"}]


@pytest.mark.parametrize("pattern", [r"\w+ \w+", r"(?:abc)?", r"(?:abc|\w+)"])
def test_a_pattern_that_needs_no_letters_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="no letters"):
        required(pattern)


def test_no_phrase_that_matches_is_left_untried() -> None:
    phrases = {phrase for group in _phrases().values() for phrase in group}
    for rule in load_rules().rules:
        for text in map(str.lower, (*rule.examples.fires, *rule.examples.must_not_fire) if rule.when else ()):
            words = [match.start() for match in WORD.finditer(text)]
            every = {
                (phrase.concept, place, match.end())
                for start, end in sentence_spans(text)
                for place in words
                if start <= place < end
                for phrase in phrases
                if (match := phrase.pattern.match(text, place, end))
            }
            assert {(h.concept, h.start, h.end) for h in find_concepts(text, sentence_spans(text), 9.0)} == every, text
