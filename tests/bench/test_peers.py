"""Other engines beside ours: chosen by name, given the same work, and alone in their processes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from onevision.bench import peers, roofline
from onevision.bench.matmul import MatmulSize
from onevision.bench.method import Method, make_trials
from onevision.bench.peers import TargetSetup, choose_peers, find_checkpoint, lacking
from onevision.bench.peers.hf import TransformersTarget
from onevision.bench.process import TargetProcess, UnavailableTarget, open_process
from onevision.bench.result import read_result
from onevision.bench.scenarios import SCENARIOS, Scenario
from onevision.bench.target import BundleTarget
from onevision.bundle import PREFILL, FileInfo, SourceInfo, open_bundle
from onevision.cli import _run
from onevision.errors import BundleError, CheckpointError, DeviceError, UsageError
from onevision.models import SHIPPED
from onevision.runtime.clock import StageClock
from onevision.runtime.engine import OneVision
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onevision.bundle import Bundle

SHORT = replace(SCENARIOS["photo-384"], sizes=((90, 64),), answer=6)
CLIP = replace(SCENARIOS["video-8"], frames=3, answer=6)
TEXT, SEVERAL = replace(SHORT, sizes=()), replace(SHORT, sizes=((90, 64), (60, 80)))


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return open_bundle(toy_bundle)


@pytest.fixture(scope="module")
def setup(toy_bundle: Path, toy_checkpoint: Path) -> TargetSetup:
    return TargetSetup(toy_bundle, toy_checkpoint, "cpu", 1)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ours(bundle: Bundle) -> Iterator[BundleTarget]:
    with OneVision(bundle, device="cpu", threads=1) as model:
        yield BundleTarget(model)


@pytest.fixture(scope="module")
def reference(bundle: Bundle, setup: TargetSetup) -> TransformersTarget:
    return TransformersTarget("transformers-fp32", bundle, setup)


# By name.


def test_names():
    assert choose_peers(["transformers", "llama,transformers-bf16"]) == (
        "transformers-bf16",
        "transformers-fp32",
        "llama",
    )
    assert choose_peers([]) == ()
    with pytest.raises(UsageError, match="unknown peer 'torch'") as caught:
        choose_peers(["torch"])
    assert "openvino" in str(caught.value.hint)


def test_what_is_not_installed_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert lacking("openvino", bundle) == "it needs openvino: pip install openvino"
    assert str(lacking("transformers-fp32", bundle)).startswith("it needs torch and transformers")
    # What will be skipped needs no checkpoint.
    assert find_checkpoint(bundle.manifest, None, ("transformers-fp32",)) is None


def test_llama_needs_a_bundle_that_reads_prompts_otherwise(bundle: Bundle):
    assert "no prefill graph" in str(lacking("llama", bundle))
    files = {**bundle.manifest.files, PREFILL: FileInfo("", 1, "int8")}
    assert lacking("llama", replace(bundle, manifest=replace(bundle.manifest, files=files))) is None


def test_the_checkpoint_is_found_where_the_bundle_came_from(
    bundle: Bundle, tiny_bundle: Path, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names = ("transformers-bf16",)
    manifest = bundle.manifest
    assert find_checkpoint(manifest, None, ("llama",)) is None
    assert find_checkpoint(manifest, toy_checkpoint, names) == toy_checkpoint
    assert find_checkpoint(open_bundle(tiny_bundle).manifest, None, names) == SHIPPED["tiny", "ov"]
    with pytest.raises(UsageError, match="not a checkpoint"):
        find_checkpoint(manifest, tmp_path, names)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="needs the checkpoint") as caught:
        find_checkpoint(manifest, None, names)
    assert "--checkpoint" in str(caught.value.hint)
    monkeypatch.chdir(toy_checkpoint.parent)
    assert find_checkpoint(manifest, None, names)


def test_the_checkpoint_of_a_repository_is_found_in_the_cache(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    revision = "0" * 40
    snapshot = tmp_path / "models--owner--model" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    manifest = replace(bundle.manifest, source=SourceInfo("owner/model", revision, "hf"))
    with pytest.raises(UsageError, match="needs the checkpoint"):
        find_checkpoint(manifest, None, ("transformers-bf16",))
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    assert find_checkpoint(manifest, None, ("transformers-bf16",)) == snapshot


# The same work.


@pytest.mark.parametrize(
    "scenario", [SHORT, TEXT, SEVERAL, CLIP], ids=["picture", "text", "several", "video"]
)
def test_transformers_reads_the_same_prompt_and_says_the_same(
    ours: BundleTarget, reference: TransformersTarget, scenario: Scenario, tmp_path: Path
):
    """The bundle is exact, so that any difference is in what was asked."""
    messages = scenario.messages(tmp_path)
    mine, theirs = (subject.ask(scenario, messages, StageClock) for subject in (ours, reference))
    assert theirs.counts == mine.counts
    assert theirs.token_ids == mine.token_ids
    assert len(theirs.token_ids) == scenario.answer
    assert theirs.ttft
    assert theirs.ttft < theirs.total
    laps = [lap.stage for lap in theirs.laps]
    assert laps.count("decode") == scenario.answer - 1
    stages = {stage for stage, ms in theirs.stages.items() if ms}
    seen = {"encode", "pack"} if theirs.counts.tiles else set()
    assert stages == {"read", "preprocess", "prefill", "first_token", "decode"} | seen


def test_its_answer_does_not_end_before_ours(
    reference: TransformersTarget, bundle: Bundle, setup: TargetSetup, toy_checkpoint: Path, tmp_path: Path
):
    said = reference.ask(SHORT, SHORT.messages(tmp_path), StageClock).token_ids
    copy = shutil.copytree(toy_checkpoint, tmp_path / "checkpoint")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": said[0]}), encoding="utf-8")
    hasty = TransformersTarget("transformers-fp32", bundle, replace(setup, checkpoint=copy))
    assert hasty.ask(SHORT, SHORT.messages(tmp_path), StageClock).token_ids == said


def test_what_transformers_is_not_asked(reference: TransformersTarget, tmp_path: Path):
    with pytest.raises(UsageError, match="second question"):
        reference.ask(replace(SHORT, again=True), SHORT.messages(tmp_path), StageClock)


def test_another_checkpoint_is_refused(bundle: Bundle, setup: TargetSetup, untied_checkpoint: Path):
    with pytest.raises(CheckpointError, match="is not the checkpoint that the bundle was made from"):
        TransformersTarget("transformers-fp32", bundle, replace(setup, checkpoint=untied_checkpoint))


def test_a_checkpoint_that_transformers_does_not_read(bundle: Bundle, setup: TargetSetup, tmp_path: Path):
    from onevision.export.synth import SynthSpec, synthesize

    other = synthesize(tmp_path / "checkpoint", SynthSpec(naming="lmms-lab"))
    with pytest.raises(CheckpointError, match="lmms-lab"):
        TransformersTarget("transformers-fp32", bundle, replace(setup, checkpoint=other))


def test_torch_without_a_gpu_says_so(bundle: Bundle, setup: TargetSetup):
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here")
    with pytest.raises(DeviceError, match="torch has no CUDA"):
        TransformersTarget("transformers-fp32", bundle, replace(setup, device="cuda"))


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
def test_openvino_encodes_the_same_tiles(
    ours: BundleTarget, bundle: Bundle, setup: TargetSetup, tmp_path: Path
):
    from onevision.bench.peers.openvino import OpenVinoTarget

    messages = SHORT.messages(tmp_path)
    mine = ours.ask(SHORT, messages, StageClock)
    theirs = OpenVinoTarget("openvino", bundle, setup).ask(SHORT, messages, StageClock)
    assert theirs.counts == replace(mine.counts, completion_tokens=0)
    assert theirs.ttft is None
    mine_laps, their_laps = ([lap for lap in asked.laps if lap.stage == "encode"] for asked in (mine, theirs))
    assert len(mine_laps) == len(their_laps)


# In its process.


def test_a_peer_answers_from_its_own_process(setup: TargetSetup, ours: BundleTarget, tmp_path: Path):
    messages = SHORT.messages(tmp_path)
    with closing(TargetProcess("llama", setup)) as peer:
        asked = peer.ask(SHORT, messages, StageClock)
        mine = ours.ask(SHORT, messages, StageClock)
        assert (asked.counts, asked.token_ids) == (mine.counts, mine.token_ids)
        assert {lap.stage for lap in asked.laps} == {lap.stage for lap in mine.laps}
        large = replace(SHORT, sizes=((1920, 1080),), answer=64)
        again, memory = peer.ask_watched(large, large.messages(tmp_path))
        assert len(again.token_ids) == large.answer
        assert memory.peak > 1 << 20
        assert memory.stages, "sampled in that process"
        child = psutil.Process(peer._process.pid)
        # A question that it cannot be asked is an error, and the next one is answered.
        too_long = replace(SHORT, answer=0)
        with pytest.raises(UsageError, match="max_tokens"):
            peer.ask(too_long, messages, StageClock)
        assert peer.ask(SHORT, messages, StageClock).token_ids == mine.token_ids
    assert not child.is_running()


def test_a_peer_that_dies_keeps_what_it_measured(setup: TargetSetup, tmp_path: Path):
    with closing(TargetProcess("llama", setup)) as peer:
        (trial,) = make_trials(SHORT, [peer], tmp_path)
        method = Method(runs=2, joules=lambda: None)
        trial.warm_up(method)
        trial.run(method)
        peer._process.kill()
        trial.run(method)
        trial.run(method)
        assert len(trial.measured.runs) == 1
        assert "its process ended" in str(trial.measured.skipped)


def test_a_peer_that_cannot_be_loaded_says_why(bundle: Bundle, setup: TargetSetup, tmp_path: Path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.folder, copy)
    (copy / "backbone.gguf").unlink()
    with pytest.raises(BundleError, match=r"backbone\.gguf"):
        TargetProcess("llama", replace(setup, bundle=copy))
    with open_process("llama", bundle, setup) as peer:  # the toy has no prefill graph
        assert isinstance(peer, UnavailableTarget)
        (trial,) = make_trials(TEXT, [peer], tmp_path)
        trial.warm_up(Method(joules=lambda: None))
        assert "no prefill graph" in str(trial.measured.skipped)


# All of it.


def test_a_bench_against_others(
    toy_bundle: Path,
    toy_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    measure, size = roofline.measure, MatmulSize(4, 32, 4)
    quick: dict[str, Any] = {"seconds": 0.0, "size": size, "memory": 1 << 16}
    monkeypatch.setattr(roofline, "measure", lambda **options: measure(**options | quick))
    out = tmp_path / "result.json"
    words = [
        "bench",
        "-m",
        toy_bundle,
        "--scenario",
        "photo-384",
        "--runs",
        2,
        "--threads",
        1,
        "--output",
        out,
    ]
    beside = ["--against", "transformers-bf16,llama", "--checkpoint", toy_checkpoint, "--json"]
    assert _run([*map(str, words), *map(str, beside)]) == 0
    data = json.loads(capfd.readouterr().out)
    result = read_result(out)
    assert [one.engine for one in result.measured] == ["onevision", "transformers-bf16", "llama"]
    mine, theirs, llama = result.measured
    assert mine.counts == theirs.counts
    assert len(theirs.runs) == 2
    assert theirs.memory
    assert theirs.memory.peak > 1 << 20
    assert "no prefill graph" in str(llama.skipped)
    compared = {one["stage"] for one in data["against"]["ratios"]}
    assert compared == {"encode", "prefill", "ttft", "tpot", "total", "peak"}
    assert data["against"]["not_compared"] == []
    assert result.machine["packages"]["transformers"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "vllm"], "unknown peer 'vllm'"),
        (["--against", "transformers", "--checkpoint", "nowhere"], "nowhere is not a checkpoint"),
    ],
)
def test_mistakes(words: list[str], message: str, toy_bundle: Path, capfd: pytest.CaptureFixture[str]):
    assert _run(["bench", "-m", str(toy_bundle), "--scenario", "text", *words]) == 2
    assert message in capfd.readouterr().err


# The prompt's options.


def test_a_prompt_format_and_a_system_prompt_are_the_same_for_all(
    bundle: Bundle, setup: TargetSetup, ours: BundleTarget, tmp_path: Path
):
    scenario = SCENARIOS["text"]
    usual = ours.ask(scenario, scenario.messages(tmp_path)).counts.prompt_tokens
    options = AnswerOptions(template="hf", system="Be brief.")
    other = TransformersTarget("transformers-fp32", bundle, replace(setup, options=options))
    with OneVision(bundle, device="cpu", threads=1) as model:
        asked = BundleTarget(model, options=options)
        counts = [one.ask(scenario, scenario.messages(tmp_path)).counts for one in (asked, other)]
    assert counts[0].prompt_tokens == counts[1].prompt_tokens != usual
