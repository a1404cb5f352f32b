"""An answer in pieces: the stages joined, from messages to text.

``tokenize, read, preprocess -> encode -> pack -> prefill -> first token -> decode -> detokenize``; one
direction, no stage reaches back. Lengths are known after ``preprocess``: a prompt that the context cannot
hold is refused before anything is encoded.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np

from onevision.errors import PromptError, UsageError
from onevision.runtime.answer import (
    Answer,
    ChoiceScore,
    Devices,
    FinishReason,
    OnProgress,
    Timings,
    TokenLogprob,
)
from onevision.runtime.choices import score
from onevision.runtime.clock import StageClock
from onevision.runtime.logprobs import log_softmax, token_logprob
from onevision.runtime.messages import Message
from onevision.runtime.options import AnswerOptions
from onevision.runtime.pipeline import Pipeline
from onevision.runtime.prepare import PreparedPrompt
from onevision.runtime.sampler import Sampler
from onevision.runtime.text import TextStream

#: Seconds that the end of an answer waits for its cache to be written, so that its warnings can say if not.
_PATIENCE = 1.0


def answer(
    pipeline: Pipeline,
    messages: Sequence[Message],
    options: AnswerOptions,
    on_progress: OnProgress | None = None,
    clock: StageClock | None = None,
) -> Generator[str, None, Answer]:
    """Answer messages in pieces; the generator's value is the whole answer.

    Args:
        pipeline: The loaded bundle.
        messages: The conversation, the user's question last.
        options: How to answer.
        on_progress: Called as stages go on.
        clock: A started clock, to be read afterwards.

    Raises:
        InputError: An image, video or prompt that cannot be used.
        UsageError: ``ttft_target``, which :mod:`onevision.planning.budget` resolves.
        GenerationError: A native library refused the work.
    """
    if options.ttft_target is not None:
        raise UsageError("this model takes no ttft_target", hint="load it with onevision.load()")
    prepared = pipeline.prepare(messages, options, clock)
    return (yield from complete(pipeline, prepared, options, on_progress))


def complete(
    pipeline: Pipeline,
    prepared: PreparedPrompt,
    options: AnswerOptions,
    on_progress: OnProgress | None = None,
    *,
    in_sequence: bool = False,
) -> Generator[str, None, Answer]:
    """Answer the prompt that a pipeline has prepared last, in pieces.

    Args:
        pipeline: The loaded bundle, whose clock has been running since the call.
        prepared: The prompt.
        options: Sampling and lengths.
        on_progress: Called as stages go on.
        in_sequence: Reuse what the prompt has in common with the last one and its answer, as a conversation
            does.
    """
    clock, backbone, reuse = pipeline.clock, pipeline.backbone, pipeline.reuse
    room = _room(prepared, options, backbone.context_length)
    with clock.stage("prefill"):
        known = reuse.resume(prepared, room=room, in_sequence=in_sequence)
        clock.lap("image" if prepared.visuals else "text")
    rest = prepared.after(known)
    embeddings = pipeline.encode(rest, on_progress)
    pipeline.prefill(prepared, embeddings, room=room, known=known, on_progress=on_progress)
    del embeddings
    text = yield from (_choose if options.choices else _write)(pipeline, prepared, known, options, room)
    timings = Timings(load=pipeline.load_ms, ttft=text.ttft, total=clock.elapsed(), **clock.stages)
    pipeline.flush(_PATIENCE)
    return Answer(
        text.text,
        text.tokens,
        text.finish,
        prepared.usage(completion_tokens=len(text.tokens), cached_tokens=known),
        timings,
        Devices(
            pipeline.vision_device if rest.visuals else None,
            "llama" if known else pipeline.prefill_runner.backend(prepared.tokens),
            "gpu" if backbone.offloaded else "cpu",
        ),
        options,
        (*prepared.warnings, *pipeline.warnings, *_cut_form(text.finish, options, room)),
        logprobs=text.logprobs if options.logprobs else None,
        choices=text.choices,
    )


class _Written(NamedTuple):
    """Text and tokens that follow a prompt, and milliseconds from the call to the first of them."""

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    ttft: float
    logprobs: tuple[TokenLogprob, ...]
    choices: tuple[ChoiceScore, ...] | None = None


def _write(
    pipeline: Pipeline, prepared: PreparedPrompt, known: int, options: AnswerOptions, room: int
) -> Generator[str, None, _Written]:
    """Write token by token, until the model, a stop string, the form or ``room`` ends it."""
    clock, backbone = pipeline.clock, pipeline.backbone
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    text = TextStream(options.stop)
    finish: FinishReason = "length"
    with pipeline.sampler(options) as sampler:
        with clock.stage("first_token"):
            token = sampler.sample(backbone)
        ttft = clock.elapsed()
        while True:
            if backbone.tokenizer.ends(token) and not (options.ignore_end and not options.form):
                finish = "stop"
                break
            tokens.append(token)
            if options.logprobs:
                row = log_softmax(backbone.logits())
                logprobs.append(token_logprob(row, token, backbone.tokenizer, options.top_logprobs))
            with clock.stage("detokenize"):
                piece = text.add(backbone.tokenizer.piece(token))
            if piece:
                yield piece
            if len(tokens) == 1:
                pipeline.keep(prepared, known)
            if text.stopped or sampler.complete:
                finish = "stop"
                break
            if len(tokens) == room:
                break
            with clock.stage("decode"):
                backbone.append(token)
                token = sampler.sample(backbone)
            pipeline.reuse.append(tokens[-1])
    if end := text.finish():
        yield end
    return _Written(text.text, tuple(tokens), finish, ttft, tuple(logprobs))


def _choose(
    pipeline: Pipeline, prepared: PreparedPrompt, known: int, options: AnswerOptions, room: int
) -> Generator[str, None, _Written]:
    """Score all choices, and write the most likely one, or with a temperature one of the likely."""
    clock, backbone, tokenizer = pipeline.clock, pipeline.backbone, pipeline.backbone.tokenizer
    names = ascii_uppercase if options.letters else options.choices
    sequences = [tokenizer.encode(name) for name, _ in zip(names, options.choices, strict=False)]
    with clock.stage("decode"):
        scored = score(backbone, sequences, options.top_logprobs)
    logs = np.array([log for log, _ in scored], np.float32)
    with clock.stage("first_token"), Sampler(options, len(scored)) as sampler:
        chosen = sampler.choose(np.arange(len(scored)), logs)
    ttft = clock.elapsed()
    shares = np.exp(log_softmax(logs)).tolist()
    choices = tuple(map(ChoiceScore, options.choices, shares, logs.tolist()))
    tokens, text = sequences[chosen][:room], options.choices[chosen]
    whole = len(tokens) == len(sequences[chosen])
    if not whole:
        text = b"".join(map(tokenizer.piece, tokens)).decode("utf-8", "ignore")
    yield text
    pipeline.keep(prepared, known)
    finish: FinishReason = "stop" if whole else "length"
    return _Written(text, tuple(tokens), finish, ttft, scored[chosen][1][:room], choices)


def _cut_form(finish: FinishReason, options: AnswerOptions, room: int) -> tuple[str, ...]:
    """Warning about an answer in a form that was cut after ``room`` tokens, since it would be parsed."""
    if finish == "stop" or not (options.form or options.choices):
        return ()
    what = "its JSON" if options.json_schema is not None else "it"
    reason = "raise --max-tokens" if room == options.max_tokens else "the context is full"
    return (f"the answer was cut at {room:,} tokens, so {what} may be incomplete: {reason}",)


def _room(prepared: PreparedPrompt, options: AnswerOptions, context: int) -> int:
    """Tokens that the answer may have: as asked, or what the context leaves.

    Raises:
        PromptError: It leaves none.
    """
    if prepared.tokens >= context:
        raise PromptError(
            f"the prompt needs {prepared.tokens:,} tokens, the model has {context:,}: "
            f"{prepared.image_tokens:,} of them are image tokens",
            hint="use fewer or smaller images, fewer --frames, or a shorter text",
        )
    return min(options.max_tokens, context - prepared.tokens)
