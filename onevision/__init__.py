"""LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers.

>>> from onevision import OneVision
>>> with OneVision.load("bundle/") as model:                            # doctest: +SKIP
...     print(model.generate("What is on the table?", images=["table.jpg"]).text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onevision._version import __version__
from onevision.errors import OneVisionError

if TYPE_CHECKING:
    from onevision.runtime.answer import Answer, AnswerStream, Timings, Usage
    from onevision.runtime.engine import OneVision

__all__ = ["Answer", "AnswerStream", "OneVision", "OneVisionError", "Timings", "Usage", "__version__"]

# The native libraries are loaded with the first of these, not with the package.
_LAZY = {
    "Answer": "onevision.runtime.answer",
    "AnswerStream": "onevision.runtime.answer",
    "OneVision": "onevision.runtime.engine",
    "Timings": "onevision.runtime.answer",
    "Usage": "onevision.runtime.answer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'onevision' has no attribute {name!r}")
