"""A whole benchmark of a bundle: load it, learn what the machine can do, and measure the scenarios."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from onevision import __version__
from onevision.bench import machine, roofline
from onevision.bench.calibrate import calibrate
from onevision.bench.gauge import gauge
from onevision.bench.method import Method, Trials, make_trial
from onevision.bench.result import SCHEMA_VERSION, Load, ModelFacts, Result
from onevision.bench.subject import BundleSubject
from onevision.bench.work import work
from onevision.bundle import BACKBONE, MANIFEST, VISION, Bundle, sha256_of
from onevision.errors import OneVisionError
from onevision.runtime.calibration import calibration_path, write_calibration
from onevision.runtime.device import default_threads
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.bench.scenarios import Scenario
    from onevision.runtime.device import Device

#: Times that a bundle is loaded from memory.
_WARM_LOADS = 3


@dataclass(frozen=True)
class Settings:
    """What to measure a bundle with. ``roofline`` seconds are spent on the machine's limits; 0: none."""

    scenarios: tuple[Scenario, ...]
    runs: int
    seconds: float | None
    device: Device = "cpu"
    threads: int | None = None
    roofline: float = roofline.TIME_BOX


class Benchmark:
    """One benchmark. After :meth:`run`, whether it ended or was interrupted, ``result`` is what is known.

    Attributes:
        result: What was measured.
        problem: Why no calibration was kept.

    Args:
        bundle: What to measure.
        settings: How.
        on_step: Told what is being done.
    """

    def __init__(
        self, bundle: Bundle, settings: Settings, on_step: Callable[[str], object] = lambda _: None
    ) -> None:
        self._bundle, self._settings, self._step = bundle, settings, on_step
        self._trials: Trials | None = None
        self.problem: str | None = None
        manifest = bundle.manifest
        vision, backbone = (manifest.files[name].precision or "" for name in (VISION, BACKBONE))
        self.result = Result(
            schema_version=SCHEMA_VERSION,
            onevision=__version__,
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            model=ModelFacts(
                manifest.name,
                bundle.bytes,
                vision,
                backbone,
                "f32" if backbone == "f32" else "f16",
                sha256_of(bundle.path(MANIFEST)),
            ),
            device=settings.device,
            threads=settings.threads or default_threads(),
            runs=settings.runs,
            isolated=False,
            interrupted=True,
            machine=machine.facts() | {"before": machine.condition()},
            rates=None,
            load=None,
            measured=(),
        )

    def run(self) -> None:
        """Measure. Whatever interrupts it leaves ``result`` as far as it came."""
        settings, result = self._settings, self.result
        try:
            if settings.roofline:
                self._step("what this machine can do")
                rates = roofline.measure(
                    place="cuda" if settings.device == "cuda" else "cpu",
                    threads=result.threads,
                    seconds=settings.roofline,
                )
                self.result = result = replace(result, rates=rates.to_dict())
            self._step("loading")
            self.result = replace(result, load=self._time_loads())
            self._measure()
            self._calibrate()
            self.result = replace(self.result, interrupted=False)
        finally:
            after = {"after": machine.condition()}
            measured = self._trials.measured if self._trials else ()
            self.result = replace(self.result, machine=self.result.machine | after, measured=measured)

    def _calibrate(self) -> None:
        """Keep what times to the first token are predicted from; where that fails, the result stays."""
        try:
            with self._load() as model:
                calibration = calibrate(model, self._step)
                path = calibration_path(self._bundle.manifest, model.placement, self.result.threads)
            write_calibration(path, calibration)
        except OneVisionError as error:
            self.problem = f"times to the first token cannot be predicted: {error.message}"

    def _load(self) -> OneVision:
        model = OneVision(self._bundle, device=self._settings.device, threads=self._settings.threads)
        model.vision_encoder()
        return model

    def _time_loads(self) -> Load:
        times = []
        cold = machine.forget([self._bundle.path(name) for name in self._bundle.manifest.files])
        for _ in range(1 + _WARM_LOADS):
            started = time.perf_counter()
            with self._load():
                times.append((time.perf_counter() - started) * 1e3)
        return Load(times[0] if cold else None, tuple(times[1:]))

    def _measure(self) -> None:
        settings = self._settings
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            model = stack.enter_context(self._load())
            pace = stack.enter_context(gauge(self.result.threads))
            method = Method(settings.runs, settings.seconds, gauge=pace)
            place = "cuda" if settings.device == "cuda" else "cpu"
            work_of = partial(work, self._bundle.manifest, place=place)
            subject = BundleSubject(model)
            self._trials = Trials(
                [make_trial(one, subject, folder, work_of) for one in settings.scenarios],
                method,
            )
            self._trials.run(
                lambda trial, number: self._step(
                    f"{trial.scenario.name}, {f'run {number} of {settings.runs}' if number else 'warm-up'}"
                )
            )
