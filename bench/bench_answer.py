"""First words and tokens per second of the embedded model on the demo records, and the most memory the process held.

    .venv/bin/python -m bench.bench_answer

Every suggested question of every demo patient is asked once, in a conversation of its own; first words are counted from
Enter to the first claim that is shown.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from app.config import read_settings
from app.demo import suggest_questions
from app.events import Turn, TurnStatus
from app.services import Services, build_services
from bench.report import MAX_RSS_MB, peak_rss_mb, print_report
from contracts import ClaimKind

MAX_FIRST_WORDS_S = 3.0


def ask(services: Services, patient_id: str, question: str) -> tuple[Turn, float]:
    """The finished turn, and the seconds from Enter to its first words."""
    conversation = services.store.add_conversation(patient_id)
    started = time.perf_counter()
    turn_id = services.jobs.ask(conversation.id, question).id
    first_s = 0.0
    while (live := services.jobs.live(conversation.id)) is not None:
        if not first_s and any(claim.kind is not ClaimKind.WITHHELD for claim in live.claims):
            first_s = time.perf_counter() - started
        time.sleep(0.005)
    turn = services.store.get_turn(turn_id)
    if turn is None or turn.status is not TurnStatus.DONE:
        raise SystemExit(f"{question!r} ended as {turn.status if turn else 'nothing'}: {turn.error if turn else ''}")
    return turn, first_s or time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        services = build_services(replace(read_settings(), data_dir=Path(folder), database_url="", demo=True))
        services.wait_until_ready()
        asked = [
            ask(services, record.id, question)
            for record in services.store.list_patients()
            for question in suggest_questions(record.patient.name)
        ]
        model = services.generator.info
        services.close()
    firsts = [first_s for _, first_s in asked]
    speeds = [turn.usage.tokens_per_s for turn, _ in asked if turn.usage.tokens_per_s]
    figures = {
        "model": model.name,
        "precision": model.precision,
        "questions": len(asked),
        "prompt_tokens_median": statistics.median(turn.usage.prompt_tokens for turn, _ in asked),
        "first_words_s_median": round(statistics.median(firsts), 2),
        "first_words_s_max": round(max(firsts), 2),
        "slowest_question": max(asked, key=lambda pair: pair[1])[0].question,
        "first_token_s_median": round(statistics.median(turn.usage.ttft_s for turn, _ in asked), 2),
        "tokens_per_s_median": round(statistics.median(speeds), 1) if speeds else 0.0,
        "peak_rss_mb": peak_rss_mb(),
    }
    print_report("answer", figures, {"first_words_s_max": MAX_FIRST_WORDS_S, "peak_rss_mb": MAX_RSS_MB})


if __name__ == "__main__":
    main()
