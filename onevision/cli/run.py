"""``onevision run``: one answer."""

from __future__ import annotations

import json
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from onevision.cli.console import (
    CacheFolder,
    CheckSums,
    Dedup,
    Detail,
    Device,
    Exif,
    Json,
    MaxTiles,
    Model,
    Prefill,
    Threads,
    TtftTarget,
    bundle_folder,
    duration,
    examples,
    one_of,
    print_json,
    print_warning,
    stderr,
)
from onevision.errors import PromptError, UsageError
from onevision.runtime.messages import Reading, parse_request
from onevision.runtime.options import DEFAULT_MAX_TOKENS, AnswerOptions, make_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onevision.runtime.answer import Answer, OnProgress

HELP = examples(
    "Ask about a picture, several pictures or a video.",
    'onevision run "What colour is the star?" --image scene.png',
    'onevision run "What is on the table?" --image photo.jpg -m bundle',
    'onevision run "Which one is newer?" -i a.png -i b.png -m bundle',
    'onevision run "What happens?" --video clip.mp4 --frames 16 -m bundle',
    'onevision run "What is it?" -i photo.jpg --ttft-target 5s -m bundle',
    'onevision run "And beside it?" -i photo.jpg --cache pictures/ -m bundle',
    "onevision run - --image scan.tiff --json -m bundle < question.txt",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", help=HELP, short_help="Ask about pictures or a video.")(run)


def run(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The question; - reads it from stdin.")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("-i", "--image", metavar="FILE", help="A picture; repeat it for several."),
    ] = None,
    video: Annotated[
        str | None, typer.Option("-v", "--video", metavar="FILE", help="A video; needs onevision[video].")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead of a prompt: messages or a request as JSON, as sent to OpenAI's or Ollama's API.",
        ),
    ] = None,
    model: Model = None,
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", metavar="N", help="Longest answer.")
    ] = DEFAULT_MAX_TOKENS,
    temperature: Annotated[
        float, typer.Option(metavar="X", help="0 is greedy: the same answer every time.")
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option(metavar="N", help="Sample among the N likeliest tokens; 0 is off.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="X", help="Sample among the likeliest tokens of this mass.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(metavar="X", help="Drop tokens below this share of the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(metavar="X", help="Above 1 discourages repetition.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the sampling.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer before this text; repeatable."),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="Frames taken from a video.  [default: the bundle's]"),
    ] = None,
    max_tiles: MaxTiles = None,
    detail: Detail = "auto",
    dedup: Dedup = None,
    ttft_target: TtftTarget = None,
    exif: Exif = True,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Prompt format: training, or hf (the Hub's).  [default: the bundle's]"
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    prefill: Prefill = "auto",
    check: CheckSums = False,
    cache: CacheFolder = None,
    as_json: Json = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="No progress, warnings or statistics.")
    ] = False,
) -> None:
    """Ask about a picture, several pictures or a video."""
    from onevision import load
    from onevision.native import device as devices
    from onevision.runtime import options as answering

    question, requested = _question(prompt, image or [], video, messages)
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
        "frames": frames,
        "max_tiles": max_tiles,
        "detail": detail,
        "dedup": dedup,
        "ttft_target": duration(ttft_target, "--ttft-target"),
        "exif": exif,
        "template": template,
        "system": system,
    }
    defaults = AnswerOptions()
    for name, value in requested.items():  # a flag that was given wins over the request
        if name not in options or options[name] == getattr(defaults, name):
            options[name] = value
    make_options(options)  # a wrong one should not cost the loading of a model
    where = one_of(device, get_args(devices.Device), "--device")
    reader = one_of(prefill, get_args(answering.Prefill), "--prefill")
    bundle = bundle_folder(model)
    with (
        load(bundle, device=where, threads=threads, check=check, prefill=reader, cache=cache) as loaded,
        _progress(shown=not quiet) as on_progress,
        closing(loaded.stream(**question, on_progress=on_progress, **options)) as stream,
    ):
        for piece in stream:
            if not as_json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        answer = stream.answer
    if as_json:
        print_json(answer.to_dict())
    else:
        sys.stdout.write("\n")
    if not quiet:
        for warning in answer.warnings:
            print_warning(warning)
        if not as_json:
            _print_statistics(answer)


def _question(
    prompt: str | None, images: list[str], video: str | None, messages: Path | None
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Question for :meth:`OneVision.stream`, and the options of a request in ``--messages``."""
    if messages is None:
        if prompt is None:
            raise UsageError("there is no prompt", hint='onevision run "What is in the picture?" --image P')
        if prompt == "-":
            prompt = _read_stdin()
        return {"prompt": prompt, "images": images, "video": video}, {}
    if prompt is not None or images or video is not None:
        raise UsageError("--messages stands alone: no prompt, --image or --video beside it")
    try:
        data = json.loads(messages.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise PromptError(f"cannot read {messages}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{messages} is not valid JSON: {error}") from error
    request = parse_request(data, Reading(messages.absolute().parent))
    return {"messages": request.messages}, request.options


def _read_stdin() -> str:
    """The whole of it, as UTF-8 on every system."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise PromptError(
            "the prompt on stdin is not UTF-8 text", hint="pass pictures with --image, videos with --video"
        ) from error


@contextmanager
def _progress(*, shown: bool) -> Iterator[OnProgress | None]:
    """A bar for the tiles and for the prompt, gone when the first word comes; on a terminal only."""
    console = stderr()
    if not shown or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Bars(*columns, console=console, transient=True)
    names = {"encode": "encoding tiles", "prefill": "reading the prompt"}
    tasks: dict[str, Any] = {}

    def update(stage: str, done: int, total: int) -> None:
        if not tasks:
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(names.get(stage, stage), total=total)
        bars.update(tasks[stage], completed=done)
        if stage == "prefill" and done == total:
            bars.stop()

    try:
        yield update
    finally:
        bars.stop()


def _print_statistics(answer: Answer) -> None:
    usage, times = answer.usage, answer.timings
    console = stderr()
    if not console.is_terminal:
        return
    steps = usage.completion_tokens - 1
    speed = f", {steps / (times.total - times.ttft) * 1e3:.1f} tokens/s" if steps > 0 else ""
    reused = f" ({usage.reused_frames} frames reused)" if usage.reused_frames else ""
    pictures = f"{usage.tiles} tiles{reused}, {usage.image_tokens:,} of " if usage.tiles else ""
    predicted = answer.predicted_ttft
    expected = f" ({predicted:.2f} s predicted)" if predicted is not None else ""
    console.print(
        f"{pictures}{usage.prompt_tokens:,} prompt tokens; first token after {times.ttft / 1e3:.2f} s"
        f"{expected}{speed}; loaded in {times.load / 1e3:.2f} s",
        style="dim",
    )
