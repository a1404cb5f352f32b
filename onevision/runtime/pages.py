"""The images of messages: which pages of a file are meant, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from PIL import Image

from onevision.errors import ImageError
from onevision.runtime.images import open_source, read_image, whole_source
from onevision.runtime.messages import ImagePart, Message, Part
from onevision.runtime.options import AnswerOptions


def paged_messages(messages: Sequence[Message], options: AnswerOptions) -> Sequence[Message]:
    """Messages with an image part for each page that the options name.

    Raises:
        ImageError: See :func:`paged`.
    """
    if options.page is None:
        return messages

    def expand(part: Part) -> Sequence[Part]:
        return paged(part, options) if isinstance(part, ImagePart) else [part]

    return [
        replace(message, content=tuple(chain.from_iterable(map(expand, message.content))))
        for message in messages
    ]


def paged(part: ImagePart, options: AnswerOptions) -> list[ImagePart]:
    """A part for each page that the options name; one that has a page of its own stays.

    Raises:
        ImageError: The file cannot be read, or has no such page.
    """
    if options.page is None or part.page is not None:
        return [part]
    source, name, count = whole_source(part.source), "the image", 1
    if not isinstance(source, (np.ndarray, Image.Image)):
        with open_source(source) as opened:
            name, count = opened.name, opened.count
    if options.page == "all":
        pages = list(range(1, count + 1))
    else:
        ends = [list(map(int, item.split("-"))) for item in options.page.split(",")]
        if (last := max(map(max, ends))) > count:
            raise ImageError(f"{name} has no page {last}: it has {count}")
        pages = [page for item in ends for page in range(item[0], item[-1] + 1)]
    return [replace(part, source=source, page=page) for page in pages]


def read_part(part: ImagePart, options: AnswerOptions, warn: Callable[[str], None]) -> Image.Image:
    """Image of a part, see :func:`onevision.runtime.images.read_image`."""
    return read_image(part.source, exif=options.exif, page=part.page, stretch=options.stretch, warn=warn)
