"""Answers of the reference: transformers in fp32, from a checkpoint. Needs the extra ``proof``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onevision.errors import CheckpointError
from onevision.eval.ask import EvalSettings
from onevision.eval.records import EvalReply
from onevision.runtime.images import read_image
from onevision.runtime.video import read_video

if TYPE_CHECKING:
    from onevision.runtime.images import ImageSource
    from onevision.runtime.video import VideoSource


class ReferenceModel:
    """A checkpoint loaded into transformers; an :class:`onevision.eval.ask.Answerer`.

    Args:
        folder: Folder of the checkpoint.

    Attributes:
        tile: Pixels per side of a tile.

    Raises:
        CheckpointError: It is damaged, of another architecture, or too large for the memory.
    """

    def __init__(self, folder: Path) -> None:
        from onevision.export.checkpoint import Checkpoint
        from onevision.export.tokenizer import read_tokenizer
        from onevision.proof.reference import Reference, fits_in_memory

        with Checkpoint.open(folder) as checkpoint:
            if not fits_in_memory(checkpoint):
                raise CheckpointError(
                    f"{folder} does not fit in memory in fp32", hint="compare with a bundle instead"
                )
            never_sampled = read_tokenizer(folder, checkpoint.config).never_sampled
            self._reference = Reference(checkpoint, never_sampled=never_sampled)
            self._frames = checkpoint.config.frames
            self.tile = checkpoint.config.vision.image_size

    def __call__(
        self, prompt: str, images: Sequence[ImageSource], video: VideoSource | None, settings: EvalSettings
    ) -> EvalReply:
        """Answer greedily, see :class:`onevision.eval.ask.Answerer`."""
        if video is not None and not isinstance(video, np.ndarray):
            frames = settings.options.frames or self._frames
            video = read_video(video, frames=frames, prepare=np.asarray).tiles
        text = self._reference.answer(
            prompt,
            images=[np.asarray(read_image(image)) for image in images],
            video=video,
            max_tokens=settings.options.max_tokens,
        )
        return EvalReply(text)
