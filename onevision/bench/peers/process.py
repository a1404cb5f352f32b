"""A peer in a process of its own, so that its threads and its memory are not ours.

The process loads the peer, then answers one scenario after the other; between them it waits for its pipe. It
times itself: the pipe is in no time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from onevision.bench.peers import LLAMA, lacking
from onevision.bench.subject import Asked
from onevision.bundle import open_bundle
from onevision.errors import GenerationError, OneVisionError, UsageError
from onevision.runtime.answer import StageClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from onevision.bench.peers import Setup
    from onevision.bench.result import Counts
    from onevision.bench.scenarios import Inputs, Scenario
    from onevision.bench.subject import Subject
    from onevision.bundle import Bundle
    from onevision.runtime.answer import Lap

_STDOUT, _STDERR = 1, 2
#: What other libraries raise where they cannot do the work.
_FAULTS = (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError)


@dataclass(frozen=True)
class Reply:
    """What comes through the pipe of an answer: :class:`~onevision.bench.subject.Asked` as plain data."""

    counts: Counts
    token_ids: tuple[int, ...]
    laps: tuple[Lap, ...]
    ttft: float | None
    total: float


@dataclass(frozen=True)
class Fault:
    """What comes instead where there is no answer."""

    message: str


class Missing:
    """A peer that cannot run, and says why when it is asked."""

    resident = None

    def __init__(self, name: str, reason: str) -> None:
        self.name, self._reason = name, reason

    def ask(self, *_: object) -> Asked:
        """Say why not."""
        raise UsageError(self._reason)


class PeerProcess:
    """A peer, loaded. Close it to end its process.

    Raises:
        GenerationError: It could not be loaded.
    """

    def __init__(self, name: str, setup: Setup) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setup), daemon=True)
        self._process.start()
        theirs.close()  # ours then ends when the process does
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def resident(self) -> int:
        """Bytes of memory of its process."""
        with suppress(psutil.Error):  # it has ended: whoever asks it next is told
            size: int = psutil.Process(self._process.pid).memory_info().rss
            return size
        return 0

    def ask(self, scenario: Scenario, inputs: Inputs, new_clock: Callable[[], StageClock]) -> Asked:
        """See :class:`~onevision.bench.subject.Subject`."""
        clock = new_clock()
        try:
            self._connection.send((scenario, inputs))
        except OSError:
            raise self._ended() from None
        reply: Reply = self._receive()
        clock.laps += reply.laps
        return Asked(reply.counts, reply.token_ids, clock, reply.ttft, reply.total)

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def _receive(self) -> Any:  # noqa: ANN401
        try:
            found = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(found, Fault):
            raise GenerationError(found.message)
        return found

    def _ended(self) -> GenerationError:
        self._process.join()
        return GenerationError(
            f"its process ended with status {self._process.exitcode}; there may be too little memory"
        )


@contextmanager
def opened(name: str, bundle: Bundle, setup: Setup) -> Iterator[Subject]:
    """A peer in its process; one that only says why, where it cannot run."""
    reason = lacking(name, bundle)
    peer: PeerProcess | None = None
    if reason is None:
        try:
            peer = PeerProcess(name, setup)
        except GenerationError as error:
            reason = error.message
    try:
        yield peer or Missing(name, reason or "")
    finally:
        if peer:
            peer.close()


# Below: in the process of the peer.


def _serve(connection: Connection, name: str, setup: Setup) -> None:
    """Answer until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is our parent's, who ends us
    os.dup2(_STDERR, _STDOUT)  # what libraries print is no result
    # The other end is closed: nobody is left to tell.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            with _made(name, setup) as subject:
                connection.send(None)
                while True:
                    connection.send(_reply(subject, *connection.recv()))
        except OneVisionError as error:
            connection.send(Fault(f"{error.message}; {error.hint}" if error.hint else error.message))
        except _FAULTS as error:
            connection.send(Fault(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"))


def _reply(subject: Subject, scenario: Scenario, inputs: Inputs) -> Reply | Fault:
    try:
        asked = subject.ask(scenario, inputs, StageClock)
    except OneVisionError as error:
        return Fault(error.message)
    return Reply(asked.counts, asked.token_ids, tuple(asked.clock.laps), asked.ttft, asked.total)


@contextmanager
def _made(name: str, setup: Setup) -> Iterator[Subject]:
    bundle = open_bundle(setup.bundle)
    if name == LLAMA:
        from onevision.bench.subject import BundleSubject
        from onevision.runtime.engine import OneVision

        with OneVision(bundle, device=setup.device, threads=setup.threads, prefill="llama") as model:
            model.vision_encoder()
            yield BundleSubject(model, name)
    elif name == "openvino":
        from onevision.bench.peers.openvino_encoder import OpenVinoEncoder

        yield OpenVinoEncoder(bundle, setup)
    else:
        from onevision.bench.peers.hf import TransformersModel

        yield TransformersModel(name, bundle, setup)
