"""First words as a clinician sees them: from Enter in Chromium to the first claim or quote on the screen.

    .venv/bin/python -m bench.bench_page

One question is asked as soon as the page takes one, while the demo records are still read. Then every suggested
question of the first demo patient is asked NUM_ROUNDS times, in one conversation a round. Browser, page and model share
this machine's cores.
"""

from __future__ import annotations

import statistics
import time

from playwright.sync_api import Page, expect

from app.demo import suggest_questions
from bench.report import MAX_RSS_MB, print_report
from bench.serving import FIRST_PATIENT, MAX_WAIT_S, open_page, serve_app

MAX_FIRST_WORDS_S = 3.0
MAX_AT_ONCE_S = 10.0
NUM_ROUNDS = 2
WORDS = ".claims .claim, .claims .quote, .foot"  # the foot: an answer may end without words
# Looks at every frame: the test driver itself looks every half second only. Streamlit's elements may be shadow roots.
WATCH = """([turn, words]) => {
  const all = (selector, root) => [...root.querySelectorAll(selector),
    ...[...root.querySelectorAll("*")].filter(node => node.shadowRoot).flatMap(node => all(selector, node.shadowRoot))];
  const started = performance.now();
  window.firstWords = new Promise(tell => {
    const look = () => all(".turn", document)[turn]?.querySelector(words)
      ? tell((performance.now() - started) / 1000) : requestAnimationFrame(look);
    look();
  });
}"""


def ask(page: Page, question: str) -> tuple[float, float]:
    """Seconds from Enter to the first words on the screen, and to the end of the answer."""
    num_turns = page.locator(".turn").count()
    page.get_by_placeholder("Ask about this record").fill(question)
    page.evaluate(WATCH, [num_turns, WORDS])
    started = time.perf_counter()
    page.keyboard.press("Enter")
    first_s = float(page.evaluate("window.firstWords"))
    page.locator(".foot").nth(num_turns).wait_for()
    page.get_by_role("button", name="Answer again").wait_for()
    return first_s, time.perf_counter() - started


def main() -> None:
    expect.set_options(timeout=MAX_WAIT_S * 1000)
    asked: list[tuple[float, float]] = []
    with serve_app() as server, open_page(server.url) as page:
        page.get_by_text(FIRST_PATIENT).first.wait_for()
        _, at_once_s = ask(page, suggest_questions(FIRST_PATIENT)[0])
        expect(page.get_by_text("Answers use what has been read so far")).to_have_count(0)
        page.get_by_role("button", name="New conversation").click()
        expect(page.locator(".turn")).to_have_count(0)
        for _ in range(NUM_ROUNDS):
            asked += [ask(page, question) for question in suggest_questions(FIRST_PATIENT)]
            page.get_by_role("button", name="New conversation").click()
            expect(page.locator(".turn")).to_have_count(0)
        peak_mb = server.peak_rss_mb()
    firsts = [first_s for first_s, _ in asked]
    figures = {
        "at_once_s": round(at_once_s, 2),
        "questions": len(asked),
        "first_words_s": [round(first_s, 2) for first_s in firsts],
        "first_words_s_median": round(statistics.median(firsts), 2),
        "first_words_s_max": round(max(firsts), 2),
        "whole_answer_s_median": round(statistics.median(whole_s for _, whole_s in asked), 2),
        "peak_rss_mb": peak_mb,
    }
    limits = {"at_once_s": MAX_AT_ONCE_S, "first_words_s_max": MAX_FIRST_WORDS_S, "peak_rss_mb": MAX_RSS_MB}
    print_report("page", figures, limits)


if __name__ == "__main__":
    main()
