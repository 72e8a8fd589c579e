"""Takes the README's picture of the running app: a question, its answer, and the cited page beside it.

.venv/bin/python -m scripts.take_screenshot
"""

from __future__ import annotations

from playwright.sync_api import expect

from bench.report import ROOT
from bench.serving import FIRST_PATIENT, MAX_WAIT_S, open_page, serve_app

QUESTIONS = ("What is the apixaban dose?", "What is the dose of furosemide?")


def main() -> None:
    expect.set_options(timeout=MAX_WAIT_S * 1000)
    with serve_app() as server, open_page(server.url) as page:
        page.set_viewport_size({"width": 1440, "height": 900})
        page.get_by_text(FIRST_PATIENT).first.wait_for()
        expect(page.get_by_text("You can ask as soon as it is done")).to_have_count(0)
        for number, question in enumerate(QUESTIONS):
            page.get_by_placeholder("Ask about this record").fill(question)
            page.keyboard.press("Enter")
            expect(page.locator(".foot")).to_have_count(number + 1)
            expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        page.locator(".chip").last.click()
        expect(page.locator(".st-key-evidence img")).to_be_visible()
        page.wait_for_timeout(1000)  # the page slides in
        page.screenshot(path=ROOT / "docs" / "consult.png")


if __name__ == "__main__":
    main()
