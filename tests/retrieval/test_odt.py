"""An OpenDocument text is read in the order of its body, and refused where it is no harmless text."""

from __future__ import annotations

import io
import zipfile

import pytest

from bench.small_files import odt
from retrieval.errors import DocumentError
from retrieval.parsers import parse
from retrieval.reading.process import Readers

CELL = "<table:table-cell><text:p>{}</text:p></table:table-cell>"


def replaced(part: str, content: bytes) -> bytes:
    """The small ODT file with another content of one part."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(odt())) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in dict.fromkeys([*old.namelist(), part]):
            new.writestr(name, content if name == part else old.read(name))
    return buffer.getvalue()


def test_headings_lists_tables_notes_and_headers_are_read_in_order(readers: Readers) -> None:
    body = (
        "<text:h>Plan</text:h><text:list><text:list-item><text:p>Clinic<text:s/>visit</text:p><text:list><text:list-item>"
        "<text:p>with bloods</text:p></text:list-item></text:list></text:list-item></text:list>"
        "<text:section><text:p>Seen by<text:tab/>Dr Wu<text:note><text:note-citation>1</text:note-citation>"
        "<text:note-body><text:p>Locum.</text:p></text:note-body></text:note></text:p></text:section>"
        "<text:tracked-changes><text:p>Deleted.</text:p></text:tracked-changes>"
        "<office:annotation><text:p>A comment.</text:p></office:annotation>"
        f"<table:table><table:table-header-rows><table:table-row>{CELL.format('INR')}{CELL.format('Day')}</table:table-row>"
        f"</table:table-header-rows><table:table-row>{CELL.format('2.5')}<table:table-cell/></table:table-row></table:table>"
    )
    around = "<style:header><text:p>Ward 7</text:p></style:header><style:footer><text:p>Dundee</text:p></style:footer>"
    (page,) = parse(odt(body, around), "note.odt", readers=readers).pages
    places = [
        page.text.index(words)
        for words in (
            "Ward 7",
            "Apixaban 5 mg twice daily.",
            "# Medications\n\nDrug | Dose | Since\nBisoprolol | 2.5 mg | 2024-03-01",
            "# Plan\n\n- Clinic visit\n- with bloods",
            "Seen by\tDr Wu\nLocum.",
            "INR | Day\n2.5 | ",
            "Dundee",
        )
    ]
    assert places == sorted(places)
    assert "Deleted" not in page.text
    assert "comment" not in page.text


def test_hidden_text_is_told(readers: Readers) -> None:
    styles = '<style:style><style:text-properties text:display="none"/></style:style>'
    assert "hidden" in parse(odt(styles=styles), "note.odt", readers=readers).warnings[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (replaced("content.xml", b"<broken"), "damaged"),
        (replaced("content.xml", b"<a/>"), "damaged"),
        (replaced("META-INF/manifest.xml", b"<m><encryption-data/></m>"), "password"),
        (replaced("content.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "entities"),
        (odt()[:-200], "damaged"),
        (odt(f"<table:table><table:table-row table:number-rows-repeated='9'>{CELL * 9}" * 2000), "damaged"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(data: bytes, reason: str, readers: Readers) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(data, "note.odt", readers=readers)


def test_a_cell_repeated_a_billion_times_costs_nothing(readers: Readers) -> None:
    row = "<table:table-row table:number-rows-repeated='1000000000'><table:table-cell "
    row += "table:number-columns-repeated='1000000000'><text:p>x</text:p></table:table-cell></table:table-row>"
    assert (
        sum(len(page.text) for page in parse(odt(f"<table:table>{row}</table:table>"), "a.odt", readers=readers).pages)
        < 10**6
    )
