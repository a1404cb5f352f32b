"""A loaded model that answers questions: the public face of :mod:`onevision.runtime`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypedDict, Unpack
from weakref import WeakSet

from onevision.bundle import Bundle, open_bundle
from onevision.errors import UsageError
from onevision.native.device import Device
from onevision.runtime.answer import Answer, AnswerStream, OnProgress
from onevision.runtime.cache import Cache
from onevision.runtime.chat import Chat
from onevision.runtime.generate import answer
from onevision.runtime.images import ImageSource
from onevision.runtime.messages import Message, conversation_of
from onevision.runtime.options import AnswerOptions, Prefill, make_options
from onevision.runtime.pipeline import Pipeline
from onevision.runtime.video import VideoSource

#: Answering of messages in pieces; :func:`onevision.planning.budget.answer` takes a ``ttft_target`` as well.
AnswerFunction = Callable[
    [Pipeline, tuple[Message, ...], AnswerOptions, OnProgress | None], Generator[str, None, Answer]
]


class LoadOptions(TypedDict, total=False):
    """Options of :class:`onevision.runtime.pipeline.Pipeline`."""

    device: Device
    threads: int | None
    prefill: Prefill
    cache: Cache | str | os.PathLike[str] | None
    features: Cache | None


class OneVision:
    """A loaded bundle. Close it, or use it in ``with``; its memory also goes with the last reference.

    Calls from several threads are safe, and are served one after the other. A call from the thread that reads
    a stream, or from a forked process, is an error at once.

    Args:
        bundle: An opened bundle.
        answer: How to answer.
        **options: ``device``, ``threads``, ``prefill``, ``cache``: see
            :class:`onevision.runtime.pipeline.Pipeline`.

    Attributes:
        pipeline: The stages, for callers that want no answer. Not for use while a stream is open.

    Raises:
        BundleError: Damaged or unreadable files.
        DeviceError: The device is not available.
        UsageError: Options that are not valid.
    """

    def __init__(
        self, bundle: Bundle, *, answer: AnswerFunction = answer, **options: Unpack[LoadOptions]
    ) -> None:
        if not isinstance(bundle, Bundle):
            raise UsageError(f"{bundle!r} is not an opened bundle", hint=f"onevision.load({bundle!r})")
        self.pipeline = Pipeline(bundle, **options)
        self._answer = answer
        self._busy = threading.Lock()
        self._reader: int | None = None  # thread that reads the open stream
        self._process = os.getpid()
        self._closed = False
        self._streams: WeakSet[AnswerStream] = WeakSet()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        check: bool = False,
        answer: AnswerFunction = answer,
        **options: Unpack[LoadOptions],
    ) -> OneVision:
        """Load a bundle. The vision encoder is loaded with the first image.

        Args:
            folder: The bundle's.
            check: Compare checksums of all files, not only their sizes.
            answer: How to answer.
            **options: See :class:`OneVision`.

        Raises:
            BundleError: Missing, damaged or unreadable bundle.
            DeviceError: The device is not available.
            UsageError: Options that are not valid.
        """
        return cls(open_bundle(folder, check=check), answer=answer, **options)

    @property
    def bundle(self) -> Bundle:
        """The bundle: its folder and manifest."""
        return self.pipeline.bundle

    def generate(self, prompt: str | None = None, **question: Any) -> Answer:  # noqa: ANN401
        """Answer a question about images or a video. Arguments and errors are those of :meth:`stream`."""
        return self.stream(prompt, **question).read()

    def stream(
        self,
        prompt: str | None = None,
        *,
        images: Sequence[ImageSource] = (),
        video: VideoSource | None = None,
        videos: Sequence[VideoSource] = (),
        messages: Sequence[Message | Mapping[str, Any]] | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,  # noqa: ANN401
    ) -> AnswerStream:
        """Answer a question about images or a video in pieces. No piece ends inside a character.

        Args:
            prompt: The question. Images stand before it.
            images: Paths, bytes, PIL images or arrays (H, W, 3) uint8. One is tiled (AnyRes), several are
                padded to squares.
            video: A file or its bytes, a folder of frames, a list of frames in the forms that ``images``
                takes, or an array (N, H, W, 3) uint8.
            videos: Instead of ``video``, where there are several.
            messages: Instead of those above: a conversation, see
                :func:`onevision.runtime.messages.parse_messages`.
            on_progress: Called as stages go on.
            **options: Fields of :class:`onevision.runtime.options.AnswerOptions`.

        Returns:
            The pieces; work begins with the first. Use it in ``with``.

        Raises:
            InputError: An image, video or prompt that cannot be used.
            UsageError: Options that are not valid, or a stream that is still open in this thread.
            GenerationError: A native library refused the work.
        """
        conversation = conversation_of(prompt, images, video, messages, videos)
        return self.run(self._answer(self.pipeline, conversation, make_options(options), on_progress))

    def chat(self, **options: Any) -> Chat:  # noqa: ANN401
        """Begin a conversation: each turn computes only what is new. Options are those of :meth:`stream`."""
        from onevision.runtime.chat import Chat

        return Chat(self.pipeline, self.run, **options)

    def run(self, pieces: Generator[str, None, Answer]) -> AnswerStream:
        """Stream of an answer that has the pipeline for itself, from its first piece on."""
        stream = AnswerStream(self._alone(pieces))
        self._streams.add(stream)
        return stream

    def _alone(self, pieces: Generator[str, None, Answer]) -> Generator[str, None, Answer]:
        thread = threading.get_ident()
        if os.getpid() != self._process:
            raise UsageError(
                "the model was loaded before this process was forked", hint="load it in each process"
            )
        if self._reader == thread:
            raise UsageError(
                "a stream of this model is still open in this thread",
                hint="read it to its end, or close it: with model.stream(…) as stream",
            )
        with self._busy:
            if self._closed:
                raise UsageError("the model is closed")
            try:
                while True:
                    self._reader = threading.get_ident()
                    try:
                        piece = next(pieces)
                    except StopIteration as end:
                        return end.value  # type: ignore[no-any-return]
                    yield piece
            finally:
                self._reader = None
                pieces.close()

    def close(self) -> None:
        """Free all native memory; calling it again does nothing.

        A stream that waits to be read ends here. A call that is running is waited for.
        """
        if os.getpid() != self._process:  # the memory is the parent's, and so may be the lock
            return
        for stream in tuple(self._streams):
            if stream.is_open:
                with suppress(ValueError):  # since then, another thread reads on
                    stream.close()
        with self._busy:
            self._closed = True
            self.pipeline.close()

    def __enter__(self) -> OneVision:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
