"""Messages to a prompt of known length: images and frames tiled, text tokenized, nothing encoded yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from PIL import Image

from onevision.bundle import Manifest
from onevision.errors import BundleError
from onevision.runtime import anyres, pack
from onevision.runtime.answer import Usage
from onevision.runtime.anyres import AnyRes, choose_tiling
from onevision.runtime.cache import Cache, key_of
from onevision.runtime.clock import StageTimer
from onevision.runtime.messages import ImagePart, Message, VideoPart
from onevision.runtime.options import TEMPLATES, AnswerOptions
from onevision.runtime.pages import paged_messages, read_part
from onevision.runtime.prompt import Control, Segment, time_instruction
from onevision.runtime.template import lay_out
from onevision.runtime.tokenizer import GgufTokenizer
from onevision.runtime.video import FrameChoice, Video, VideoSource, read_video, share_frames, video_key


@dataclass(frozen=True)
class VisualInput:
    """One image or video, cut into tiles.

    Attributes:
        tiles: uint8 [T, S, S, 3]
        tokens: Visual tokens after packing.
        pack: image features float32 [T, P, H] -> visual tokens float32 [tokens, H]
        layout: All that ``pack`` depends on besides the features.
        times: Text after a video about its frames, for models that were trained with it.
        reused: Video frames that were replaced by an earlier, similar one.
        warnings: Damage of the file, and pages that are left out.
    """

    tiles: npt.NDArray[np.uint8]
    tokens: int
    pack: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    layout: str
    times: str = ""
    reused: int = 0
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.tokens

    @cached_property
    def key(self) -> str:
        """Name of the visual tokens, for one bundle: sha256 of the pixels and the layout."""
        return key_of(self.layout, self.tiles.shape, np.ascontiguousarray(self.tiles).data)


#: Visual inputs by the identity of their part, and whether there are several images.
KeptVisuals = dict[tuple[int, bool], VisualInput]


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt of known length: token ids, and visual inputs in their places."""

    parts: tuple[tuple[int, ...] | VisualInput, ...]
    notes: tuple[str, ...] = ()  # warnings about its text

    @property
    def visuals(self) -> tuple[VisualInput, ...]:
        """Images and videos, in order."""
        return tuple(part for part in self.parts if isinstance(part, VisualInput))

    @property
    def image_tokens(self) -> int:
        """Positions of images and videos."""
        return sum(map(len, self.visuals))

    @property
    def tokens(self) -> int:
        """Length in positions of the backbone."""
        return sum(map(len, self.parts))

    def is_visual(self, position: int) -> bool:
        """Whether a position of the prompt is one of an image or video."""
        for part in self.parts:
            if position < len(part):
                return isinstance(part, VisualInput)
            position -= len(part)
        return False

    @property
    def tiles(self) -> int:
        """Tiles for the vision encoder; equal ones are encoded once."""
        return sum(len(visual.tiles) for visual in self.visuals)

    @property
    def warnings(self) -> tuple[str, ...]:
        """About its text, damage of the files of images and videos, and pages that are left out."""
        return (*self.notes, *(warning for visual in self.visuals for warning in visual.warnings))

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
        """Token ids and keys of images in order, each with the number of its positions."""
        items: list[tuple[int | str, int]] = []
        for part in self.parts:
            if isinstance(part, VisualInput):
                items.append((part.key, part.tokens))
            else:
                items += [(token, 1) for token in part]
        return tuple(items)

    @property
    def prefix(self) -> tuple[tuple[int | str, int], ...]:
        """Items up to the last image; none if there is no image."""
        last = max((at for at, (key, _) in enumerate(self.items) if isinstance(key, str)), default=-1)
        return self.items[: last + 1]

    def after(self, known: int) -> PreparedPrompt:
        """The prompt without its first ``known`` tokens, which end before or after an image."""
        rest: list[tuple[int, ...] | VisualInput] = []
        for part in self.parts:
            if known < len(part):
                rest.append(part if isinstance(part, VisualInput) else part[known:])
            known = max(0, known - len(part))
        return PreparedPrompt(tuple(rest))

    def joined(
        self, embeddings: Sequence[npt.NDArray[np.float32]]
    ) -> list[Sequence[int] | npt.NDArray[np.float32]]:
        """Token ids, and visual tokens float32 [n, H] in the places of images and videos."""
        visual_tokens = iter(embeddings)
        return [next(visual_tokens) if isinstance(part, VisualInput) else part for part in self.parts]


class Preparer:
    """Reading, tiling and tokenization for one bundle.

    Args:
        manifest: Of the bundle.
        tokenizer: Of the backbone.
        newline: float32 [H], see :mod:`onevision.runtime.pack`.
        cache: Keeps the frames of video files.

    Raises:
        BundleError: An unknown aspect ratio, grid or prompt format.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: GgufTokenizer,
        newline: npt.NDArray[np.float32],
        cache: Cache | None = None,
    ) -> None:
        self.anyres = AnyRes.of(manifest.vision)
        if manifest.prompt.template not in TEMPLATES:
            raise BundleError(
                f"the bundle's prompt format {manifest.prompt.template!r} is unknown",
                hint=f"known: {', '.join(TEMPLATES)}",
            )
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._newline = newline
        self._cache = cache

    def prepare(
        self,
        messages: Sequence[Message],
        options: AnswerOptions,
        timer: StageTimer = lambda _: nullcontext(),
        kept: KeptVisuals | None = None,
    ) -> PreparedPrompt:
        """Lay out a prompt and cut its images.

        Args:
            messages: The conversation.
            options: Budget, prompt format and system prompt.
            timer: Times the stages ``tokenize``, ``read`` and ``preprocess``.
            kept: Visual inputs of an earlier prompt, which are not cut again; receives those of this one.

        Raises:
            InputError: An image, video or text that cannot be used.
        """
        with timer("read") if options.page else nullcontext():
            messages = paged_messages(messages, options)
        with timer("tokenize"):
            segments = self._segments(messages, options)
        # With more than one image in the prompt, in whichever turn, none is tiled, as in training.
        images = sum(isinstance(part, ImagePart) for message in messages for part in message.content)
        kept = {} if kept is None else kept
        parts: list[tuple[int, ...] | VisualInput] = []
        with timer("tokenize"):
            left = self._manifest.backbone.context_length - self._text_tokens(segments)
        times = ""
        for segment in segments:
            if isinstance(segment, (str, Control)):
                with timer("tokenize"):
                    if times and isinstance(segment, Control):
                        parts.append(self._tokens(times))
                    parts.append(self._tokens(times + segment if isinstance(segment, str) else segment))
                times = ""
                continue
            key = id(segment.part), images > 1
            if (visual := kept.get(key)) is None:
                if isinstance(segment.part, ImagePart):
                    visual = self._image(segment.part, images > 1, options, timer)
                else:
                    visual = self._video(segment.part, options, left - 1, timer)  # a token for the answer
                kept[key] = visual
            left -= visual.tokens
            parts.append(visual)
            times = f"\n{visual.times}" if visual.times else ""
        return PreparedPrompt(tuple(parts), tuple(self._typed_placeholders(messages)))

    def _typed_placeholders(self, messages: Sequence[Message]) -> Iterator[str]:
        """A warning for each placeholder that the last message holds as text."""
        texts = [part for part in messages[-1].content if isinstance(part, str)]
        for token in (self._manifest.prompt.image_token, self._manifest.prompt.video_token):
            if any(token in text for text in texts):
                kind = token.strip("<>")
                yield f"{token} in the question is read as text: {kind}s are given beside it, and come first"

    def text_tokens(self, messages: Sequence[Message], options: AnswerOptions) -> int:
        """Length of the prompt without its images and videos."""
        return self._text_tokens(self._segments(messages, options))

    def _text_tokens(self, segments: Sequence[Segment]) -> int:
        return sum(len(self._tokens(each)) for each in segments if isinstance(each, (str, Control)))

    def read_video(self, source: VideoSource, options: AnswerOptions, most: int | None = None) -> Video:
        """The frames of a video that options choose, from the cache where they are known.

        Args:
            source: See :func:`onevision.runtime.video.read_video`.
            options: Number, rate and times of the frames.
            most: Number of frames that there is room for; None: as many as the context holds.

        Raises:
            InputError: See :func:`onevision.runtime.video.read_video`.
        """
        video = self._manifest.video
        if most is None:
            most = video.frames_within(self._manifest.backbone.context_length)
        choice = FrameChoice.of(options, video.frames, most)
        if self._cache is None or not isinstance(source, (str, os.PathLike)) or os.path.isdir(source):  # noqa: PTH112
            return read_video(source, frames=choice, prepare=self.frame)
        key = video_key(source, choice, self.anyres.tile)
        if data := self._cache.get(key):
            known = Video.from_bytes(data, str(source))
            choice.check(len(known.tiles), source)
            return known
        read = read_video(source, frames=choice, prepare=self.frame)
        self._cache.put(key, read.to_bytes(str(source)))
        return read

    def frame(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """A video frame as one tile, uint8 [S, S, 3]."""
        return anyres.squash(image, self.anyres.tile)

    def times(self, video: Video) -> str:
        """Text about a video's frames; empty if the model takes none, or the times are not known."""
        if not self._manifest.video.time_instruction or not video.fps:
            return ""
        return time_instruction(video.positions, video.total, video.fps)

    def _segments(self, messages: Sequence[Message], options: AnswerOptions) -> Sequence[Segment]:
        return lay_out(messages, self._manifest.prompt, options.template, options.system)

    def _tokens(self, segment: str | Control) -> tuple[int, ...]:
        if isinstance(segment, str):
            return tuple(self._tokenizer.encode(segment))
        token = self._tokenizer.control_id(segment.token)
        if token is None:
            raise BundleError(f"the bundle's tokenizer has no token {segment.token}")
        return (token,)

    def _image(
        self, part: ImagePart, several: bool, options: AnswerOptions, timer: StageTimer
    ) -> VisualInput:
        newline = self._newline
        if part.detail is not None and options.detail == "auto" and options.max_tiles is None:
            options = replace(options, detail=part.detail)  # an image's own wish yields to the options
        warnings: list[str] = []
        with timer("read"):
            image = read_part(part, options, warnings.append)
        with timer("preprocess"):
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
                    warnings=tuple(warnings),
                )
            if tiling.size != size:
                image = image.resize(tiling.size[::-1], Image.Resampling.BICUBIC)
            tiles = anyres.split(image, spec)
        return VisualInput(
            tiles.pixels,
            tiling.tokens,
            lambda features: pack.pack_image(features, tiles.size, spec, newline),
            f"image {tiles.size} {spec}",
            warnings=tuple(warnings),
        )

    def _video(self, part: VideoPart, options: AnswerOptions, left: int, timer: StageTimer) -> VisualInput:
        newline, spec, defaults = self._newline, self.anyres, self._manifest.video
        # Frames are cut as they are decoded, so that only tiles are kept: both count as reading.
        with timer("read"):
            video = self.read_video(part.source, part.options(options), defaults.frames_within(left))
        tiles, reused = video.tiles, 0
        if options.dedup is not None:
            with timer("preprocess"):
                tiles, reused = share_frames(tiles, options.dedup)
        return VisualInput(
            tiles,
            defaults.tokens(len(tiles)),
            lambda features: pack.pack_video(
                features, spec.side, newline, defaults.newline, defaults.pooling
            ),
            f"video {defaults.newline} {defaults.pooling}",
            self.times(video),
            reused,
            video.warnings,
        )
