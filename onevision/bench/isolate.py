"""Each scenario in a fresh process: its memory is its own, and nothing that an earlier one left speeds it up.

``process for limits and loading -> one process per scenario -> one result``

A process tells before each run what it has measured until then. What is known survives whatever ends it: an
interrupt, or a system that is out of memory.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onevision import errors
from onevision.bench import machine
from onevision.bench.benchmark import Benchmark, Settings
from onevision.bench.result import Measured
from onevision.bench.subject import OURS
from onevision.errors import OneVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from onevision.bench.result import Result
    from onevision.bundle import Bundle

#: Seconds that a process gets to end after it was told to.
_PATIENCE = 5.0


class IsolatedBenchmark:
    """A benchmark with a process of its own for each scenario; used like :class:`Benchmark`.

    Scenarios do not take turns: each makes all its runs before the next. Each has an equal part of
    ``settings.seconds``.

    Args:
        bundle: What to measure.
        settings: How.
        on_step: Told what is being done.
    """

    def __init__(
        self, bundle: Bundle, settings: Settings, on_step: Callable[[str], object] = lambda _: None
    ) -> None:
        self._bundle, self._settings, self._step = bundle, settings, on_step
        self._result = replace(Benchmark(bundle, settings).result, isolated=True)
        self._measured: list[tuple[Measured, ...]] = []  # by scenario

    @property
    def result(self) -> Result:
        """As far as it came."""
        return replace(self._result, measured=tuple(one for each in self._measured for one in each))

    def run(self) -> None:
        """Measure.

        Raises:
            OneVisionError: The bundle cannot be measured at all.
        """
        settings = self._settings
        try:
            for found in self._results_of(replace(settings, scenarios=())):
                self._result = replace(self._result, rates=found.rates, load=found.load)
            share = settings.seconds and settings.seconds / len(settings.scenarios)
            for scenario in settings.scenarios:
                self._measure(replace(settings, scenarios=(scenario,), seconds=share, roofline=0, loads=0))
            self._result = replace(self._result, interrupted=False)
        finally:
            self._result = replace(
                self._result, machine=self._result.machine | {"after": machine.condition()}
            )

    def _measure(self, settings: Settings) -> None:
        (scenario,) = settings.scenarios
        self._measured.append((Measured(scenario.name, OURS, None, (), None, {}, None),))
        try:
            for found in self._results_of(settings):
                self._measured[-1] = found.measured or self._measured[-1]
        except ProcessError as error:
            self._measured[-1] = tuple(replace(one, skipped=error.message) for one in self._measured[-1])

    def _results_of(self, settings: Settings) -> Iterator[Result]:
        """What a fresh process has measured, each time that it knows more.

        Raises:
            OneVisionError: That process raised it.
            ProcessError: It ended without a word.
        """
        # Processes are spawned on all systems: a fork would inherit the threads' locks, and our memory.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        with ours, TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = context.Process(
                target=_work, args=(self._bundle, settings, folder, theirs), daemon=True
            )
            process.start()
            theirs.close()
            try:
                yield from self._follow(ours)
                process.join()
            finally:
                _end(process)
            if process.exitcode:
                raise ProcessError(process.exitcode)

    def _follow(self, connection: Connection) -> Iterator[Result]:
        while True:
            try:
                kind, said = connection.recv()
            except (EOFError, OSError):
                return  # whether it ended well, its exit status says
            if kind == "error":
                name, message, hint = said
                raise getattr(errors, name)(message, hint=hint)
            if kind == "step":
                self._step(said)
            else:
                yield said


class ProcessError(OneVisionError):
    """A process ended by itself; ``code`` as :attr:`multiprocessing.Process.exitcode` has it."""

    def __init__(self, code: int) -> None:
        how = f"status {code}" if code > 0 else f"signal {-code} ({signal.strsignal(-code)})"
        super().__init__(f"its process ended with {how}", hint="see whether there is enough memory")


def _end(process: Any) -> None:  # noqa: ANN401
    """End a process that is still at work."""
    if process.is_alive():
        process.terminate()
        process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()


def _work(bundle: Bundle, settings: Settings, folder: str, connection: Connection) -> None:
    """The process: measure, and tell.

    An interrupt from the keyboard reaches all processes; what is to be done about it, the first one says.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = folder  # which is removed even if this process is killed

    def tell(step: str) -> None:
        connection.send(("step", step))
        connection.send(("result", benchmark.result))

    benchmark = Benchmark(bundle, settings, tell)
    try:
        benchmark.run()
        connection.send(("result", benchmark.result))
    except OneVisionError as error:
        connection.send(("error", (type(error).__name__, error.message, error.hint)))
    except BrokenPipeError:
        pass  # nobody wants to know any more
