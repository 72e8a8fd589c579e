"""From streamed model text to claims that may be shown: cut, check, cite, and replace what fails by the record's words.

Nothing reaches a caller unchecked. Knows nothing of the store, the page or the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from contracts import Citation, Claim, ClaimCheck, ClaimKind, Finding, Passage, Patient, SafetyChecker, Verdict
from retrieval.packing import Quote, only_repeats, quotes
from safety.claims import ClaimSplitter, citations_of, strip_citations
from safety.conflicts import Conflict, Place, find_conflicts
from safety.denials import is_general_denial, is_said_outright

# Not "the passages do not say": that would be a claim of ours, and nothing has shown it.
NOTHING_FOUND = "No sentence that answers this was found in the passages read. Look at the record itself."
# In the place of a model's "the passages do not say" where they may well: nobody checked that they do not.
SEE_CLOSEST = "The model gives no answer. These sentences of the record come closest to the question:"
MAX_QUOTES = 3  # in one answer, all withheld claims together
CLOSEST_QUOTES = 2  # beside an abstention


class Grounding:
    """Checks the claims of one answer against its passages, in order.

    `feed(text)` takes streamed text and returns the claims that became complete; `finish()` those that remain.
    """

    def __init__(
        self,
        question: str,
        passages: Sequence[Passage],
        safety: SafetyChecker,
        patient: Patient | None = None,
        written: Sequence[str] | None = None,
        is_everything: bool = False,
        running: Sequence[Quote] = (),
    ) -> None:
        """written: for each passage the ISO 8601 date of its note, "" where it is not known. is_everything: whether the
        passages are all there is, so that what none of them holds is not in the record. running: the lines that run
        from page to page, on which no answer may rest."""
        self.question = question
        self.passages = list(passages)
        self.safety = safety
        self.patient = patient
        self.written = [""] * len(self.passages) if written is None else written
        self.is_everything = is_everything
        self._splitter = ClaimSplitter()
        self._keys: dict[int, int] = {}  # passage index -> the n of [n], in order of first citation
        self._shown: set[str] = set()
        self._spans: list[Quote] = []  # what stands in the answer
        self._running = running
        self._empty: list[Quote] = list(running)  # what answers nothing
        self._num_quotes = 0
        self._has_abstained = False
        self._is_on_topic = False

    def feed(self, text: str) -> list[Claim]:
        """Claims completed by this text, each checked; none is ever taken back."""
        return [claim for part in self._splitter.feed(text) for claim in self._release(part)]

    def finish(self, finish_reason: str) -> list[Claim]:
        """The last claims; finish_reason is the generation's: "stop", "length", "cancelled" or "deadline".

        An answer that was cut off loses its unfinished sentence, as half a sentence can say the opposite of the whole.
        One with nothing to show falls back to quotes, unless the clinician stopped it. Where the record contradicts
        itself on what the answer rests on, or on what the question names, that comes last.
        """
        return [*self._rest(finish_reason), *self._conflicts()]

    def _rest(self, finish_reason: str) -> list[Claim]:
        rest = self._splitter.flush()
        claims = [claim for part in rest for claim in self._release(part)] if finish_reason == "stop" else []
        if finish_reason == "cancelled" or self._has_abstained or self._is_on_topic:
            return claims
        return [*claims, *self._fall_back()]

    def _release(self, text: str) -> list[Claim]:
        check = self.safety.check_claim(text, citations_of(text), self.passages, self.patient)
        words = strip_citations(text).strip()
        if words.casefold() in self._shown:
            return []  # small models repeat themselves
        if check.is_abstention and not check.verdict.withholds:
            return self._abstain(words, check)
        if check.supported and not check.verdict.withholds:
            if self._is_unproven(words, check):
                return self._withhold(words, replace(check, findings=(*check.findings, _unproven(words))))
            return self._answer(words, check)
        return self._withhold(words, check)

    def _is_unproven(self, words: str, check: ClaimCheck) -> bool:
        """Whether a claim denies something of a whole record of which a part was read, and no passage says so."""
        evidence = [self.passages[index].text[start:end] for index, (start, end) in check.evidence.items()]
        return not self.is_everything and is_general_denial(words) and not is_said_outright(words, evidence)

    def _answer(self, words: str, check: ClaimCheck) -> list[Claim]:
        if check.evidence and all(self._says_nothing(index, *span) for index, span in check.evidence.items()):
            self._empty += [(index, *span) for index, span in check.evidence.items()]
            return []  # true, and no answer
        self._shown.add(words.casefold())
        citations = tuple(self._cite(index, start, end) for index, (start, end) in sorted(check.evidence.items()))
        self._is_on_topic |= any(self._bears_on_question(citation) for citation in citations)
        return [Claim(words, ClaimKind.ANSWER, citations, check.verdict, check.findings)]

    def _says_nothing(self, index: int, start: int, end: int) -> bool:
        """Whether a span of a passage is a title that repeats the question, or a line that runs from page to page."""
        text = self.passages[index].text
        running = [(first, last) for where, first, last in self._running if where == index]
        told = (text[at] for at in range(start, end) if not any(first <= at < last for first, last in running))
        return only_repeats(self.question, text, start, end) or not any(map(str.isalnum, told))

    def _abstain(self, words: str, check: ClaimCheck) -> list[Claim]:
        if self._has_abstained:
            return []
        self._has_abstained = True
        closest = self._quote(CLOSEST_QUOTES)
        shown = SEE_CLOSEST if closest else words
        return [Claim(shown, ClaimKind.ABSTENTION, (), check.verdict, check.findings), *closest]

    def _withhold(self, words: str, check: ClaimCheck) -> list[Claim]:
        verdict = check.verdict if check.verdict.withholds else Verdict.HOLD
        withheld = Claim(words, ClaimKind.WITHHELD, (), verdict, check.findings)
        return [withheld, *self._quote(1)]

    def _fall_back(self) -> list[Claim]:
        """What is added to an answer of which no claim bears on the question: true, perhaps, but not what was asked."""
        quoted = self._quote(MAX_QUOTES)
        if quoted or self._num_quotes or self._shown:
            return quoted
        return [Claim(NOTHING_FOUND, ClaimKind.ABSTENTION)]

    def _conflicts(self) -> list[Claim]:
        """Only those that bear on this answer: a clinician who asks about a cough is not told of two doses."""
        found = find_conflicts(self.passages, self.written)
        return [self._show_conflict(conflict) for conflict in found if self._bears_on_answer(conflict)]

    def _bears_on_answer(self, conflict: Conflict) -> bool:
        is_cited = any(
            place.passage == index and place.start < end and start < place.end
            for place in conflict.places
            for index, start, end in self._spans
        )
        return is_cited or conflict.subject in self.question.casefold()

    def _show_conflict(self, conflict: Conflict) -> Claim:
        citations = tuple(self._cite_place(place) for place in conflict.places)
        evidence = " / ".join(citation.quote for citation in citations)
        finding = Finding(conflict.rule, Verdict.NOTICE, 0, len(conflict.message), conflict.message, evidence=evidence)
        return Claim(conflict.message, ClaimKind.CONFLICT, citations, Verdict.NOTICE, (finding,))

    def _cite_place(self, place: Place) -> Citation:
        return self._cite(place.passage, place.start, place.end)

    def _bears_on_question(self, citation: Citation) -> bool:
        page = Passage(
            "", citation.document_id, citation.document, citation.page, 0, len(citation.quote), citation.quote
        )
        return bool(quotes(self.question, [page], 1))

    def _quote(self, limit: int) -> list[Claim]:
        """The record's best sentences for the question that do not stand in the answer yet. The model's withheld words
        are no guide to them: they may be about anything."""
        limit = min(limit, MAX_QUOTES - self._num_quotes)
        if limit <= 0:
            return []
        claims = []
        for index, start, end in quotes(self.question, self.passages, limit, exclude=[*self._spans, *self._empty]):
            citation = self._cite(index, start, end)
            claims.append(Claim(citation.quote, ClaimKind.QUOTE, (citation,)))
        self._num_quotes += len(claims)
        return claims

    def _cite(self, index: int, start: int, end: int) -> Citation:
        """The citation of a span of a passage; start and end are offsets in the passage's text."""
        passage = self.passages[index]
        self._spans.append((index, start, end))
        return Citation(
            key=self._keys.setdefault(index, len(self._keys) + 1),
            document_id=passage.document_id,
            document=passage.document_name,
            page=passage.page,
            start=passage.start + start,
            end=passage.start + end,
            quote=passage.text[start:end],
            method=passage.method,
            confidence=passage.confidence,
        )


def _unproven(words: str) -> Finding:
    message = "It denies this for the whole record, of which only a part was read, and no passage says so outright."
    return Finding("support.denial-of-part", Verdict.HOLD, 0, len(words), message, evidence=words)
