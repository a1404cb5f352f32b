"""The importance matrix: mean squares of the inputs of each weight matrix, column by column.

In: a bundle in floats, and questions about images and videos with their answers. Out: the sum of squares of
each input. The quantizer weighs rounding errors by it: columns that meet larger inputs are rounded with more
care. The file format is that of llama.cpp's ``llama-imatrix``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onevision.bundle import BACKBONE
from onevision.errors import GenerationError, InputError, UsageError
from onevision.eval.suite import FAMILIES, Sample, iter_samples
from onevision.files import whole_file
from onevision.native.ggml import matmul_callback
from onevision.native.gguf import TensorInfo
from onevision.native.quantize import FLOAT_BYTES
from onevision.progress import Advance
from onevision.quant.measure import prepare
from onevision.runtime.backbone import CHUNK
from onevision.runtime.engine import OneVision

#: Minimum number of positions in the built-in prompts: some 30 chunks, as is usual for an importance matrix.
POSITIONS = 16_384
SEED = 4  # of the built-in prompts

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True, eq=False)
class InputSquares:
    """Sum of squares, float32 [columns], of a weight matrix's inputs over a number of rows."""

    sums: npt.NDArray[np.float32]
    rows: int


@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix.

    Attributes:
        inputs: By name of the weight matrix.
        datasets: Names of the prompt collections.
        chunk_size: Positions that were computed together.

    Raises:
        InputError: Impossible values.
    """

    inputs: Mapping[str, InputSquares]
    datasets: tuple[str, ...]
    chunk_size: int = CHUNK

    def __post_init__(self) -> None:
        for name, seen in self.inputs.items():
            if not (np.isfinite(seen.sums).all() and (seen.sums >= 0).all() and seen.rows >= 0):
                raise InputError(f"the importance matrix has impossible values for {name}")

    def means(self) -> dict[str, npt.NDArray[np.float32]]:
        """Mean square of each input, float32 [columns], by name of the matrix; ones for a matrix unused."""
        return {
            name: seen.sums / np.float32(seen.rows) if seen.rows else np.ones_like(seen.sums)
            for name, seen in self.inputs.items()
        }

    def check(self, tensors: Iterable[TensorInfo]) -> None:
        """Compare names and sizes with a model's. The head may be missing, as llama-imatrix leaves it out.

        Raises:
            InputError: It was made for another model.
        """
        hint = "make one from this bundle, or from another precision of the same model"
        matrices = {tensor.name: tensor.shape for tensor in tensors if len(tensor.shape) > 1}
        if unknown := self.inputs.keys() - matrices.keys():
            raise InputError(
                f"the importance matrix has {min(unknown)}, the model has no such matrix", hint=hint
            )
        for name, shape in matrices.items():
            seen = self.inputs.get(name)
            if seen is None and name.startswith("blk."):
                raise InputError(f"the importance matrix has nothing for {name}", hint=hint)
            if seen is not None and len(seen.sums) != shape[-1]:
                raise InputError(
                    f"the importance matrix has {len(seen.sums)} columns for {name}, the model {shape[-1]}",
                    hint=hint,
                )


def collect_imatrix(
    model: OneVision,
    samples: Iterable[Sample] | None = None,
    *,
    dataset: str = "onevision suite",
    advance: Advance | None = None,
) -> Imatrix:
    """Run questions and their first answers through a bundle, and sum the squares of all matmul inputs.

    As in use, the last layer's FFN and the head see only the positions at which a token is predicted.

    Args:
        model: A bundle whose backbone is f32, f16 or bf16.
        samples: The questions; None: the suite's train split, families in turn, up to :data:`POSITIONS`.
        dataset: Name of the samples in the file.
        advance: Receiver of the fraction done.

    Raises:
        UsageError: A quantized backbone, or no samples.
        InputError: An unusable image, video or text.
        GenerationError: llama.cpp refused the work, or values are not finite.
    """
    precision = model.bundle.manifest.files[BACKBONE].precision
    if precision not in FLOAT_BYTES:
        raise UsageError(
            f"an importance matrix is made from a backbone in floats, and this one is {precision}",
            hint="export a bundle with --backbone f16",
        )
    sums: dict[str, npt.NDArray[np.float64]] = {}
    rows: dict[str, int] = {}

    def add(name: str, inputs: npt.NDArray[np.float32]) -> None:
        squares = np.einsum("rc,rc->c", inputs, inputs, dtype=np.float64)
        sums[name] = sums.get(name, 0.0) + squares
        rows[name] = rows.get(name, 0) + len(inputs)

    model.pipeline.backbone.observe(matmul_callback(add))
    try:
        for fraction in _run(model, samples):
            if wrong := [name for name, values in sums.items() if not np.isfinite(values).all()]:
                raise GenerationError(
                    f"the inputs of {wrong[0]} are not finite",
                    hint="check the bundle with `onevision verify`",
                )
            if advance:
                advance(fraction)
    finally:
        model.pipeline.backbone.observe(None)
    if not sums:
        raise UsageError("there are no questions to make an importance matrix from")
    inputs = {name: InputSquares(sums[name].astype(np.float32), rows[name]) for name in sorted(sums)}
    return Imatrix(inputs, (dataset,))


def write_imatrix(imatrix: Imatrix, path: Path) -> None:
    """Write an importance matrix as ``llama-imatrix`` does, for :func:`read_imatrix` and llama.cpp's tools.

    Raises:
        ExportError: No disk space, or the file cannot be written.
    """
    import gguf

    class Writer(gguf.GGUFWriter):
        def add_architecture(self) -> None:
            """Write none: an importance matrix has no architecture."""

    size = sum(seen.sums.nbytes for seen in imatrix.inputs.values())
    with whole_file(path, size) as part:
        writer = Writer(part, "")
        try:
            writer.add_type("imatrix")
            writer.add_array(_DATASETS, list(imatrix.datasets))
            most = max((seen.rows for seen in imatrix.inputs.values()), default=0)
            writer.add_uint32(_CHUNK_COUNT, most // imatrix.chunk_size)
            writer.add_uint32(_CHUNK_SIZE, imatrix.chunk_size)
            for name, seen in sorted(imatrix.inputs.items()):
                writer.add_tensor(name + _SUMS, seen.sums)
                writer.add_tensor(name + _COUNTS, np.array([seen.rows], dtype=np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix in llama.cpp's GGUF format.

    Raises:
        InputError: The file is unreadable, damaged, or no importance matrix.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        # Copied: the reader maps the file.
        tensors = {tensor.name: np.array(tensor.data, dtype=np.float32).ravel() for tensor in reader.tensors}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is damaged, or no GGUF file") from error
    if fields.get("general.type") != "imatrix":
        raise InputError(f"{path} is no importance matrix", hint="make one with `onevision quant imatrix`")
    inputs = {
        name.removesuffix(_SUMS): _inputs(sums, tensors.get(name.removesuffix(_SUMS) + _COUNTS), path)
        for name, sums in tensors.items()
        if name.endswith(_SUMS)
    }
    if not inputs:
        raise InputError(f"{path} is an importance matrix without values")
    return Imatrix(inputs, tuple(fields.get(_DATASETS, ())), int(fields.get(_CHUNK_SIZE, CHUNK)))


def _inputs(
    sums: npt.NDArray[np.float32], counts: npt.NDArray[np.float32] | None, path: Path
) -> InputSquares:
    if counts is None or len(counts) != 1 or not np.isfinite(counts).all():
        raise InputError(f"{path} is an importance matrix without counts, or of a mixture of experts")
    return InputSquares(sums, round(float(counts[0])))


def _run(model: OneVision, samples: Iterable[Sample] | None) -> Iterator[float]:
    """Read samples with their answers; yield the fraction done after each."""
    if samples is not None:
        chosen = list(samples)
        for done, sample in enumerate(chosen, start=1):
            _read(model, sample)
            yield done / len(chosen)
        return
    positions = 0
    for done, sample in enumerate(iter_samples("train", SEED), start=1):
        positions += _read(model, sample)
        # A large model fills the positions before every family has had its turn.
        yield min(positions / POSITIONS, done / len(FAMILIES), 1.0)
        if positions >= POSITIONS and done % len(FAMILIES) == 0:
            return


def _read(model: OneVision, sample: Sample) -> int:
    """Prefill a question, then append its answer token by token; return the number of positions."""
    prepared, pipeline = prepare(model, sample), model.pipeline
    answer = pipeline.backbone.tokenizer.encode(sample.answers[0])
    pipeline.prefill(prepared, pipeline.encode(prepared), room=len(answer))
    for token in answer:
        pipeline.backbone.append(token)
    return pipeline.backbone.used
