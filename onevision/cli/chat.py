"""``onevision chat``: a conversation about pictures and videos."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from onevision.cli.console import (
    CacheFolder,
    Dedup,
    Detail,
    Device,
    MaxTiles,
    Model,
    Threads,
    bundle_folder,
    examples,
    one_of,
    print_error,
    print_warning,
)
from onevision.errors import OneVisionError, UsageError
from onevision.runtime.options import DEFAULT_MAX_TOKENS, make_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onevision.runtime.answer import Answer
    from onevision.runtime.chat import Chat

HELP = examples(
    "Talk about pictures and videos. Each turn reads only what is new.",
    "onevision chat --image photo.jpg -m bundle",
    "onevision chat -m bundle --cache ~/.cache/pictures",
    "onevision chat --image photo.jpg -m bundle < questions.txt",
)

COMMANDS = """/image FILE  show a picture with the next question
/video FILE  show a video with the next question
/reset       forget everything
/save FILE   write the conversation
/load FILE   go on with a conversation that was saved
/stats       counts and times of the last answer
/help        this list
/quit        end the conversation, as Ctrl-D does; Ctrl-C only stops an answer"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat", help=HELP, short_help="Talk about pictures and videos.")(chat)


def chat(
    image: Annotated[
        list[str] | None,
        typer.Option("-i", "--image", metavar="FILE", help="A picture of the first question; repeatable."),
    ] = None,
    video: Annotated[
        str | None, typer.Option("-v", "--video", metavar="FILE", help="A video of the first question.")
    ] = None,
    model: Model = None,
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", metavar="N", help="Longest answer.")
    ] = DEFAULT_MAX_TOKENS,
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="Frames taken from a video.  [default: the bundle's]")
    ] = None,
    max_tiles: MaxTiles = None,
    detail: Detail = "auto",
    dedup: Dedup = None,
    device: Device = "auto",
    threads: Threads = None,
    cache: CacheFolder = None,
) -> None:
    """Talk about pictures and videos."""
    from onevision.native import device as devices
    from onevision.runtime.engine import OneVision

    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "frames": frames,
        "max_tiles": max_tiles,
        "detail": detail,
        "dedup": dedup,
    }
    make_options(options)  # a wrong one should not cost the loading of a model
    where = one_of(device, get_args(devices.Device), "--device")
    with OneVision.load(bundle_folder(model), device=where, threads=threads, cache=cache) as loaded:
        talk = loaded.chat(**options)
        for path in image or ():
            talk.add_image(path)
        if video is not None:
            talk.add_video(video)
        typed = sys.stdin.isatty() and sys.stdout.isatty()
        _converse(talk, _reader(typed=typed), typed=typed)


def _reader(*, typed: bool) -> Callable[[], str]:
    """What gives the next line, and raises EOFError at the end."""
    if not typed:

        def read() -> str:
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line

        return read
    from prompt_toolkit import PromptSession

    print("/help lists the commands", file=sys.stderr)
    session: PromptSession[str] = PromptSession("> ")
    return session.prompt


def _converse(talk: Chat, read: Callable[[], str], *, typed: bool) -> None:
    """Answer line by line. Ctrl-C stops an answer or a line that is typed, and never the conversation."""
    last: Answer | None = None
    while True:
        try:
            line = read().strip()
            if line == "/quit":
                return
            if line.startswith("/"):
                _command(talk, line, last)
            elif line:
                last = _answer(talk, line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            print("\nstopped; Ctrl-D ends the conversation", file=sys.stderr)
        except OneVisionError as error:
            print_error(error.message, error.hint)


def _answer(talk: Chat, prompt: str) -> Answer:
    dropped = talk.dropped
    with closing(talk.stream(prompt)) as stream:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    if talk.dropped > dropped:
        print_warning(f"the context is full: the oldest turns were dropped ({talk.dropped - dropped})")
    for warning in stream.answer.warnings:
        print_warning(warning)
    return stream.answer


def _command(talk: Chat, line: str, last: Answer | None) -> None:
    name, _, path = line.partition(" ")
    if name == "/help":
        print(COMMANDS, file=sys.stderr)
    elif name == "/stats":
        print(_stats(last), file=sys.stderr)
    elif name == "/reset":
        talk.reset()
        print("forgotten", file=sys.stderr)
    elif name in (actions := _actions(talk)):
        if not (path := _unquoted(path.strip())):
            raise UsageError(f"{name} takes a file")
        for warning in actions[name](path) or ():
            print_warning(warning)
        if name == "/save":
            print(f"saved {path}", file=sys.stderr)
        elif name == "/load":
            print(f"loaded {len(talk.turns)} turns of {path}", file=sys.stderr)
    else:
        raise UsageError(f"unknown command {name}", hint="/help lists the commands")


def _actions(talk: Chat) -> dict[str, Callable[[str], Sequence[str] | None]]:
    """Commands that take a file; what they return are warnings."""
    return {"/image": talk.add_image, "/video": talk.add_video, "/save": talk.save, "/load": talk.load}


def _unquoted(path: str) -> str:
    """A path without the quotes that a terminal puts around it."""
    return path[1:-1] if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"" else path


def _stats(last: Answer | None) -> str:
    if last is None:
        return "nothing was answered yet"
    usage, times = last.usage, last.timings
    return (
        f"{usage.prompt_tokens:,} prompt tokens, {usage.cached_tokens:,} of them known before; "
        f"{usage.completion_tokens:,} in the answer; first token after {times.ttft / 1e3:.2f} s"
        + (f"; {usage.reused_frames} frames reused" if usage.reused_frames else "")
    )
