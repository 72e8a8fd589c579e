"""Marks words on a page image, the same way for every format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from PIL import Image, ImageChops

from contracts import LineBox

COLOUR = (255, 221, 87)
# Advance widths of Helvetica (Adobe Core 14 font metrics) other than those of figures and most small letters, 556.
_WIDTHS = {
    character: width
    for width, characters in {
        222: "ijl'|",
        278: " !,./:;I[]\\ft",
        333: "()-r`",
        500: "ckvxyzsJ",
        584: "+<=>~",
        611: "FTZ",
        667: "ABEKPSVXY&",
        722: "CDHNRUw",
        778: "GOQ",
        833: "mM",
        889: "%",
        944: "W",
    }.items()
    for character in characters
}


def paint(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> None:
    """Colours the boxes (left, top, right, bottom in pixels) like a marker pen: the ink stays black. In place."""
    for left, top, right, bottom in boxes:
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        words = image.crop(box)
        image.paste(ImageChops.multiply(words, Image.new("RGB", words.size, COLOUR)), box)


def line_boxes(
    text: str, lines: Sequence[LineBox], highlights: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Pixel boxes of the ranges of a recognised page's text. Where in a line its characters stand was not recognised:
    each is taken to be as wide as in Helvetica, beside the others of its line."""
    width, height = size
    boxes: list[tuple[int, int, int, int]] = []
    for line in lines:
        ends = list(accumulate((_width(character) for character in text[line.start : line.end]), initial=0))
        for start, end in highlights:
            first, last = max(start, line.start), min(end, line.end)
            if first >= last:
                continue
            step = (line.right - line.left) / ends[-1]
            left, right = (line.left + step * ends[place - line.start] for place in (first, last))
            box = (left * width, line.top * height, right * width, line.bottom * height)
            boxes.append((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    return boxes


def _width(character: str) -> int:
    """In thousandths of the type size."""
    return 1000 if character >= "\u2e80" else _WIDTHS.get(character, 556)
