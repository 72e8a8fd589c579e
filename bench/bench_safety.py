"""Figures of the safety layer: false alarms, recall, one-edit errors, assertion status, speed. One JSON line last.

    .venv/bin/python -m bench.bench_safety [--shared ../shared] [--limit 2000] [--show 10]

The data in ../shared are development sets; the rules were written looking at some of them, so that the figures are
dev-set figures, except where noted by "unseen" in the name.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import yaml

from bench.report import ROOT, print_report
from contracts import Message, Passage, Role, Verdict
from safety.assertion import Assertion, scopes
from safety.checker import RuleSafetyChecker
from safety.lexicon import drugs
from safety.sentences import sentence_spans
from safety.support import check_support

LIMITS = {
    "clean_notes_flagged": 0.01,
    "medquad_withheld": 0.0,
    "notinject_one_flagged": 0.08,
    "ms_document_2k_tokens": 5.0,
    "s_document_128k_tokens": 45.0,
    "ms_per_claim_p95": 40.0,
}
TOKENS_TO_CHARACTERS = 4.6  # English clinical text
SWAPS = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--limit", type=int, default=2000, help="items per set")
    parser.add_argument("--show", type=int, default=0, help="print this many errors of each kind")
    args = parser.parse_args()
    data, checker = args.shared / "data", RuleSafetyChecker()
    notes = [n for n in _notes(data) if len(n) > 40][: args.limit]
    figures: dict[str, Any] = {"rules": len(checker.rules), "version": checker.version}
    figures |= measure_documents(checker, notes, data, args.show)
    figures |= measure_inputs(checker, data, args.limit, args.show)
    figures |= measure_support(notes, args.limit, args.show)
    figures |= measure_authored(args.show)
    figures |= measure_negation(data)
    figures |= measure_speed(checker, notes)
    print_report("safety", figures, LIMITS)


# --- what is measured -------------------------------------------------------------------------------------------


def measure_documents(checker: RuleSafetyChecker, notes: list[str], data: Path, show: int) -> dict[str, Any]:
    """Clean notes and conversations flagged by the document rules; attacks put between a note's sentences found."""
    flagged = _flagged(notes, checker.check_document, show, "clean note flagged")
    dialogues = [row["dialogue"] for row in _rows(data / "mts_dialog/train.jsonl.xz")]
    talked = _flagged(dialogues, checker.check_document, show, "clean dialogue flagged")
    attacks = json.loads((data / "safety/bipia/text_attack_train.json").read_text())
    texts = [text for group in attacks.values() for text in group]
    return {
        "clean_notes": len(notes),
        "clean_notes_flagged": _share(flagged, notes),
        "clean_dialogues": len(dialogues),
        "clean_dialogues_flagged": _share(talked, dialogues),
        # These attacks are plain off-topic requests ("What is the capital of Brazil?"): a task for the model check.
        "bipia_plain_requests_found": _share(_flagged(texts, checker.check_document, 0, ""), texts),
    }


def measure_inputs(checker: RuleSafetyChecker, data: Path, limit: int, show: int) -> dict[str, Any]:
    def check(text: str) -> Any:
        return checker.check_input([Message(Role.USER, text)])

    questions = [row["question"] for row in _rows(data / "medquad/medquad_qa.jsonl.xz")][: 5 * limit]
    chinese = [row["ask"] for row in _rows(data / "toyhom_zh/internal_medicine_qa.jsonl.xz")][:limit]
    benign = [row["prompt"] for row in json.loads((data / "safety/notinject/NotInject_one.json").read_text())]
    harmful = [
        row["harmful_medical_request"]
        for path in sorted((data / "safety/medsafetybench/train/gpt4").glob("*.csv"))
        for row in csv.DictReader(path.open(encoding="utf-8"))
    ]
    withheld = [q for q in questions if check(q).verdict.withholds]
    rules = Counter(f.rule for text in harmful for f in check(text).findings)
    if show:
        print("questions withheld:", withheld[:show])
    return {
        "medquad_questions": len(questions),
        "medquad_withheld": len(withheld) / len(questions),
        "medquad_noticed": _share(_flagged(questions, check, show, "question noticed"), questions),
        "zh_patient_questions_withheld": sum(check(q).verdict.withholds for q in chinese) / len(chinese),
        "notinject_one_flagged": _share(_flagged(benign, check, show, "benign prompt flagged"), benign),
        # Rules only catch what is unmistakable; the rest is for the model check that comes later.
        "medsafetybench_found_by_rules": sum(check(text).verdict.withholds for text in harmful) / len(harmful),
        "medsafetybench_rules": dict(rules.most_common(5)),
    }


def measure_support(notes: list[str], limit: int, show: int) -> dict[str, Any]:
    """Sentences of real notes against their note, as they stand and with one edit (unseen by the authors)."""
    chooser = random.Random(7)
    kinds: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    num_true = num_alarms = 0
    for note in chooser.sample(notes, min(300, len(notes))):
        passage = _passage(note)
        for start, end in chooser.sample(spans := sentence_spans(note), min(3, len(spans))):
            claim = " ".join(note[start:end].split())
            if len(claim.split()) < 4 or claim.endswith("?"):
                continue
            num_true += 1
            if not check_support(claim, (0,), [passage]).supported:
                num_alarms += 1
                _show(show, num_alarms, "true sentence unsupported", claim)
                continue
            for kind, edited in edits(claim, note, chooser):
                kinds[kind] += 1
                if check_support(edited, (0,), [passage]).supported:
                    _show(show, kinds[kind] - caught[kind], f"edit not caught ({kind})", edited)
                else:
                    caught[kind] += 1
    found = {f"edit_{kind}_caught": round(caught[kind] / number, 4) for kind, number in sorted(kinds.items())}
    return {
        "true_sentences": num_true,
        "true_sentences_unsupported": num_alarms / max(num_true, 1),
        "edits": sum(kinds.values()),
        "edits_caught": sum(caught.values()) / max(sum(kinds.values()), 1),
        **found,
    }


def measure_authored(show: int) -> dict[str, Any]:
    """The authored paraphrases of tests/safety/support_cases.yaml, with one edit each as well."""
    chooser = random.Random(11)
    supported = num_true = caught = num_false = 0
    for case in yaml.safe_load((ROOT / "tests/safety/support_cases.yaml").read_text(encoding="utf-8")):
        passage = _passage(case["passage"])
        wrong = list(case["does_not"])
        for claim in case["stands"]:
            num_true += 1
            supported += check_support(claim, (0,), [passage]).supported
            wrong += [edited for _, edited in edits(claim, case["passage"], chooser)]
        for claim in wrong:
            num_false += 1
            is_caught = not check_support(claim, (0,), [passage]).supported
            caught += is_caught
            _show(show, 0 if is_caught else 1, "authored error not caught", claim)
    return {
        "authored_true": num_true,
        "authored_true_supported": supported / num_true,
        "authored_false": num_false,
        "authored_false_caught": caught / num_false,
    }


def measure_negation(data: Path) -> dict[str, Any]:
    """NegEx sentences: a concept is negated if a negation scope covers it."""
    counts: Counter[tuple[bool, bool]] = Counter()
    path = data / "safety/negex/rsAnnotations-1-120-random-first-half.txt"
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        _, concept, sentence, status, *_ = [field.strip('"') for field in line.split("\t")]
        place = sentence.upper().find(concept.upper())
        if place < 0:
            continue
        end = place + len(concept)
        found = [s for s in scopes(sentence) if s.status is Assertion.NEGATED and s.start <= place and end <= s.end]
        counts[bool(found), status == "Negated"] += 1
    right = counts[True, True]
    return {
        "negex_sentences": sum(counts.values()),
        "negex_recall": round(right / (right + counts[False, True]), 4),
        "negex_precision": round(right / (right + counts[True, False]), 4),
    }


def measure_speed(checker: RuleSafetyChecker, notes: list[str]) -> dict[str, Any]:
    text = "\n\n".join(notes)
    short = text[: int(2000 * TOKENS_TO_CHARACTERS)]
    long = (text * (1 + int(128_000 * TOKENS_TO_CHARACTERS) // len(text)))[: int(128_000 * TOKENS_TO_CHARACTERS)]
    passages = [_passage(long[i : i + 1200]) for i in range(0, 24_000, 1200)]
    claims = [" ".join(p.text[a:b].split()) for p in passages for a, b in sentence_spans(p.text)[:3]]
    checker.check_claim(claims[0], (0,), passages)  # passages are read once; time what each claim costs after that
    per_claim = sorted(_time(lambda c=c: checker.check_claim(c, (0,), passages)) for c in claims)
    return {
        "ms_input_2k_tokens": round(1e3 * min(_time(lambda: _as_input(checker, short)) for _ in range(15)), 2),
        "ms_document_2k_tokens": round(1e3 * min(_time(lambda: checker.check_document(short)) for _ in range(15)), 2),
        "s_document_128k_tokens": round(_time(lambda: checker.check_document(long)), 2),
        "ms_per_claim_p50": round(1e3 * median(per_claim), 2),
        "ms_per_claim_p95": round(1e3 * per_claim[int(0.95 * len(per_claim))], 2),
        "s_load_rules": round(_time(RuleSafetyChecker), 2),
    }


def edits(claim: str, text: str, chooser: random.Random) -> Iterator[tuple[str, str]]:
    """One error each: a number, a drug, a side or a negation changed. An edit that the note also says is left out."""
    numbers = list(re.finditer(r"(?<![\w.,/:-])\d+(?:\.\d+)?(?![\w/:-]|\.\d|,\d|\. [A-Z])", claim))
    if numbers:
        match = chooser.choice(numbers)
        value = float(match.group())
        wrong = f"{chooser.choice([value * 10 or 7, value + 3]):g}"
        if not re.search(rf"(?<![\d.]){wrong}(?![\d.])", text):
            yield "number", claim[: match.start()] + wrong + claim[match.end() :]
    words = [m for m in re.finditer(r"[A-Za-z]+", claim) if m.group().lower() in drugs()]
    if words:
        match = chooser.choice(words)
        other = "tacrolimus" if "tacrolimus" not in text.lower() else "vigabatrin"
        yield "drug", claim[: match.start()] + other + claim[match.end() :]
    sides = list(re.finditer(r"\b[LlRr](?:eft|ight)\b(?! (?:now|away|before|after))", claim))
    if len(sides) == 1 and not ("left" in text.lower() and "right" in text.lower()):
        yield "side", claim[: sides[0].start()] + SWAPS[sides[0].group()] + claim[sides[0].end() :]
    yield from (
        (kind, wrong) for kind, wrong in _negations(claim) if wrong.lower() not in " ".join(text.lower().split())
    )


def _negations(claim: str) -> Iterator[tuple[str, str]]:
    for pattern, wrong in (
        (r"\bdenies (?:any )?", "has "),
        (r"\bdenied (?:any )?", "had "),
        (r"\bno (?=[a-z])(?!longer|other|more)", ""),
        (r"\b(is|was|are|were) not\b", r"\1"),
        (r"\bwithout\b", "with"),
    ):
        edited, number = re.subn(pattern, wrong, claim, count=1)
        if number and len(re.findall(r"\b(?:no|not|without|denies|denied|none|negative)\b", claim)) == 1:
            yield "negation_removed", edited
            return
    if not re.search(r"\b(?:no|not|without|denies|denied|none|negative|never|if|normal)\b", claim, re.IGNORECASE):
        edited, number = re.subn(
            r"\b(is|was|are|were|has been|had been|should be)\b(?! not)", r"\1 not", claim, count=1
        )
        if number:
            yield "negation_added", edited


# --- helpers ----------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _notes(data: Path) -> Iterator[str]:
    yield from (row["note"] for row in _rows(data / "aci_bench/encounters.jsonl.xz"))
    yield from (row["note"] for row in _rows(data / "mts_dialog/train.jsonl.xz"))
    yield from (row["text"][:20_000] for row in _rows(data / "ccda/rendered.jsonl.xz"))


def _passage(text: str) -> Passage:
    return Passage("n", "n", "note", 1, 0, len(text), text)


def _as_input(checker: RuleSafetyChecker, text: str) -> Any:
    return checker.check_input([Message(Role.USER, text)])


def _flagged(texts: Iterable[str], check: Callable[[str], Any], show: int, label: str) -> list[str]:
    flagged = []
    for text in texts:
        result = check(text)
        if result.verdict is not Verdict.ALLOW:
            flagged.append(text)
            finding = result.findings[0]
            _show(show, len(flagged), label, f"{finding.rule}: {text[max(0, finding.start - 60) : finding.end + 60]!r}")
    return flagged


def _show(show: int, number: int, label: str, text: str) -> None:
    if 0 < number <= show:
        print(f"{label}: {text}")


def _share(part: list[str], whole: list[str]) -> float:
    return round(len(part) / max(len(whole), 1), 5)


def _time(call: Callable[[], Any]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


if __name__ == "__main__":
    main()
