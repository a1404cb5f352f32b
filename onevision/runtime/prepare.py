"""Messages to a prompt of known length: pictures read and cut, text tokenised, nothing encoded yet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from onevision.errors import BundleError
from onevision.runtime import anyres, pack
from onevision.runtime.answer import Usage
from onevision.runtime.anyres import AnyRes, choose_tiling
from onevision.runtime.cache import key_of
from onevision.runtime.features import share_frames
from onevision.runtime.images import read_image
from onevision.runtime.messages import ImagePart
from onevision.runtime.options import TEMPLATES
from onevision.runtime.prompt import Control, render
from onevision.runtime.video import read_video

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from onevision.bundle import Manifest
    from onevision.runtime.answer import StageClock
    from onevision.runtime.backbone import Vocabulary
    from onevision.runtime.messages import Message, VideoPart
    from onevision.runtime.options import AnswerOptions, Template
    from onevision.runtime.prompt import Segment


@dataclass(frozen=True)
class VisualInput:
    """One picture or video, cut to what the encoder takes.

    Attributes:
        tiles: uint8 [T, S, S, 3]
        tokens: Rows that it takes in the prompt after packing.
        pack: image features float32 [T, P, H] -> visual tokens float32 [tokens, H]
        layout: All that ``pack`` depends on besides the features.
        reused: Frames that are shown as an earlier one which is like them.
    """

    tiles: npt.NDArray[np.uint8]
    tokens: int
    pack: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    layout: str
    reused: int = 0

    @cached_property
    def key(self) -> str:
        """Names the visual tokens, for one bundle: sha256 of the pixels and the layout."""
        return key_of(self.layout, self.tiles.shape, np.ascontiguousarray(self.tiles).data)


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt whose length is known: token ids, and visual inputs in their places."""

    parts: tuple[tuple[int, ...] | VisualInput, ...]
    warnings: tuple[str, ...] = ()

    @property
    def visuals(self) -> tuple[VisualInput, ...]:
        """Pictures and videos, in order."""
        return tuple(part for part in self.parts if isinstance(part, VisualInput))

    @property
    def image_tokens(self) -> int:
        """Positions that pictures and videos take."""
        return sum(visual.tokens for visual in self.visuals)

    @property
    def tokens(self) -> int:
        """Length of the prompt in positions of the backbone."""
        return self.image_tokens + sum(len(part) for part in self.parts if isinstance(part, tuple))

    def is_visual(self, position: int) -> bool:
        """Whether a position of the prompt is one of a picture or video."""
        for part in self.parts:
            length = part.tokens if isinstance(part, VisualInput) else len(part)
            if position < length:
                return isinstance(part, VisualInput)
            position -= length
        return False

    @property
    def tiles(self) -> int:
        """Tiles that the vision encoder is given; equal ones are encoded once."""
        return sum(len(visual.tiles) for visual in self.visuals)

    def usage(self, *, completion_tokens: int, cached_tokens: int) -> Usage:
        """Counts of an answer to it."""
        return Usage(
            self.tokens,
            self.image_tokens,
            completion_tokens,
            self.tiles,
            cached_tokens,
            reused_frames=sum(visual.reused for visual in self.visuals),
        )

    @cached_property
    def items(self) -> tuple[tuple[int | str, int], ...]:
        """Token ids and keys of pictures in order, with the positions that each takes."""
        return tuple(
            item
            for part in self.parts
            for item in (
                [(part.key, part.tokens)] if isinstance(part, VisualInput) else [(token, 1) for token in part]
            )
        )

    @property
    def prefix(self) -> tuple[tuple[int | str, int], ...]:
        """Those up to the last picture; none if there is no picture."""
        last = max((at for at, (key, _) in enumerate(self.items) if isinstance(key, str)), default=-1)
        return self.items[: last + 1]

    def after(self, kept: int) -> PreparedPrompt:
        """The prompt without its first ``kept`` tokens, which end before or after a picture."""
        rest: list[tuple[int, ...] | VisualInput] = []
        for part in self.parts:
            size = part.tokens if isinstance(part, VisualInput) else len(part)
            if kept < size:
                rest.append(part if isinstance(part, VisualInput) else part[kept:])
            kept = max(0, kept - size)
        return PreparedPrompt(tuple(rest), self.warnings)


class Preparer:
    """Reads, cuts and tokenises for one bundle.

    Args:
        manifest: The bundle's.
        vocabulary: The backbone's.
        newline: float32 [H], see :mod:`onevision.runtime.anyres`.

    Raises:
        BundleError: An aspect ratio, grid or prompt format that is not known.
    """

    def __init__(self, manifest: Manifest, vocabulary: Vocabulary, newline: npt.NDArray[np.float32]) -> None:
        vision = manifest.vision
        self.anyres = AnyRes.of(vision)
        if manifest.prompt.template not in TEMPLATES:
            raise BundleError(
                f"the bundle's prompt format {manifest.prompt.template!r} is unknown",
                hint=f"known: {', '.join(TEMPLATES)}",
            )
        self._manifest = manifest
        self._vocabulary = vocabulary
        self._newline = newline

    def prepare(
        self, messages: Sequence[Message], options: AnswerOptions, clock: StageClock
    ) -> PreparedPrompt:
        """Lay out the prompt and cut its pictures.

        Raises:
            InputError: A picture, video or text that cannot be used.
        """
        with clock.stage("tokenise"):
            segments = self._segments(messages, options)
        # More than one picture in the prompt, in whichever turn: none of them is tiled, as in training.
        pictures = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
        warnings: list[str] = []
        parts: list[tuple[int, ...] | VisualInput] = []
        for segment in segments:
            if isinstance(segment, (str, Control)):
                with clock.stage("tokenise"):
                    parts.append(self._tokens(segment))
            elif isinstance(segment.part, ImagePart):
                parts.append(self._image(segment.part, pictures > 1, options, clock))
            else:
                parts.append(self._video(segment.part, options, clock, warnings))
        return PreparedPrompt(tuple(parts), tuple(warnings))

    def text_tokens(self, messages: Sequence[Message], options: AnswerOptions) -> int:
        """Length of the prompt without its pictures and videos."""
        segments = self._segments(messages, options)
        return sum(len(self._tokens(each)) for each in segments if isinstance(each, (str, Control)))

    def frame(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """What is seen of a frame of a video, uint8 [S, S, 3]."""
        return anyres.squash(image, self.anyres.tile)

    def _segments(self, messages: Sequence[Message], options: AnswerOptions) -> Sequence[Segment]:
        prompt = self._manifest.prompt
        template = options.template or cast("Template", prompt.template)
        return render(messages, template, prompt.system if options.system is None else options.system)

    def _tokens(self, segment: str | Control) -> tuple[int, ...]:
        if isinstance(segment, str):
            return tuple(self._vocabulary.encode(segment))
        token = self._vocabulary.control_id(segment.token)
        if token is None:
            raise BundleError(f"the bundle's vocabulary has no token {segment.token}")
        return (token,)

    def _image(
        self, part: ImagePart, several: bool, options: AnswerOptions, clock: StageClock
    ) -> VisualInput:
        newline = self._newline
        if part.detail is not None and options.detail == "auto" and options.max_tiles is None:
            options = replace(options, detail=part.detail)  # an image's own wish yields to the options
        with clock.stage("read"):
            image = read_image(part.source, exif=options.exif)
        with clock.stage("preprocess"):
            size = image.height, image.width
            tiling = choose_tiling(self.anyres, size, options, several=several)
            spec = tiling.spec
            if spec is None:
                tiles = anyres.pad_square(image, self.anyres.tile)
                return VisualInput(
                    tiles.pixels,
                    tiling.tokens,
                    lambda features: pack.pack_square(features, newline),
                    "square",
                )
            if tiling.size != size:
                image = image.resize(tiling.size[::-1], Image.Resampling.BICUBIC)
            tiles = anyres.split(image, spec)
        return VisualInput(
            tiles.pixels,
            tiling.tokens,
            lambda features: pack.pack_image(features, tiles.size, spec, newline),
            f"image {tiles.size} {spec}",
        )

    def _video(
        self, part: VideoPart, options: AnswerOptions, clock: StageClock, warnings: list[str]
    ) -> VisualInput:
        newline, spec, defaults = self._newline, self.anyres, self._manifest.video
        # Frames are cut as they are decoded, so that only the cut ones are kept: both count as reading.
        with clock.stage("read"):
            video = read_video(
                part.source,
                frames=options.frames or defaults.frames,
                prepare=self.frame,
            )
        warnings += video.warnings
        tiles, reused = video.tiles, 0
        if options.dedup is not None:
            with clock.stage("preprocess"):
                tiles, reused = share_frames(tiles, options.dedup)
        return VisualInput(
            tiles,
            len(tiles) * defaults.pooled_side**2 + 1,
            lambda features: pack.pack_video(features, spec.side, newline),
            "video",
            reused,
        )
