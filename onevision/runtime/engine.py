"""From a question and pictures to an answer: the stages joined, timed and counted.

``read -> preprocess -> encode -> pack -> prefill -> decode``; one direction, no stage reaches back. Sizes are
known after ``preprocess``: a prompt that the context cannot hold is refused before anything is encoded.
"""

from __future__ import annotations

import threading
import time
import tokenize
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakSet

import numpy as np

from onevision.bundle import BACKBONE, NEWLINE, VISION, VISION_DATA, Bundle, open_bundle
from onevision.errors import BundleError, PromptError, UsageError
from onevision.models import default_bundle
from onevision.native.device import MAX_THREADS, Device, default_threads
from onevision.native.ort import has_cuda
from onevision.native.placement import placement
from onevision.planning.budget import Fitted, fit
from onevision.runtime import anyres
from onevision.runtime.answer import (
    Answer,
    AnswerStream,
    FinishReason,
    OnProgress,
    StageClock,
    Timings,
)
from onevision.runtime.backbone import Backbone, Sampler
from onevision.runtime.cache import Cache
from onevision.runtime.features import encode_once
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions, Prefill, make_options
from onevision.runtime.prefill.policy import Prefiller
from onevision.runtime.prefill.reuse import Prefixes
from onevision.runtime.prepare import PreparedPrompt, Preparer, VisualInput
from onevision.runtime.text import TextStream

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping, Sequence

    import numpy.typing as npt

    from onevision.runtime.chat import Chat
    from onevision.runtime.images import ImageSource
    from onevision.runtime.messages import Message
    from onevision.runtime.video import VideoSource
    from onevision.runtime.vision import VisionEncoder


_FLOATS = ("f32", "f16", "bf16")  # what promises the reference's logits


class OneVision:
    """A bundle, loaded. Make one with :meth:`load`; close it, or use it in ``with``.

    Calls from several threads are safe, and are served one after the other.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: Device = "auto",
        threads: int | None = None,
        prefill: Prefill = "auto",
        cache: Cache | str | os.PathLike[str] | None = None,
        features: Cache | None = None,
    ) -> None:
        if device not in get_args(Device):
            raise UsageError(f"unknown device {device!r}", hint=f"one of {', '.join(get_args(Device))}")
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"threads is {threads}, it must be from 1 to {MAX_THREADS}")
        # Before anything is loaded: a folder that cannot be made should cost nothing.
        self._cache = cache if cache is None or isinstance(cache, Cache) else Cache(cache)
        self._features = features or self._cache  # of one's own where prompts are not to be kept
        started = time.perf_counter()
        self.bundle = bundle
        self._device: Device = device
        self._threads = threads
        self._busy = threading.Lock()
        self._closed = False
        self._streams: WeakSet[AnswerStream] = WeakSet()
        self._encoder: VisionEncoder | None = None
        newline = _read_newline(bundle)
        precision = bundle.manifest.files[BACKBONE].precision
        self.backbone = Backbone(
            bundle.path(BACKBONE),
            device=device,
            threads=threads,
            cache_type="f32" if precision == "f32" else "f16",
            flash_attention=precision not in _FLOATS,
        )
        try:
            self.preparer = Preparer(bundle.manifest, self.backbone.vocabulary, newline)
            self.prefiller = Prefiller(bundle, self.backbone, prefill, threads=threads)
        except (BundleError, UsageError):
            self.backbone.close()
            raise
        files = {name: info.sha256 for name, info in sorted(bundle.manifest.files.items())}
        self._prefixes = Prefixes(
            self.backbone, self._cache, (files, precision, prefill, bundle.manifest.vision)
        )
        self.banned_tokens = self._never_sampled()
        self._load_ms = (time.perf_counter() - started) * 1e3

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | None = None,
        *,
        device: Device = "auto",
        threads: int | None = None,
        check: bool = False,
        prefill: Prefill = "auto",
        cache: Cache | str | os.PathLike[str] | None = None,
    ) -> OneVision:
        """Load a bundle. The vision encoder is loaded when the first picture comes.

        Args:
            bundle: The bundle's folder; None for the tiny model, see
                :func:`onevision.models.default_bundle`.
            device: ``cpu``, ``cuda``, or ``auto``: the GPU where both libraries can use it, else the CPU.
            threads: CPU threads; None for all cores.
            check: Compare checksums of all files, not only their sizes.
            prefill: What reads prompts, see :data:`onevision.runtime.options.Prefill`.
            cache: Keep image features, and keys and values of prompts up to their last picture: a folder, or
                ``Cache()`` for memory alone. None: nothing is kept. See :mod:`onevision.runtime.cache`.

        Raises:
            BundleError: Missing, damaged or unreadable bundle.
            DeviceError: The device is not available.
            UsageError: ``prefill="onnx"`` for a bundle without the graph.
        """
        if bundle is None:
            bundle = default_bundle()
        return cls(
            open_bundle(bundle, check=check),
            device=device,
            threads=threads,
            prefill=prefill,
            cache=cache,
        )

    def generate(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        video: VideoSource | None = None,
        messages: Sequence[Message | Mapping[str, Any]] | None = None,
        on_progress: OnProgress | None = None,
        clock: StageClock | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Answer:
        """Answer a question about pictures or a video.

        Args:
            prompt: The question. Pictures stand before it.
            images: Paths, bytes, PIL images or arrays (H, W, 3) uint8. One is tiled (AnyRes), several are
                padded to squares.
            video: A path, or frames as an array (N, H, W, 3) uint8.
            messages: Instead of the three above: a conversation, see
                :func:`onevision.runtime.messages.parse_messages`.
            on_progress: Called as stages go on.
            clock: A new one, to read its laps afterwards.
            **options: Fields of :class:`Options`, and of :class:`Sampling` (``temperature``, ``seed``, …).

        Returns:
            The whole answer.

        Raises:
            InputError: A picture, video or prompt that cannot be used.
            UsageError: AnswerOptions that make no sense.
            GenerationError: A native library refused the work.
        """
        conversation = conversation_of(prompt, images, video, messages)
        stream = AnswerStream(self._answer(conversation, make_options(options), on_progress, clock))
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        video: VideoSource | None = None,
        messages: Sequence[Message | Mapping[str, Any]] | None = None,
        on_progress: OnProgress | None = None,
        clock: StageClock | None = None,
        **options: Any,  # noqa: ANN401
    ) -> AnswerStream:
        """Like :meth:`generate`, but the text comes in pieces. No piece ends inside a character."""
        conversation = conversation_of(prompt, images, video, messages)
        stream = AnswerStream(self._answer(conversation, make_options(options), on_progress, clock))
        self._streams.add(stream)
        return stream

    def chat(self, **options: Any) -> Chat:  # noqa: ANN401
        """Begin a conversation: each turn reads only what is new. Options are those of :meth:`generate`."""
        from onevision.runtime.chat import Chat

        return Chat(self, **options)

    def go_on(
        self, messages: tuple[Message, ...], options: AnswerOptions, on_progress: OnProgress | None = None
    ) -> Generator[str, None, Answer]:
        """Answer in pieces, keeping what the prompt has in common with what was read and answered last."""
        return self._answer(messages, options, on_progress, None, go_on=True)

    def encode(
        self, prepared: PreparedPrompt, clock: StageClock | None = None, on_progress: OnProgress | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Visual tokens of each picture and video, float32 [tokens, H], in order."""
        clock = clock or StageClock()
        done, embeddings = 0, []

        def on_tile(count: int, _of_these: int) -> None:
            if on_progress:
                on_progress("encode", done + count, prepared.tiles)

        for visual in prepared.visuals:
            features = self.image_features(visual.tiles, clock, on_tile)
            done += len(visual.tiles)
            with clock.stage("pack"):
                embeddings.append(visual.pack(features))
        return embeddings

    def image_features(
        self,
        tiles: npt.NDArray[np.uint8],
        clock: StageClock | None = None,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Encoder and projector: tiles uint8 [T, S, S, 3] -> image features float32 [T, P, H]."""
        clock = clock or StageClock()
        manifest = self.bundle.manifest
        vision = manifest.vision

        def encode(
            some: npt.NDArray[np.uint8], on_some: Callable[[int, int], None]
        ) -> npt.NDArray[np.float32]:
            loaded_before = self._load_ms
            encoder = self.vision_encoder()
            # What is loaded on the way, at the first picture, is no part of answering.
            clock.exclude(self._load_ms - loaded_before)
            with clock.stage("preprocess"):
                pixels = anyres.normalize(some, vision.mean, vision.std)

            def on_lap(done: int, total: int) -> None:
                clock.lap()
                on_some(done, total)

            with clock.stage("encode"):
                return encoder.encode(pixels, on_lap)

        files = tuple(manifest.files[name].sha256 for name in (VISION, VISION_DATA))
        shape = (self.preparer.anyres.side**2, manifest.backbone.hidden)
        facts = files, vision, self._encoding_device()
        return encode_once(tiles, encode, self._features, facts, shape, on_tile)

    def _encoding_device(self) -> str:
        """Where tiles are encoded. Where it is clear beforehand, the encoder is not loaded to learn it."""
        if self._encoder is None and (self._device == "cpu" or (self._device == "auto" and not has_cuda())):
            return "cpu"
        return self.vision_encoder().device

    @property
    def placement(self) -> str:
        """Where this runs, see :func:`onevision.native.device.placement`."""
        return placement(self._encoding_device(), offloaded=self.backbone.offloaded)

    def vision_encoder(self) -> VisionEncoder:
        """The encoder, loaded now if it was not."""
        if self._encoder is None:
            from onevision.runtime.vision import VisionEncoder

            started = time.perf_counter()
            self._encoder = VisionEncoder(
                self.bundle.path(VISION), device=self._device, threads=self._threads
            )
            self._load_ms += (time.perf_counter() - started) * 1e3
        return self._encoder

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: where ``auto`` fell back to the CPU, why the cache was not written."""
        notes = () if self._encoder is None else self._encoder.notes
        problem = self._cache.problem if self._cache else None
        return (*notes, problem) if problem else notes

    def prefill(
        self,
        prepared: PreparedPrompt,
        embeddings: Sequence[npt.NDArray[np.float32]],
        *,
        room: int,
        clock: StageClock | None = None,
        on_progress: OnProgress | None = None,
        choice: Prefill | None = None,
    ) -> None:
        """Read the whole prompt into the backbone, keeping room for an answer of ``room`` tokens.

        ``choice`` says by what, instead of what the bundle was loaded with.
        """
        self._prefixes.forget()

        def on_tokens(done: int) -> None:
            if clock:
                clock.lap("picture" if prepared.is_visual(done - 1) else "text")
            if on_progress:
                on_progress("prefill", done, prepared.tokens)

        self.prefiller.read(_joined(prepared, embeddings), room, on_tokens, choice)

    def _read_on(
        self,
        rest: PreparedPrompt,
        embeddings: Sequence[npt.NDArray[np.float32]],
        clock: StageClock,
        total: int,
        on_progress: OnProgress | None,
    ) -> None:
        """Read what is left of a prompt of ``total`` tokens into a sequence that holds its beginning."""
        self._prefixes.forget()
        before = self.backbone.used

        def on_chunk(_: int) -> None:
            clock.lap("picture" if rest.is_visual(self.backbone.used - before - 1) else "text")
            if on_progress:
                on_progress("prefill", self.backbone.used, total)

        self.backbone.prefill(_joined(rest, embeddings), on_chunk)

    def sampler(self, sampling: AnswerOptions) -> Sampler:
        """A sampler that never chooses an unused row or a placeholder token."""
        return Sampler(sampling, self.backbone.vocabulary.size, self.banned_tokens)

    def close(self) -> None:
        """Free all native memory; calling it again does nothing.

        A stream that waits to be read on ends here. A call that is running is waited for.
        """
        for stream in tuple(self._streams):
            if stream.is_open:
                with suppress(ValueError):  # since then, another thread reads on
                    stream.close()
        with self._busy:
            self._closed = True
            self.prefiller.close()
            self.backbone.close()
            if self._encoder is not None:
                self._encoder.close()
                self._encoder = None

    def __enter__(self) -> OneVision:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Below: one call of generate or stream.

    def _answer(
        self,
        messages: tuple[Message, ...],
        options: AnswerOptions,
        on_progress: OnProgress | None,
        clock: StageClock | None,
        *,
        go_on: bool = False,
    ) -> Generator[str, None, Answer]:
        with self._busy:
            if self._closed:
                raise UsageError("the model is closed")
            clock = clock or StageClock()
            if self.backbone.offloaded:
                clock.synchronise = self.backbone.synchronise
            asked = self._fitted(messages, options, clock)
            return (yield from self._run(asked, on_progress, clock, go_on=go_on))

    def _run(
        self,
        asked: Fitted,
        on_progress: OnProgress | None,
        clock: StageClock,
        *,
        go_on: bool,
    ) -> Generator[str, None, Answer]:
        options = asked.options
        prepared = self.preparer.prepare(asked.messages, options, clock)
        room = self._room(prepared, options)
        with clock.stage("prefill"):
            kept = self._prefixes.resume(prepared, room=room, go_on=go_on)
            clock.lap("picture" if prepared.visuals else "text")
        rest = prepared.after(kept)
        embeddings = self.encode(rest, clock, on_progress)
        if not kept:
            loading = self.prefiller.load(prepared.tokens)
            self._load_ms += loading
            clock.exclude(loading)
        with clock.stage("prefill"):
            if kept:
                self._read_on(rest, embeddings, clock, prepared.tokens, on_progress)
            else:
                self.prefill(prepared, embeddings, room=room, clock=clock, on_progress=on_progress)
            self._prefixes.remember(prepared, known=kept > 0)
        del embeddings
        tokens: list[int] = []
        text = TextStream(options.stop)
        vocabulary = self.backbone.vocabulary
        finish: FinishReason = "length"
        with self.sampler(options) as sampler:
            with clock.stage("first_token"):
                token = sampler.sample(self.backbone)
            ttft = clock.elapsed()
            while True:
                if vocabulary.ends(token) and not options.ignore_end:
                    finish = "stop"
                    break
                tokens.append(token)
                with clock.stage("detokenise"):
                    piece = text.add(vocabulary.piece(token))
                if piece:
                    yield piece
                if text.stopped:
                    finish = "stop"
                    break
                if len(tokens) == room:
                    break
                with clock.stage("decode"):
                    self.backbone.append(token)
                    token = sampler.sample(self.backbone)
                self._prefixes.append(tokens[-1])
        if end := text.finish():
            yield end
        timings = Timings(load=self._load_ms, ttft=ttft, total=clock.elapsed(), **clock.stages)
        usage = prepared.usage(completion_tokens=len(tokens), cached_tokens=kept)
        warnings = (*asked.warnings, *prepared.warnings, *self.prefiller.warnings)
        return Answer(text.text, tuple(tokens), finish, usage, timings, warnings, asked.spent)

    def _fitted(self, messages: tuple[Message, ...], options: AnswerOptions, clock: StageClock) -> Fitted:
        """The prompt with the largest budget whose first token comes in time, if a time is asked for."""
        if options.ttft_target is None:
            return Fitted(messages, options)
        # Not at the top: without a target, nobody needs a calibration.
        from onevision.planning.speed import calibration_path, needed_calibration

        manifest = self.bundle.manifest
        path = calibration_path(manifest, self.placement, self._threads or default_threads())
        calibration = needed_calibration(path, self.bundle.folder)
        return fit(manifest, self.preparer, self.prefiller.reader, calibration, messages, options, clock)

    def _room(self, prepared: PreparedPrompt, options: AnswerOptions) -> int:
        """Tokens that the answer may have: as asked, or what the context leaves."""
        context = self.backbone.context_length
        if prepared.tokens >= context:
            raise PromptError(
                f"the prompt needs {prepared.tokens:,} tokens, the model has {context:,}: "
                f"{prepared.image_tokens:,} of them are pictures",
                hint="use fewer or smaller pictures, fewer --frames, or a shorter text",
            )
        return min(options.max_tokens, context - prepared.tokens)

    def _never_sampled(self) -> tuple[int, ...]:
        """Rows beyond the tokenizer, ``<image>`` and ``<video>``."""
        vocabulary, prompt = self.backbone.vocabulary, self.bundle.manifest.prompt
        placeholders = (vocabulary.control_id(token) for token in (prompt.image_token, prompt.video_token))
        return (*(token for token in placeholders if token is not None), *vocabulary.unused)


def _joined(
    prepared: PreparedPrompt, embeddings: Sequence[npt.NDArray[np.float32]]
) -> list[Sequence[int] | npt.NDArray[np.float32]]:
    """Token ids and embeddings of a prompt, in order."""
    places = iter(embeddings)
    return [next(places) if isinstance(part, VisualInput) else part for part in prepared.parts]


def _read_newline(bundle: Bundle) -> npt.NDArray[np.float32]:
    """The learned embedding at the end of each row of features, float32 [H]."""
    path = bundle.path(NEWLINE)
    try:
        with path.open("rb") as file:
            newline: npt.NDArray[np.float32] = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, SyntaxError, MemoryError, tokenize.TokenError) as error:
        raise BundleError(f"cannot read {path}: {error}", hint="copy or export the bundle again") from error
    hidden = bundle.manifest.backbone.hidden
    if newline.shape != (hidden,) or newline.dtype != np.float32:
        raise BundleError(
            f"{path} is {newline.dtype} {list(newline.shape)}, not float32 [{hidden}]",
            hint="copy or export the bundle again",
        )
    return newline
