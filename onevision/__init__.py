"""LLaVA-OneVision on a laptop: export to ONNX and GGUF, run without torch, prove the answers.

>>> import onevision
>>> with onevision.load("bundle/") as model:                            # doctest: +SKIP
...     print(model.generate("What is on the table?", images=["table.jpg"]).text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onevision._version import __version__
from onevision.errors import OneVisionError

if TYPE_CHECKING:
    import os
    from typing import Unpack

    from onevision.runtime.answer import Answer, AnswerStream, Timings, Usage
    from onevision.runtime.engine import LoadOptions, OneVision

__all__ = ["Answer", "AnswerStream", "OneVision", "OneVisionError", "Timings", "Usage", "__version__", "load"]

# The native libraries are loaded with the first of these, not with the package.
_LAZY = {
    "Answer": "onevision.runtime.answer",
    "AnswerStream": "onevision.runtime.answer",
    "OneVision": "onevision.runtime.engine",
    "Timings": "onevision.runtime.answer",
    "Usage": "onevision.runtime.answer",
}


def load(
    folder: str | os.PathLike[str] | None = None, *, check: bool = False, **options: Unpack[LoadOptions]
) -> OneVision:
    """Load a bundle.

    Args:
        folder: The bundle's; None for the tiny model.
        check: Compare checksums of all files, not only their sizes.
        **options: ``device``, ``threads``, ``prefill``, ``cache``: see
            :class:`onevision.runtime.pipeline.Pipeline`.

    Raises:
        BundleError: Missing, damaged or unreadable bundle.
        DeviceError: The device is not available.
        UsageError: Options that are not valid.
    """
    from onevision.planning.budget import answer
    from onevision.runtime.engine import OneVision

    if folder is None:
        from onevision.models import default_bundle

        folder = default_bundle()
    return OneVision.load(folder, check=check, answer=answer, **options)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'onevision' has no attribute {name!r}")
