"""That the shipped tiny model sees: the accuracies of docs/tiny.md, on fewer questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from onevision.eval.ask import EvalSettings, ask, of_bundle
from onevision.eval.questions import tiny_suite
from onevision.eval.report import report
from onevision.eval.suite import FAMILIES
from onevision.runtime.engine import OneVision

if TYPE_CHECKING:
    from pathlib import Path

EACH = 20  # questions of a family
#: Accuracies by kind of input, less what 20 questions a family may miss by chance.
AT_LEAST = {"image": 0.83, "images": 0.87, "video": 0.79}


@pytest.mark.slow
def test_it_answers_as_documented(tiny_bundle: Path):
    questions = tiny_suite(limit=EACH * len(FAMILIES), seed=7)
    with OneVision.load(tiny_bundle, device="cpu") as model:
        tile = model.pipeline.preparer.anyres.tile
        sees = report(list(ask(of_bundle(model), questions, EvalSettings(), tile=tile, run="sees")))
        guesses = report(
            list(ask(of_bundle(model), questions, EvalSettings(see="nothing"), tile=tile, run="guesses"))
        )
    for kind, least in AT_LEAST.items():
        assert sees.kinds[kind].accuracy >= least
        assert sees.kinds[kind].accuracy > guesses.kinds[kind].accuracy + 0.1
