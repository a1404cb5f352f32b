"""Records made by hand, and the working folder of the tests of bad inputs."""

from __future__ import annotations

from onevision.eval.records import EvalReply, Record
from onevision.eval.suite import Sample
from tests.test_bad_inputs import place

__all__ = ["place"]


def sample(number: int = 0, family: str = "colour", kind: str = "image", **fields: object) -> Sample:
    """A question whose answer is "red"."""
    asked = {"form": "short", "prompt": "What colour?", "images": (), "video": None, "answers": ("red",)}
    return Sample(
        **{"id": f"{family}-{number}", "family": family, "kind": kind, "chance": 0.125, **asked, **fields}
    )


def record(number: int = 0, text: str = "red", *, error: str | None = None, **fields: object) -> Record:
    """A question with the text that a model is supposed to have said after 10 ms."""
    reply = EvalReply(text, "stop", 10.0, 25, 2) if error is None else EvalReply("", error=error)
    return Record.of(sample(number, **fields), reply, "run")


def records(family: str, right: int, n: int, **fields: object) -> list[Record]:
    """Records of a family, the first of them right."""
    return [record(at, "red" if at < right else "blue", family=family, **fields) for at in range(n)]
