"""Writes docs/demo-answers.md: what the app answers to the demo patients' suggested questions.

    .venv/bin/python scripts/write_transcript.py [--checkpoint FOLDER]

"Own words" is an answer that shows at least one sentence of the model's that passed the checks and no quote in place
of one that did not; an abstention is neither. By default the embedded model answers.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from app.config import EMBEDDED_CHECKPOINT, read_settings
from app.demo import suggest_questions
from app.events import Turn
from app.services import build_services
from bench.bench_answer import ask
from contracts import Claim, ClaimKind
from model.generator import LocalGenerator

PAGE = Path(__file__).resolve().parents[1] / "docs" / "demo-answers.md"
_SHOWN = {ClaimKind.ANSWER: "", ClaimKind.ABSTENTION: "", ClaimKind.CONFLICT: "Conflict: ", ClaimKind.QUOTE: "Quote: "}


def is_in_own_words(turn: Turn) -> bool:
    kinds = [claim.kind for claim in turn.claims]
    return ClaimKind.ANSWER in kinds and ClaimKind.QUOTE not in kinds


def show(claim: Claim) -> str:
    places = ", ".join(dict.fromkeys(f"{c.document}, page {c.page}" for c in claim.citations))
    text = " ".join(claim.text.split()).replace("|", "\\|")
    return f"{_SHOWN[claim.kind]}{text}" + (f" *({places})*" if places else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT)
    generator = LocalGenerator.load(parser.parse_args().checkpoint)
    lines, total = [], 0
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(read_settings(), data_dir=Path(folder), database_url="", demo=True)
        services = build_services(settings, generator)
        services.wait_until_ready()
        for record in services.store.list_patients():
            turns = [ask(services, record.id, question)[0] for question in suggest_questions(record.patient.name)]
            number = sum(map(is_in_own_words, turns))
            total += number
            lines += ["", f"## {record.patient.name}: {number} of {len(turns)} in the model's own words", ""]
            lines += ["| Question | Answer | Own words |", "|---|---|---|"]
            for turn in turns:
                shown = "<br>".join(show(claim) for claim in turn.claims if claim.kind in _SHOWN)
                lines.append(f"| {turn.question} | {shown} | {'yes' if is_in_own_words(turn) else 'no'} |")
        services.close()
    head = "# What the demo answers\n\nWritten by `scripts/write_transcript.py`; the records are synthetic. "
    PAGE.write_text(
        f"{head}{total} answers are in the model's own words.\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    print(f"{total} in own words: {PAGE}")


if __name__ == "__main__":
    main()
