"""The main path as a clinician walks it, in a real Chromium over the real program and its embedded model.

The tests of this file share one running app and build on each other's patients, never on each other's windows.
Screenshots are left in tests/browser/shots/.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from bench.serving import open_screen

pytestmark = pytest.mark.browser

SHOTS = Path(__file__).resolve().parent / "shots"
OpenPage = Callable[..., Page]
SCREENS = {
    "documents": "ellis_ecg_report_scan.pdf",
    "safety_review": "Recent findings",
    "model_status": "Weights, SHA-256",
}


def open_consult(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.get_by_placeholder("Ask about this record")).to_be_visible()


def choose_patient(page: Page, name: str) -> None:
    picker = page.get_by_role("combobox", name="Patient")
    picker.click()
    picker.fill(name)
    page.get_by_role("option", name=name).first.click()
    expect(page.get_by_label("Patient", exact=True).get_by_text(name).first).to_be_visible()


def ask(page: Page, question: str) -> None:
    page.get_by_placeholder("Ask about this record").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".question", has_text=question)).to_be_visible()


def wait_for_answer(page: Page, num_turns: int = 1) -> None:
    """Until the last of so many turns is over: only then has each a foot, and can the last be asked again."""
    expect(page.locator(".foot")).to_have_count(num_turns)
    expect(page.get_by_role("button", name="Answer again")).to_be_visible()
    expect(page.get_by_role("button", name="Stop the answer")).to_have_count(0)


def upload(page: Page, files: list[Path]) -> None:
    open_screen(page, "Documents")
    expect(page.get_by_text("Add documents")).to_be_visible()
    page.locator("input[type=file]").set_input_files(files)
    for file in files:
        expect(page.get_by_text(file.name).first).to_be_visible()


def has_highlight(png: bytes) -> bool:
    """Whether the image holds the marker's yellow."""
    pixels = Image.open(io.BytesIO(png)).convert("RGB").resize((400, 560)).getdata()
    return sum(red > 230 and green > 190 and blue < 150 for red, green, blue in pixels) > 40


def wait_for_demo(page: Page, url: str) -> None:
    """Until the demo record of the first patient is read: its first question can then be answered."""
    open_consult(page, url)
    expect(page.get_by_text("Answers use what has been read so far")).to_have_count(0, timeout=180_000)


def test_a_new_patient_is_checked_and_uploaded_records_are_read(
    app_url: str, open_page: OpenPage, shared: Path
) -> None:
    page = open_page()
    wait_for_demo(page, app_url)

    page.get_by_role("button", name="New patient").click()
    page.get_by_label("Name", exact=True).fill("Ada Tester")
    page.get_by_label("Age (years)").fill("330")
    page.get_by_role("button", name="Save patient").click()
    expect(page.get_by_text("Age (years) is 330; it must lie between 0 and 130 years.")).to_be_visible()
    page.get_by_label("Age (years)").fill("33")
    page.get_by_role("button", name="Save patient").click()
    expect(page.get_by_text("Ask about Ada Tester")).to_be_visible()

    documents = shared / "clinical_docs"
    upload(page, [documents / "note_plain.pdf", documents / "zero_bytes.pdf", documents / "note_encrypted.pdf"])
    expect(page.get_by_text("zero_bytes.pdf was not added.")).to_be_visible()
    expect(page.get_by_text("1 page · 1 read as text")).to_be_visible()
    expect(page.get_by_text("protected by a password")).to_be_visible()

    page.get_by_role("button", name="Preview").first.click()
    expect(page.get_by_alt_text("Page 1 of note_plain.pdf")).to_be_visible()
    page.keyboard.press("Escape")

    open_screen(page, "Consult")
    ask(page, "What did the CT scan show?")
    wait_for_answer(page)
    expect(page.locator(".chip").first).to_be_visible()


def test_two_questions_a_citation_and_a_refresh(app_url: str, open_page: OpenPage) -> None:
    page = open_page()
    wait_for_demo(page, app_url)
    choose_patient(page, "Margaret Ellis")

    page.get_by_role("button", name="Why was she admitted?").click()
    expect(page.locator(".steps .now")).to_be_visible()
    expect(page.locator(".claims .claim, .claims .quote").first).to_be_visible()
    wait_for_answer(page)
    ask(page, "What is the apixaban dose?")
    wait_for_answer(page, 2)
    ask(page, "And the bisoprolol dose?")
    wait_for_answer(page, 3)
    expect(page.locator(".question")).to_have_count(3)
    expect(page.locator(".coverage").first).to_contain_text("Read")

    chip = page.locator(".chip").first
    chip.focus()
    page.keyboard.press("Enter")  # as by mouse, and keyboard first
    image = page.locator(".st-key-evidence img")
    expect(image).to_be_visible()
    assert has_highlight(page.request.get(str(image.evaluate("node => node.src"))).body())

    page.reload()
    expect(page.locator(".question")).to_have_count(3)
    expect(page.locator(".patient .name")).to_have_text("Margaret Ellis")
    assert "Ellis" not in page.url  # the address carries ids only


def test_stop_while_the_model_reads(slow_app_url: str, open_page: OpenPage) -> None:
    page = open_page()
    wait_for_demo(page, slow_app_url)
    choose_patient(page, "Daniel Okafor")
    ask(page, "What is the whole history of the chest pain, and what is the plan?")
    expect(page.locator(".steps .now progress")).to_be_visible()
    page.get_by_role("button", name="Stop the answer").click()
    expect(page.get_by_text("Stopped. What was checked until then stays.")).to_have_count(1)
    expect(page.get_by_role("button", name="Answer again")).to_be_visible()


def test_an_answer_outlives_its_tab(app_url: str, open_page: OpenPage) -> None:
    page = open_page()
    wait_for_demo(page, app_url)
    choose_patient(page, "Daniel Okafor")
    ask(page, "When is the CT coronary angiogram?")
    address = page.url
    page.close()
    again = open_page()
    again.goto(address)
    wait_for_answer(again)
    expect(again.locator(".question")).to_have_count(1)
    expect(again.locator(".turn").last.locator(".claim, .quote").first).to_be_visible()


def test_conversations_are_renamed_found_and_deleted(app_url: str, open_page: OpenPage) -> None:
    page = open_page()
    wait_for_demo(page, app_url)
    choose_patient(page, "Li Wei")
    ask(page, "What is the metformin dose?")
    wait_for_answer(page)

    page.get_by_role("button", name="Rename or delete").first.click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_label("Title").fill("Metformin question")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("button", name="Metformin question", exact=True)).to_be_visible()

    page.get_by_placeholder("Search conversations").fill("no such words")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No conversation matches")).to_be_visible()
    page.get_by_placeholder("Search conversations").fill("")
    page.keyboard.press("Enter")

    page.get_by_role("button", name="Rename or delete").first.click()
    page.get_by_role("menuitem", name="Delete").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_text("None yet. Ask a question to begin.")).to_be_visible()


def test_the_last_question_is_edited(app_url: str, open_page: OpenPage) -> None:
    page = open_page()
    wait_for_demo(page, app_url)
    choose_patient(page, "Li Wei")
    ask(page, "What is her blood group?")
    wait_for_answer(page)
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_role("dialog").get_by_role("textbox").fill("When is the baby due?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".question")).to_have_text("When is the baby due?")
    wait_for_answer(page)


def test_a_deleted_document_is_gone(app_url: str, open_page: OpenPage) -> None:
    page = open_page()
    wait_for_demo(page, app_url)
    choose_patient(page, "Ada Tester")
    open_screen(page, "Documents")
    card = page.locator("[class*=st-key-document_]", has_text="note_plain.pdf")
    card.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(card).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_every_screen_fits_and_is_photographed(
    app_url: str, open_page: OpenPage, width: int, height: int, scheme: str
) -> None:
    page = open_page(width, height, scheme)
    wait_for_demo(page, app_url)
    SHOTS.mkdir(exist_ok=True)
    ask(page, "Why was she admitted?")
    wait_for_answer(page)
    photograph(page, f"answer_{width}_{scheme}")
    page.locator(".chip").first.click()
    expect(page.get_by_alt_text("with the cited words marked").last).to_be_visible()
    photograph(page, f"evidence_{width}_{scheme}")
    for screen, last_words in SCREENS.items():
        page.goto(f"{app_url}/{screen}")
        expect(page.get_by_text(last_words).last).to_be_visible()
        photograph(page, f"{screen}_{width}_{scheme}")


def photograph(page: Page, name: str) -> None:
    """Takes the picture once everything is drawn, and checks that nothing is wider than the window."""
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
    page.wait_for_timeout(300)  # an image or a dialog slides in; nothing is asserted on the time
    page.screenshot(path=SHOTS / f"{name}.png")
    width = page.evaluate("window.innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width
