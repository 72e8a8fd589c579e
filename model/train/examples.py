"""Groups of training examples: a few passages, and questions that they answer or do not.

A group is made from a seed alone, so example n of a run is always the same. Knows nothing of tokens or of the prompt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from contracts import Passage, Patient
from model.train import chinese, situations, topics, wording
from model.train.asks import ASKS, LOOKUPS, LOOKUPS_TWO, LOOKUPS_ZH
from model.train.corpora import Text
from model.train.records import Key, Line, Person, Sheet, invent_drug, synonyms, write_sheet, write_topic

ABSTENTION = "The passages do not say."
MAX_CLAIMS = 5
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9'’/-]+")
_PHRASE = re.compile(r"[A-Za-z0-9][\w'’/%.-]*[\w%](?: [\w'’/%.-]*[\w%]){0,2}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]{3,7}")
_SUBJECT = re.compile(
    r"^((?:The |A |An )?(?:[\w'’-]+ ){1,5})(is|are|was|were|can|causes|include|includes|affects|may) "
)
_STOPWORD_LIST = """
a about after all also an and any are as at be because been before being but by can could did do does due
during each for from had has have he her him his how if in into is it its like many may might more most
much no not of often on one or other our out over patient patients she should some such than that the their
them then there these they this to two up use used very was we were what when where which while who will
with within would you your
"""
_STOPWORDS = frozenset(_STOPWORD_LIST.split())


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of an answer, verbatim in its passage (0-based)."""

    text: str
    passage: int


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its claims; none means that the passages do not say. history: earlier (question, answer); said:
    what is to be said instead of claims; opening: what is said before them, without a citation."""

    question: str
    claims: tuple[Claim, ...]
    history: tuple[tuple[str, str], ...] = ()
    said: str = ""
    opening: str = ""

    @property
    def answer(self) -> str:
        cited = " ".join(cite(c.text, c.passage + 1) for c in self.claims) or ABSTENTION
        return self.said or f"{self.opening} {cited}".lstrip()


@dataclass(frozen=True, slots=True)
class Group:
    """Passages and the questions asked of them."""

    passages: tuple[Passage, ...]
    items: tuple[Item, ...]
    patient: Patient | None = None


_BULLET = re.compile(r"^(?:[-•|*] ?|\d{1,2}[.)] )+|[ |]+$")


def claim_of(text: str, passage: int) -> Claim:
    """The claim that a line makes: its words without bullet, number or outer table bars, still verbatim in it."""
    return Claim(_BULLET.sub("", text.strip()), passage)


def cite(text: str, key: int) -> str:
    """ "He smokes." -> "He smokes [2]."; a line without a full stop gets one."""
    text = text.strip()
    end = text[-1] if text[-1:] in ".!?。！？" else "."
    return f"{text.rstrip('.!?。！？ ')} [{key}]{end}"


# Of the invented records, how many hold two documents that disagree; of their questions, how many lean on the one
# before, are no question about the record, or are the patient's own.
SHARES: Mapping[str, float] = {"conflict": 0.08, "follow_up": 0.1, "no_question": 0.0, "to_patient": 0.0}
CHINESE_RECORDS = 42  # weight among the sources below


class ExampleMaker:
    """Makes groups: of invented records, and of the public texts given. size 0..1 is how long passages may be."""

    def __init__(self, texts: dict[str, list[Text]], shares: Mapping[str, float] = SHARES) -> None:
        self.texts = texts
        self.shares = {**SHARES, **shares}
        self.by_group: dict[str, list[Text]] = {}
        for text in (t for part in texts.values() for t in part):
            self.by_group.setdefault(f"{text.source}/{text.group}", []).append(text)

    def make(self, seed: str, size: float, num_items: int, kind: str = "") -> Group:
        """A group of up to num_items questions (at least one); kind "record" or "text" restricts it to that."""
        rng = random.Random(seed)
        sources = [s for s in ("medquad", "pubmedqa", "openstax", "notes", "charts", "zh") if self.texts.get(s)]
        weights = {"medquad": 8, "pubmedqa": 2, "openstax": 8, "notes": 9, "charts": 4, "zh": 8}
        of_record = {"record": 1, "text": 0}.get(kind, 46)
        of_chinese = {"record": 1 / 2, "text": 0}.get(kind, CHINESE_RECORDS)
        source = rng.choices(
            ["record", "zh_record", *sources],
            [of_record, of_chinese, *(kind != "record" and weights[s] for s in sources)],
        )[0]
        if source == "record":
            group = self._from_record(rng, size, num_items)
        elif source == "zh_record":
            group = self._from_chinese_record(rng, size, num_items)
        else:
            group = self._from_texts(rng, source, size, num_items)
        return group if group.items else self.make(f"{seed}+", size, num_items, kind)

    # --- invented records ---------------------------------------------------------------------------------------

    def _from_record(self, rng: random.Random, size: float, num_items: int) -> Group:
        person = Person(rng)
        max_lines = max(2, round(2 + size * rng.uniform(2, 9)))
        sheets = [write_sheet(person, rng.randint(2, max_lines)) for _ in range(_num_passages(rng, size))]
        gone = _facts([write_sheet(person, rng.randint(3, max(3, max_lines)))])  # of a sheet that is not shown
        if rng.random() < 0.06:
            sheets[0] = _inject(sheets[0], rng)
        disputed = None
        if len(sheets) > 1 and rng.random() < self.shares["conflict"]:
            disputed = _disagree(rng, person, sheets)
        facts = _facts(sheets)
        lines = [(i, line) for i, sheet in enumerate(sheets) for line in sheet.lines if len(line.text) > 15]
        whole = "\n".join(" ".join(sheet.text.split()) for sheet in sheets)
        items: list[Item] = []
        keys = sorted(facts)
        for _ in range(num_items):
            draw = rng.random()
            item: Item | None
            if disputed in facts and not items:
                item = Item(_ask(rng, disputed, person), tuple(_distinct(facts[disputed])[:MAX_CLAIMS]))
            elif rng.random() < self.shares["no_question"]:
                question, said = situations.no_question(rng, is_chinese=False)
                item = Item(question, (), said=said)
            elif rng.random() < self.shares["follow_up"]:
                item = _follow_up(rng, facts, person)
            elif draw < 0.13:
                item = of_gone(gone, facts, whole, rng, lambda key: _ask(rng, key, person))
            elif draw < 0.27 or not keys:
                item = _unanswerable(rng, person, facts, whole)
            elif draw < 0.36 and lines:
                _, line = rng.choice(lines)
                item = _look_up(rng, line.text, [(i, x.text) for i, x in lines])
            else:
                key = rng.choice(keys)
                item = Item(_ask(rng, key, person), tuple(_distinct(facts[key])[:MAX_CLAIMS]))
            if item is not None:
                items.append(self._to_patient(rng, item))
        return Group(_passages(sheets, rng), _with_history(rng, items), _patient(rng, person))

    def _to_patient(self, rng: random.Random, item: Item) -> Item:
        if item.said or not item.claims or rng.random() >= self.shares["to_patient"]:
            return item
        question = rng.choice(situations.TO_PATIENT).format(q=item.question)
        return replace(item, question=question, opening=situations.COMFORT)

    def _from_chinese_record(self, rng: random.Random, size: float, num_items: int) -> Group:
        max_lines = max(2, round(2 + size * rng.uniform(1, 8)))
        sheets = [chinese.write_sheet(rng, max_lines) for _ in range(_num_passages(rng, size))]
        gone = _facts([chinese.write_sheet(rng, max_lines)])
        if rng.random() < 0.06:
            sheets[0] = _inject(sheets[0], rng, chinese.INJECTIONS)
        disputed = None
        if len(sheets) > 1 and rng.random() < self.shares["conflict"]:
            disputed = topics.key_of(rng.randrange(len(topics.load_topics("zh"))))
            number = int(disputed[0].split()[1])
            for index in rng.sample(range(len(sheets)), 2):
                sheets[index] = _insert(sheets[index], chinese.write_topic(rng, number), rng)
        facts, whole = _facts(sheets), "".join(sheet.text for sheet in sheets)
        items: list[Item] = []
        for _ in range(num_items):
            draw = rng.random()
            item: Item | None = None
            if disputed in facts and not items:
                item = Item(chinese.ask(rng, disputed), tuple(_distinct(facts[disputed])[:MAX_CLAIMS]))
            elif rng.random() < self.shares["no_question"]:
                question, said = situations.no_question(rng, is_chinese=True)
                item = Item(question, (), said=said)
            elif rng.random() < self.shares["follow_up"]:
                item = _follow_up_chinese(rng, facts)
            elif draw < 0.14:
                item = of_gone(gone, facts, whole, rng, lambda key: chinese.ask(rng, key))
            elif draw < 0.28 or not facts:
                key = chinese.absent_key(rng, whole)
                item = Item(chinese.ask(rng, key), ()) if key is not None and key not in facts else None
            else:
                key = rng.choice(sorted(facts))
                item = Item(chinese.ask(rng, key), tuple(_distinct(facts[key])[:MAX_CLAIMS]))
            if item is not None:
                items.append(item)
        return Group(_passages(sheets, rng, "zh"), _with_history(rng, items))

    # --- public texts -------------------------------------------------------------------------------------------

    def _from_texts(self, rng: random.Random, source: str, size: float, num_items: int) -> Group:
        wanted = rng.choice(self.texts[source])
        siblings = self.by_group[f"{wanted.source}/{wanted.group}"]
        pool = [t for t in siblings if t is not wanted]
        chosen = [wanted, *rng.sample(pool, min(len(pool), rng.randint(0, 3)))]
        while len(chosen) < _num_passages(rng, size):
            chosen.append(rng.choice(self.texts[source]))
        rng.shuffle(chosen)
        max_chars = round(180 + size * rng.uniform(150, 800))
        sheets = [_text_sheet(rng, text, max_chars) for text in chosen]
        if rng.random() < 0.06:
            sheets[0] = _inject(sheets[0], rng)
        lines = [(i, line.text) for i, sheet in enumerate(sheets) for line in sheet.lines if len(line.text) > 12]
        whole = "\n".join(" ".join(sheet.text.split()) for sheet in sheets)
        items: list[Item] = []
        kinds: dict[str, list[Claim]] = {}
        for index, (text, sheet) in enumerate(zip(chosen, sheets, strict=True)):
            heads = [
                claim_of(s, index)
                for s in text.sentences[: text.num_answers]
                if any(s == line.text for line in sheet.lines)
            ]
            if text.question and not text.question.startswith("#") and heads:
                items.append(Item(text.question, tuple(heads)))
            if text.kind in ASKS and heads:
                kinds.setdefault(text.kind, []).extend(heads)
        rng.shuffle(items)
        items = items[: max(1, num_items // 3)]
        person = Person(rng)
        items += [Item(_ask(rng, (k, ""), person), tuple(_distinct(c)[:MAX_CLAIMS])) for k, c in sorted(kinds.items())][
            :2
        ]
        for _ in range(num_items - len(items)):
            if rng.random() < 0.2:
                item = self._foreign(rng, source, whole)
            else:
                item = _look_up(rng, rng.choice(lines)[1], lines) if lines else None
            if item is not None:
                items.append(item)
        return Group(_passages(sheets, rng), _with_history(rng, items))

    def _foreign(self, rng: random.Random, source: str, whole: str) -> Item | None:
        """A question about another text, which these passages cannot answer."""
        other = rng.choice(self.texts[source])
        folded = whole.casefold()
        if other.question and not other.question.startswith("#") and rng.random() < 0.5:
            words = [x for x in _WORD.findall(other.question) if x[0].isupper() or len(x) > 7] or _CHINESE.findall(
                other.question
            )
            subject = max(words[1:] or words, key=len, default="")
            return Item(other.question, ()) if subject and subject.casefold() not in folded else None
        item = _look_up(rng, rng.choice(other.sentences), [])
        if item is None:
            return None
        words = [x.casefold() for x in _WORD.findall(item.question) if len(x) > 4] or _CHINESE.findall(item.question)
        asked = [
            x for x in words if x not in ("record", "passages", "information", "document", "mentioned", "summarise")
        ]
        return Item(item.question, ()) if asked and not any(x in folded for x in asked) else None


def _num_passages(rng: random.Random, size: float) -> int:
    return rng.randint(1, 3) if size < 0.2 else rng.choice((2, 3, 3, 4, 4, 5, 6, 7, 9))


def _facts(sheets: Sequence[Sheet]) -> dict[Key, list[Claim]]:
    facts: dict[Key, list[Claim]] = {}
    for index, sheet in enumerate(sheets):
        for line in sheet.lines:
            for key in line.keys:
                facts.setdefault(key, []).append(claim_of(line.text, index))
    return facts


def _insert(sheet: Sheet, line: Line, rng: random.Random) -> Sheet:
    lines = list(sheet.lines)
    lines.insert(rng.randint(0, len(lines)), line)
    return replace(sheet, lines=tuple(lines))


def _inject(sheet: Sheet, rng: random.Random, forged: Sequence[str] = wording.INJECTIONS) -> Sheet:
    return _insert(sheet, Line(rng.choice(forged)), rng)


def _disagree(rng: random.Random, person: Person, sheets: list[Sheet]) -> Key:
    """Puts two lines that disagree into two of the sheets; returns what they disagree about."""
    if rng.random() < 0.5:
        number = rng.randrange(len(topics.load_topics("en")))
        key, lines = topics.key_of(number), [write_topic(person, number) for _ in (0, 1)]
    else:
        key, *lines = situations.conflict(person)
    for index, line in zip(rng.sample(range(len(sheets)), 2), lines, strict=True):
        sheets[index] = _insert(sheets[index], line, rng)
    return key


def _follow_up(rng: random.Random, facts: Mapping[Key, list[Claim]], person: Person) -> Item | None:
    """A question that names only what is new in it: "And the sodium?" after one about the potassium."""
    kind = rng.choice(("lab", "dose", "vital", "imaging"))
    keys = sorted(key for key in facts if key[0] == kind)
    if len(keys) < 2:
        return None
    before, asked = rng.sample(keys, 2)
    first = Item(_ask(rng, before, person), tuple(_distinct(facts[before])[:2]))
    question = rng.choice(situations.FOLLOW_UPS).format(x=rng.choice(synonyms(kind, asked[1])))
    return Item(question, tuple(_distinct(facts[asked])[:MAX_CLAIMS]), ((first.question, first.answer),))


def _follow_up_chinese(rng: random.Random, facts: Mapping[Key, list[Claim]]) -> Item | None:
    kind = rng.choice(("lab", "dose", "imaging", "vital"))
    keys = sorted(key for key in facts if key[0] == kind)
    if len(keys) < 2:
        return None
    before, asked = rng.sample(keys, 2)
    first = Item(chinese.ask(rng, before), tuple(_distinct(facts[before])[:2]))
    question = rng.choice(situations.FOLLOW_UPS_ZH).format(x=asked[1])
    return Item(question, tuple(_distinct(facts[asked])[:MAX_CLAIMS]), ((first.question, first.answer),))


def _text_sheet(rng: random.Random, text: Text, max_chars: int) -> Sheet:
    sentences = list(text.sentences)
    start = 0 if text.question or rng.random() < 0.5 else rng.randrange(len(sentences))
    kept = sentences[start : start + 1]
    for sentence in sentences[start + 1 :]:
        if sum(map(len, kept)) + len(sentence) > max_chars:
            break
        kept.append(sentence)
    kind = (
        rng.choice(tuple(wording.DOCUMENTS))
        if text.source not in ("medquad", "openstax", "glossary", "pubmedqa")
        else "letter"
    )
    names = (
        wording.DOCUMENTS[kind]
        if text.source in ("aci", "mts", "primock", "chart", "zh")
        else ("guideline", "textbook", "leaflet", "article", "review")
    )
    joiner = "" if text.source == "zh" else "\n" if text.source in ("chart", "primock") or rng.random() < 0.2 else " "
    width = rng.randint(60, 130) if joiner == " " and rng.random() < 0.35 else 0
    return Sheet(
        rng.choice(names) + rng.choice(wording.EXTENSIONS[kind]),
        rng.randint(1, 40),
        tuple(Line(s) for s in kept),
        joiner,
        width,
    )


def _passages(sheets: Sequence[Sheet], rng: random.Random, language: str = "en") -> tuple[Passage, ...]:
    """The sheets as passages; over some stands what the product writes there of a section, a date or columns."""

    def context() -> str:
        day = {"y": rng.randint(2015, 2027), "m": rng.randint(1, 12), "d": rng.randint(1, 28)}
        return rng.choice(wording.CONTEXTS[language]).format(**day) if rng.random() < 0.3 else ""

    return tuple(
        Passage(f"p{i}", f"d{i}", sheet.document, sheet.page, 0, len(sheet.text), sheet.text, context=context())
        for i, sheet in enumerate(sheets)
    )


def of_gone(
    gone: Mapping[Key, list[Claim]],
    facts: Mapping[Key, list[Claim]],
    whole: str,
    rng: random.Random,
    ask: Callable[[Key], str],
) -> Item | None:
    """A question that a sheet which is not shown would have answered, and none of those shown does."""
    folded = whole.casefold()
    keys = [key for key in sorted(gone) if key not in facts and not (key[1] and key[1].casefold() in folded)]
    keys = [key for key in keys if not key[0].startswith("lab_")]
    return Item(ask(rng.choice(keys)), ()) if keys else None


def _distinct(claims: Sequence[Claim]) -> list[Claim]:
    return list({claim.text: claim for claim in reversed(claims)}.values())[::-1]


def _ask(rng: random.Random, key: Key, person: Person) -> str:
    """A question for a key; ("lab_on 3 March 2026", "Potassium") carries its date in the kind."""
    kind, _, when = key[0].partition(" ")
    template = rng.choice(topics.load_topics("en")[int(when)].ask if kind == topics.KIND else ASKS[kind])
    named = rng.choice(synonyms(kind, key[1]))
    words = (
        dict(person.words)
        if rng.random() < 0.6
        else {"he": "the patient", "his": "the patient's", "him": "the patient"}
    )
    question = template.format(**{**words, "x": named, "date": when, "month": when})
    return _vary(rng, question)


def _vary(rng: random.Random, question: str) -> str:
    if rng.random() < 0.08:
        return rng.choice(wording.LEADS).format(q=question[0].lower() + question[1:])
    question = question[0].upper() + question[1:] if rng.random() < 0.8 else question[0].lower() + question[1:]
    return question.rstrip("?.") if rng.random() < 0.08 else question


def _unanswerable(rng: random.Random, person: Person, facts: dict[Key, list[Claim]], whole: str) -> Item | None:
    """A question whose fact is in none of the lines: another drug, test or date, or a fact not stated of this one."""
    if rng.random() < 0.45:
        topic = topics.key_of(rng.randrange(len(topics.load_topics("en"))))
        return Item(_ask(rng, topic, person), ()) if topic not in facts else None
    kind = rng.choice([*ASKS, "lab", "lab", "lab_on", "dose", "dose", "stopped", "imaging", "reaction"])
    entity, suffix = "", ""
    if kind.startswith("lab"):
        entity = (
            rng.choice([k[1] for k in facts if k[0] == "lab"] or ["Potassium"])
            if kind != "lab"
            else rng.choice(wording.LABS)[0]
        )
        if kind != "lab":
            day = person.day(900)
            suffix = f" {day:%B %Y}" if kind == "lab_month" else f" {person.write(day)}"
            if suffix.strip().casefold() in whole.casefold() or f"{day:%B}" in whole or day.isoformat()[:7] in whole:
                return None
    elif kind in ("dose", "started", "stopped", "changed", "indication"):
        present = [k[1] for k in facts if k[0] in ("dose", "stopped")]
        is_near = kind != "dose" and present and rng.random() < 0.4
        entity = rng.choice(present) if is_near else invent_drug(rng)[0]
    elif kind == "vital":
        entity = rng.choice(wording.VITALS)[0]
    elif kind == "imaging":
        entity = rng.choice(wording.IMAGING)[0]
    elif kind in ("procedure", "vaccine", "reaction", "problem"):
        table = {
            "procedure": wording.PROCEDURES,
            "vaccine": wording.VACCINES,
            "reaction": wording.ALLERGENS,
            "problem": wording.PROBLEMS,
        }
        entity = rng.choice(table[kind])
    names = {n.casefold() for n in synonyms(kind, entity)} if entity else set()
    is_named = any(re.search(rf"\b{re.escape(n)}\b", whole, re.IGNORECASE) for n in names)
    if (f"{kind}{suffix}", entity) in facts or (
        is_named and kind not in ("started", "stopped", "changed", "indication", "lab_on", "lab_month")
    ):
        return None
    if kind == "started" and ("changes", "") in facts and is_named:
        return None
    return Item(_ask(rng, (f"{kind}{suffix}", entity), person), ())


def _look_up(rng: random.Random, sentence: str, lines: Sequence[tuple[int, str]]) -> Item | None:
    """A question by a phrase of the sentence, answered by every line that holds the phrase (at most two)."""
    if match := _SUBJECT.match(sentence):
        subject = match[1].strip()
        content = [x for x in subject.split() if x.casefold() not in _STOPWORDS]
        if content and rng.random() < 0.35:
            verb = match[2] if match[2] in ("is", "are", "was", "were") else "is"
            return _with_claims(_vary(rng, f"What {verb} {subject[0].lower() + subject[1:]}?"), (subject,), lines)
    phrases = _phrases(rng, sentence)
    if not phrases:
        return None
    if _CHINESE.search(sentence):
        return _with_claims(rng.choice(LOOKUPS_ZH).format(x=phrases[0]), phrases[:1], lines)
    if len(phrases) > 1 and rng.random() < 0.3:
        x, y = phrases[:2]
        return _with_claims(_vary(rng, rng.choice(LOOKUPS_TWO).format(x=x, y=y)), (x, y), lines)
    return _with_claims(_vary(rng, rng.choice(LOOKUPS).format(x=phrases[0])), phrases[:1], lines)


def _with_claims(question: str, phrases: Sequence[str], lines: Sequence[tuple[int, str]]) -> Item | None:
    claims = _distinct(
        [claim_of(text, i) for i, text in lines if all(p.casefold() in text.casefold() for p in phrases)]
    )
    return Item(question, tuple(claims)) if len(claims) <= 2 else None


def _phrases(rng: random.Random, sentence: str) -> list[str]:
    """Telling stretches of one to three words, in random order."""
    if _CHINESE.search(sentence):
        found = [m for part in _CHINESE.findall(sentence) for m in (part,)]
        rng.shuffle(found)
        return found
    words = sentence.split()
    found = []
    for start in range(len(words)):
        span = words[start : start + rng.choice((1, 1, 2, 2, 3))]
        bare = [x.strip('.,;:()[]"“”•?!') for x in span]
        phrase = " ".join(bare)
        edges_tell = bare and all(len(x) > 3 and x.casefold() not in _STOPWORDS for x in (bare[0], bare[-1]))
        if edges_tell and phrase in sentence and len(phrase) > 4 and "|" not in phrase:
            found.append(phrase)
    rng.shuffle(found)
    return found


def _with_history(rng: random.Random, items: Sequence[Item]) -> tuple[Item, ...]:
    """One item in six is asked after one or two others."""
    result = []
    for item in items:
        earlier = [x for x in items if x.question != item.question and len(x.answer) < 300]
        if earlier and not item.history and rng.random() < 0.17:
            turns = rng.sample(earlier, min(len(earlier), rng.choice((1, 1, 2))))
            item = replace(item, history=tuple((t.question, t.answer) for t in turns))
        result.append(item)
    return tuple(result)


def _patient(rng: random.Random, person: Person) -> Patient | None:
    if rng.random() > 0.5:
        return None
    return Patient(
        age_years=rng.randint(19, 94),
        sex=person.sex,
        weight_kg=round(rng.uniform(45, 120), 1) if rng.random() < 0.5 else None,
        pregnant=True if person.sex == "female" and rng.random() < 0.1 else None,
        egfr_ml_min=rng.randint(10, 95) if rng.random() < 0.5 else None,
    )
