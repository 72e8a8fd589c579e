"""Tesseract reads what rapidocr cannot, under the limits of a reading process, and makes nothing up of noise."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.config import Settings
from app.doctor import run_checks
from bench.small_files import picture
from contracts import ReadMethod
from retrieval.reading import ocr, tesseract
from retrieval.reading.wire import page_from_json

needs_tesseract = pytest.mark.skipif(not tesseract.version(), reason="the program tesseract is not installed")

# A reading process in which rapidocr is not there.
WITHOUT_RAPIDOCR = """
import io, json, sys
from retrieval.reading.limits import limit_this_process
limit_this_process(1500)
sys.modules["rapidocr"] = None
from PIL import Image
from retrieval.reading import ocr
from retrieval.reading.wire import page_to_json
print(json.dumps(page_to_json(ocr.recognise(Image.open(io.BytesIO(sys.stdin.buffer.read())).convert("RGB"), 1))))
"""


@needs_tesseract
@pytest.mark.parametrize(("angle", "rotation"), [(0, 0), (90, 90), (180, 180)])
def test_without_rapidocr_a_scan_is_read_whichever_way_up(angle: int, rotation: int) -> None:
    command = [sys.executable, "-c", WITHOUT_RAPIDOCR]
    done = subprocess.run(command, input=picture("PNG", angle=angle), capture_output=True, check=True)
    page = page_from_json(json.loads(done.stdout))
    assert (page.method, page.rotation) == (ReadMethod.OCR, rotation)
    assert page.confidence > 0.8
    assert "Apixaban 5 mg twice daily." in page.text
    (line,) = (line for line in page.lines if page.text[line.start : line.end].startswith("Apixaban"))
    assert 0.4 < line.top < line.bottom < 0.9
    assert line.left < 0.1 < line.right


@needs_tesseract
def test_what_neither_can_read_stays_unreadable() -> None:
    noise = Image.effect_noise((700, 900), 90).convert("RGB")
    page = ocr.recognise(noise, 3)
    assert (page.number, page.method, page.text) == (3, ReadMethod.EMPTY, "")


def test_without_rapidocr_and_tesseract_the_page_fails_and_the_doctor_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tesseract, "_FOLDERS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    tesseract.version.cache_clear()
    ocr._engine.cache_clear()
    try:
        with pytest.raises(ImportError):
            ocr.recognise(Image.open(io.BytesIO(picture("PNG"))).convert("RGB"), 1)
        settings = Settings(data_dir=tmp_path, checkpoint=tmp_path / "none")
        (check,) = (check for check in run_checks(settings) if check.name == "scanned pages")
        assert check.passed
        assert "unless tesseract is installed" in check.message
    finally:
        tesseract.version.cache_clear()
