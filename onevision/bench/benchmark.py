"""A benchmark of a bundle: the machine, its limits, loading, then the scenarios."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from onevision import __version__
from onevision.bench import machine, roofline
from onevision.bench.gpu import open_gpu, require_cuda
from onevision.bench.method import Method, Rounds, make_trials
from onevision.bench.peers import PEERS, TargetSetup, find_checkpoint
from onevision.bench.process import open_process
from onevision.bench.result import SCHEMA_VERSION, Load, ModelFacts, Result
from onevision.bench.target import OURS, BundleTarget
from onevision.bench.work import work
from onevision.bundle import BACKBONE, MANIFEST, VISION, Bundle, sha256_of
from onevision.runtime.device import default_threads
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.bench.matmul import Place
    from onevision.bench.scenarios import Scenario
    from onevision.runtime.device import Device

#: Timed loads of a bundle: one from the disk if possible, the others from memory.
LOADS = 4


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        scenarios: In this order.
        runs: Timed runs of each.
        seconds: Time budget; None: no limit.
        device: As of :class:`OneVision`.
        threads: CPU threads; None for all cores.
        isolate: Each scenario in a fresh process, with an equal part of ``seconds``, one after the other.
        roofline: Seconds to measure the machine's limits; 0 to skip.
        loads: Timed loads; 0 to skip.
        against: Peers.
        checkpoint: The bundle's checkpoint, for peers that need it; None: as the bundle says.
    """

    scenarios: tuple[Scenario, ...]
    runs: int
    seconds: float | None
    device: Device = "cpu"
    threads: int | None = None
    isolate: bool = False
    roofline: float = roofline.TIME_BOX
    loads: int = LOADS
    against: tuple[str, ...] = ()
    checkpoint: Path | None = None


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
        self._rounds: list[Rounds] = []
        self._place: Place = "cuda" if settings.device == "cuda" else "cpu"
        if self._place == "cuda":
            require_cuda()
        manifest = bundle.manifest
        checkpoint = find_checkpoint(manifest, settings.checkpoint, settings.against)
        threads = settings.threads or default_threads()
        self._setup = TargetSetup(bundle.folder, checkpoint, settings.device, threads)
        packages = sorted({package for peer in settings.against for package in PEERS[peer]})
        vision, backbone = (manifest.files[name].precision or "" for name in (VISION, BACKBONE))
        cache, sha256 = "f32" if backbone == "f32" else "f16", sha256_of(bundle.path(MANIFEST))
        self._result = Result(
            schema_version=SCHEMA_VERSION,
            onevision=__version__,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            model=ModelFacts(manifest.name, bundle.bytes, vision, backbone, cache, sha256),
            device=settings.device,
            threads=threads,
            runs=settings.runs,
            isolated=settings.isolate,
            interrupted=True,
            machine=machine.facts(packages) | {"before": machine.condition()},
            rates=None,
            load=None,
            measured=(),
        )

    @property
    def result(self) -> Result:
        """Everything measured so far."""
        measured = tuple(one for rounds in self._rounds for one in rounds.measured)
        return replace(self._result, measured=measured)

    def run(self) -> None:
        """Measure.

        Raises:
            OneVisionError: The bundle cannot be loaded.
        """
        settings = self._settings
        try:
            if settings.roofline:
                self._show("limits of this machine")
                rates = roofline.measure(
                    place=self._place, threads=self._setup.threads, seconds=settings.roofline
                )
                self._result = replace(self._result, rates=rates)
            if settings.loads:
                self._show("loading")
                self._result = replace(self._result, load=self._time_loads())
            groups = [(one,) for one in settings.scenarios] if settings.isolate else [settings.scenarios]
            for group in filter(None, groups):
                self._measure(group, settings.seconds and settings.seconds / len(groups))
            self._result = replace(self._result, interrupted=False)
        finally:
            self._add_facts(after=machine.condition())

    def _add_facts(self, **facts: object) -> None:
        self._result = replace(self._result, machine=self._result.machine | facts)

    def _load(self) -> OneVision:
        model = OneVision(self._bundle, device=self._settings.device, threads=self._settings.threads)
        model.vision_encoder()
        return model

    def _time_loads(self) -> Load:
        times = []
        cold = machine.drop_file_cache([self._bundle.path(name) for name in self._bundle.manifest.files])
        for _ in range(self._settings.loads):
            started = time.perf_counter()
            with self._load():
                times.append((time.perf_counter() - started) * 1e3)
        return Load(times[0] if cold else None, tuple(times[1:]))

    def _measure(self, scenarios: tuple[Scenario, ...], seconds: float | None) -> None:
        settings = self._settings
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
            names = (OURS,) if settings.isolate else settings.against
            targets = [] if settings.isolate else [BundleTarget(stack.enter_context(closing(self._load())))]
            for name in names:
                self._show(f"loading {name}")
                targets.append(stack.enter_context(open_process(name, self._bundle, self._setup)))
            gauge = stack.enter_context(roofline.gauge(self._setup.threads))
            method = Method(settings.runs, seconds, gauge=gauge)
            if self._place == "cuda" and (gpu := stack.enter_context(open_gpu())):
                method = replace(method, joules=gpu.energy, gpu_memory=gpu.memory)
                self._add_facts(gpu=gpu.facts())
            work_of = partial(work, self._bundle.manifest, place=self._place)
            trials = [
                trial for one in scenarios for trial in make_trials(one, targets, folder, work_of)
            ]
            self._rounds.append(Rounds(trials, method))
            self._rounds[-1].run(
                lambda trial, number: self._show(
                    f"{trial.scenario.name} {trial.target.name}, "
                    f"{f'run {number} of {settings.runs}' if number else 'warm-up'}"
                )
            )
