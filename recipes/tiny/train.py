"""Train the tiny model from random weights: ``python -m recipes.tiny.train --hours 3 --out DIR``.

The same command goes on where a run was cut off. ``DIR`` gets ``state.pt``, ``log.csv``, ``log.png``, and the
checkpoints ``si`` and ``ov`` when their stages are done. ``--start CHECKPOINT`` takes a finished one further.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from recipes.tiny.feed import Feed
from recipes.tiny.forward import LabelHead, learn
from recipes.tiny.log import Log, Tally, plot
from recipes.tiny.model import build_model, export_checkpoint, load_weights, save_atomically
from recipes.tiny.optimiser import MasterOptimiser
from recipes.tiny.stages import FURTHER, STAGES, StepSize, held_out_batches
from recipes.tiny.tiles import LabelledTiles
from recipes.tiny.tokenizer import label_tokens, read_vocabulary, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from recipes.tiny.data import Batch
    from recipes.tiny.forward import Learned
    from recipes.tiny.stages import Part, Stage

WARM_UP, FLOOR = 0.03, 0.05  # of a stage's steps; of the peak learning rate
SAVE_SECONDS, REPORT_STEPS = 60, 50
EVALUATIONS = 4  # of a stage
EXPORTS = {"2-si": "si", "2-ov": "ov", "further": "ov"}
PREFIXES: dict[str, Part] = {
    "model.vision_tower.": "tower",
    "model.multi_modal_projector.": "projector",
    "model.image_newline": "projector",
    "model.language_model.": "language",
    "head.": "head",
}


class Schedule(Protocol):
    """How far a stage is, from 0 to 1; at 1 it is done."""

    def progress(self, stage: Stage, step: int, seconds: float) -> float:
        """After ``step`` steps of the stage, and so many seconds of the whole run."""
        ...


@dataclass(frozen=True)
class ByTime:
    """Each stage ends when its share of the time is over; the last hundredth is kept for saving."""

    hours: float
    stages: tuple[Stage, ...] = STAGES

    def progress(self, stage: Stage, step: int, seconds: float) -> float:  # noqa: ARG002
        """See :class:`Schedule`."""
        before = sum(other.share for other in self.stages[: self.stages.index(stage)])
        return min(1.0, (seconds / (self.hours * 3600 * 0.99) - before) / stage.share)


@dataclass(frozen=True)
class BySteps:
    """Each stage has so many steps."""

    steps: int

    def progress(self, stage: Stage, step: int, seconds: float) -> float:  # noqa: ARG002
        """See :class:`Schedule`."""
        return min(1.0, step / self.steps)


def learning_rate(progress: float) -> float:
    """Warm-up, then cosine, as a part of the peak."""
    if progress < WARM_UP:
        return max(progress, 1e-3) / WARM_UP
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


class Trainer:
    """A run, from its beginning or from where it was cut off.

    Args:
        out: Folder of the run.
        schedule: When stages end.
        seed: Of weights and data. A resumed run has to have the same.
        workers: Processes that make data.
        device: ``cpu`` or ``cuda``.
        times: As much data in a step as the stages say.
        stages: One after the other.
        start: A checkpoint's folder to begin with, instead of random weights.
    """

    def __init__(
        self,
        out: Path,
        schedule: Schedule,
        *,
        seed: int = 1,
        workers: int = 1,
        device: str = "cpu",
        times: int = 1,
        stages: tuple[Stage, ...] = STAGES,
        start: Path | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self._schedule, self._seed, self._stages = out, schedule, seed, stages
        self.vocabulary = train_tokenizer() if start is None else read_vocabulary(start)
        self.vocabulary.write(out)
        on_gpu = device != "cpu"
        self.model = build_model(self.vocabulary, seed, attention="sdpa" if on_gpu else "eager")
        if start is not None:
            load_weights(self.model, start)
        self.model.train().to(device)
        self._head = LabelHead(torch.tensor(label_tokens(self.vocabulary))).to(device)
        self.masters = {name: value.detach().clone() for name, value in self._parameters().items()}
        self.model.to(torch.bfloat16)
        self._head.to(torch.bfloat16)
        self._stage, self._step, self._seconds, log_size = 0, 0, 0.0, 0
        self._moments: dict[str, Any] | None = None
        if (out / "state.pt").is_file():
            log_size = self._resume(torch.load(out / "state.pt", weights_only=True, map_location=device))
        self._log = Log(out / "log.csv", log_size)
        self._size = StepSize(times, parts=2) if on_gpu else StepSize(times)
        self._feed = Feed(out / "tokenizer.json", seed, workers, self._size)
        threads = 1 if on_gpu else os.cpu_count()
        self._threads = ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1))
        self._held_out = held_out_batches(self._feed.encoder)

    def run(self, *, stop_after: int | None = None) -> None:
        """Train all stages that are left; ``stop_after`` steps of this call the run is saved and ends."""
        self._began = time.monotonic() - self._seconds
        self._left = stop_after
        try:
            while self._stage < len(self._stages):
                if not self._run_stage(self._stages[self._stage]):
                    return
        finally:
            self._feed.close()
            self._threads.shutdown()

    def _run_stage(self, stage: Stage) -> bool:
        """Whether the stage is done."""
        optimiser = MasterOptimiser(self._learners(stage), self.masters, self._threads)
        if self._moments is not None:
            optimiser.load_state_dict(self._moments)
            self._moments = None
        tally, rates = Tally(), self._size.rates(stage)
        saved, evaluated = self._now(), None
        for data in self._feed.steps(stage, self._step):
            progress = self._schedule.progress(stage, self._step, self._now())
            if progress >= 1:
                break
            quarter = int(progress * EVALUATIONS)
            if evaluated is not None and quarter > evaluated:
                self._evaluate(stage)
            evaluated = quarter
            if self._left == 0:
                self._save(optimiser)
                return False
            self._learn(stage, data, tally)
            optimiser.step({part: rate * learning_rate(progress) for part, rate in rates.items()})
            self._step += 1
            self._left = None if self._left is None else self._left - 1
            if self._step % REPORT_STEPS == 0:
                self._report(stage, tally, progress)
                tally = Tally()
            if self._now() - saved > SAVE_SECONDS:
                self._save(optimiser)
                saved = self._now()
        self._report(stage, tally, 1.0)
        self._evaluate(stage)
        if stage.name in EXPORTS:
            export_checkpoint(self.model, self.vocabulary, self.out / EXPORTS[stage.name])
        self._stage, self._step = self._stage + 1, 0
        self._save(None)
        return True

    def _learn(self, stage: Stage, data: Sequence[Batch | LabelledTiles], tally: Tally) -> None:
        """Gradients of one step. Each part of it is one thread's: small matrices gain little from two."""
        learners = [value for value in self._parameters().values() if value.requires_grad]

        def gradients(part: Batch | LabelledTiles) -> tuple[Learned, Sequence[Tensor | None]]:
            learned = self._lesson(stage, part)
            return learned, torch.autograd.grad(learned.loss / len(data), learners, allow_unused=True)

        for learned, found in self._threads.map(gradients, data):
            tally.add(learned)
            for value, gradient in zip(learners, found, strict=True):
                if gradient is not None:
                    value.grad = gradient if value.grad is None else value.grad + gradient

    def _lesson(self, stage: Stage, part: Batch | LabelledTiles) -> Learned:
        if isinstance(part, LabelledTiles):
            lesson = self._head.word_loss if "projector" in stage.rates else self._head.tower_loss
            return lesson(self.model, part)
        return learn(self.model, part)

    @torch.no_grad()
    def _evaluate(self, stage: Stage) -> None:
        """Held-out accuracy by family: whether each token of the answer is the most likely one."""
        if not stage.scenes:
            return
        tally = Tally()
        for batch in self._held_out:
            tally.add(learn(self.model, batch))
        self._log.write(stage.name, self._step, self._now(), "held-out", tally)
        plot(self._log.path, self.out / "log.png")
        _say(f"stage {stage.name}: held-out accuracy {tally.accuracy():.1%}")

    def _report(self, stage: Stage, tally: Tally, progress: float) -> None:
        seconds = self._now()
        self._log.write(stage.name, self._step, seconds, "train", tally)
        _say(
            f"stage {stage.name} {progress:4.0%}, step {self._step}, {seconds / 60:.1f} min: "
            f"loss {tally.loss():.3f}, accuracy {tally.accuracy():.1%}"
        )

    def _parameters(self) -> dict[str, Parameter]:
        head = {f"head.{name}": value for name, value in self._head.named_parameters()}
        return {**dict(self.model.named_parameters()), **head}

    def _learners(self, stage: Stage) -> dict[Part, dict[str, Parameter]]:
        """The parameters that learn in a stage, by part; all others are frozen."""
        learners: dict[Part, dict[str, Parameter]] = {part: {} for part in stage.rates}
        for name, parameter in self._parameters().items():
            part = next(part for prefix, part in PREFIXES.items() if name.startswith(prefix))
            parameter.requires_grad_(part in stage.rates)
            if part in stage.rates:
                learners[part][name] = parameter
        return learners

    def _now(self) -> float:
        """Seconds of the run, those before it was cut off included."""
        return time.monotonic() - self._began

    def _save(self, optimiser: MasterOptimiser | None) -> None:
        state = {
            "stage": self._stage,
            "step": self._step,
            "seconds": self._now(),
            "seed": self._seed,
            "masters": {name: value.detach() for name, value in self.masters.items()},
            "moments": optimiser.state_dict() if optimiser else None,
            "random": torch.get_rng_state(),
            "log_size": self._log.size,
        }
        save_atomically(state, self.out / "state.pt")

    def _resume(self, state: dict[str, Any]) -> int:
        """Put a saved state in place; the size of the log then."""
        if state["seed"] != self._seed:
            raise SystemExit(f"{self.out} has a run with seed {state['seed']}: go on with that, or elsewhere")
        self._stage, self._step, self._seconds = state["stage"], state["step"], state["seconds"]
        self._moments, self.masters = state["moments"], state["masters"]
        torch.set_rng_state(state["random"].cpu())
        with torch.no_grad():
            for name, parameter in self._parameters().items():
                parameter.copy_(self.masters[name])
        return int(state["log_size"])


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the tiny model from random weights, or go on.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--hours", type=float, default=3.0, help="for the whole run (default: 3)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data (default: 1)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make data (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--times", type=int, default=1, help="larger steps, by this factor (default: 1)")
    parser.add_argument("--start", type=Path, help="a checkpoint to take further, in place of all stages")
    arguments = parser.parse_args()
    stages = STAGES if arguments.start is None else (FURTHER,)
    trainer = Trainer(
        arguments.out,
        ByTime(arguments.hours, stages),
        seed=arguments.seed,
        workers=arguments.workers,
        device=arguments.device,
        times=arguments.times,
        stages=stages,
        start=arguments.start,
    )
    trainer.run()


if __name__ == "__main__":
    main()
