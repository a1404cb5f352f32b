"""Diagnosis of this machine: processor, memory, libraries, devices and missing packages."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from onevision._version import __version__
from onevision.extras import EXTRAS, missing
from onevision.native.device import cpu_flags, cpu_name, default_threads


@dataclass(frozen=True)
class Health:
    """Facts by name, and advice a sentence each."""

    facts: dict[str, Any]
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onevision doctor --json`` prints."""
        return {**self.facts, "advice": list(self.advice)}

    def listing(self) -> dict[str, str]:
        """The facts as text, by name."""
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
            "ONNX Runtime": _described(session, ", ".join(session["providers"])),
            "llama.cpp": _described(llama, f"{gpu} GPU offload; {', '.join(llama['build'])}"),
            "packages": ", ".join(f"{name} {found or '–'}" for name, found in facts["packages"].items()),
        }


def _described(library: dict[str, Any], details: str) -> str:
    return f"{library['version']}; {details}" if library["version"] else "cannot be loaded"


def examine() -> Health:
    """Examine the processor, memory, libraries and devices."""
    memory = psutil.virtual_memory()
    facts = {
        "onevision": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_flags": cpu_flags(),
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
    return Health(facts, tuple(_advice(facts)))


def _onnxruntime() -> dict[str, Any]:
    """Version and providers; version None if the library cannot be loaded."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return {"version": None, "providers": [], "error": str(error)}
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _llama_cpp() -> dict[str, Any]:
    """Version and build; version None if the library cannot be loaded."""
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


def _advice(facts: dict[str, Any]) -> list[str]:
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
        advice.append("less than 4 GiB of memory are free: use a quantized backbone and fewer tiles")
    advice += [
        f"{extra} is not installed ({', '.join(names)}): pip install 'onevision[{extra}]'"
        for extra in EXTRAS
        if (names := missing(extra))
    ]
    gpu = "CUDAExecutionProvider" in session["providers"]
    if gpu != llama["gpu_offload"] and sys.platform != "darwin":
        has, lacks = ("ONNX Runtime", "llama.cpp") if gpu else ("llama.cpp", "ONNX Runtime")
        advice.append(f"{has} can use a GPU and {lacks} cannot: half of the work stays on the CPU")
    return advice


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
