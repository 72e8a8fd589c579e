"""The guard as a model check: what a question asks for, and what a document's sentences ask of whoever reads them.

A question is judged whole and by its sentences, a document by its sentences alone: of an attack inside 150 words the
embedding finds 4 %, of its own sentence 69 % and more. Where the guard abstains the judge is asked, and where there is
none the text is held. A sentence of a question that alarms is read once more with those around it, where what it is
about often stands: "He went grey and collapsed. That was in 2019."
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from contracts import DOUBTED, Direction, Finding, Verdict
from safety.assertion import is_exam_question, is_history
from safety.guard.conformal import TARGETS, Opinion, Thresholds, has_han, num_han, threshold_name
from safety.guard.encoder import Base, FloatArray, GuardEncoder, WeightsError
from safety.guard.judge import Judge
from safety.model_check import ModelInput
from safety.normalise import NormalisedText, normalise
from safety.sentences import sentence_spans
from safety.strict_yaml import load_strict

FOLDER = Path(__file__).resolve().parent
WEIGHTS = FOLDER / "weights"
ENCODERS = ("minilm", "e5", "mpnet")  # whose logits are averaged
THRESHOLDS = FOLDER / "thresholds.yaml"
SOURCE = "Bedside guard: a classifier trained on public and authored sets, see safety/guard/MODEL_CARD.md"
MAX_WHOLE, MAX_SENTENCE = 600, 400  # characters judged at once
_MIN_LETTERS = 4
_INPUT_DEADLINE_S = 20.0  # a few milliseconds are the rule; a starved machine was seen to take seconds
_CHARACTERS_A_SECOND = 1500.0  # of a document; a tenth of what two free cores do
_URGENT = ("emergency", "self-harm")
_HELD = ("harm", "errand")
# Logits under its threshold from which a sentence with those around it says that the sentence is not meant so, and from
# which the guard doubts an emergency that a rule has named, self-harm later than others. See MODEL_CARD.md.
_EXPLAINED_BELOW = {"harm": 3.0, "override": 4.25, "emergency": 1.0, "self-harm": 1.0}
_TIMES = 2.0  # among more sentences than are read with it: as many times what an emergency lies above its threshold
_DOUBTED_BELOW, _DOUBTED_BELOW_ZH, _SELF_HARM_DOUBTED_BELOW = 3.5, 3.0, 4.0
# Each sentence of a long text is one more that may be mistaken: the odds of one fall with their number, here from so
# many on, each time by a logit where they are e times as many. Not of emergencies, which are worth a false alarm.
_ODDS_FALL_FROM = {"harm": 1.5, "harm.zh": 3.0, "override.zh": 3.0}
_NOTED_FROM = 0.5  # logits above its threshold from which an emergency that is explained is still noted
_NUM_AROUND = 3  # sentences read together
_MAX_AROUND = 360  # characters, a Chinese one counted as three: about what the encoders read at once
# Logits more that it takes in an examination question, and in a line of past or family history: "Not an exam: woman at
# 34 weeks fitting", "FHx: mother completed suicide, pt says it's her turn".
_OF_OTHERS = 2.0
_MAYBE = {
    "en": "What is described may be urgent. If somebody is unwell now, ",
    "zh": "所述情况可能紧急。如当事人目前不适，",
}
_MESSAGES = {
    "harm": "This seems to ask for help with something that would harm a patient or another person, so it is held. If "
    "that is not meant, say what it is for; to report harm, use your organisation's route.",
    "override": "This seems to ask the program to leave its rules. It answers by them all the same.",
    "emergency": f"{_MAYBE['en']}assess airway, breathing and circulation and follow the local emergency protocol "
    "first.",
    "emergency.zh": f"{_MAYBE['zh']}请先评估气道、呼吸和循环，并立即按本院急救流程处理。",
    "self-harm": "Possible risk to life by self-harm. Do not leave the person alone; follow the local mental health "
    "crisis protocol now. If you yourself are at risk, call your emergency number or a crisis line (988 in the US, "
    "116 123 in the UK and Ireland, 12356 in China).",
    "self-harm.zh": "可能存在自伤或自杀风险。请勿让当事人独处，立即启动本院心理危机流程。如果是您本人处于危险中，"
    "请拨打急救电话或心理援助热线12356。",
    "errand": "This sentence asks something of whoever processes the document. It was not obeyed and is kept from the "
    "model; look at where the document comes from.",
}
_DOUBTS = {
    "en": "“{evidence}” reads as past, denied, another person's or asked in general. If somebody is in danger now: "
    "{message}",
    "zh": "“{evidence}”看来是既往、已否认、他人的或一般性的提问。如当事人目前有危险：{message}",
}
_UNSURE = " The guard is not sure."
_SELF_HARM_RULE = "emergency.self-harm"
_RULES = {target: f"model.{target}" for target in TARGETS} | {"self-harm": f"model.{_SELF_HARM_RULE}"}


class Scorer(Protocol):
    """What the check needs of an encoder."""

    def score(self, texts: Sequence[str], is_document: bool = False) -> dict[str, FloatArray]: ...


Span = tuple[int, int]


class _Suspect(NamedTuple):
    """A span that is not passed; above: logits by which it lies above what is."""

    span: Span
    opinion: Opinion
    above: float


class GuardCheck:
    """contracts: safety.model_check.ModelCheck. Raises WeightsError if weights or thresholds are missing."""

    name = "model.guard"
    directions = frozenset({Direction.INPUT, Direction.DOCUMENT})

    def __init__(self, encoder: Scorer, judge: Judge | None = None) -> None:
        self._encoder = encoder
        self._judge = judge
        self._thresholds = read_thresholds()
        self.version = _hash(*map(weights_of, ENCODERS), THRESHOLDS)

    def deadline_s(self, given: ModelInput) -> float:
        return _INPUT_DEADLINE_S + len(given.text) / _CHARACTERS_A_SECOND

    def check(self, given: ModelInput) -> Sequence[Finding]:
        source = normalise(given.text)
        if given.direction is Direction.INPUT:
            return self._check_input(source, [finding for finding in given.findings if finding.is_emergency])
        scores = self._score(source.text, _sentences(source.text), is_document=True)
        suspects = self._suspects("errand", source.text, scores["errand"])
        return [_finding("errand", source, suspect) for suspect in suspects]

    def _check_input(self, source: NormalisedText, alarms: Sequence[Finding]) -> list[Finding]:
        """The surest of each target; alarms are the emergencies that rules have named. An emergency that those around
        its sentence explain is said in doubt, as one of a rule is that the guard is far from."""
        text = source.text
        sentences = _sentences(text)
        scores = self._score(text, _with_whole(text, sentences))
        suspects = {target: self._suspects(target, text, scores[target]) for target in _EXPLAINED_BELOW}
        named_at = {_sentence_of(alarm, source, sentences) for alarm in alarms}
        asked = named_at.union(*({suspect.span for suspect in found} for found in suspects.values()))
        around = {span: _around(text, sentences, span) for span in asked}
        read = self._score(text, sorted({*around.values()} - {*scores["harm"]}))
        logits = {target: {**read[target], **scores[target]} for target in TARGETS}
        is_long = len(sentences) > _NUM_AROUND
        meant = {
            target: [
                _finding(target, source, suspect)
                for suspect in found
                if self._under(target, text, around[suspect.span], logits[target])
                < _explained(target, suspect, is_long)
            ][:1]
            for target, found in suspects.items()
        }
        named = {alarm.rule for alarm in alarms}
        far = _DOUBTED_BELOW_ZH if has_han(text) else _DOUBTED_BELOW
        far = _SELF_HARM_DOUBTED_BELOW if _SELF_HARM_RULE in named else far
        urgent = meant["self-harm"] or meant["emergency"]
        if not urgent and all(self._is_far(far, text, span, around, logits) for span in named_at):
            explained = [(t, suspect) for t in _URGENT[::-1] for suspect in suspects[t] if suspect.above > _NOTED_FROM]
            urgent = [*map(_doubted, alarms or [_finding(t, source, suspect) for t, suspect in explained[:1]])]
        elif named:  # what a rule has named, with its own next step, is not said again
            urgent = [] if _SELF_HARM_RULE in named else meant["self-harm"]
        return [*meant["harm"], *meant["override"], *urgent]

    def _is_far(
        self, far: float, text: str, span: Span, around: Mapping[Span, Span], logits: Mapping[str, Mapping[Span, float]]
    ) -> bool:
        """Whether a sentence in which a rule has named an emergency is far from any, read with those around it, and not
        near to one alone; never one so long that the encoders may not have read its end."""
        if _length(text[slice(*span)]) > _MAX_AROUND:
            return False
        return all(
            self._under(target, text, around[span], logits[target]) >= far
            and self._under(target, text, span, logits[target], span != around[span]) > 0
            for target in _URGENT
        )

    def _under(self, target: str, text: str, span: Span, logits: Mapping[Span, float], is_part: bool = False) -> float:
        """Logits by which a span lies under its threshold; infinite if it has too few letters to be judged."""
        limit = self._thresholds[threshold_name(target, text[slice(*span)], is_part)].harmless_to
        return limit - logits.get(span, -math.inf)

    def _score(self, text: str, spans: Sequence[Span], is_document: bool = False) -> dict[str, dict[Span, float]]:
        """Target -> span -> logit. The same words are read once, for all targets."""
        if not spans:
            return {target: {} for target in TARGETS}
        words = list(dict.fromkeys(text[a:b] for a, b in spans))
        places = {sentence: place for place, sentence in enumerate(words)}
        scores = self._encoder.score(words, is_document)
        return {t: {span: float(logits[places[text[slice(*span)]]]) for span in spans} for t, logits in scores.items()}

    def _suspects(self, target: str, text: str, logits: Mapping[Span, float]) -> list[_Suspect]:
        """Each span that is not passed, the highest logit first."""
        found = []
        whole = (0, len(text))
        is_of_others = target in _URGENT and (is_exam_question(text) or is_history(text))
        num_sentences = sum(span != whole for span in logits)
        for span, logit in sorted(logits.items(), key=lambda item: -item[1]):
            words = text[slice(*span)]
            more = _OF_OTHERS if is_of_others else 0.0
            if span != whole and (few := _ODDS_FALL_FROM.get(threshold_name(target, words))):
                more = max(math.log(num_sentences / few), 0.0)
            limits = self._thresholds[threshold_name(target, words, _is_part(span, whole, logits, words))]
            opinion = limits.opinion(logit - more)
            if opinion is Opinion.ABSTAIN and self._judge is not None:
                opinion = self._judge.opinion(target, words)
            if opinion is not Opinion.PASS:
                found.append(_Suspect(span, opinion, logit - more - limits.harmless_to))
        return found


def build_guard(bases: Mapping[str, Base], judge: Judge | None = None, threads: int = 1) -> GuardCheck:
    """The guard with its committed weights over the encoders of these names; loaded here, so that no first text waits
    for it beyond its deadline, and a missing file stops the start. Raises WeightsError."""
    encoder = GuardEncoder({weights_of(name): base for name, base in bases.items()}, threads)
    encoder.load()
    return GuardCheck(encoder, judge)


def weights_of(encoder: str) -> Path:
    """The guard's file for the encoder of that name."""
    return WEIGHTS / f"{encoder}.safetensors"


def read_thresholds(path: Path = THRESHOLDS) -> dict[str, Thresholds]:
    """Target -> thresholds. Raises WeightsError naming the file."""
    try:
        entries = load_strict(path.read_bytes())
        return {target: Thresholds(**values) for target, values in entries.items()}
    except (OSError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path.name} cannot be used ({error}); restore the file.") from error


@cache
def _hash(*paths: Path) -> str:
    try:
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in paths)).hexdigest()[:12]
    except OSError as error:
        raise WeightsError(f"{error.filename} is missing; restore it or run `bedside train guard`.") from error


def _with_whole(text: str, sentences: list[Span]) -> list[Span]:
    is_short = len(text) <= MAX_WHOLE and len(sentences) > 1
    return [(0, len(text)), *sentences] if is_short else sentences


def _sentences(text: str) -> list[Span]:
    """Sentences with some letters; one without end in pieces."""
    spans = []
    for start, end in sentence_spans(text):
        for first in range(start, end, MAX_SENTENCE):
            span = (first, min(first + MAX_SENTENCE, end))
            if sum(map(str.isalpha, text[slice(*span)])) >= _MIN_LETTERS:
                spans.append(span)
    return spans


def _is_part(span: Span, whole: Span, logits: Mapping[Span, float], words: str) -> bool:
    """Whether a span is judged as a sentence beside others. In English only beside the whole: of a text too long to be
    judged whole, each sentence has to stand alone."""
    return span != whole and len(logits) > 1 and (whole in logits or has_han(words))


def _explained(target: str, suspect: _Suspect, is_long: bool) -> float:
    """Logits under its threshold from which those around a sentence explain it."""
    return _TIMES * suspect.above if is_long and target in _URGENT else _EXPLAINED_BELOW[target]


def _around(text: str, sentences: list[Span], span: Span) -> Span:
    """A sentence with its neighbours, three in all where there are as many, as far as the encoders read at once. What
    is no sentence, as the whole of a text, stands for itself."""
    place = bisect_left(sentences, span)
    if sentences[place : place + 1] != [span]:
        return span
    first = max(min(place - 1, len(sentences) - _NUM_AROUND), 0)
    last = min(first + _NUM_AROUND, len(sentences)) - 1
    while _length(text[sentences[first][0] : sentences[last][1]]) > _MAX_AROUND and first < last:
        first, last = (first + 1, last) if place - first > last - place else (first, last - 1)
    return sentences[first][0], sentences[last][1]


def _length(text: str) -> int:
    return len(text) + 2 * num_han(text)


def _sentence_of(finding: Finding, source: NormalisedText, sentences: Sequence[Span]) -> Span:
    """The sentence that a finding begins in; the whole text where that has too few letters to be judged."""
    raw = (source.raw_span(*span) for span in sentences)
    found = (span for span, (start, end) in zip(sentences, raw, strict=True) if start <= finding.start < end)
    return next(found, (0, len(source.text)))


def _doubted(finding: Finding) -> Finding:
    language = "zh" if has_han(finding.evidence) else "en"
    next_step = finding.message.removeprefix(_MAYBE[language])
    message = _DOUBTS[language].format(evidence=finding.evidence, message=next_step)
    return replace(finding, rule=finding.rule + DOUBTED, message=message)


def _finding(target: str, source: NormalisedText, suspect: _Suspect) -> Finding:
    start, end = source.raw_span(*suspect.span)
    severity = Verdict.HOLD if target in _HELD else Verdict.NOTICE
    is_unsure = suspect.opinion is Opinion.ABSTAIN
    is_chinese = has_han(source.text[slice(*suspect.span)])
    message = (_MESSAGES.get(f"{target}.zh") if is_chinese else None) or _MESSAGES[target]
    message += _UNSURE if is_unsure else ""
    rule = _RULES[target] + (".unsure" if is_unsure else "")
    return Finding(rule, severity, start, end, message, SOURCE, source.raw[start:end])
