"""The vision encoder: SigLIP tower and projector, in ONNX Runtime.

In: pixel values of tiles, float32 [T, 3, S, S]. Out: image features, float32 [T, P, H].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from onevision.errors import BundleError, DeviceError, GenerationError, InputError, UsageError
from onevision.runtime.device import Device, default_threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

INPUT = "pixel_values"
OUTPUT = "image_features"

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
# Several tiles in one call are no faster on a CPU, whose cores one tile keeps busy, and cost memory.
_BATCH = {"cpu": 1, "cuda": 8}
_EXPORT_HINT = "copy or export the bundle again"


class VisionEncoder:
    """An ONNX Runtime session of a bundle's ``vision.onnx``. Close it to give its memory back.

    Attributes:
        device: Where it runs, ``cpu`` or ``cuda``.
        notes: What the user should know about that choice: why ``auto`` took the CPU.
        image_size: S, pixels per side of a tile.
        patches: P, features per tile.
        hidden_size: H, width of a feature.

    Args:
        path: The ONNX file; its weights lie beside it in ``vision.onnx.data``.
        device: ``cuda`` needs onnxruntime's CUDA provider, ``auto`` takes it where it works, else the CPU.
        threads: CPU threads; None for all cores that this process may use.

    Raises:
        UsageError: An unknown device, or less than one thread.
        BundleError: A file is missing or damaged, or is another model.
        DeviceError: CUDA was asked for and cannot be used.
    """

    def __init__(self, path: Path, *, device: Device = "auto", threads: int | None = None) -> None:
        if device not in get_args(Device):
            raise UsageError(f"unknown device {device!r}", hint=f"choose from {', '.join(get_args(Device))}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, it must be 1 or more")
        if not path.is_file():
            raise BundleError(f"{path} is missing", hint=_EXPORT_HINT)
        self._session, self.device, self.notes = _open(path, device, threads or default_threads())
        self.image_size, self.patches, self.hidden_size = _sizes(self._session, path)

    def encode(
        self,
        pixel_values: npt.NDArray[np.float32],
        on_tile: Callable[[int, int], object] | None = None,
        *,
        batch: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Image features of tiles.

        Args:
            pixel_values: Normalised tiles, float32 [T, 3, S, S].
            on_tile: Called with the tiles that are done and T, after each batch.
            batch: Tiles per call of the session; None for what suits the device.

        Returns:
            float32 [T, P, H], in the order of the tiles.

        Raises:
            InputError: Another shape or type.
            GenerationError: ONNX Runtime refused the work, the features are not finite, or this is closed.
        """
        tile = (3, self.image_size, self.image_size)
        if pixel_values.shape[1:] != tile or pixel_values.dtype != np.float32:
            raise InputError(
                f"pixel values are {pixel_values.dtype} {list(pixel_values.shape)}, "
                f"and should be float32 {['T', *tile]}"
            )
        total, step = len(pixel_values), batch or _BATCH[self.device]
        features = np.empty((total, self.patches, self.hidden_size), dtype=np.float32)
        for start in range(0, total, step):
            done = min(start + step, total)
            features[start:done] = self._run(pixel_values[start:done])
            if not np.isfinite(features[start:done]).all():
                raise GenerationError(
                    f"image features are not finite (tiles {start + 1} to {done} of {total})",
                    hint="check the bundle with `onevision verify`, or export it with --vision fp32",
                )
            if on_tile:
                on_tile(done, total)
        return features

    def close(self) -> None:
        """Free the session; calling it again does nothing."""
        self._session = None

    def _run(self, tiles: npt.NDArray[np.float32]) -> Any:  # noqa: ANN401
        if self._session is None:
            raise GenerationError("the vision encoder is closed")
        try:
            (features,) = self._session.run([OUTPUT], {INPUT: tiles})
        except ort_errors() as error:
            raise GenerationError(
                f"onnxruntime could not encode {len(tiles)} tiles: {_first_line(error)}",
                hint="free some memory, or use --device cpu",
            ) from error
        return features


def _open(path: Path, device: Device, threads: int) -> tuple[Any, str, tuple[str, ...]]:
    """Session, the device it runs on, and notes on that choice."""
    import onnxruntime

    if device == "cpu":
        return _session(path, [_CPU], threads), "cpu", ()
    if _CUDA in onnxruntime.get_available_providers():
        problem = "onnxruntime could not start its CUDA provider"
        hint = "check the NVIDIA driver, and the CUDA and cuDNN versions that onnxruntime-gpu needs"
        try:
            # TF32 would round the factors of an fp32 bundle to 10 bits.
            session = _session(path, [(_CUDA, {"use_tf32": "0"}), _CPU], threads)
        except (BundleError, RuntimeError, ValueError) as error:
            problem += f": {_first_line(error.__cause__ or error)}"
        else:
            # A provider whose libraries are missing is passed over without an error.
            if _CUDA in session.get_providers():
                return session, "cuda", ()
    else:
        problem = f"onnxruntime {onnxruntime.__version__} has no CUDA provider"
        hint = "pip uninstall onnxruntime, then pip install onnxruntime-gpu; or use --device cpu"
    # Before CUDA is blamed: a damaged file fails here as well.
    session = _session(path, [_CPU], threads)
    if device == "cuda":
        raise DeviceError(problem, hint=hint)
    return session, "cpu", (f"{problem}; the vision encoder runs on the CPU",)


def _session(path: Path, providers: list[Any], threads: int) -> Any:  # noqa: ANN401
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal; errors arrive as exceptions
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Figures of the 0.5b tower in fp32 on 2 cores. Packing every weight for the matrix kernels beforehand
    # copies them: 1.5 to 3.7 s to load and 1.7 GB of its own memory, where mapped weights take 0.1 s and
    # 0.13 GB, and 1.5 GB of pages that the system can share or drop. A tile takes 3.5 s instead of 3.35 s.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # One block planned for all buffers of a tile is 0.08 GB larger than the arena grows to without a plan.
    options.enable_mem_pattern = False
    # Threads that spin while they wait for work gain nothing here and take cores from llama.cpp afterwards.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # Without fallback: it would print to stdout and take another provider.
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except ort_errors() as error:
        data = path.with_name(f"{path.name}.data")
        reason = "is damaged, or not an ONNX model" if data.is_file() else f"lacks its weights, {data.name}"
        raise BundleError(f"{path} {reason}", hint=_EXPORT_HINT) from error


def _sizes(session: Any, path: Path) -> tuple[int, int, int]:  # noqa: ANN401
    """S, P and H, from a graph that has exactly the input and the output of this class."""
    ends = [(end.name, end.type, *end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
    match ends:
        case [
            (str(source), "tensor(float)", str(), 3, int(side), int(width)),
            (str(target), "tensor(float)", str(), int(patches), int(hidden)),
        ] if (source, target) == (INPUT, OUTPUT) and side == width:
            return side, patches, hidden
    raise BundleError(
        f"{path} is no vision encoder of this package: its inputs and outputs are {ends}", hint=_EXPORT_HINT
    )


def ort_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its exceptions have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.EngineError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0].strip()
