"""What may be shown: supported claims with their page, the record's own words for the rest, never unchecked text."""

from __future__ import annotations

import pytest

from app.grounding import MAX_QUOTES, NOTHING_FOUND, SEE_CLOSEST, Grounding
from app.prompt import ABSTENTION
from contracts import CheckResult, Claim, ClaimCheck, ClaimKind, Finding, Passage, Verdict
from safety.checker import RuleSafetyChecker

PAGE = (
    "Medication on discharge. Apixaban 5 mg twice daily. Bisoprolol 2.5 mg once daily.\n"
    "She is allergic to penicillin. She denies chest pain."
)
PASSAGE = Passage("d:0", "d", "Letter.pdf", 2, 100, 100 + len(PAGE), PAGE)


@pytest.fixture(scope="module")
def safety() -> RuleSafetyChecker:
    return RuleSafetyChecker()


def answer(safety: RuleSafetyChecker, text: str, question: str = "What is the apixaban dose?") -> list[Claim]:
    grounding = Grounding(question, [PASSAGE], safety)
    return [claim for character in text for claim in grounding.feed(character)] + grounding.finish("stop")


def shown(claims: list[Claim]) -> list[Claim]:
    return [claim for claim in claims if claim.kind is not ClaimKind.WITHHELD]


def test_a_supported_claim_is_shown_with_its_words_on_the_page(safety: RuleSafetyChecker) -> None:
    (claim,) = answer(safety, "Apixaban 5 mg twice daily [1].")
    assert claim.kind is ClaimKind.ANSWER
    assert claim.supported
    (citation,) = claim.citations
    assert (citation.document, citation.page, citation.key) == ("Letter.pdf", 2, 1)
    assert PAGE[citation.start - 100 : citation.end - 100] == citation.quote
    assert "Apixaban 5 mg twice daily" in citation.quote


@pytest.mark.parametrize(
    "wrong",
    [
        "Apixaban 50 mg twice daily [1].",
        "Apixaban 5 mcg twice daily [1].",
        "Warfarin 5 mg twice daily [1].",
        "She has chest pain [1].",
        "She is not allergic to penicillin [1].",
        "The patient should be started on aspirin at once [1].",
    ],
)
def test_a_claim_the_record_does_not_support_never_shows(safety: RuleSafetyChecker, wrong: str) -> None:
    claims = answer(safety, wrong)
    assert claims[0].kind is ClaimKind.WITHHELD
    assert shown(claims)
    assert all(claim.kind is ClaimKind.QUOTE for claim in shown(claims))
    assert all(claim.text in PAGE for claim in shown(claims))


def test_the_quote_in_place_of_a_wrong_dose_holds_the_right_one(safety: RuleSafetyChecker) -> None:
    quoted = shown(answer(safety, "The apixaban dose is 50 mg twice daily [1]."))
    assert "Apixaban 5 mg twice daily" in quoted[0].text


def test_an_abstention_shows_as_one_and_needs_no_citation(safety: RuleSafetyChecker) -> None:
    (claim,) = answer(safety, ABSTENTION, "Which shoes?")
    assert (claim.kind, claim.text, claim.citations) == (ClaimKind.ABSTENTION, ABSTENTION, ())


def test_the_model_does_not_deny_above_the_sentence_that_answers(safety: RuleSafetyChecker) -> None:
    denial, quote = answer(safety, ABSTENTION, "What is she allergic to?")
    assert (denial.kind, denial.text) == (ClaimKind.ABSTENTION, SEE_CLOSEST)
    assert quote.text == "She is allergic to penicillin."


def test_an_answer_without_a_word_falls_back_to_the_record(safety: RuleSafetyChecker) -> None:
    claims = answer(safety, "")
    assert claims
    assert all(claim.kind in (ClaimKind.QUOTE, ClaimKind.ABSTENTION) for claim in claims)


def test_a_repeated_sentence_shows_once(safety: RuleSafetyChecker) -> None:
    assert len(answer(safety, "Apixaban 5 mg twice daily [1]. " * 5)) == 1


def test_a_true_sentence_that_misses_the_question_is_followed_by_the_record(safety: RuleSafetyChecker) -> None:
    kinds = [claim.kind for claim in answer(safety, "She is allergic to penicillin [1].", "What is the apixaban dose?")]
    assert kinds == [ClaimKind.ANSWER, ClaimKind.QUOTE]


LETTER = "Why she was admitted\nMrs Ellis was admitted with breathlessness after two weeks of swollen ankles."


@pytest.mark.parametrize(
    ("page", "line", "question"),
    [
        (LETTER, "Why she was admitted", "Why was she admitted?"),
        (
            "# Allergies and intolerances\nPenicillin; clinical status: active; reaction: rash",
            "Allergies and intolerances",
            "Is she allergic to penicillin?",
        ),
    ],
)
def test_a_title_is_no_answer(safety: RuleSafetyChecker, page: str, line: str, question: str) -> None:
    grounding = Grounding(question, [Passage("d:1", "d", "Letter.pdf", 1, 0, len(page), page)], safety)
    claims = [*grounding.feed(f"{line} [1]."), *grounding.finish("stop")]
    assert line not in [claim.text.rstrip(".") for claim in claims]
    assert any(claim.kind is ClaimKind.QUOTE for claim in claims)


def test_a_running_line_is_neither_an_answer_nor_quoted(safety: RuleSafetyChecker) -> None:
    head = "Northmoor Hospital · Chest pain clinic"
    page = f"{head}\nThe chest pain is tight."
    passage = Passage("d:1", "d", "Letter.pdf", 1, 0, len(page), page)
    grounding = Grounding("Chest pain?", [passage], safety, running=[(0, 0, len(head))])
    claims = [*grounding.feed(f"{head} [1]."), *grounding.finish("stop")]
    assert [(claim.kind, claim.text) for claim in claims] == [(ClaimKind.QUOTE, "The chest pain is tight.")]


def test_a_denial_that_stands_alone_on_its_line_is_an_answer(safety: RuleSafetyChecker) -> None:
    text = "No known drug allergies\nShe lives alone in a flat on the second floor and walks with a stick."
    passage = Passage("d:1", "d", "Letter.pdf", 1, 0, len(text), text)
    grounding = Grounding("Any known drug allergies?", [passage], safety, is_everything=True)
    claims = [*grounding.feed("No known drug allergies [1]."), *grounding.finish("stop")]
    assert claims[0].kind is ClaimKind.ANSWER


def test_many_wrong_sentences_do_not_flood_the_answer_with_quotes(safety: RuleSafetyChecker) -> None:
    claims = answer(safety, " ".join(f"Warfarin {n} mg was given [1]." for n in range(11, 31)))
    assert sum(claim.kind is ClaimKind.QUOTE for claim in claims) <= MAX_QUOTES


def test_a_cut_off_sentence_is_dropped_as_half_of_it_may_say_the_opposite(safety: RuleSafetyChecker) -> None:
    grounding = Grounding("Chest pain?", [PASSAGE], safety)
    assert grounding.feed("She denies") == []
    assert grounding.finish("cancelled") == []


def test_with_nothing_to_show_the_answer_does_not_claim_that_the_record_is_silent(safety: RuleSafetyChecker) -> None:
    claims = shown(answer(safety, "Warfarin 7 mg was given in Paris [1].", "Who won the football game?"))
    assert [claim.text for claim in claims] == [NOTHING_FOUND]


def test_an_answer_that_ran_too_long_without_a_sentence_falls_back_to_the_record(safety: RuleSafetyChecker) -> None:
    grounding = Grounding("What is the apixaban dose?", [PASSAGE], safety)
    grounding.feed("and and and and and")
    assert [claim.kind for claim in grounding.finish("length")] == [ClaimKind.QUOTE]


class BrokenChecker(RuleSafetyChecker):
    """A checker whose claim check cannot run."""

    def check_claim(self, *args: object, **kwargs: object) -> ClaimCheck:
        finding = Finding("checker.fault", Verdict.UNAVAILABLE, 0, 0, "The check could not run.")
        return ClaimCheck(Verdict.UNAVAILABLE, supported=True, evidence={0: (0, 10)}, findings=(finding,))

    def check_document(self, text: str) -> CheckResult:
        return CheckResult(Verdict.UNAVAILABLE)


def test_a_check_that_cannot_run_withholds_even_what_looks_supported() -> None:
    claims = answer(BrokenChecker(), "Apixaban 5 mg twice daily [1].")
    assert claims[0].kind is ClaimKind.WITHHELD
    assert claims[0].verdict is Verdict.UNAVAILABLE


def test_keys_count_from_one_in_order_of_first_citation(safety: RuleSafetyChecker) -> None:
    other = Passage("e:0", "e", "Labs.json", 1, 0, 26, "Potassium 4.2 mmol/L today")
    grounding = Grounding("Potassium?", [PASSAGE, other], safety)
    claims = grounding.feed("Potassium 4.2 mmol/L [2]. ") + grounding.feed("Apixaban 5 mg twice daily [1]. ")
    claims += grounding.finish("stop")
    assert [(c.citations[0].document, c.citations[0].key) for c in claims] == [("Labs.json", 1), ("Letter.pdf", 2)]


OLD_LIST = "Metformin 500 mg twice daily. Ramipril 5 mg once daily."
NEW_LIST = "Metformin 1000 mg twice daily. Ramipril 5 mg once daily."


def conflicts(question: str, text: str, written: tuple[str, str] = ("", "")) -> list[Claim]:
    lists = [
        Passage(f"{number}:0", str(number), f"{number}.pdf", 1, 40, 40 + len(page), page)
        for number, page in enumerate((OLD_LIST, NEW_LIST))
    ]
    grounding = Grounding(question, lists, RuleSafetyChecker(), written=written)
    claims = [*grounding.feed(text), *grounding.finish("stop")]
    return [claim for claim in claims if claim.kind is ClaimKind.CONFLICT]


def test_two_doses_of_the_drug_in_an_answer_are_shown_with_both_pages() -> None:
    (conflict,) = conflicts("How much of it?", "She takes metformin 500 mg twice daily [1].")
    assert [citation.document for citation in conflict.citations] == ["0.pdf", "1.pdf"]
    assert [citation.quote for citation in conflict.citations] == [OLD_LIST[:29], NEW_LIST[:30]]
    assert conflict.citations[1].start == 40
    (finding,) = conflict.findings
    assert (finding.rule, finding.severity) == ("conflict.dose", Verdict.NOTICE)
    assert OLD_LIST[:29] in finding.evidence
    assert NEW_LIST[:30] in finding.evidence


def test_a_conflict_that_the_question_names_is_shown_whatever_the_answer() -> None:
    assert conflicts("Is she on metformin?", ABSTENTION)


def test_a_conflict_that_does_not_bear_on_the_answer_is_not_shown() -> None:
    assert not conflicts("What is her ramipril dose?", "Ramipril 5 mg once daily [1].")


def test_a_dose_changed_between_two_dated_notes_is_no_conflict() -> None:
    assert not conflicts("What is her metformin dose?", ABSTENTION, ("2025-01-07", "2026-02-11"))


@pytest.mark.parametrize(
    ("claim", "said", "hinted"),
    [
        ("She has no allergies [1].", "No known drug allergies.", "No allergies to the contrast given today."),
        ("She has no drug allergies [1].", "She has no drug allergies.", "No drug allergies were discussed."),
    ],
)
def test_a_general_denial_stands_on_an_outright_statement_or_the_whole_record(
    safety: RuleSafetyChecker, claim: str, said: str, hinted: str
) -> None:
    def first(text: str, is_everything: bool) -> Claim:
        passage = Passage("d:0", "d", "Letter.pdf", 1, 0, len(text), text)
        grounding = Grounding("Any allergies?", [passage], safety, is_everything=is_everything)
        return [*grounding.feed(f"{claim} "), *grounding.finish("stop")][0]

    assert first(said, is_everything=False).kind is ClaimKind.ANSWER
    assert first(hinted, is_everything=True).kind is ClaimKind.ANSWER
    withheld = first(hinted, is_everything=False)
    assert withheld.kind is ClaimKind.WITHHELD
    assert withheld.findings[-1].rule == "support.denial-of-part"
