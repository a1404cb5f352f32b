"""The reference as what is asked: transformers in fp32, from a checkpoint. Needs the extra ``proof``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onevision.errors import CheckpointError
from onevision.eval.records import Reply
from onevision.runtime.images import read_image
from onevision.runtime.video import read_video

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onevision.eval.ask import Settings
    from onevision.runtime.images import ImageSource
    from onevision.runtime.video import VideoSource


class ReferenceModel:
    """A checkpoint in transformers.

    Args:
        folder: The checkpoint's.

    Attributes:
        tile: Pixels a side of a tile.

    Raises:
        CheckpointError: It is damaged, of something else, or too large for this memory.
    """

    def __init__(self, folder: Path) -> None:
        from onevision.export.checkpoint import Checkpoint
        from onevision.export.tokenizer import read_tokenizer
        from onevision.proof.reference import Reference, fits_in_memory

        with Checkpoint.open(folder) as checkpoint:
            if not fits_in_memory(checkpoint):
                raise CheckpointError(
                    f"{folder} does not fit in this memory in fp32", hint="compare with a bundle instead"
                )
            never_sampled = read_tokenizer(folder, checkpoint.config).never_sampled
            self._reference = Reference(checkpoint, never_sampled=never_sampled)
            self._frames = checkpoint.config.frames
            self.tile = checkpoint.config.vision.image_size

    def __call__(
        self, prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: Settings
    ) -> Reply:
        """See :class:`onevision.eval.ask.Answerer`."""
        text = self._reference.answer(
            prompt,
            images=[np.asarray(read_image(image)) for image in images],
            video=None if video is None else self._sampled(video, settings.frames),
            max_tokens=settings.max_tokens,
        )
        return Reply(text)

    def _sampled(
        self, video: VideoSource, frames: int | None
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The frames of a video that are seen, uint8 [N, h, w, 3]; an array is seen whole."""
        if isinstance(video, np.ndarray):
            return video
        return read_video(video, frames=frames or self._frames, prepare=np.asarray).tiles
