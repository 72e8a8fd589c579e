"""Pages -> what they tell about the document itself: whose it is, when, by whom, what kind of note, what repeats.

Each fact keeps the words it was read from. Looks for labelled values only ("DOB: ..."), so that a relative's name in
the prose is never taken for the patient's. Running headers and footers (retrieval.reading.running) and paragraphs
carried forward from page to page are marked, not removed: what is left out cannot be found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from contracts import Fact, FactKind, Page, PageFacts
from retrieval.reading.dates import find_dates
from retrieval.reading.running import find_running_lines
from retrieval.reading.sections import find_sections

_NAME_LABELS = (
    r"patient(?:['’]s)?(?: name)?|name of patient|(?<=\n)name|^name|pt(?:\.| name)|病人姓名|患者姓名|姓\s?名|患者"
)
_BIRTH_LABELS = r"date of birth|birth ?date|d\.?o\.?b\.?|born(?: on)?|出生日期|出生年月|生日"
_NUMBER_LABELS = (
    r"m\.?r\.?n\.?|medical record (?:number|no\.?|#)|record (?:number|no\.?)|hospital (?:number|no\.?)"
    r"|nhs (?:number|no\.?)"
    r"|patient (?:id|identifier|number|no\.?)|chart (?:number|no\.?)|病历号|病案号|住院号|门诊号|登记号"
)
_DATE_LABELS = (
    r"date(?: of (?:visit|service|admission|discharge|report|note|exam(?:ination)?))?|visit date|service date|note date"
    r"|report date|admission date|discharge date|admitted|discharged|dictated|signed(?: on)?"
    r"|日期|入院日期|出院日期|就诊日期|报告日期"
)
_AUTHOR_LABELS = (
    r"author|dictated by|electronically signed by|signed by|attending(?: physician)?|physician|provider|consultant"
    r"|doctor"
    r"|医师|主治医师|医生|记录者|报告医师"
)
_NOTE_TYPES = (
    "discharge (?:summary|letter)|progress note|operative (?:report|note)|history and physical"
    "|consultation(?: note| report)?"
    "|clinic (?:letter|note)|radiology report|pathology report|laboratory report|referral(?: letter)?|admission note"
    "|nursing note|emergency department note|health summary|continuity of care document|medication list"
    "|echocardiogram report"
    "|出院小结|出院记录|入院记录|病程记录|手术记录|会诊记录|门诊病历|检验报告|影像报告"
)
_NAME = r"[A-Z][\w'’.-]*(?:[ ,]+[A-Z][\w'’.-]*){1,4}|[\u4e00-\u9fff·]{2,6}"
_TITLES = re.compile(r"(?:\b(?:mrs|mr|ms|miss|dr|prof|sir|dame)\b\.?\s*)", re.I)
_LABEL_END = r"\s?[:：#|]\s?[|:：]?\s?"


def _labelled(labels: str, value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w])(?i:{labels}){_LABEL_END}(?P<value>{value})")


_PATTERNS = {
    FactKind.PATIENT_NAME: _labelled(_NAME_LABELS, rf"(?:(?i:mrs|mr|ms|miss|dr)\.? )?(?:{_NAME})"),
    FactKind.RECORD_NUMBER: _labelled(_NUMBER_LABELS, r"[A-Z0-9][A-Z0-9-]{2,20}(?: \d{3} \d{4})?"),
    FactKind.AUTHOR: _labelled(_AUTHOR_LABELS, rf"(?:(?i:dr|prof)\.? )?(?:{_NAME})"),
}
_DATED = {
    FactKind.BIRTH_DATE: re.compile(rf"(?<![\w])(?i:{_BIRTH_LABELS})(?:{_LABEL_END}|\s+)"),
    FactKind.NOTE_DATE: re.compile(rf"(?<![\w])(?i:{_DATE_LABELS}){_LABEL_END}"),
}
_NOT_A_NAME = re.compile(
    r"(?i)\b(?:date|dob|sex|male|female|mrn|age|name|number|record|education|presents|reports|unknown|note|position|id"
    r"|denies|states|has|had|was|is|with|who|seen|admitted|complains|history)\b"
)
_MIN_COPIED_CHARS = 120  # shorter sentences are written anew in the same words ("No acute distress.")
_IDENTITY = (FactKind.PATIENT_NAME, FactKind.BIRTH_DATE, FactKind.RECORD_NUMBER)


def find_facts(pages: Sequence[Page]) -> dict[int, PageFacts]:
    """Page number -> sections and facts of every page; headers and copies are known by looking at all together."""
    sections = find_sections(pages)
    facts = {page.number: [*_labelled_facts(page), *_dated_facts(page), *_note_types(page)] for page in pages}
    identity = {number: [fact for fact in found if fact.kind in _IDENTITY] for number, found in facts.items()}
    for fact in [*find_running_lines(pages, identity), *_copied_paragraphs(pages)]:
        facts[fact.page].append(fact)
    ordered = {number: sorted(found, key=lambda fact: (fact.start, fact.end)) for number, found in facts.items()}
    return {number: PageFacts(number, sections[number], tuple(found)) for number, found in ordered.items()}


def _labelled_facts(page: Page) -> Iterator[Fact]:
    for kind, pattern in _PATTERNS.items():
        for match in pattern.finditer(page.text):
            start, end = match.span("value")
            value = page.text[start:end]
            if kind is not FactKind.RECORD_NUMBER:
                cut = _NOT_A_NAME.search(value)
                value = (value[: cut.start()] if cut else value).rstrip(" ,.")
                value = _TITLES.sub("", value) if len(value.split()) > 1 else value
                end = start + len(page.text[start:end][: cut.start()].rstrip(" ,.")) if cut else end
            elif not any(character.isdigit() for character in value):
                continue
            if len(value) >= 2 and (kind is FactKind.RECORD_NUMBER or " " in value or value >= "\u4e00"):
                yield Fact(kind, value, page.number, start, end)


def _dated_facts(page: Page) -> Iterator[Fact]:
    dates = find_dates(page.text)
    for kind, pattern in _DATED.items():
        for match in pattern.finditer(page.text):
            after = next((found for found in dates if match.end() <= found.start <= match.end() + 2), None)
            if after:
                yield Fact(kind, after.iso, page.number, after.start, after.end)


def _note_types(page: Page) -> Iterator[Fact]:
    head = page.text[:600]
    if match := re.search(rf"(?i)(?:{_NOTE_TYPES})", head):
        yield Fact(FactKind.NOTE_TYPE, match[0], page.number, *match.span())


def _copied_paragraphs(pages: Sequence[Page]) -> Iterator[Fact]:
    """Paragraphs that stand word for word on an earlier page."""
    first: dict[str, int] = {}
    for page in pages:
        for match in re.finditer(r"[^\n]+(?:\n[^\n]+)*", page.text):
            words = "".join(match[0].casefold().split())
            if len(words) < _MIN_COPIED_CHARS:
                continue
            if (origin := first.setdefault(words, page.number)) != page.number:
                yield Fact(FactKind.COPIED, f"page {origin}", page.number, *match.span())
