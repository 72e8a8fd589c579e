"""Marks words on a page image, the same way for every format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from PIL import Image, ImageChops, ImageDraw

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


Shape = tuple[int, int, int, int, int]  # left, top, right, bottom; drop: the right end lies that much lower; in pixels


def paint(image: Image.Image, shapes: Sequence[Shape]) -> None:
    """Colours the shapes like a marker pen: the ink stays black. In place. top and bottom are those of the left end."""
    for left, top, right, bottom, drop in shapes:
        if left >= right or top >= bottom:
            continue
        around = (left, min(top, top + drop), right, max(bottom, bottom + drop))
        box = (max(around[0], 0), max(around[1], 0), min(around[2], image.width), min(around[3], image.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        words = image.crop(box)
        pen = Image.new("L", words.size)
        corners = ((left, top), (right - 1, top + drop), (right - 1, bottom + drop - 1), (left, bottom - 1))
        ImageDraw.Draw(pen).polygon([(x - box[0], y - box[1]) for x, y in corners], fill=255)
        image.paste(ImageChops.multiply(words, Image.new("RGB", words.size, COLOUR)), box, pen)


def line_shapes(
    text: str, lines: Sequence[LineBox], highlights: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[Shape]:
    """Where the ranges of a recognised page's text stand, along the slope of their lines. Where in a line its
    characters stand was not recognised: each is taken to be as wide as in Helvetica, beside the others of its line."""
    width, height = size
    shapes: list[Shape] = []
    for line in lines:
        ends = list(accumulate((_width(character) for character in text[line.start : line.end]), initial=0))
        for start, end in highlights:
            first, last = max(start, line.start), min(end, line.end)
            if first >= last:
                continue
            begin, finish = (ends[place - line.start] / ends[-1] for place in (first, last))
            left, right = (line.left + (line.right - line.left) * share for share in (begin, finish))
            # The line's own box is as high as its slope makes it: the words take what is left, where they stand on it.
            top = line.top + max(-line.drop, 0) + line.drop * begin
            bottom = top + max(line.bottom - line.top - abs(line.drop), 0)
            box = (left * width, top * height, right * width, bottom * height, line.drop * (finish - begin) * height)
            shapes.append((round(box[0]), round(box[1]), round(box[2]), round(box[3]), round(box[4])))
    return shapes


def _width(character: str) -> int:
    """In thousandths of the type size."""
    return 1000 if character >= "\u2e80" else _WIDTHS.get(character, 556)
