"""Checkpoints that transformers 5 saves, and transformers 5 as the reference."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from onevision.bundle import GOLDEN, open_bundle
from onevision.export.config import read_config
from onevision.export.synth import SynthSpec, synthesize
from onevision.export.tokenizer import read_tokenizer
from tests.conftest import make_bundle
from tests.export.conftest import edit_json

ROOT = Path(__file__).parents[2]


def as_transformers_5(folder: Path) -> Path:
    """Rewrite the JSON files of an ``hf-5`` checkpoint to what transformers 5.24 makes of them."""

    def config(values: dict[str, Any]) -> None:
        text = values["text_config"]
        values["dtype"] = text["dtype"] = values["vision_config"]["dtype"] = values.pop("torch_dtype")
        values["tie_word_embeddings"] = text["tie_word_embeddings"]
        values["multimodal_projector_bias"] = True
        values["transformers_version"] = "5.24.0"
        text["rope_parameters"] = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
        text |= {"sliding_window": None, "layer_types": ["full_attention"] * text["num_hidden_layers"]}

    def tokenizer(values: dict[str, Any]) -> None:
        del values["added_tokens_decoder"]
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
        values |= {"backend": "tokenizers", "is_local": True, "tokenizer_class": "TokenizersBackend"}

    edit_json(folder / "config.json", config)
    edit_json(folder / "tokenizer_config.json", tokenizer)
    image = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    video = {**image, "num_frames": 12, "video_processor_type": "LlavaOnevisionVideoProcessor"}
    both = {"image_processor": image, "video_processor": video, "processor_class": "LlavaOnevisionProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(both), encoding="utf-8")
    for old in ("preprocessor_config.json", "vocab.json", "merges.txt", "added_tokens.json"):
        (folder / old).unlink()
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_it_reads_as_before_and_exports(tied: bool, tmp_path: Path) -> None:
    plain = synthesize(tmp_path / "plain", SynthSpec(tied=tied))
    saved = as_transformers_5(synthesize(tmp_path / "saved", SynthSpec(tied=tied, naming="hf-5")))
    config, before = read_config(saved), read_config(plain)
    assert (config.vision, config.text, config.grid_pinpoints) == (
        before.vision,
        before.text,
        before.grid_pinpoints,
    )
    assert (config.frames, before.frames) == (12, 32)
    assert read_tokenizer(saved, config) == read_tokenizer(plain, before)
    bundle = open_bundle(make_bundle(saved, tmp_path / "bundle", backbone="f32"))
    assert GOLDEN in bundle.manifest.files, "proven against transformers"


# The newest transformers 5 in an environment of its own.

SAVE = """
import sys
from pathlib import Path
from transformers import AutoTokenizer, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers import LlavaOnevisionImageProcessorPil

source, target = map(Path, sys.argv[1:])
loaded = LlavaOnevisionForConditionalGeneration.from_pretrained(source)
fresh = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_pretrained(source))
for name, model in {"loaded": loaded, "fresh": fresh}.items():
    model.save_pretrained(target / name)
    AutoTokenizer.from_pretrained(source).save_pretrained(target / name)
    LlavaOnevisionImageProcessorPil.from_pretrained(source).save_pretrained(target / name)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the newest transformers 5, and all else from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", symlinks=os.name != "nt")
    names = {"platlib", "purelib"}
    sites = [Path(sysconfig.get_path(name)) for name in sorted(names)]
    (folder / "shared").mkdir()
    other = re.compile(r"transformers|huggingface_hub|tokenizers|optimum|_editable|__pycache__")
    for entry in {entry for site in sites for entry in site.iterdir() if not other.match(entry.name)}:
        if not (folder / "shared" / entry.name).exists():
            (folder / "shared" / entry.name).symlink_to(entry)
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    own = Path(sysconfig.get_path("purelib", sysconfig.get_preferred_scheme("prefix"), paths))
    (own / "shared.pth").write_text(f"{folder / 'shared'}\n", encoding="utf-8")
    interpreter = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = ["transformers>=5,<6", f"torch=={version('torch')}"]
    install = [str(interpreter), "-m", "pip", "install", "--quiet", *wanted]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and re.search("No matching distribution|ConnectionError|ReadTimeout", done.stderr):
        pytest.skip(f"pip reaches no registry with transformers 5: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return interpreter


def run(*command: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_5_saves_exports(python: Path, tied: bool, tmp_path: Path) -> None:
    source = synthesize(tmp_path / "source", SynthSpec(tied=tied, dtype="f32"))
    run(python, "-c", SAVE, source, tmp_path / "saved")
    for name in ("loaded", "fresh"):
        bundle = open_bundle(make_bundle(tmp_path / "saved" / name, tmp_path / name, backbone="f32"))
        assert GOLDEN in bundle.manifest.files


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parity_with_transformers_5(python: Path) -> None:
    found = run(python, "-c", "import transformers; print(transformers.__version__)")
    assert found.startswith("5.")
    files = ["tests/test_parity.py", "tests/proof/test_reference.py"]
    files += [f"tests/export/test_{name}.py" for name in ("config", "checkpoint", "tokenizer")]
    out = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    print(found, out[-300:])
    assert "failed" not in out
    assert "passed" in out
