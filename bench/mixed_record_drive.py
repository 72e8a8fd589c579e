"""A mixed record in a real Chromium: uploaded, asked while its scans are still recognised, the cited page opened.

    .venv/bin/python -m bench.mixed_record_drive [--pages 300] [--scans 20] [--shots FOLDER]

Prints how long each step took. With --shots, pictures of the screens are left there, at a desk's and a phone's width,
light and dark. tests/browser/test_mixed_record.py walks the same way with fewer pages.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as TooLate

from bench.mixed_record import MixedRecord, Planted, make_record
from bench.report import print_report
from bench.serving import MAX_WAIT_S, open_page, open_screen, serve_app

NAME = "mixed_record.pdf"
_PATIENT = "Ada Mixed"
_SIZES = {"desk": (1440, 900), "phone": (390, 844)}
_REDRAWN_MS = 15_000  # until the pane surely shows what a chip opens
_SEARCHED = re.compile("can be searched|can be asked about")  # in any step from the first that says so
_RECOGNISING = "Recognising picture"


def add_patient(page: Page) -> None:
    page.get_by_role("button", name="New patient").first.click()
    page.get_by_label("Name", exact=True).fill(_PATIENT)
    page.get_by_role("button", name="Save patient").click()
    expect(page.get_by_text(f"Ask about {_PATIENT}")).to_be_visible()


def delete_patient(page: Page) -> None:
    """Deletes the patient that is open; the screen then says what the search for traces found."""
    open_screen(page, "Consult")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_role("menuitem", name="Delete patient").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete patient").click()


def upload(page: Page, record: MixedRecord, patience_s: float) -> dict[str, float]:
    """Uploads the record and waits until its scans are being recognised; seconds until each step was seen."""
    open_screen(page, "Documents")
    started = time.perf_counter()
    file = {"name": NAME, "mimeType": "application/pdf", "buffer": record.pdf}
    page.locator("input[type=file]").set_input_files(file)  # type: ignore[arg-type]  # a mapping, as the docs have it
    seen: dict[str, float] = {}
    for step, words in (("searched_s", _SEARCHED), ("recognising_s", re.compile(_RECOGNISING))):
        expect(page.get_by_text(words).first).to_be_visible(timeout=patience_s * 1000)
        seen[step] = round(time.perf_counter() - started, 1)
    return seen


def is_recognising(page: Page) -> bool:
    """Whether the documents page says that pictures are still being read."""
    open_screen(page, "Documents")
    expect(page.get_by_text(re.compile(f"{_RECOGNISING}|^Ready$")).first).to_be_visible()
    return page.get_by_text(_RECOGNISING).count() > 0


def ask(page: Page, planted: Planted) -> float:
    """Asks for a planted fact; seconds until the answer is whole."""
    open_screen(page, "Consult")
    started = time.perf_counter()
    page.get_by_placeholder("Ask about this record").fill(planted.question)
    page.keyboard.press("Enter")
    expect(page.locator(".question").last).to_have_text(planted.question)
    expect(page.locator(".turn").last.locator(".foot")).to_be_visible()
    expect(page.get_by_role("button", name="Answer again")).to_be_visible()
    return round(time.perf_counter() - started, 1)


def open_citation(page: Page, planted: Planted, record: MixedRecord) -> bytes:
    """Opens the last answer's citations until the one on the planted page is shown; the page's image as PNG."""
    turn = page.locator(".turn").last
    place = page.locator(".st-key-evidence").get_by_text(f"page {planted.page} of {record.num_pages}")
    chips = turn.locator(".chip")
    chips.first.wait_for()  # an answer is redrawn when it is complete
    for number in range(chips.count()):
        chips.nth(number).click()
        image = page.locator(".st-key-evidence img")
        try:
            place.wait_for(timeout=_REDRAWN_MS)
        except TooLate:
            continue  # it is of another page
        else:
            expect(image).to_be_visible()
            return page.request.get(str(image.evaluate("node => node.src"))).body()
    raise AssertionError(f"no citation of “{planted.question}” opens page {planted.page}")


def has_highlight(png: bytes) -> bool:
    """Whether the image holds the marker's yellow."""
    pixels = Image.open(io.BytesIO(png)).convert("RGB").resize((800, 1120)).get_flattened_data()
    return sum(red > 230 and green > 190 and blue < 150 for red, green, blue in pixels) > 40


def drive(page: Page, record: MixedRecord) -> dict[str, Any]:
    patience_s = MAX_WAIT_S + record.num_pages
    add_patient(page)
    figures: dict[str, Any] = {"pages": record.num_pages, "scans": record.num_scans, **upload(page, record, patience_s)}
    typed, scanned = record.planted[:-1], record.planted[-1]
    figures["answers_s"] = [ask(page, typed[0])]
    figures["cited_page_is_marked"] = has_highlight(open_citation(page, typed[0], record))
    figures["asked_while_recognising"] = is_recognising(page)
    started = time.perf_counter()
    recognised = page.get_by_text(f"{record.num_scans} recognised from images")
    expect(recognised).to_be_visible(timeout=patience_s * 1000)
    figures["recognised_after_that_s"] = round(time.perf_counter() - started, 1)
    cited: list[int] = []
    for planted in (*typed[1:], scanned):
        figures["answers_s"].append(ask(page, planted))
        try:
            if has_highlight(open_citation(page, planted, record)):
                cited.append(planted.page)
        except AssertionError as error:
            print(error)
    return figures | {
        "other_planted_pages": [p.page for p in (*typed[1:], scanned)],
        "of_these_cited_and_marked": cited,
    }


def photograph(page: Page, folder: Path) -> None:
    """The consult screen with the cited page and the documents, in each width and scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for name, (width, height) in _SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            for screen in ("", "documents"):
                page.goto(f"{page.url.split('?')[0].removesuffix('/documents').rstrip('/')}/{screen}?{_query(page)}")
                page.wait_for_timeout(3000)
                if not screen and page.locator(".chip").count():
                    page.locator(".chip").first.click()
                    page.wait_for_timeout(2500)
                page.screenshot(path=folder / f"{screen or 'consult'}_{name}_{scheme}.png")


def _query(page: Page) -> str:
    return page.url.partition("?")[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--shots", type=Path)
    arguments = parser.parse_args()
    expect.set_options(timeout=MAX_WAIT_S * 1000)
    record = make_record(arguments.pages, arguments.scans)
    with serve_app(demo=False) as server, open_page(server.url) as page:
        figures = drive(page, record) | {"peak_rss_mb": server.peak_rss_mb()}
        if arguments.shots:
            photograph(page, arguments.shots)
    print_report("mixed-record", figures)


if __name__ == "__main__":
    main()
