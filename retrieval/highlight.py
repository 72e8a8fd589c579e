"""Marks words on a page image, the same way for every format."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops

from contracts import LineBox

COLOUR = (255, 221, 87)


def paint(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> None:
    """Colours the boxes (left, top, right, bottom in pixels) like a marker pen: the ink stays black. In place."""
    for left, top, right, bottom in boxes:
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        words = image.crop(box)
        image.paste(ImageChops.multiply(words, Image.new("RGB", words.size, COLOUR)), box)


def line_boxes(
    lines: Sequence[LineBox], highlights: Sequence[tuple[int, int]], size: tuple[int, int]
) -> list[tuple[int, int, int, int]]:
    """Pixel boxes of the ranges of a recognised page's text. Within a line, characters are taken to be equally wide."""
    width, height = size
    boxes: list[tuple[int, int, int, int]] = []
    for line in lines:
        for start, end in highlights:
            first, last = max(start, line.start), min(end, line.end)
            if first >= last:
                continue
            step = (line.right - line.left) / max(line.end - line.start, 1)
            left, right = line.left + step * (first - line.start), line.left + step * (last - line.start)
            box = (left * width, line.top * height, right * width, line.bottom * height)
            boxes.append((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    return boxes
