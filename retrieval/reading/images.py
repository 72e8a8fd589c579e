"""Pictures of pages (PNG, JPEG, TIFF with one or many) -> frames, upright as the camera knew it. Text comes by OCR."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from retrieval.errors import DocumentError

MAX_PIXELS = 120_000_000  # 11 x 11 inches at 1,000 dpi; more is an attack or no page
PARSER = f"Pillow {PIL.__version__}"


def count_frames(data: bytes, max_pages: int) -> int:
    """How many pages a picture holds. Raises DocumentError for one that is damaged or too large."""
    with _open(data) as image:
        number = int(getattr(image, "n_frames", 1))
        if number > max_pages:
            raise DocumentError(f"This image has {number:,} pages, more than the limit of {max_pages:,}; split it.")
        if image.width * image.height > MAX_PIXELS:
            raise DocumentError(
                f"This image has {image.width:,} × {image.height:,} pixels, more than a page needs; "
                "scan it again at 300 dpi."
            )
        if number == 1:
            image.load()  # one that was cut off is told now, not after it was waited for
        return number


def load_frame(data: bytes, number: int) -> Image.Image:
    """Frame `number`, from 1, as RGB."""
    with _open(data) as image:
        image.seek(number - 1)
        if image.width * image.height > MAX_PIXELS:
            raise DocumentError("A page of this image is too large to be read; scan it again at 300 dpi.")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "P"):  # what is transparent is paper
            paper = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(paper, upright.convert("RGBA"))
        if upright.mode in ("I;16", "I", "F"):
            upright = ImageOps.autocontrast(upright.convert("F").point(lambda value: value / 256).convert("L"))
        return upright.convert("RGB")


@contextmanager
def _open(data: bytes) -> Iterator[Image.Image]:
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF")) as image:
            yield image
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise DocumentError("This image is damaged or too large to be read; scan it again.") from error
