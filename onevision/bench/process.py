"""A target in a process of its own: its memory and threads are not ours, and a crash ends only the target.

The process loads the target, then answers scenarios one by one; between them it waits for its pipe. It takes
its own times: the pipe is in none of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from onevision.bench.peers import LLAMA, TargetSetup, lacking
from onevision.bench.result import Memory
from onevision.bench.scenarios import Scenario
from onevision.bench.target import OURS, BundleTarget, MemoryWatch, Target, TimedAnswer
from onevision.bundle import Bundle, open_bundle
from onevision.errors import GenerationError, OneVisionError, UsageError
from onevision.runtime.messages import Message

_STDOUT, _STDERR = 1, 2
_PATIENCE = 5.0  # seconds to end after a terminate


class UnavailableTarget(Target):
    """A target that cannot run: every question is refused with the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self._reason = name, reason

    def ask(self, *_: object) -> TimedAnswer:
        """Refuse."""
        raise UsageError(self._reason)


class TargetProcess(Target):
    """A loaded target in its process, which ends with :meth:`close`.

    Raises:
        OneVisionError: It could not be loaded.
    """

    def __init__(self, name: str, setup: TargetSetup) -> None:
        self.name = name
        # Spawned on all systems: a fork would inherit locks of our threads, and our memory.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()  # so that our end closes when the process ends
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def ask(self, scenario: Scenario, messages: Sequence[Message], _new_clock: object = None) -> TimedAnswer:
        """See :meth:`Target.ask`; the clock is one of the process."""
        answer: TimedAnswer = self._call("ask", scenario, messages)
        return answer

    def ask_watched(
        self,
        scenario: Scenario,
        messages: Sequence[Message],
        _now: object = None,
        gpu: Callable[[], int | None] | None = None,
    ) -> tuple[TimedAnswer, Memory]:
        """See :meth:`Target.ask_watched`; the process watches its own memory."""
        with MemoryWatch(gpu) as watch:
            answer, memory = self._call("ask_watched", scenario, messages)
        return answer, replace(memory, gpu_peak=watch.memory.gpu_peak)

    def close(self) -> None:
        """End the process, even a busy one."""
        self._connection.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        with suppress(OSError):  # it has ended: receiving says how
            self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:  # noqa: ANN401
        try:
            found = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"status {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
            hint = "there may be too little memory"
            raise GenerationError(f"its process ended with {how}", hint=hint) from None
        if isinstance(found, OneVisionError):
            raise found
        return found


@contextmanager
def open_process(name: str, bundle: Bundle, setup: TargetSetup) -> Iterator[Target]:
    """A target in its process; an :class:`UnavailableTarget` if it cannot run."""
    reason = lacking(name, bundle)
    if reason is None:
        try:
            process = TargetProcess(name, setup)
        except OneVisionError as error:
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
    if reason is not None:
        yield UnavailableTarget(name, reason)
        return
    with closing(process):
        yield process


# Below: in the process of the target.


def _serve(connection: Connection, name: str, setup: TargetSetup) -> None:
    """Answer until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent, who ends us
    os.dup2(_STDERR, _STDOUT)  # what libraries print is no result
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            with _load(name, setup) as target:
                connection.send(None)
                while True:
                    connection.send(_answer(target, *connection.recv()))
        except OneVisionError as error:
            connection.send(error)


def _answer(target: Target, method: str, arguments: tuple[Any, ...]) -> object:
    try:
        return getattr(target, method)(*arguments)
    except OneVisionError as error:
        return error


@contextmanager
def _load(name: str, setup: TargetSetup) -> Iterator[Target]:
    bundle = open_bundle(setup.bundle)
    if name in {OURS, LLAMA}:
        from onevision.runtime.engine import OneVision

        prefill: Any = "auto" if name == OURS else "llama"
        with OneVision(bundle, device=setup.device, threads=setup.threads, prefill=prefill) as model:
            model.pipeline.vision_encoder()
            yield BundleTarget(model, name, setup.options)
    elif name.startswith("openvino"):
        from onevision.bench.peers.openvino import OpenVinoTarget

        yield OpenVinoTarget(name, bundle, setup)
    else:
        from onevision.bench.peers.hf import TransformersTarget

        yield TransformersTarget(name, bundle, setup)
