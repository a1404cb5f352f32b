"""Pages of a PDF document as images, by PDFium."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image

from onevision.errors import ImageError

#: Pixels of a page's longer side: that of the largest canvas of the published models' AnyRes, 6 tiles of 384.
PAGE_SIDE = 2304
_BUSY = threading.Lock()  # PDFium must not be called from two threads


@contextmanager
def open_pdf(file: BinaryIO, name: str) -> Iterator[tuple[int, Callable[[int], Image.Image]]]:
    """The number of pages, and a function that draws a page, from 0, on white.

    Raises:
        ImageError: Damaged, encrypted, or pypdfium2 is not installed.
    """
    try:
        import pypdfium2
    except ImportError as error:
        raise ImageError(
            f"{name} is a PDF document, which cannot be read here", hint="pip install 'onevision[pdf]'"
        ) from error

    def draw(index: int) -> Image.Image:
        page = document[index]
        longer = max(page.get_size())
        if longer <= 0:
            raise ImageError(f"page {index + 1} of {name} has no area")
        image: Image.Image = page.render(scale=PAGE_SIDE / longer).to_pil().convert("RGB")
        return image

    with _BUSY:
        try:
            with pypdfium2.PdfDocument(file) as document:
                document.init_forms()  # before the pages, so that what is filled in is drawn
                yield len(document), draw
        except pypdfium2.PdfiumError as error:
            if "assword" in str(error):
                raise ImageError(
                    f"{name} is protected by a password", hint="save it without one first"
                ) from error
            raise ImageError(
                f"{name} starts as a PDF document and is damaged", hint="save or download it again"
            ) from error
