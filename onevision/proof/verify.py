"""Stage-by-stage comparison of a bundle with the reference.

In: a loaded model and reference cases (from the bundle's ``golden.npz``, or computed from a checkpoint).
Out: a :class:`Report`. Each stage runs on the runtime's own output of the stage before: errors add up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onevision.bundle import BACKBONE, PREFILL, VISION
from onevision.metrics import relative_error
from onevision.proof.golden import GREEDY_STEPS, VISUAL_ID
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from onevision.proof.golden import ReferenceCase, Rows
    from onevision.runtime.engine import OneVision
    from onevision.runtime.prepare import PreparedPrompt

#: Largest relative error of image features and visual tokens, by precision of the encoder. Those of int8, and
#: of quantized backbones below, only catch a broken conversion: quality is measured by the gates.
VISION_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.15}
#: Largest relative error of the last position's logits, by precision of the backbone.
LOGITS_TOLERANCE = {"f32": 1e-3, "f16": 5e-3, "bf16": 3e-2, "q8_0": 0.1}
LOSSY_LOGITS_TOLERANCE = 0.75
#: Largest relative error of the logits, by precision of the encoder; the larger of the two limits holds.
ENCODER_LOGITS_TOLERANCE = {"fp32": 0.0, "fp16": 2e-2, "int8": LOSSY_LOGITS_TOLERANCE}
#: Addition to the limit for logits after the prefill graph, by its precision.
PREFILL_LOGITS_TOLERANCE = {"fp32": 1e-3, "int8": 0.2}


@dataclass(frozen=True)
class StageResult:
    """One stage of one case.

    Attributes:
        stage: Name of the stage.
        max_error: Largest absolute difference; uint8 levels for tiles, wrong ids for tokens.
        relative_error: See :func:`onevision.metrics.relative_error`.
        tolerance: Limit of the error.
        passed: None where the stage is reported, not judged.
        note: Counts, shapes, or the reason of a failure.
    """

    stage: str
    max_error: float | None
    relative_error: float | None
    tolerance: float | None
    passed: bool | None
    note: str = ""


@dataclass(frozen=True)
class CaseResult:
    """All stages of one case."""

    name: str
    prompt: str
    stages: tuple[StageResult, ...]

    @property
    def passed(self) -> bool:
        """No stage failed."""
        return all(stage.passed is not False for stage in self.stages)


@dataclass(frozen=True)
class Report:
    """The proof: every case, stage by stage; no cases where nothing was compared."""

    cases: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool | None:
        """Whether no case failed; None if nothing was compared."""
        return all(case.passed for case in self.cases) if self.cases else None

    @property
    def failures(self) -> list[tuple[CaseResult, StageResult]]:
        """Stages that failed, with their cases."""
        return [(case, stage) for case in self.cases for stage in case.stages if stage.passed is False]

    def to_dict(self) -> dict[str, Any]:
        """JSON of ``onevision verify --json``, and of a manifest's ``quality``."""
        cases = [{**asdict(case), "passed": case.passed} for case in self.cases]
        return {"passed": self.passed, "cases": cases}


def verify(
    model: OneVision, cases: Iterable[ReferenceCase], on_case: Callable[[str], None] | None = None
) -> Report:
    """Run reference cases through the runtime and compare.

    Args:
        model: A loaded bundle.
        cases: Reference cases.
        on_case: Called with the name of each case before it runs.
    """
    results = []
    for case in cases:
        if on_case:
            on_case(case.name)
        results.append(CaseResult(case.name, case.prompt, tuple(_stages(model, case))))
    return Report(tuple(results))


def _stages(model: OneVision, case: ReferenceCase) -> Iterable[StageResult]:
    files, pipeline = model.bundle.manifest.files, model.pipeline
    vision, backbone = files[VISION].precision or "", files[BACKBONE].precision or ""
    frames = None if case.video is None else len(case.video)
    options = AnswerOptions(template="training", frames=frames)
    messages = conversation_of(case.prompt, case.images, case.video, None)
    prepared = pipeline.prepare(messages, options)
    yield _ids("prompt", prompt_ids(prepared), case.prompt_ids)

    embeddings: list[npt.NDArray[np.float32]] = []
    if case.tiles is not None and case.features is not None and case.embeddings is not None:
        tiles = np.concatenate([visual.tiles for visual in prepared.visuals])
        yield _tiles(tiles, case.tiles)
        limit = VISION_TOLERANCE.get(vision, VISION_TOLERANCE["fp32"])
        features = [pipeline.image_features(visual.tiles) for visual in prepared.visuals]
        yield _rows("image features", np.concatenate(features), case.features, limit)
        embeddings = [visual.pack(rows) for visual, rows in zip(prepared.visuals, features, strict=True)]
        stage = _rows("visual tokens", np.concatenate(embeddings), case.embeddings, limit)
        video = model.bundle.manifest.video
        if case.video is not None and (video.newline, video.pooling) != ("one_token", "bilinear"):
            rule = f"LLaVA-NeXT's rule ({video.pooling}, {video.newline}), which transformers does not have"
            stage = replace(stage, note=f"{stage.note}; {rule}")
        yield stage

    if case.logits is None or case.tokens is None:
        yield StageResult(
            "logits", None, None, None, None, "not in the reference: the language model was too large for it"
        )
        return
    if PREFILL in files:
        pipeline.prefill(prepared, embeddings, room=GREEDY_STEPS, choice="onnx")
        by_graph = pipeline.backbone.logits()
    pipeline.prefill(prepared, embeddings, room=GREEDY_STEPS, choice="llama")
    limit = max(
        LOGITS_TOLERANCE.get(backbone, LOSSY_LOGITS_TOLERANCE), ENCODER_LOGITS_TOLERANCE.get(vision, 0.0)
    )
    yield _compare("logits", pipeline.backbone.logits(), case.logits, limit)
    if PREFILL in files:
        limit += PREFILL_LOGITS_TOLERANCE.get(files[PREFILL].precision or "", 0.0)
        stage = _compare("logits (prefill graph)", by_graph, case.logits, limit)
        unused = "; ".join(pipeline.prefill_runner.warnings)
        yield replace(stage, passed=False, note=unused) if unused else stage
    tokens = greedy_tokens(model, GREEDY_STEPS)
    exact = backbone == "f32" and vision == "fp32"
    yield _ids("greedy tokens", tokens, case.tokens, judged=exact)


def prompt_ids(prepared: PreparedPrompt) -> list[int]:
    """Token ids of a prompt, with one :data:`VISUAL_ID` for each image or video."""
    ids: list[int] = []
    for part in prepared.parts:
        ids += part if isinstance(part, tuple) else (VISUAL_ID,)
    return ids


def greedy_tokens(model: OneVision, count: int) -> list[int]:
    """The next ``count`` greedy tokens after the backbone's current position, fewer if the answer ends."""
    tokens: list[int] = []
    pipeline = model.pipeline
    with pipeline.sampler(AnswerOptions()) as sampler:
        while len(tokens) < count:
            token = sampler.sample(pipeline.backbone)
            if pipeline.backbone.tokenizer.ends(token):
                break
            tokens.append(token)
            pipeline.backbone.append(token)
    return tokens


def _ids(
    stage: str, ours: Sequence[int], theirs: npt.NDArray[np.int64], *, judged: bool = True
) -> StageResult:
    length = max(len(ours), len(theirs))
    same = sum(int(a == b) for a, b in zip(ours, theirs.tolist(), strict=False))
    wrong = length - same
    note = f"{same} of {length} the same" if length else "no tokens"
    return StageResult(stage, float(wrong), None, 0.0, wrong == 0 if judged else None, note)


def _tiles(ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8]) -> StageResult:
    if ours.shape != theirs.shape:
        note = f"shape {ours.shape}, the reference has {theirs.shape}"
        return StageResult("tiles", None, None, 0.0, passed=False, note=note)
    worst = float(np.abs(ours.astype(np.int16) - theirs).max())
    note = f"{len(ours)} tiles, uint8 levels"
    return StageResult("tiles", worst, None, 0.0, passed=worst == 0, note=note)


def _rows(stage: str, ours: npt.NDArray[np.float32], theirs: Rows, limit: float) -> StageResult:
    """Compare the rows that the reference keeps, and the norms of all."""
    flat = ours.reshape(-1, ours.shape[-1])
    if len(flat) != len(theirs.norms) or flat.shape[1] != theirs.values.shape[1]:
        note = f"shape {flat.shape}, the reference has {(len(theirs.norms), theirs.values.shape[1])}"
        return StageResult(stage, None, None, limit, passed=False, note=note)
    kept = _compare(stage, flat[theirs.index], theirs.values, limit)
    norms = _compare(stage, np.linalg.norm(flat, axis=1), theirs.norms, limit)
    for part in (kept, norms):
        if part.relative_error is None:
            return part
    relative = max(kept.relative_error or 0.0, norms.relative_error or 0.0)
    passed = bool(kept.passed and norms.passed)
    note = f"{len(flat):,} vectors of {flat.shape[1]}"
    return StageResult(stage, kept.max_error, relative, limit, passed, note)


def _compare(
    stage: str, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32], limit: float
) -> StageResult:
    if ours.shape != theirs.shape:
        note = f"shape {ours.shape}, the reference has {theirs.shape}"
        return StageResult(stage, None, None, limit, passed=False, note=note)
    if not np.isfinite(ours).all():
        return StageResult(stage, None, None, limit, passed=False, note="values that are not finite")
    largest = float(np.abs(ours.astype(np.float64) - theirs).max())
    relative = relative_error(ours, theirs)
    return StageResult(stage, largest, relative, limit, passed=relative <= limit)
