"""A loaded bundle and its stages up to the KV cache, timed.

In: messages. Out, stage by stage: a prepared prompt, image features, visual tokens, and a backbone that holds
the prompt. Each stage is a method, for callers that want no answer: quantization, benchmarks and proofs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.bundle import BACKBONE, NEWLINE, PREFILL, VISION, VISION_DATA, Bundle
from onevision.extras import installed_version
from onevision.native.device import Device, check_device, flash_attention_costs_prefill
from onevision.native.llama import offloads
from onevision.native.ort import has_cuda
from onevision.runtime import anyres
from onevision.runtime.answer import OnProgress
from onevision.runtime.backbone import Backbone
from onevision.runtime.cache import Cache
from onevision.runtime.choices import with_letters
from onevision.runtime.clock import StageClock
from onevision.runtime.messages import Message
from onevision.runtime.options import AnswerOptions, Prefill
from onevision.runtime.pack import read_newline
from onevision.runtime.prefill.policy import PrefillRunner
from onevision.runtime.prefill.reuse import PrefixReuse
from onevision.runtime.prepare import KeptVisuals, PreparedPrompt, Preparer
from onevision.runtime.sampler import Sampler
from onevision.runtime.vision import VisionEncoder

_FLOATS = ("f32", "f16", "bf16")  # precisions that promise the reference's logits


class Pipeline:
    """A loaded bundle and its stages, for one caller at a time; :class:`OneVision` is the public way to it.

    Args:
        bundle: An opened bundle.
        device: ``cpu``, ``cuda``, or ``auto``: the GPU where both libraries can use it, else the CPU.
        threads: CPU threads; None for all cores.
        prefill: Prefill backend, see :data:`onevision.runtime.options.Prefill`.
        cache: Keeps image features, and keys and values of prompts up to their last image: a folder, or
            ``Cache()`` for memory alone. None: nothing is kept. See :mod:`onevision.runtime.cache`.
        features: Keeps image features alone, where prompts are not to be kept.

    Attributes:
        clock: Times of the prompt that was prepared last.
        load_ms: Milliseconds that loading has taken so far.
        reuse: Prompt beginnings that need not be computed again.
        banned_tokens: Tokens that are never sampled.

    Raises:
        BundleError: Missing, damaged or unreadable files.
        DeviceError: The device is not available.
        UsageError: An unknown device, threads out of range, or ``prefill="onnx"`` without the graph.
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
        check_device(device, threads)
        # Before anything is loaded: a folder that cannot be made should cost nothing.
        self._cache = cache if cache is None or isinstance(cache, Cache) else Cache(cache)
        self._features = features or self._cache
        self.bundle = bundle
        self.clock = StageClock()
        self.load_ms = 0.0
        self.device: Device = device
        self.threads = threads
        self._encoder: VisionEncoder | None = None
        precision = bundle.manifest.files[BACKBONE].precision
        with self._loading():
            newline = read_newline(bundle.path(NEWLINE), bundle.manifest.backbone.hidden)
            self.backbone = Backbone(
                bundle.path(BACKBONE),
                device=device,
                threads=threads,
                cache_type="f32" if precision == "f32" else "f16",
                flash_attention=precision not in _FLOATS and not _prefill_is_slowed(bundle, device, prefill),
            )
            self.preparer = Preparer(bundle.manifest, self.backbone.tokenizer, newline, self._cache)
            self.prefill_runner = PrefillRunner(bundle, self.backbone, prefill, threads=threads)
        files = {name: info.sha256 for name, info in sorted(bundle.manifest.files.items())}
        facts = (files, precision, prefill, bundle.manifest.vision, *_ort_versions())
        self.reuse = PrefixReuse(self.backbone, self._cache, facts)
        self.banned_tokens = self._never_sampled()

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """Count the time of the body as loading, and not as answering."""
        started = time.perf_counter()
        try:
            yield
        finally:
            took = (time.perf_counter() - started) * 1e3
            self.load_ms += took
            self.clock.exclude(took)

    def vision_encoder(self) -> VisionEncoder:
        """The encoder, loaded now if it was not."""
        if self._encoder is None:
            from onevision.runtime.vision import VisionEncoder

            with self._loading():
                self._encoder = VisionEncoder(
                    self.bundle.path(VISION), device=self.device, threads=self.threads
                )
        return self._encoder

    @property
    def vision_device(self) -> str:
        """Device of the encoder, which is loaded only where this is not clear beforehand."""
        if self._encoder is None and (self.device == "cpu" or (self.device == "auto" and not has_cuda())):
            return "cpu"
        return self.vision_encoder().device

    @property
    def warnings(self) -> tuple[str, ...]:
        """Fallbacks from what was asked for, and why the cache was not written."""
        fallbacks = self._encoder.notes if self._encoder else ()
        problem = self._cache.problem if self._cache else None
        return (*fallbacks, *self.prefill_runner.warnings, *([problem] if problem else []))

    def prepare(
        self,
        messages: Sequence[Message],
        options: AnswerOptions,
        clock: StageClock | None = None,
        kept: KeptVisuals | None = None,
    ) -> PreparedPrompt:
        """Prompt of known length; its times, and those of the stages after it, go to ``clock`` or a new one.

        ``kept``: see :meth:`onevision.runtime.prepare.Preparer.prepare`.

        Raises:
            InputError: An image, video or text that cannot be used.
        """
        self.clock = clock or StageClock()
        if self.backbone.offloaded:
            self.clock.synchronize = self.backbone.synchronize
        if options.letters:
            messages = with_letters(messages, options.choices)
        return self.preparer.prepare(messages, options, self.clock.stage, kept)

    def image_features(
        self, tiles: npt.NDArray[np.uint8], on_tile: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Encoder and projector: tiles uint8 [T, S, S, 3] -> image features float32 [T, P, H]."""
        from onevision.runtime.vision import encode_once

        manifest, clock = self.bundle.manifest, self.clock
        vision = manifest.vision

        def encode(
            missing: npt.NDArray[np.uint8], on_missing: Callable[[int, int], None]
        ) -> npt.NDArray[np.float32]:
            encoder = self.vision_encoder()
            with clock.stage("preprocess"):
                pixels = anyres.normalize(missing, vision.mean, vision.std)

            def on_batch(done: int, total: int) -> None:
                clock.lap()
                on_missing(done, total)

            with clock.stage("encode"):
                return encoder.encode(pixels, on_batch)

        files = tuple(manifest.files[name].sha256 for name in (VISION, VISION_DATA))
        facts = files, vision, self.vision_device, *_ort_versions()
        shape = (self.preparer.anyres.side**2, manifest.backbone.hidden)
        return encode_once(tiles, encode, self._features, facts, shape, on_tile)

    def encode(
        self, prepared: PreparedPrompt, on_progress: OnProgress | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """Visual tokens of each image and video, float32 [tokens, H], in order."""
        done, embeddings = 0, []

        def on_tile(count: int, _total: int) -> None:
            if on_progress:
                on_progress("encode", done + count, prepared.tiles)

        for visual in prepared.visuals:
            features = self.image_features(visual.tiles, on_tile)
            done += len(visual.tiles)
            with self.clock.stage("pack"):
                embeddings.append(visual.pack(features))
        return embeddings

    def prefill(
        self,
        prepared: PreparedPrompt,
        embeddings: Sequence[npt.NDArray[np.float32]],
        *,
        room: int,
        known: int = 0,
        on_progress: OnProgress | None = None,
        choice: Prefill | None = None,
    ) -> None:
        """Fill the backbone's KV cache with a prompt; the logits of its last position are then ready.

        Args:
            prepared: The whole prompt.
            embeddings: Visual tokens of the images and videos after ``known``, float32 [n, H] each.
            room: Tokens to keep room for after the prompt.
            known: Tokens of the prompt that the KV cache holds already.
            on_progress: Called as it goes on.
            choice: Prefill backend, instead of the one that the bundle was loaded with.

        Raises:
            PromptError: More than the context.
            GenerationError: A native library refused the work.
        """
        self.reuse.forget()
        if not known and self.prefill_runner.needs_graph(prepared.tokens, choice):
            with self._loading():
                self.prefill_runner.load(prepared.tokens, choice)
        parts = prepared.after(known).joined(embeddings)

        def on_tokens(done: int) -> None:
            self.clock.lap("image" if prepared.is_visual(done - 1) else "text")
            if on_progress:
                on_progress("prefill", done, prepared.tokens)

        with self.clock.stage("prefill"):
            if known:
                self.backbone.prefill(parts, lambda _: on_tokens(self.backbone.used))
            else:
                self.prefill_runner.run(parts, room, on_tokens, choice)
        self.reuse.hold(prepared)

    def keep(self, prepared: PreparedPrompt, known: int) -> None:
        """Put the keys and values of a prompt in the cache, and begin to write what is new there.

        Args:
            prepared: The prompt, which the backbone's sequence begins with.
            known: Tokens of it that were known before; what is known is kept already.
        """
        if not known:
            self.reuse.save(prepared)
        if self._cache:
            self._cache.write()

    def flush(self, seconds: float | None = None) -> None:
        """Wait for the cache to be written, at most so many seconds."""
        if self._cache:
            self._cache.flush(seconds)

    def sampler(self, options: AnswerOptions) -> Sampler:
        """A sampler that keeps to the form, and never chooses an unused row or a placeholder token."""
        constraint = None
        if form := options.form:
            from onevision.runtime.grammar import Constraint, compile_grammar

            constraint = Constraint(self._grammar_tokens, compile_grammar(*form))
        return Sampler(options, self.backbone.tokenizer.size, self.banned_tokens, constraint)

    @cached_property
    def _grammar_tokens(self) -> Any:  # noqa: ANN401
        from onevision.runtime.grammar import make_tokens

        with self._loading():
            return make_tokens(self.backbone.tokenizer, self.banned_tokens)

    def _never_sampled(self) -> tuple[int, ...]:
        """Rows beyond the tokenizer, ``<image>`` and ``<video>``."""
        tokenizer, prompt = self.backbone.tokenizer, self.bundle.manifest.prompt
        placeholders = (tokenizer.control_id(token) for token in (prompt.image_token, prompt.video_token))
        return (*(token for token in placeholders if token is not None), *tokenizer.unused)

    def close(self) -> None:
        """Free all native memory; calling it again does nothing."""
        self.flush()
        self.prefill_runner.close()
        self.backbone.close()
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


def _prefill_is_slowed(bundle: Bundle, device: Device, prefill: Prefill) -> bool:
    """Whether llama.cpp prefills long prompts, on a processor where its flash attention is slower."""
    if PREFILL in bundle.manifest.files and prefill != "llama":
        return False
    return flash_attention_costs_prefill() and not offloads(device)


def _ort_versions() -> tuple[str | None, ...]:
    """Versions of ONNX Runtime's distributions: another one may compute other last bits."""
    return installed_version("onnxruntime"), installed_version("onnxruntime-gpu")
