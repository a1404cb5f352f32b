"""A whole benchmark of a bundle: load it, learn what the machine can do, and measure the scenarios."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from onevision._version import __version__
from onevision.bench import machine, roofline
from onevision.bench.gauge import gauge
from onevision.bench.gpu import open_gpu, require_cuda
from onevision.bench.method import Method, Trials, make_trials
from onevision.bench.peers import PEERS, Setup, find_checkpoint
from onevision.bench.peers.process import opened
from onevision.bench.result import SCHEMA_VERSION, Load, ModelFacts, Result
from onevision.bench.subject import BundleSubject
from onevision.bench.work import work
from onevision.bundle import BACKBONE, MANIFEST, VISION, Bundle, sha256_of
from onevision.native.device import default_threads
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.bench.scenarios import Scenario
    from onevision.bench.subject import Subject
    from onevision.native.device import Device

#: Times that a bundle is loaded: perhaps from the disk, then from memory.
LOADS = 4


@dataclass(frozen=True)
class Settings:
    """What to measure a bundle with.

    ``roofline`` seconds are spent on the machine's limits, and ``loads`` of the bundle are timed; 0: none.
    ``against`` are peers, and ``checkpoint`` is what the bundle was made of; None: as the bundle says.
    """

    scenarios: tuple[Scenario, ...]
    runs: int
    seconds: float | None
    device: Device = "cpu"
    threads: int | None = None
    roofline: float = roofline.TIME_BOX
    loads: int = LOADS
    against: tuple[str, ...] = ()
    checkpoint: Path | None = None


class Benchmark:
    """One benchmark. ``result`` is what is known at any time, so also when :meth:`run` was interrupted.

    Args:
        bundle: What to measure.
        settings: How.
        on_step: Told what is being done.

    Raises:
        UsageError: A peer needs the checkpoint, and it is not there.
        DeviceError: A GPU is asked for, and a library was built without.
    """

    def __init__(
        self, bundle: Bundle, settings: Settings, on_step: Callable[[str], object] = lambda _: None
    ) -> None:
        self._bundle, self._settings, self._step = bundle, settings, on_step
        self._trials: Trials | None = None
        if settings.device == "cuda":
            require_cuda()
        manifest = bundle.manifest
        self._peers = Setup(
            bundle.folder,
            find_checkpoint(manifest, settings.checkpoint, settings.against),
            settings.device,
            settings.threads or default_threads(),
        )
        packages = sorted({package for peer in settings.against for package in PEERS[peer]})
        vision, backbone = (manifest.files[name].precision or "" for name in (VISION, BACKBONE))
        self._result = Result(
            schema_version=SCHEMA_VERSION,
            onevision=__version__,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            model=ModelFacts(
                manifest.name,
                bundle.bytes,
                vision,
                backbone,
                "f32" if backbone == "f32" else "f16",
                sha256_of(bundle.path(MANIFEST)),
            ),
            device=settings.device,
            threads=self._peers.threads,
            runs=settings.runs,
            isolated=False,
            interrupted=True,
            machine=machine.facts(packages) | {"before": machine.condition()},
            rates=None,
            load=None,
            measured=(),
        )

    @property
    def result(self) -> Result:
        """As far as it came."""
        return replace(self._result, measured=self._trials.measured if self._trials else ())

    def run(self) -> None:
        """Measure."""
        settings, result = self._settings, self._result
        try:
            if settings.roofline:
                self._step("what this machine can do")
                rates = roofline.measure(
                    place="cuda" if settings.device == "cuda" else "cpu",
                    threads=result.threads,
                    seconds=settings.roofline,
                )
                self._result = result = replace(result, rates=rates.to_dict())
            if settings.loads:
                self._step("loading")
                self._result = replace(result, load=self._time_loads())
            if settings.scenarios:
                self._measure()
            self._result = replace(self._result, interrupted=False)
        finally:
            after = {"after": machine.condition()}
            self._result = replace(self._result, machine=self._result.machine | after)

    def _load(self) -> OneVision:
        model = OneVision(self._bundle, device=self._settings.device, threads=self._settings.threads)
        model.vision_encoder()
        return model

    def _time_loads(self) -> Load:
        times = []
        cold = machine.forget([self._bundle.path(name) for name in self._bundle.manifest.files])
        for _ in range(self._settings.loads):
            started = time.perf_counter()
            with self._load():
                times.append((time.perf_counter() - started) * 1e3)
        return Load(times[0] if cold else None, tuple(times[1:]))

    def _measure(self) -> None:
        settings = self._settings
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            model = stack.enter_context(self._load())
            subjects: list[Subject] = [BundleSubject(model)]
            for name in settings.against:
                self._step(f"loading {name}")
                subjects.append(stack.enter_context(opened(name, self._bundle, self._peers)))
            pace = stack.enter_context(gauge(self._result.threads))
            method = Method(settings.runs, settings.seconds, gauge=pace)
            place = "cuda" if settings.device == "cuda" else "cpu"
            if place == "cuda" and (gpu := stack.enter_context(open_gpu())):
                method = replace(method, joules=gpu.energy, gpu_memory=gpu.memory)
                self._result = replace(self._result, machine=self._result.machine | {"gpu": gpu.facts()})
            work_of = partial(work, self._bundle.manifest, place=place)
            trials = [make_trials(one, subjects, folder, work_of) for one in settings.scenarios]
            self._trials = Trials(chain(*trials), method)
            self._trials.run(
                lambda trial, number: self._step(
                    f"{trial.scenario.name} {trial.subject.name}, "
                    f"{f'run {number} of {settings.runs}' if number else 'warm-up'}"
                )
            )
