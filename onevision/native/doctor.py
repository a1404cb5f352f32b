"""What this machine can do for a bundle, and what it lacks."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from onevision import __version__
from onevision.export import NEEDED
from onevision.native.device import default_threads

#: Modules by the extra that brings them.
EXTRAS = {
    "export": NEEDED,
    "video": ("av",),
}
#: Instruction sets that the quantised kernels of llama.cpp and ONNX Runtime gain from, as Linux names them.
_CPU_FLAGS = (
    "avx", "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Health:
    """Facts by name, and advice a sentence each."""

    facts: dict[str, Any]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision doctor --json`` prints."""
        return {**self.facts, "advice": list(self.advice)}

    def listing(self) -> dict[str, str]:
        """The facts in words."""
        facts = self.facts
        cores, memory = facts["cores"], facts["memory_bytes"]
        session, llama = facts["onnxruntime"], facts["llama_cpp"]
        gpu = "with" if llama["gpu_offload"] else "without"
        return {
            "onevision": facts["onevision"],
            "python": facts["python"],
            "processor": facts["cpu"],
            "CPU flags": ", ".join(facts["cpu_flags"]) or "unknown",
            "cores": f"{cores['physical']} physical, {cores['logical']} logical, {cores['used']} used",
            "memory": f"{memory['total'] / 2**30:.1f} GiB, {memory['available'] / 2**30:.1f} GiB available",
            "ONNX Runtime": _told(session, ", ".join(session["providers"])),
            "llama.cpp": _told(llama, f"{gpu} GPU offload; {', '.join(llama['build'])}"),
            "packages": ", ".join(f"{name} {found or '–'}" for name, found in facts["packages"].items()),
        }


def _told(library: dict[str, Any], details: str) -> str:
    return f"{library['version']}; {details}" if library["version"] else "cannot be loaded"


def examine() -> Health:
    """Look at the processor, memory, libraries and devices."""
    memory = psutil.virtual_memory()
    facts = {
        "onevision": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_flags": _cpu_flags(),
        "cores": {
            "physical": psutil.cpu_count(logical=False),
            "logical": os.cpu_count(),
            "used": default_threads(),
        },
        "memory_bytes": {"total": memory.total, "available": memory.available},
        "onnxruntime": _onnxruntime(),
        "llama_cpp": _llama_cpp(),
        "packages": {name: _version(name) for name in ("numpy", "pillow", "av", "torch", "transformers")},
    }
    missing = {extra: [name for name in names if find_spec(name) is None] for extra, names in EXTRAS.items()}
    return Health(facts, tuple(_advice(missing, facts)))


def _onnxruntime() -> dict[str, Any]:
    """Version None where it is broken: to say so is what this module is for."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return {"version": None, "providers": [], "error": str(error)}
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _llama_cpp() -> dict[str, Any]:
    """Version None where it is broken."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: its library cannot be loaded
        return {"version": None, "build": [], "gpu_offload": False, "error": str(error)}

    from onevision.native.llama import can_offload

    offload = can_offload()
    build = llama_cpp.llama_print_system_info().decode(errors="replace")
    flags = (part.strip() for part in build.replace(":", "|").split("|"))
    return {
        "version": llama_cpp.__version__,
        "build": [flag.removesuffix(" = 1") for flag in flags if flag],
        "gpu_offload": offload,
    }


def _advice(missing: dict[str, list[str]], facts: dict[str, Any]) -> list[str]:
    session, llama = facts["onnxruntime"], facts["llama_cpp"]
    advice = []
    for package, library in (("onnxruntime", session), ("llama-cpp-python", llama)):
        if library["version"] is None:
            advice.append(
                f"{package} cannot be loaded ({library['error']}): pip install --force-reinstall {package}"
            )
    for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX512")):
        if llama["version"] and flag in facts["cpu_flags"] and name not in llama["build"]:
            advice.append(
                f"llama.cpp was built without {name}, which this processor has: reinstall llama-cpp-python"
            )
    if facts["memory_bytes"]["available"] < 4 * 2**30:
        advice.append("less than 4 GiB of memory are free: use a quantised backbone and fewer tiles")
    for extra, names in missing.items():
        if names:
            advice.append(f"{extra} is not installed ({', '.join(names)}): pip install 'onevision[{extra}]'")
    gpu = "CUDAExecutionProvider" in session["providers"]
    if gpu != llama["gpu_offload"] and sys.platform != "darwin":
        has, lacks = ("ONNX Runtime", "llama.cpp") if gpu else ("llama.cpp", "ONNX Runtime")
        advice.append(f"{has} can use a GPU and {lacks} cannot: half of the work stays on the CPU")
    return advice


def cpu_name() -> str:
    """The processor, as the system calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    """Those of :data:`_CPU_FLAGS` that the processor has; empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return []
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            there = set(line.split(":", 1)[1].split())
            return [flag for flag in _CPU_FLAGS if flag in there]
    return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
