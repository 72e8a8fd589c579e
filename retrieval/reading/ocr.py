"""A picture of a page -> its text, line by line with boxes and confidence. The only file that imports rapidocr.

Its models (PP-OCR, detection and recognition of Chinese and Latin print) come in its wheel; nothing is fetched. The
classifier of upside-down lines stays off: it turned a third of dense lines around. Instead a few lines of the page are
read both ways, and the page is turned as a whole. Slightly skewed lines are cut out along their own slope.
"""

from __future__ import annotations

import importlib.metadata
import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from contracts import LineBox, Page, ReadMethod
from retrieval.reading import tesseract
from retrieval.reading.layout import Line, flow

DPI = 200
_DETECTION_SIDE = 1600  # pixels of the longer side: print of 8 points is still found, in two thirds of the time
_MAX_SIDE = 4000
_MIN_LINE_CONFIDENCE = 0.3
_MIN_PAGE_CONFIDENCE = 0.5  # below it what was recognised is guessed: the page counts as unreadable
_MIN_TESSERACT_CONFIDENCE = 0.7  # print that stands upright comes to 0.95, the same upside down to 0.57
_SAMPLE_LINES = 4
_MIN_PROSE_CHARS = 25  # median length of a line in a column of prose; cells of tables are shorter
_BLANK_SPREAD = 6.0  # grey levels between the darkest and lightest hundredth of an empty sheet

Quad = npt.NDArray[np.float32]  # [4, 2]: corners clockwise from the top left, in pixels


def recognise(image: Image.Image, number: int) -> Page:
    """The page `number` as it stands in an RGB image: method OCR, or EMPTY where nothing can be told for sure. What
    rapidocr cannot read is read by tesseract, where that is installed."""
    try:
        page = _recognise(image, number)
    except Exception:  # the edge to a foreign recogniser: without another one it is the reading process's to report
        if not tesseract.version():
            raise
        return _recognise_by_tesseract(image, number)
    if page.method is not ReadMethod.EMPTY or not tesseract.version():
        return page
    return _recognise_by_tesseract(image, number)


def _recognise(image: Image.Image, number: int) -> Page:
    pixels = _shrink(image)
    if _is_blank(pixels):
        return Page(number, "", ReadMethod.TEXT)  # an empty sheet is read completely
    quads = _detect(pixels)
    rotation = _find_rotation(pixels, quads)
    if rotation:
        pixels = np.ascontiguousarray(np.rot90(pixels, -rotation // 90))
        quads = _detect(pixels)
    texts, scores = _read(pixels, quads)
    kept = [n for n, text in enumerate(texts) if text.strip() and scores[n] >= _MIN_LINE_CONFIDENCE]
    lines = [_Recognised(texts[n].strip(), scores[n], quads[n]) for n in kept]
    return _to_page(number, lines, _MIN_PAGE_CONFIDENCE, pixels.shape[1], pixels.shape[0], rotation)


def _recognise_by_tesseract(image: Image.Image, number: int) -> Page:
    """The first way up in which it can be read."""
    small = image.copy()
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    page = Page(number, "", ReadMethod.EMPTY, 0.0)
    for rotation in (0, 90, 180, 270):
        turned = small.rotate(-rotation, expand=True)
        lines = [_join(words) for words in tesseract.read_lines(turned)]
        page = _to_page(number, lines, _MIN_TESSERACT_CONFIDENCE, turned.width, turned.height, rotation)
        if page.method is ReadMethod.OCR:
            break
    return page


def _to_page(
    number: int, lines: Sequence[_Recognised], least: float, width: int, height: int, rotation: int = 0
) -> Page:
    """The page of these lines; EMPTY where their mean confidence, by characters, is below `least`."""
    num_chars = sum(len(line.text) for line in lines)
    confidence = sum(line.score * len(line.text) for line in lines) / max(num_chars, 1)
    if confidence < least:
        return Page(number, "", ReadMethod.EMPTY, confidence)
    text, boxes = _compose(_in_reading_order(lines), width, height)
    return Page(number, text, ReadMethod.OCR, round(confidence, 4), boxes, rotation)


def parser() -> str:
    """What recognises pages here, with versions; "" where nothing does."""
    try:
        first = f"rapidocr {importlib.metadata.version('rapidocr')}"
    except importlib.metadata.PackageNotFoundError:
        first = ""
    return ", ".join(filter(None, (first, tesseract.version())))


# --- the recogniser -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _engine() -> Any:
    from rapidocr import RapidOCR

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    engine = RapidOCR(params={"Global.use_cls": False, "Global.log_level": "critical", **threads})
    engine._load_det_model()
    engine._load_rec_model()
    return engine


def _detect(pixels: npt.NDArray[np.uint8]) -> list[Quad]:
    height, width = pixels.shape[:2]
    scale = min(1.0, _DETECTION_SIDE / max(height, width))
    small = pixels
    if scale < 1.0:
        resized = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
        small = np.asarray(resized)
    found = _engine().text_det(small)
    return [] if found.boxes is None else [np.asarray(box, dtype=np.float32) / scale for box in found.boxes]


def _read(pixels: npt.NDArray[np.uint8], quads: Sequence[Quad]) -> tuple[list[str], list[float]]:
    return _read_crops(_crops(pixels, quads)) if quads else ([], [])


def _crops(pixels: npt.NDArray[np.uint8], quads: Sequence[Quad]) -> list[npt.NDArray[np.uint8]]:
    from rapidocr.utils.process_img import get_rotate_crop_image

    return [get_rotate_crop_image(pixels, quad.copy()) for quad in quads]


def _read_crops(crops: Sequence[npt.NDArray[np.uint8]]) -> tuple[list[str], list[float]]:
    from rapidocr.ch_ppocr_rec import TextRecInput

    found = _engine().text_rec(TextRecInput(img=list(crops), return_word_box=False))
    return list(found.txts or []), [float(score) for score in found.scores or []]


# --- the picture --------------------------------------------------------------------------------------------------


def _shrink(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The picture as BGR pixels, its longer side at most _MAX_SIDE."""
    if max(image.size) > _MAX_SIDE:
        image = image.copy()
        image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def _is_blank(pixels: npt.NDArray[np.uint8]) -> bool:
    low, high = np.percentile(pixels[::4, ::4], (0.1, 99.9))
    return bool(high - low < _BLANK_SPREAD)


def _find_rotation(pixels: npt.NDArray[np.uint8], quads: Sequence[Quad]) -> int:
    """By how many degrees, clockwise, the picture must be turned for its lines to be read."""
    if not quads:
        return 0
    is_sideways = sum(_height(quad) > 1.5 * _width(quad) for quad in quads) > len(quads) / 2
    longest = sorted(quads, key=lambda quad: max(_width(quad), _height(quad)), reverse=True)[:_SAMPLE_LINES]
    crops = _crops(pixels, longest)  # a line that stands on end is laid down, its right side up
    _, upright = _read_crops(crops)
    if not is_sideways and upright and statistics.mean(upright) > 0.9:
        return 0
    _, turned = _read_crops([np.ascontiguousarray(crop[::-1, ::-1]) for crop in crops])
    is_turned = sum(turned) > sum(upright)
    return {(False, False): 0, (False, True): 180, (True, False): 270, (True, True): 90}[is_sideways, is_turned]


def _width(quad: Quad) -> float:
    return float(np.linalg.norm(quad[1] - quad[0]))


def _height(quad: Quad) -> float:
    return float(np.linalg.norm(quad[3] - quad[0]))


# --- lines to text ------------------------------------------------------------------------------------------------


class _Recognised:
    """A recognised line and its place, in pixels of the upright picture."""

    def __init__(self, text: str, score: float, quad: Quad) -> None:
        self.text, self.score, self.quad = text, score, quad
        self.left, self.top = (float(value) for value in quad.min(axis=0))
        self.right, self.bottom = (float(value) for value in quad.max(axis=0))

    @property
    def slope(self) -> float:
        return math.atan2(float(self.quad[1][1] - self.quad[0][1]), float(self.quad[1][0] - self.quad[0][0]))

    @property
    def drop(self) -> float:
        """Pixels by which the line ends lower than it begins."""
        return float(self.quad[1][1] + self.quad[2][1] - self.quad[0][1] - self.quad[3][1]) / 2

    def level(self, slope: float) -> tuple[float, float, float, float]:
        """Its box on the page turned level: left, top, right, bottom."""
        turn = np.array([[math.cos(slope), math.sin(slope)], [-math.sin(slope), math.cos(slope)]])
        corners = self.quad @ turn.T
        left, right = float(corners[:, 0].min()), float(corners[:, 0].max())
        middle, half = float(corners[:, 1].mean()), _height(self.quad) / 2
        return left, middle - half, right, middle + half


def _join(words: Sequence[tesseract.Word]) -> _Recognised:
    """The words of a line as one."""
    places = np.array([box for _, _, box in words], dtype=np.float32)
    (left, top), (right, bottom) = places[:, :2].min(axis=0), places[:, 2:].max(axis=0)
    quad = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], dtype=np.float32)
    score = statistics.fmean(confidence for _, confidence, _ in words)
    return _Recognised(" ".join(text for text, _, _ in words), score, quad)


def _in_reading_order(lines: Sequence[_Recognised]) -> list[tuple[_Recognised, Line]]:
    """Column by column where the page has columns of prose, else row by row; each with its place on the level page."""
    slope = statistics.median([line.slope for line in lines if len(line.text) > 5] or [0.0])
    placed = [(line, _to_line(line, slope)) for line in lines]
    return [pair for column in _columns(placed) for row in _rows(column) for pair in row]


def _to_line(line: _Recognised, slope: float) -> Line:
    box = line.level(slope)
    first_word = len(line.text.split()[0]) / max(len(line.text), 1) * (box[2] - box[0])
    return Line(line.text, range(len(line.text)), box, first_word, is_tabular=False, is_hyphenated=False)


Placed = tuple[_Recognised, Line]


def _columns(placed: Sequence[Placed]) -> list[list[Placed]]:
    """The lines of each column of prose; all in one where a gap from top to bottom only parts the cells of a table."""
    wide = [pair for pair in placed if len(pair[0].text) >= _MIN_PROSE_CHARS]
    if len(wide) < 10:
        return [list(placed)]
    middle = statistics.mean(pair[1].box[0] for pair in wide) / 2 + statistics.mean(pair[1].box[2] for pair in wide) / 2
    left = [pair for pair in placed if pair[1].box[2] < middle]
    right = [pair for pair in placed if pair[1].box[0] > middle]
    across = [pair for pair in placed if pair[1].box[0] <= middle <= pair[1].box[2]]
    is_prose = all(
        len(side) >= 5 and statistics.median(len(pair[0].text) for pair in side) >= _MIN_PROSE_CHARS
        for side in (left, right)
    )
    if not is_prose or len(across) > 0.2 * len(placed):
        return [list(placed)]
    top = min(pair[1].box[1] for pair in (*left, *right))
    above = [pair for pair in across if pair[1].box[1] < top]
    below = [pair for pair in across if pair[1].box[1] >= top]
    return [column for column in (above, left, right, below) if column]


def _rows(placed: Sequence[Placed]) -> list[list[Placed]]:
    rows: list[list[Placed]] = []
    for pair in sorted(placed, key=lambda pair: pair[1].box[1] + pair[1].box[3]):
        middle = (pair[1].box[1] + pair[1].box[3]) / 2
        if rows and rows[-1][0][1].box[1] < middle < rows[-1][0][1].box[3]:
            rows[-1].append(pair)
        else:
            rows.append([pair])
    return [sorted(row, key=lambda pair: pair[1].box[0]) for row in rows]


def _compose(placed: Sequence[Placed], width: int, height: int) -> tuple[str, tuple[LineBox, ...]]:
    pieces = flow([line for _, line in placed])
    boxes: list[LineBox] = []
    text = ""
    recognised = iter(placed)
    for piece, sources in pieces:
        if sources is not None:
            line, _ = next(recognised)
            place = (line.left / width, line.top / height, line.right / width, line.bottom / height)
            left, top, right, bottom = (round(min(max(share, 0.0), 1.0), 5) for share in place)
            end, drop = len(text) + len(piece), round(line.drop / height, 5)
            boxes.append(LineBox(len(text), end, left, top, right, bottom, round(line.score, 4), drop))
        text += piece
    return text, tuple(boxes)
