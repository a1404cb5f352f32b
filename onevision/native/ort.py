"""ONNX Runtime sessions: the one way to open a graph of a bundle on a device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onevision.errors import BundleError, DeviceError
from onevision.native.device import Device, has_nvidia_gpu

EXPORT_HINT = "copy or export the bundle again"
CUDA_HINT = "pip uninstall onnxruntime, then pip install onnxruntime-gpu"

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"


def open_session(
    path: Path, device: Device, threads: int, what: str
) -> tuple[Any, Literal["cpu", "cuda"], tuple[str, ...]]:
    """Open a graph.

    Args:
        path: The ONNX file; its weights are beside it in ``<name>.data``.
        device: ``cuda`` needs onnxruntime's CUDA provider, ``auto`` takes it where it works, else the CPU.
        threads: CPU threads.
        what: Name of the graph for the notes: ``the vision encoder``.

    Returns:
        The session, the device it runs on, and why ``auto`` took the CPU where there is an NVIDIA GPU.

    Raises:
        BundleError: A file is missing or damaged.
        DeviceError: CUDA was asked for and cannot be used.
    """
    import onnxruntime

    if not path.is_file():
        raise BundleError(f"{path} is missing", hint=EXPORT_HINT)

    if device == "cpu":
        return _session(path, [_CPU], threads), "cpu", ()
    if has_cuda():
        problem = "onnxruntime could not start its CUDA provider"
        hint = "check the NVIDIA driver, and the CUDA and cuDNN versions that onnxruntime-gpu needs"
        try:
            # TF32 would round the operands of an fp32 bundle's matmuls to 10 bits.
            session = _session(path, [(_CUDA, {"use_tf32": "0"}), _CPU], threads)
        except (BundleError, RuntimeError, ValueError) as error:
            problem += f": {first_line(error.__cause__ or error)}"
        else:
            # A provider whose libraries are missing is skipped without an error.
            if _CUDA in session.get_providers():
                return session, "cuda", ()
    else:
        problem = f"onnxruntime {onnxruntime.__version__} has no CUDA provider"
        hint = f"{CUDA_HINT}; or use --device cpu"
    # Before CUDA is named as the fault: a damaged file fails here as well.
    session = _session(path, [_CPU], threads)
    if device == "cuda":
        raise DeviceError(problem, hint=hint)
    notes = (f"{problem}; {what} runs on the CPU",) if has_nvidia_gpu() else ()
    return session, "cpu", notes


def has_cuda() -> bool:
    """Whether this build of ONNX Runtime has the CUDA provider; it may still not start."""
    import onnxruntime

    return _CUDA in onnxruntime.get_available_providers()


def _session(path: Path, providers: list[Any], threads: int) -> Any:  # noqa: ANN401
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal; errors arrive as exceptions
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Figures of the 0.5b tower on 2 cores. Packing every weight for the matrix kernels beforehand copies
    # them. In fp32 that takes 1.5 to 3.7 s to load and 1.7 GB of its own memory, where mapped weights take
    # 0.1 s and 0.13 GB, and 1.5 GB of pages that the system can share or drop; a tile takes 3.35 s instead of
    # 3.5 s. In int8 it takes 0.3 s, copies take the place of mapped weights, and a tile takes 0.85 times as
    # long.
    options.add_session_config_entry("session.disable_prepacking", "0" if _is_int8(path) else "1")
    # One block planned for all buffers of a tile is 0.08 GB larger than the arena grows to without a plan.
    options.enable_mem_pattern = False
    # Threads that spin while they wait for the next node save 3 % of a tile and 7 % of a prompt. Where
    # another program has a core, they cost more: 4 % and 8 % after 20 µs, 32 % and 61 % without a limit.
    # They stop with the graph, or they would take cores from llama.cpp.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    data = path.with_name(f"{path.name}.data")
    linked = data.is_file() and data.resolve().parent != path.resolve().parent
    if linked and data.stat().st_size:
        # Weights behind a link to another folder are refused by path, and are taken from memory (copied).
        weights = np.memmap(data, np.uint8, "r")
        options.add_external_initializers_from_files_in_memory([data.name], [weights], [weights.nbytes])
    try:
        # Without fallback: it would print to stdout and take another provider.
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except ort_errors() as error:
        if not data.is_file():
            raise BundleError(f"{path} lacks its weights, {data.name}", hint=EXPORT_HINT) from error
        raise BundleError(
            f"{path} is damaged, or not an ONNX model: {_reason(error)}", hint=EXPORT_HINT
        ) from error


def _is_int8(path: Path) -> bool:
    """Whether a graph has int8 matmuls: operator names are plain text in the file."""
    return b"MatMulInteger" in path.read_bytes()


def ort_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which have no common base."""
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
        UnicodeDecodeError,  # of its binding: a name in a damaged file that is not UTF-8
    )


def first_line(error: BaseException) -> str:
    """First line of an exception's message."""
    return str(error).split("\n", 1)[0].strip()


def _reason(error: Exception) -> str:
    """ONNX Runtime's own reason, without codes and source lines."""
    reason = first_line(error).rpartition(" : ")[2].rpartition(" failed:")[2].rstrip(".")
    return re.sub(r".*\.cc:\d+ \w+ ", "", reason)
