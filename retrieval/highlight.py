"""Marks words on a page image, the same way for every format."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops

COLOUR = (255, 221, 87)


def paint(image: Image.Image, boxes: Sequence[tuple[int, int, int, int]]) -> None:
    """Colours the boxes (left, top, right, bottom in pixels) like a marker pen: the ink stays black. In place."""
    for left, top, right, bottom in boxes:
        box = (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            continue
        words = image.crop(box)
        image.paste(ImageChops.multiply(words, Image.new("RGB", words.size, COLOUR)), box)
