"""``onevision run``: one answer."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision.cli.console import AnswerProgress, print_json, print_warning, stderr
from onevision.cli.options import (
    INPUT,
    CacheFolder,
    CheckSums,
    Device,
    Images,
    Json,
    Model,
    Prefill,
    Quiet,
    Threads,
    Video,
    add_command,
    answer_options,
)
from onevision.errors import PromptError, UsageError
from onevision.runtime.options import AnswerOptions, make_options
from onevision.typed import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onevision.runtime.answer import Answer

EXAMPLES = (
    'onevision run "What color is the star?" --image scene.png',
    'onevision run "What is on the table?" --image photo.jpg -m bundle',
    'onevision run "Which one is newer?" -i a.png -i b.png -m bundle',
    'onevision run "What happens?" --video clip.mp4 --frames 16 -m bundle',
    'onevision run "What is it?" -i photo.jpg --ttft-target 5s -m bundle',
    'onevision run "And beside it?" -i photo.jpg --cache images/ -m bundle',
    "onevision run - --image scan.tiff --json -m bundle < question.txt",
)
#: For newcomers whose photo goes to the default model.
TINY_NOTE = (
    "note: this is the 7 M demo model, trained on drawings; for photos: "
    "onevision export --size 0.5b -o llava, then -m llava"
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, run, *EXAMPLES)


@answer_options()
def run(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The question; - reads it from stdin.")
    ] = None,
    image: Images = None,
    video: Video = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a prompt: messages or a request as JSON, as for OpenAI's or Ollama's API.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    model: Model = None,
    *,
    options: AnswerOptions,
    device: Device = "auto",
    threads: Threads = None,
    prefill: Prefill = "auto",
    check: CheckSums = False,
    cache: CacheFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask about an image, several images or a video."""
    import onevision

    question, requested = _question(prompt, image or [], video, messages)
    if requested:
        options = _merged(options, requested)
    if model is None and image and stderr().is_terminal and not quiet:
        stderr().print(TINY_NOTE, style="dim")
    with (
        AnswerProgress("loading the model", quiet=quiet) as progress,
        onevision.load(
            model, device=device, threads=threads, check=check, prefill=prefill, cache=cache
        ) as loaded,
        closing(loaded.stream(**question, on_progress=progress, **vars(options))) as stream,
    ):
        for piece in stream:
            progress.stop()
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        answer = stream.answer
    if as_json:
        print_json({"bundle": str(loaded.bundle.folder), **answer.to_dict()})
    else:
        sys.stdout.write("\n")
    if not quiet:
        for warning in answer.warnings:
            print_warning(warning)
        if stderr().is_terminal and not as_json:
            stderr().print(_statistics(answer), style="dim")


def _question(
    prompt: str | None, images: list[str], video: str | None, messages: Path | None
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Question for :meth:`OneVision.stream`, and the options of a request in ``--messages``."""
    if messages is not None:
        if prompt is not None or images or video is not None:
            raise UsageError("--messages cannot be combined with a prompt, --image or --video")
        from onevision.runtime.messages import Reading, parse_request

        request = parse_request(_read_json(messages), Reading(messages.absolute().parent))
        return {"messages": request.messages}, request.options
    if prompt is None:
        raise UsageError("there is no prompt", hint='onevision run "What is in the image?" --image FILE')
    if not images and video is None and os.path.isfile(prompt):  # noqa: PTH113 (any text may stand here)
        raise UsageError(
            f"{prompt} is a file, not a question",
            hint=f'onevision run "What is in the image?" --image {prompt}',
        )
    prompt = _read_stdin() if prompt == "-" else prompt
    return {"prompt": prompt, "images": images, "video": video}, {}


def _merged(options: AnswerOptions, requested: Mapping[str, Any]) -> AnswerOptions:
    """Options of a request, and of the flags, which win."""
    usual = vars(AnswerOptions())
    flags = {name: value for name, value in vars(options).items() if value != usual[name]}
    return make_options(usual | dict(requested) | flags)


def _read_json(path: Path) -> Any:  # noqa: ANN401
    try:
        return read_json(path)
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise PromptError(f"{path} is not valid JSON: {error}") from error


def _read_stdin() -> str:
    """All of stdin, as UTF-8 on every system."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PromptError(
            "the prompt on stdin is not UTF-8 text", hint="pass images with --image, videos with --video"
        ) from error


def _statistics(answer: Answer) -> str:
    """Counts and times of an answer, in a line."""
    usage, times = answer.usage, answer.timings
    later = usage.completion_tokens - 1
    speed = f", {later / (times.total - times.ttft) * 1e3:.1f} tokens/s" if later > 0 else ""
    reused = f" ({usage.reused_frames} frames reused)" if usage.reused_frames else ""
    images = f"{usage.tiles} tiles{reused}, {usage.image_tokens:,} of " if usage.tiles else ""
    predicted = answer.predicted_ttft
    expected = f" ({predicted:.2f} s predicted)" if predicted is not None else ""
    return (
        f"{images}{usage.prompt_tokens:,} prompt tokens; first token after {times.ttft / 1e3:.2f} s"
        f"{expected}{speed}; loaded in {times.load / 1e3:.2f} s"
    )
