"""A small mixed record, walked as bench/mixed_record_drive.py walks the one of 300 pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from bench.mixed_record import make_record
from bench.mixed_record_drive import (
    add_patient,
    ask,
    delete_patient,
    has_highlight,
    open_citation,
    upload,
)
from bench.serving import open_screen

pytestmark = pytest.mark.browser


def test_a_record_is_asked_while_its_scans_are_recognised(app_url: str, open_page: Callable[..., Page]) -> None:
    record = make_record(num_pages=24, num_scans=4)
    page = open_page()
    page.goto(app_url)
    expect(page.get_by_placeholder("Ask about this record")).to_be_visible()
    expect(page.get_by_text("Answers use what has been read so far")).to_have_count(0, timeout=180_000)
    add_patient(page)
    upload(page, record, patience_s=180)  # until the first picture is being recognised
    ask(page, record.planted[0])
    assert has_highlight(open_citation(page, record.planted[0], record))
    open_screen(page, "Documents")
    expect(page.get_by_text("4 recognised from images")).to_be_visible(timeout=180_000)
    ask(page, record.planted[-1])
    assert has_highlight(open_citation(page, record.planted[-1], record))
    delete_patient(page)
    expect(page.get_by_text("nothing is left")).to_be_visible()
