"""``onevision chat``: a conversation about images and videos."""

from __future__ import annotations

import mimetypes
import os
import shlex
import sys
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from onevision.cli.console import (
    AnswerProgress,
    AnswerWriter,
    print_error,
    print_facts,
    print_warning,
    stderr,
)
from onevision.cli.options import (
    TINY_NOTE,
    CacheFolder,
    CheckSums,
    Device,
    Images,
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
from onevision.errors import OneVisionError, UsageError, suggest
from onevision.runtime.options import AnswerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onevision.runtime.answer import Answer
    from onevision.runtime.chat import Chat

EXAMPLES = (
    "onevision chat --image photo.jpg -m 0.5b",
    "onevision chat -m bundle --cache ~/.cache/images",
    "onevision chat --image photo.jpg -m bundle < questions.txt",
)

COMMANDS = {
    "/image FILE": "add an image to the next question",
    "/video FILE": "add a video to the next question",
    "/reset": "forget everything",
    "/save FILE": "write the conversation as messages",
    "/load FILE": "continue a saved conversation",
    "/stats": "counts and times of the last answer",
    "/help": "this list",
    "/exit": "end the conversation, like Ctrl-D; Ctrl-C only stops an answer",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, chat, *EXAMPLES)


@answer_options(without=("ttft_target", "logprobs", "top_logprobs"))
def chat(
    image: Images = None,
    video: Videos = None,
    model: Model = None,
    *,
    options: AnswerOptions,
    device: Device = "auto",
    threads: Threads = None,
    prefill: Prefill = "auto",
    check: CheckSums = False,
    cache: CacheFolder = None,
    quiet: Quiet = False,
) -> None:
    """Talk about images and videos. Each turn reads only what is new."""
    import onevision

    mention_tiny(model, image or (), quiet=quiet)
    folder = bundle_folder(model, quiet=quiet)
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    with (
        AnswerProgress("loading the model", quiet=quiet) as progress,
        onevision.load(
            folder, device=device, threads=threads, prefill=prefill, check=check, cache=cache
        ) as loaded,
    ):
        talk = loaded.chat(**vars(options))
        if "-" in (image or ()):
            raise UsageError(
                "the questions come from stdin, so an image cannot", hint="write it to a file first"
            )
        warnings = [warning for path in image or () for warning in talk.add_image(path)]
        warnings += [warning for path in video or () for warning in talk.add_video(path)]
        progress.stop()
        if not quiet:
            for warning in warnings:
                print_warning(warning)
        if typed and not quiet:
            banner = f"{loaded.bundle.manifest.name}; /help lists the commands"
            stderr().print(banner if model or image else f"{TINY_NOTE}\n{banner}", style="dim")
        if not _converse(talk, _reader(typed=typed), typed=typed, quiet=quiet):
            raise typer.Exit(1)


def _reader(*, typed: bool) -> Callable[[], str]:
    """Function that reads a line, and raises EOFError at the end."""
    if not typed:

        def read() -> str:
            if not (line := sys.stdin.readline()):
                raise EOFError
            return line

        return read
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession("> ")
    return session.prompt


def _converse(talk: Chat, read: Callable[[], str], *, typed: bool, quiet: bool = False) -> bool:
    """Answer line by line. Ctrl-C stops an answer or a typed line, but not the conversation.

    Returns:
        Whether no line of a pipe was an error.
    """
    last: Answer | None = None
    failed = False
    while True:
        try:
            line = read().strip()
            if line in ("/quit", "/exit", "/bye"):
                return not failed
            if line.startswith("/"):
                _command(talk, line, last)
            elif line:
                last = _answer(talk, line, quiet=quiet)
        except EOFError:
            return not failed
        except KeyboardInterrupt:
            if not typed:
                raise
            print("\nstopped; Ctrl-D ends the conversation", file=sys.stderr)
        except OneVisionError as error:
            hint = error.hint and error.hint.replace(" --image", " /image").replace(" --video", " /video")
            print_error(error.message, hint)
            failed = not typed


def _answer(talk: Chat, prompt: str, *, quiet: bool) -> Answer:
    if not quiet:
        for file, kind in _named_files(prompt):
            stderr().print(f"note: {file} is shown with: /{kind} {file}", style="dim", soft_wrap=True)
    dropped = talk.dropped
    with (
        AnswerProgress("preparing", quiet=quiet) as progress,
        closing(talk.stream(prompt, progress)) as stream,
        AnswerWriter() as writer,
    ):
        for piece in stream:
            progress.stop()
            writer.write(piece)
    sys.stdout.write("\n")
    if quiet:
        return stream.answer
    if talk.dropped > dropped:
        print_warning(f"the context is full: the oldest turns were dropped ({talk.dropped - dropped})")
    for warning in stream.answer.warnings:
        print_warning(warning)
    return stream.answer


def _command(talk: Chat, line: str, last: Answer | None) -> None:
    name, _, path = line.partition(" ")
    actions: dict[str, Callable[[str], Sequence[str] | None]] = {
        "/image": talk.add_image,  # these two return warnings
        "/video": talk.add_video,
        "/save": talk.save,
        "/load": talk.load,
    }
    if name == "/help":
        print_facts(COMMANDS, stderr())
    elif name == "/stats":
        stderr().print(_stats(last))
    elif name == "/reset":
        talk.reset()
        print("forgotten", file=sys.stderr)
    elif name in actions:
        if not (paths := _dropped(path)):
            raise UsageError(f"{name} takes a file")
        if len(paths) > 1 and name not in ("/image", "/video"):
            raise UsageError(f"{name} takes one file, not {len(paths)}")
        for path in paths:
            for warning in actions[name](path) or ():
                print_warning(warning)
        if name == "/save":
            print(f"saved {path}", file=sys.stderr)
        elif name == "/load":
            print(f"loaded {len(talk.turns)} turns from {path}", file=sys.stderr)
    else:
        raise UsageError(
            f"unknown command {name}", hint=suggest(name, [each.split()[0] for each in COMMANDS])
        )


def _dropped(text: str) -> list[str]:
    """Paths as they are typed, or as a terminal writes files that are dropped on it: quoted or escaped."""
    text = text.strip()
    if not text or os.path.exists(text):  # noqa: PTH110 - any text may stand here
        return [text] if text else []
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if os.sep == "\\":
        lexer.escape = ""  # it separates folders
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe in a name
        return [text]
    words = [url2pathname(urlsplit(word).path) if word.startswith("file://") else word for word in words]
    # Several files, or one with spaces in its name that is not there.
    return words if len(words) == 1 or any(map(os.path.exists, words)) else [text]


def _named_files(question: str) -> list[tuple[str, str]]:
    """Images and videos that a question names, each with ``image`` or ``video``."""
    words = (word.strip("'\"`,;:?!()").rstrip(".") for word in question.split())
    files = ((word, str(mimetypes.guess_type(word)[0]).partition("/")[0]) for word in words)
    return [(word, kind) for word, kind in files if kind in ("image", "video") and os.path.isfile(word)]  # noqa: PTH113


def _stats(last: Answer | None) -> str:
    """Counts and times of an answer."""
    if last is None:
        return "there is no answer yet"
    usage, times = last.usage, last.timings
    return (
        f"{usage.prompt_tokens:,} prompt tokens, {usage.cached_tokens:,} of them known before; "
        f"{usage.completion_tokens:,} in the answer; first token after {times.ttft / 1e3:.2f} s"
        + (f"; {usage.reused_frames} frames reused" if usage.reused_frames else "")
    )
