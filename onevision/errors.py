"""Error classes.

Every error that a user can cause is one of these. The message says what is wrong, ``hint`` what to do. The
command line prints both and exits with ``exit_code``; it catches no other exception.

* OneVisionError
    * UsageError                 wrong options or arguments (exit status 2)
    * SourceError                the checkpoint cannot be found
        * DownloadError          the network, the Hub or the disk failed
    * CheckpointError            the checkpoint is damaged
        * UnsupportedCheckpointError   the checkpoint is of another architecture
    * ExportError                the conversion failed
    * QuantError                 the model cannot be quantized, or the calibration images are unusable
    * BundleError                a bundle is missing, damaged or of another schema
    * ResultError                a benchmark result is damaged or of another schema
    * InputError                 an image, video or prompt cannot be used
        * ImageError
        * VideoError
        * PromptError            malformed messages, or more tokens than the context holds
    * DeviceError                the requested device is not available
    * GenerationError            llama.cpp or ONNX Runtime failed
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What people call things, and the name that they have here.
_OTHER_NAMES = {
    "gpu": "cuda",
    "image": "images",
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "num_frames": "frames",
    "repeat_penalty": "repetition_penalty",
    "system_prompt": "system",
    "stop_strings": "stop",
}


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like an unknown one, or None."""
    names = {each.lower().lstrip("-/"): each for each in known}
    close = get_close_matches(name.lower().lstrip("-/"), names, 1)
    if (other := _OTHER_NAMES.get(name.lower())) in names:
        close = [str(other)]
    return names[close[0]] if close else None


def suggest(name: str, known: Iterable[str]) -> str:
    """Hint for an unknown name: the known name that is most like it, and all of them."""
    names = tuple(known)
    close = closest(name, names)
    return f"did you mean {close}? " * bool(close) + f"one of {', '.join(names)}"


class OneVisionError(Exception):
    """Base of all errors of this package.

    Args:
        message: What is wrong, one sentence without a full stop.
        hint: What the user can do about it, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OneVisionError, ValueError):
    """An option or argument is invalid, alone or in combination."""

    exit_code = 2


class SourceError(OneVisionError):
    """The checkpoint cannot be found."""


class DownloadError(SourceError, OSError):
    """The checkpoint could not be downloaded completely."""


class CheckpointError(OneVisionError, ValueError):
    """The checkpoint's files are missing, damaged or contradict each other."""


class UnsupportedCheckpointError(CheckpointError):
    """The checkpoint is valid but has a part that this package cannot export."""


class ExportError(OneVisionError):
    """The conversion failed, or its result differs from the checkpoint."""


class QuantError(OneVisionError):
    """The model cannot be quantized, or the calibration images are unusable."""


class BundleError(OneVisionError):
    """The bundle is missing, incomplete, changed or written by another schema."""


class ResultError(OneVisionError):
    """A benchmark result is damaged or written by another schema."""


class InputError(OneVisionError, ValueError):
    """An image, video or prompt cannot be used."""


class ImageError(InputError):
    """A file or value is not a usable image."""


class VideoError(InputError):
    """A file is not a usable video."""


class PromptError(InputError):
    """Messages have the wrong form, or the prompt does not fit the context."""


class DeviceError(OneVisionError):
    """The requested device or execution provider is not available."""


class GenerationError(OneVisionError, RuntimeError):
    """A native library failed, usually for lack of memory."""
