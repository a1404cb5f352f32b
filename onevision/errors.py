"""What can go wrong, as one tree.

Every error a user can cause is one of these: a sentence that says what is wrong and, in ``hint``, what to
do about it. The command line prints both and exits with ``exit_code``; nothing else is caught.

* OneVisionError
    * UsageError                 wrong options or arguments (exit status 2)
    * SourceError                the checkpoint cannot be found or fetched
        * DownloadError          the network, the Hub or the disk said no
    * CheckpointError            the checkpoint is there, and bad
        * UnsupportedCheckpointError   a good checkpoint of something we do not export
    * ExportError                the conversion itself failed
    * QuantError                 a model that cannot be quantised, or calibration that says nothing about it
    * BundleError                a bundle is missing, damaged or of another schema
    * ResultError                a benchmark's result is damaged or of another schema
    * InputError                 a picture, video or prompt that cannot be used
        * ImageError
        * VideoError
        * PromptError            malformed messages, or more tokens than the context holds
    * DeviceError                the device asked for is not there
    * GenerationError            llama.cpp or ONNX Runtime refused the work
"""

from __future__ import annotations


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
    """Options or arguments that make no sense, alone or together."""

    exit_code = 2


class SourceError(OneVisionError):
    """The checkpoint that was named cannot be found."""


class DownloadError(SourceError, OSError):
    """The checkpoint could not be fetched, wholly or in part."""


class CheckpointError(OneVisionError, ValueError):
    """The checkpoint's files are missing, damaged or contradict each other."""


class UnsupportedCheckpointError(CheckpointError):
    """The checkpoint is sound but uses something that this package does not export."""


class ExportError(OneVisionError):
    """The conversion failed, or its result differs from the checkpoint."""


class QuantError(OneVisionError):
    """A model that cannot be quantised, or calibration pictures that say nothing about it."""


class BundleError(OneVisionError):
    """The bundle is missing, incomplete, changed or written by another schema."""


class ResultError(OneVisionError):
    """A file that should hold the result of a benchmark is damaged or written by another schema."""


class InputError(OneVisionError, ValueError):
    """Something the user wants to ask about cannot be used."""


class ImageError(InputError):
    """A file or value that is not a usable picture."""


class VideoError(InputError):
    """A file that is not a usable video."""


class PromptError(InputError):
    """Messages of the wrong form, or a prompt that the context cannot hold."""


class DeviceError(OneVisionError):
    """The device or execution provider asked for is not available."""


class GenerationError(OneVisionError, RuntimeError):
    """A native library refused the work (usually memory)."""
