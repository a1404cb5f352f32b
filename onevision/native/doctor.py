"""Diagnosis of this machine: processor, memory, libraries, devices and missing packages."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import psutil

from onevision._version import __version__
from onevision.extras import EXTRAS, installed_version, missing
from onevision.native.device import (
    affinity,
    cpu_flags,
    cpu_name,
    cpu_quota,
    default_threads,
    has_nvidia_gpu,
    l2_cache_bytes,
)

#: Exit statuses of a process that met one: -SIGILL, and Windows' STATUS_ILLEGAL_INSTRUCTION.
_ILLEGAL_INSTRUCTION = (-4, 0xC000001D)


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
            "cores": f"{cores['physical']} physical, {cores['logical']} logical, "
            f"{cores['affinity']} by affinity, quota {cores['quota'] or 'none'}; {cores['used']} used",
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
            "affinity": affinity(),
            "quota": cpu_quota(),
            "used": default_threads(),
        },
        "l2_cache_bytes": l2_cache_bytes(),
        "memory_bytes": {"total": memory.total, "available": memory.available},
        "onnxruntime": _onnxruntime(),
        "llama_cpp": _llama_cpp(),
        "packages": {name: installed_version(name) for name in _PACKAGES},
    }
    return Health(facts, tuple(_advice(facts)))


def _onnxruntime() -> dict[str, Any]:
    """Version and providers; version None if the library cannot be loaded."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return {"version": None, "providers": [], "error": str(error)}
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


#: Packages whose versions matter, ours and the peers of ``onevision bench``.
_PACKAGES = ("numpy", "pillow", "av", "torch", "transformers", "openvino", "nncf")

#: Run in a child: a build for another processor ends its process with an illegal instruction.
_ASK_LLAMA = """
import json
from onevision.native.llama import can_offload
offload = can_offload()
import llama_cpp
build = llama_cpp.llama_print_system_info().decode(errors="replace")
print(json.dumps({"version": llama_cpp.__version__, "build": build, "gpu_offload": offload}))
"""


def _llama_cpp() -> dict[str, Any]:
    """Version and build; version None if the library cannot be loaded."""
    # The child finds what this process would import.
    paths = os.pathsep.join(path for path in sys.path if path)
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_LLAMA],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if asked.returncode != 0:
        error = asked.stderr.strip().rpartition("\n")[2]
        if asked.returncode in _ILLEGAL_INSTRUCTION:
            error = "illegal instruction: it was compiled for another processor"
        return {"version": None, "build": [], "gpu_offload": False, "error": error}
    facts: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    flags = (part.strip() for part in facts["build"].replace(":", "|").split("|"))
    return {**facts, "build": [flag.removesuffix(" = 1") for flag in flags if flag]}


def _advice(facts: dict[str, Any]) -> list[str]:
    session, llama = facts["onnxruntime"], facts["llama_cpp"]
    advice = []
    for package, library in (("onnxruntime", session), ("llama-cpp-python", llama)):
        if library["version"] is None:
            advice.append(
                f"{package} cannot be loaded ({library['error']}): pip install --force-reinstall {package}"
            )
    if installed_version("onnxruntime") and installed_version("onnxruntime-gpu"):
        advice.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, "
            "then install one"
        )
    for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX512")):
        if llama["version"] and flag in facts["cpu_flags"] and name not in llama["build"]:
            advice.append(
                f"llama.cpp was built without {name}, which this processor has: reinstall llama-cpp-python"
            )
    if facts["l2_cache_bytes"] == 0:
        advice.append(
            "the C library does not know the size of the L2 cache, so ONNX Runtime does without its flash "
            "attention: a prefill graph takes more time and memory here"
        )
    if facts["memory_bytes"]["available"] < 4 * 2**30:
        advice.append("less than 4 GiB of memory are free: use a quantized backbone and fewer tiles")
    advice += [
        f"{extra} is not installed ({', '.join(names)}): pip install 'onevision[{extra}]'"
        for extra in EXTRAS
        if (names := missing(extra))
    ]
    gpu = "CUDAExecutionProvider" in session["providers"]
    if gpu != llama["gpu_offload"] and has_nvidia_gpu():
        has, lacks = ("ONNX Runtime", "llama.cpp") if gpu else ("llama.cpp", "ONNX Runtime")
        advice.append(f"{has} can use a GPU and {lacks} cannot: half of the work stays on the CPU")
    return advice
