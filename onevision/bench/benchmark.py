"""A benchmark of a bundle: the machine, its limits, loading, then the scenarios."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from onevision._version import __version__
from onevision.bench import machine, roofline
from onevision.bench.calibrate import keep_profile
from onevision.bench.machine import open_gpu, require_cuda
from onevision.bench.matmul import Place
from onevision.bench.method import Method, Trial, make_trials, run_rounds
from onevision.bench.peers import TargetSetup, find_checkpoint
from onevision.bench.process import open_process
from onevision.bench.result import SCHEMA_VERSION, Load, Measured, ModelFacts, Result
from onevision.bench.roofline import work
from onevision.bench.scenarios import Scenario
from onevision.bench.target import OURS, BundleTarget, Target
from onevision.bundle import BACKBONE, MANIFEST, VISION, Bundle
from onevision.errors import OneVisionError
from onevision.files import sha256_of
from onevision.native.device import Device, default_threads
from onevision.native.doctor import examine
from onevision.progress import Progress
from onevision.runtime.engine import OneVision
from onevision.runtime.options import AnswerOptions

#: Timed loads of a bundle: one from the disk if possible, the others from memory.
LOADS = 4


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how."""

    scenarios: tuple[Scenario, ...]
    runs: int  # of each scenario, timed
    seconds: float | None  # time budget of the runs; None: no limit
    device: Device = "cpu"
    threads: int | None = None  # None: all cores
    isolate: bool = False  # each scenario in a fresh process, one after the other
    roofline: float = roofline.TIME_BOX  # seconds to measure the machine's limits; 0: skip
    loads: int = LOADS  # 0: skip
    against: tuple[str, ...] = ()  # peers
    checkpoint: Path | None = None  # for peers that need it; None: as the bundle says
    options: AnswerOptions = field(default_factory=AnswerOptions)  # prompt format and system prompt


def measure(bundle: Bundle, settings: BenchSettings, progress: Progress) -> Result:
    """Measure a bundle, and then its speed profile; after an interrupt, the result has what was measured.

    Raises:
        OneVisionError: See :class:`Benchmark`.
    """
    if find_spec("onnx") is None:
        progress.note("limits of ONNX Runtime are not measured: pip install 'onevision[bench]'")
    with progress.step("benchmark") as advance:
        show = partial(advance, None)
        benchmark = Benchmark(bundle, settings, show)
        try:
            benchmark.run()
            keep_profile(bundle, settings.device, benchmark.result.threads, show)
        except KeyboardInterrupt:
            progress.note("interrupted: the result has what was measured")
            return replace(benchmark.result, interrupted=True)
        except OneVisionError as error:
            if benchmark.result.interrupted:
                raise
            progress.note(f"times to the first token cannot be predicted: {error.message}")
    return benchmark.result


class Benchmark:
    """One benchmark. ``result`` may be read at any time, also after :meth:`run` was interrupted.

    Args:
        bundle: The bundle to measure.
        settings: What to measure.
        on_progress: Called with a line about what is measured now.

    Raises:
        UsageError: A peer needs the checkpoint, which was not found.
        DeviceError: A GPU is asked for, and a library was built without.
    """

    def __init__(
        self, bundle: Bundle, settings: BenchSettings, on_progress: Callable[[str], object] = lambda _: None
    ) -> None:
        self._bundle, self._settings, self._show = bundle, settings, on_progress
        self._trials: list[Trial] = []
        self._place: Place = "cuda" if settings.device == "cuda" else "cpu"
        if self._place == "cuda":
            require_cuda()
        manifest = bundle.manifest
        checkpoint = find_checkpoint(manifest, settings.checkpoint, settings.against)
        threads = settings.threads or default_threads()
        self._setup = TargetSetup(bundle.folder, checkpoint, settings.device, threads, settings.options)
        vision, backbone = (manifest.files[name].precision or "" for name in (VISION, BACKBONE))
        cache, sha256 = "f32" if backbone == "f32" else "f16", sha256_of(bundle.path(MANIFEST))
        self._result = Result(
            schema_version=SCHEMA_VERSION,
            onevision=__version__,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            model=ModelFacts(manifest.name, bundle.bytes, vision, backbone, cache, sha256),
            device=settings.device,
            threads=threads,
            runs=settings.runs,
            isolated=settings.isolate,
            interrupted=True,
            machine=examine().facts | {"before": machine.condition()},
            rates=None,
            load=None,
            measured=(),
        )

    @property
    def result(self) -> Result:
        """Everything measured so far."""
        return replace(
            self._result, measured=tuple(self._with_work(trial.measured) for trial in self._trials)
        )

    def run(self) -> None:
        """Measure.

        Raises:
            OneVisionError: The bundle cannot be loaded.
        """
        settings, scenarios = self._settings, self._settings.scenarios
        try:
            if settings.roofline:
                self._show("limits of this machine")
                place, threads = self._place, self._setup.threads
                rates = roofline.measure(place=place, threads=threads, seconds=settings.roofline)
                self._result = replace(self._result, rates=rates)
            if settings.loads:
                self._show("loading")
                self._result = replace(self._result, load=self._time_loads())
            for group in [(one,) for one in scenarios] if settings.isolate else [scenarios]:
                self._measure(group)
            self._result = replace(self._result, interrupted=False)
        finally:
            self._add_facts(after=machine.condition())

    def _with_work(self, one: Measured) -> Measured:
        """The same with the least work of our own stages."""
        if one.engine != OURS or not one.runs or one.counts is None:
            return one
        manifest, calls = self._bundle.manifest, len(one.runs[-1].tiles_ms)
        least = work(manifest, one.counts, calls, place=self._place, threads=self._setup.threads)
        return replace(one, work=least)

    def _add_facts(self, **facts: object) -> None:
        self._result = replace(self._result, machine=self._result.machine | facts)

    @contextmanager
    def _load(self) -> Iterator[OneVision]:
        with OneVision(self._bundle, device=self._settings.device, threads=self._settings.threads) as model:
            model.pipeline.vision_encoder()
            yield model
            if model.pipeline.warnings:
                self._add_facts(warnings=model.pipeline.warnings)

    def _time_loads(self) -> Load:
        times = []
        cold = machine.drop_file_cache([self._bundle.path(name) for name in self._bundle.manifest.files])
        for _ in range(self._settings.loads):
            started = time.perf_counter()
            with self._load():
                times.append((time.perf_counter() - started) * 1e3)
        return Load(times[0] if cold else None, tuple(times[1:]))

    def _measure(self, scenarios: tuple[Scenario, ...]) -> None:
        settings, targets = self._settings, list[Target]()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
            if not settings.isolate:
                model = stack.enter_context(self._load())
                targets.append(BundleTarget(model, options=settings.options))
            for name in (OURS,) if settings.isolate else settings.against:
                self._show(f"loading {name}")
                targets.append(stack.enter_context(open_process(name, self._bundle, self._setup)))
            gauge = stack.enter_context(roofline.gauge(self._setup.threads))
            seconds = settings.seconds and settings.seconds * len(scenarios) / len(settings.scenarios)
            method = Method(settings.runs, seconds, gauge=gauge)
            if self._place == "cuda" and (gpu := stack.enter_context(open_gpu())):
                method = replace(method, joules=gpu.energy, gpu_memory=gpu.memory)
                self._add_facts(gpu=gpu.facts())
            trials = [trial for one in scenarios for trial in make_trials(one, targets, folder)]
            self._trials += trials
            run_rounds(trials, method, self._show_run)

    def _show_run(self, trial: Trial, number: int) -> None:
        run = f"run {number} of {self._settings.runs}" if number else "warm-up"
        self._show(f"{trial.scenario.name} {trial.target.name}, {run}")
