"""``onevision run``: one answer."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onevision.cli.console import AnswerProgress, AnswerWriter, print_json, print_warning, stderr
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
    Videos,
    add_command,
    answer_options,
    bundle_folder,
    mention_tiny,
)
from onevision.errors import ImageError, PromptError, UsageError
from onevision.runtime.options import AnswerOptions, make_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onevision.runtime.answer import Answer

EXAMPLES = (
    'onevision run "What color is the star?" --image scene.png',
    'onevision run "What is on the table?" --image photo.jpg -m 0.5b',
    'onevision run "Which one is newer?" -i a.png -i b.png -m bundle',
    'onevision run "What happens?" --video clip.mp4 --frames 16 -m bundle',
    'onevision run "What is it?" -i photo.jpg --ttft-target 5s -m bundle',
    'onevision run "And beside it?" -i photo.jpg --cache images/ -m bundle',
    'onevision run "A dog?" -i photo.jpg --choices "yes,no" --json -m bundle',
    'onevision run "A dog?" -i photo.jpg --json-schema dog.json -m bundle',
    "onevision run - --image scan.tiff --json -m bundle < question.txt",
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
    video: Videos = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Messages or a request as JSON, as for OpenAI's or Ollama's API, or a saved chat; a prompt "
            "is the next question.",
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

    question, requested = _question(prompt, image or [], video or [], messages)
    if requested:
        options = _merged(options, requested)
    if options.logprobs and not as_json:
        raise UsageError("--logprobs need --json")
    mention_tiny(model, image or (), quiet=quiet)
    folder = bundle_folder(model, quiet=quiet)
    with (
        AnswerProgress("loading the model", quiet=quiet) as progress,
        onevision.load(
            folder, device=device, threads=threads, check=check, prefill=prefill, cache=cache
        ) as loaded,
        closing(loaded.stream(**question, on_progress=progress, **vars(options))) as stream,
        AnswerWriter() as writer,
    ):
        for piece in stream:
            progress.stop()
            if not as_json:
                writer.write(piece)
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
    prompt: str | None, images: list[str], videos: list[str], messages: Path | None
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Question for :meth:`OneVision.stream`, and the options of a request in ``--messages``."""
    from onevision.runtime.messages import conversation_of, read_messages

    if prompt is None and messages is None:
        raise UsageError("there is no prompt", hint='onevision run "What is in the image?" --image FILE')
    if prompt is None and (images or videos):
        raise UsageError("--image and --video beside --messages need a prompt")
    if prompt and not (images or videos or messages) and os.path.isfile(prompt):  # noqa: PTH113 (any text)
        raise UsageError(
            f"{prompt} is a file, not a question",
            hint=f'onevision run "What is in the image?" --image {prompt}',
        )
    if [prompt, *images].count("-") > 1:
        raise UsageError(
            "stdin can be read once: for the prompt or for one image", hint="write it to a file first"
        )
    sources = [_stdin_image() if image == "-" else image for image in images]
    prompt = _read_stdin() if prompt == "-" else prompt
    if messages is None:
        return {"prompt": prompt, "images": sources, "videos": videos}, {}
    question = () if prompt is None else conversation_of(prompt, sources, None, None, videos)
    request = read_messages(messages, *question)
    return {"messages": request.messages}, request.options


def _merged(options: AnswerOptions, requested: Mapping[str, Any]) -> AnswerOptions:
    """Options of a request, and of the flags, which win."""
    usual = vars(AnswerOptions())
    flags = {name: value for name, value in vars(options).items() if value != usual[name]}
    return make_options(usual | dict(requested) | flags)


def _stdin_image() -> bytes:
    """The image file on stdin."""
    if sys.stdin.isatty():
        raise UsageError(
            "stdin is a terminal, not an image", hint='onevision run "What is it?" -i - < photo.jpg'
        )
    if not (data := sys.stdin.buffer.read()):
        raise ImageError("the image on stdin has 0 bytes")
    return data


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
    chosen = "".join(f"{each.text} {each.probability:.1%}; " for each in answer.choices or ())
    return (
        f"{chosen}{images}{usage.prompt_tokens:,} prompt tokens; first token after {times.ttft / 1e3:.2f} s"
        f"{expected}{speed}; loaded in {times.load / 1e3:.2f} s"
    )
