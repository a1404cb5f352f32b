"""The functions of ``onevision``: what a program calls, and what the commands print."""

from __future__ import annotations

import inspect
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import onevision
from onevision.errors import UsageError
from onevision.runtime.options import AnswerOptions
from tests.test_imports import modules_after

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FUNCTIONS = ("benchmark", "evaluate", "export", "load", "plan", "quantize", "verify")


class Recorder:
    """Progress that is kept."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fractions: list[float | None] = []
        self.notes: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[Any]:
        self.steps.append(name)
        yield lambda fraction, text="": self.fractions.append(fraction)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_only_public_names_are_listed() -> None:
    code = "import onevision; print(*dir(onevision))"
    names = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert names == sorted(onevision.__all__)
    assert {*FUNCTIONS, "OneVision", "OneVisionError", "__version__"} <= set(names)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_documents_its_parameters(name: str) -> None:
    function = getattr(onevision, name)
    signature, doc = inspect.signature(function), inspect.getdoc(function) or ""
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert f"\n    {parameter.name}: " in doc


def test_export_stays_a_function_when_its_package_is_used() -> None:
    from onevision.export import hub

    assert hub.resolve(size="tiny")
    assert inspect.isfunction(onevision.export)
    code = (
        "import onevision; from onevision.export.build import export; assert onevision.export is not export"
    )
    modules_after(f"{code}; assert callable(onevision.export)")


def test_evaluate_reports_progress_and_costs(toy_bundle: Path, tmp_path: Path) -> None:
    progress = Recorder()
    done = onevision.evaluate(
        toy_bundle,
        families=["sum", "text_sum"],
        limit=4,
        output=tmp_path / "a.jsonl",
        options=AnswerOptions(max_tokens=2),
        threads=1,
        progress=progress,
    )
    assert (done.report.overall.n, len(done.records), list(done.report.families)) == (
        4,
        4,
        ["sum", "text_sum"],
    )
    assert (len(progress.steps), progress.fractions) == (1, [0.25, 0.5, 0.75, 1.0])
    assert len((tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    with pytest.raises(UsageError, match=r"a\.jsonl exists"):
        onevision.evaluate(toy_bundle, limit=1, output=tmp_path / "a.jsonl")


def test_verify_and_plan(toy_bundle: Path, photo: Path) -> None:
    assert onevision.verify(toy_bundle, threads=1).passed
    by_file = onevision.plan([photo], bundle=toy_bundle)
    by_size = onevision.plan([(640, 427)], bundle=toy_bundle)
    assert by_file.forecast.cost.prompt_tokens == by_size.forecast.cost.prompt_tokens
    with pytest.raises(UsageError, match="needs a bundle"):
        onevision.plan(size="7b", options=AnswerOptions(ttft_target=1.0))


def test_export_and_load(toy_checkpoint: Path, tmp_path: Path) -> None:
    progress = Recorder()
    done = onevision.export(toy_checkpoint, tmp_path / "bundle", backbone="f32", threads=1, progress=progress)
    assert "verifying the bundle" in progress.steps
    with onevision.load(done.bundle.folder, threads=1) as model:
        assert model.generate("Hi", max_tokens=1).usage.completion_tokens == 1
    with pytest.raises(UsageError, match="exists"):
        onevision.export(toy_checkpoint, tmp_path / "bundle")
    with pytest.raises(UsageError, match="for the quality gate"):
        onevision.export(toy_checkpoint, tmp_path / "other", vision="fp32", limit=3)


def test_a_folder_is_not_an_opened_bundle() -> None:
    with pytest.raises(UsageError) as caught:
        onevision.OneVision("folder")  # type: ignore[arg-type]
    assert caught.value.hint == "onevision.load('folder')"


def test_one_image_needs_no_list(photo: Path) -> None:
    one, several = onevision.plan(str(photo)), onevision.plan([photo])
    assert one.forecast.cost.inputs == several.forecast.cost.inputs
