"""The whole runtime: every way to ask gives the same answer, and every way to stop leaves it usable."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from onevision import Answer, OneVision
from onevision.bundle import BACKBONE, NEWLINE
from onevision.errors import BundleError, ImageError, OneVisionError, PromptError, UsageError, VideoError
from onevision.runtime import generate
from onevision.runtime.clock import STAGES, StageClock
from onevision.runtime.messages import conversation_of
from onevision.runtime.options import AnswerOptions
from tests.conftest import make_bundle, replace_file, swap_head_rows
from tests.runtime.media import decode_all, encode_video, numbered_frames, photograph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = "What is on the table?"


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[OneVision]:
    with OneVision.load(toy_bundle, device="cpu", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def about_the_photo(model: OneVision, photo: Path) -> Answer:
    return model.generate(QUESTION, images=[photo], max_tokens=24)


# Answers.


def test_an_answer_tells_all_about_itself(model: OneVision, about_the_photo: Answer):
    answer = about_the_photo
    assert len(answer.token_ids) == answer.usage.completion_tokens == 24
    assert answer.finish_reason == "length"
    vocabulary = model.pipeline.backbone.tokenizer
    assert answer.text == b"".join(map(vocabulary.piece, answer.token_ids)).decode("utf-8", "replace")
    assert answer.warnings == ()
    assert answer.usage.prompt_tokens > answer.usage.image_tokens > answer.usage.tiles > 1
    data = answer.to_dict()
    assert data["token_ids"] == list(answer.token_ids)
    assert list(data) == [
        "text", "token_ids", "finish_reason", "usage", "device", "warnings", "budget", "timings_ms"
    ]  # fmt: skip
    assert data["device"] == {"vision": "cpu", "prefill": "llama", "backbone": "cpu"}
    assert set(data["timings_ms"]) == {"load", *STAGES, "ttft", "total"}


def test_times_add_up(model: OneVision, photo: Path):
    times = model.generate(QUESTION, images=[photo], max_tokens=8).timings
    stages = [getattr(times, name) for name in STAGES]
    assert all(value > 0 for value in stages)
    assert sum(stages) <= times.total
    assert sum(stages[: STAGES.index("decode")]) <= times.ttft <= times.total
    assert times.load > 0


def test_a_gpu_is_waited_for_before_each_look_at_the_clock(
    toy_bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the CPU in its place: llama.cpp can be told to wait there as well."""
    seen: list[str] = []
    with OneVision.load(toy_bundle, device="cpu", threads=1, prefill="llama") as model:
        wait = model.pipeline.backbone.synchronize
        monkeypatch.setattr(model.pipeline.backbone, "offloaded", True)
        monkeypatch.setattr(model.pipeline.backbone, "synchronize", lambda: (seen.append("wait"), wait()))

        def now() -> float:
            seen.append("look")
            return float(len(seen))

        clock = StageClock(now)
        question = conversation_of(QUESTION, [photo], None, None)
        model.run(generate.answer(model.pipeline, question, AnswerOptions(max_tokens=3), clock=clock)).read()
    looks = [at for at, what in enumerate(seen) if what == "look"]
    assert looks[0] == 0  # nothing was begun
    assert all(seen[at - 1] == "wait" for at in looks[1:])
    assert len(looks) > 2 * len(STAGES)
    assert all(clock.stages[stage] for stage in ("encode", "prefill", "decode"))


def test_text_alone_runs_no_encoder(toy_bundle: Path):
    with OneVision.load(toy_bundle, device="cpu", threads=1) as fresh:
        answer = fresh.generate("Hi.", max_tokens=4)
        assert (answer.usage.tiles, answer.usage.image_tokens) == (0, 0)
        assert answer.timings.encode == answer.timings.pack == answer.timings.read == 0
        loaded_in = answer.timings.load
        answer = fresh.generate("Hi.", images=[photograph("china")], max_tokens=4)
        assert answer.timings.load > loaded_in  # the encoder's part
        assert answer.timings.ttft <= answer.timings.total


def test_a_stream_is_the_answer_in_pieces(model: OneVision, photo: Path, about_the_photo: Answer):
    stream = model.stream(QUESTION, images=[photo], max_tokens=24)
    first = next(stream)
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.answer
    pieces = [first, *stream]
    assert "" not in pieces
    assert "".join(pieces) == stream.answer.text == about_the_photo.text
    assert stream.answer.token_ids == about_the_photo.token_ids
    assert stream.answer.usage == about_the_photo.usage
    assert list(stream) == []  # and stays at its end
    assert stream.answer.text == about_the_photo.text


def test_progress_reaches_its_end(model: OneVision, photo: Path):
    steps: list[tuple[str, int, int]] = []
    answer = model.generate(
        QUESTION, images=[photo, photo], max_tokens=2, on_progress=lambda *step: steps.append(step)
    )
    encoded = [step for step in steps if step[0] == "encode"]
    assert encoded == [("encode", 1, 2), ("encode", 2, 2)]
    read = [step for step in steps if step[0] == "prefill"]
    assert [done for _, done, _ in read] == sorted({done for _, done, _ in read})
    assert read[-1] == ("prefill", answer.usage.prompt_tokens, answer.usage.prompt_tokens)
    assert len(steps) == len(encoded) + len(read)


def test_one_token_is_an_answer(model: OneVision, photo: Path, about_the_photo: Answer):
    answer = model.generate(QUESTION, images=[photo], max_tokens=1)
    assert answer.token_ids == about_the_photo.token_ids[:1]
    assert answer.finish_reason == "length"
    assert answer.timings.total >= answer.timings.ttft > 0


def test_an_answer_ends_before_a_stop_string(model: OneVision, photo: Path, about_the_photo: Answer):
    text = about_the_photo.text
    stop = text[len(text) // 2 :][:3]
    answer = model.generate(QUESTION, images=[photo], max_tokens=24, stop=stop)
    assert answer.text == text.split(stop)[0]
    assert answer.finish_reason == "stop"
    assert answer.usage.completion_tokens == len(answer.token_ids) < 24
    both = model.generate(QUESTION, images=[photo], max_tokens=24, stop=["never said", stop])
    assert both.text == answer.text
    pieces = model.stream(QUESTION, images=[photo], max_tokens=24, stop=(stop,))
    assert "".join(pieces) == answer.text


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_answer_ends_at_the_end_of_sequence(
    untied_checkpoint: Path, tmp_path: Path, photo: Path, end: str
):
    """The toy says neither by itself: here it does in the place of another token."""
    plain = make_bundle(untied_checkpoint, tmp_path / "plain", backbone="f32")
    with OneVision.load(plain, device="cpu", threads=1) as model:
        said = model.generate(QUESTION, images=[photo], max_tokens=24).token_ids
        end_id = model.pipeline.backbone.tokenizer.control_id(end)
    token = next(token for token in said if said.index(token) >= 5)
    swapped = swap_head_rows(untied_checkpoint, tmp_path / "swapped", token, end_id)
    with OneVision.load(
        make_bundle(swapped, tmp_path / "ended", backbone="f32"), device="cpu", threads=1
    ) as model:
        answer = model.generate(QUESTION, images=[photo], max_tokens=24)
        assert answer.token_ids == said[: said.index(token)]
        assert answer.finish_reason == "stop"
        assert answer.usage.completion_tokens == len(answer.token_ids)
        assert answer.text == "".join(model.stream(QUESTION, images=[photo], max_tokens=24))


# Ways to ask.


def test_every_form_of_a_picture_is_the_same_picture(model: OneVision, photo: Path, about_the_photo: Answer):
    with Image.open(photo) as image:
        image.load()
    forms = (str(photo), photo.read_bytes(), image, np.asarray(image))
    for form in forms:
        assert model.generate(QUESTION, images=[form], max_tokens=24).token_ids == about_the_photo.token_ids


def test_messages_are_the_prompt_in_another_form(
    model: OneVision, photo: Path, clip: Path, about_the_photo: Answer
):
    image, text = {"type": "image", "image": photo}, {"type": "text", "text": QUESTION}
    answer = model.generate(messages=[{"role": "user", "content": [image, text]}], max_tokens=24)
    assert (answer.token_ids, answer.usage) == (about_the_photo.token_ids, about_the_photo.usage)
    by_arguments = model.generate(QUESTION, images=[photo, photo], video=clip, frames=4, max_tokens=8)
    content = [image, image, {"type": "video", "video": str(clip)}, text]
    by_messages = model.generate(messages=[{"role": "user", "content": content}], frames=4, max_tokens=8)
    assert by_messages.token_ids == by_arguments.token_ids
    assert by_messages.usage == by_arguments.usage


def test_pictures_of_several_turns_are_not_tiled(model: OneVision, photo: Path):
    content = [{"type": "image", "image": photo}, {"type": "text", "text": "Hi."}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": content},
    ]
    usage = model.generate(messages=messages, max_tokens=1).usage
    assert (usage.tiles, usage.image_tokens) == (2, 2 * 17)


def test_a_video_is_a_file_or_its_frames(model: OneVision, clip: Path):
    frames = np.stack([np.asarray(frame) for frame in decode_all(clip)])
    answers = [
        model.generate(QUESTION, video=source, frames=5, max_tokens=8) for source in (clip, str(clip), frames)
    ]
    assert len({answer.token_ids for answer in answers}) == 1
    assert {answer.usage.tiles for answer in answers} == {5}
    assert {answer.usage.image_tokens for answer in answers} == {5 * 4 + 1}
    assert model.generate(QUESTION, video=clip, max_tokens=1).usage.tiles == 24  # all it has, of 32


def test_what_is_wrong_with_a_video_is_in_the_warnings(model: OneVision, clip: Path, tmp_path: Path):
    whole = encode_video(tmp_path / "whole.mkv", numbered_frames(24), rate=10)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    answer = model.generate(QUESTION, video=cut, frames=4, max_tokens=2)
    assert len(answer.warnings) == 1
    assert "cut.mkv" in answer.warnings[0]
    assert answer.to_dict()["warnings"] == list(answer.warnings)


def test_exif_turns_a_picture_or_does_not(model: OneVision, tmp_path: Path):
    upright = photograph("hopper")
    path = tmp_path / "lying.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(path, exif=exif)
    turned, plain = (
        model.generate(QUESTION, images=[path], max_tokens=8, exif=exif) for exif in (True, False)
    )
    assert turned.token_ids == model.generate(QUESTION, images=[upright], max_tokens=8).token_ids
    assert plain.token_ids == model.generate(QUESTION, images=[lying], max_tokens=8).token_ids
    assert turned.usage.prompt_tokens != plain.usage.prompt_tokens


def test_template_and_system_prompt_change_the_prompt(model: OneVision, about_the_photo: Answer, photo: Path):
    hub = model.generate(QUESTION, images=[photo], max_tokens=24, template="hf")
    assert hub.usage.prompt_tokens < about_the_photo.usage.prompt_tokens
    assert hub.usage.image_tokens == about_the_photo.usage.image_tokens
    longer = model.generate(QUESTION, images=[photo], max_tokens=24, system="Be brief. " * 10)
    assert longer.usage.prompt_tokens > about_the_photo.usage.prompt_tokens


def test_sampling_is_reproducible_by_its_seed(model: OneVision, photo: Path):
    def sample(seed: int) -> tuple[int, ...]:
        options = {"temperature": 1.5, "top_p": 0.95, "seed": seed, "max_tokens": 16}
        return model.generate(QUESTION, images=[photo], **options).token_ids

    assert sample(1) == sample(1) != sample(2)


def test_a_backbone_says_no_placeholder_however_hot(model: OneVision):
    banned = set(model.pipeline.banned_tokens)
    assert banned == {758, 759, *range(760, 768)}
    for seed in range(5):
        answer = model.generate("Hi.", temperature=20.0, max_tokens=100, seed=seed)
        assert not banned & set(answer.token_ids)


# What is refused, before and without anything being encoded.


@pytest.fixture(scope="module")
def short(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneVision]:
    """A model with a context of 300 tokens."""
    folder = tmp_path_factory.mktemp("short")
    checkpoint = shutil.copytree(toy_checkpoint, folder / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 300
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with OneVision.load(
        make_bundle(checkpoint, folder / "bundle", backbone="f32"), device="cpu", threads=1
    ) as loaded:
        yield loaded


def test_a_prompt_too_long_is_refused_before_any_work(short: OneVision, photo: Path):
    steps: list[Any] = []
    loaded_in = short.generate("Hi.", max_tokens=1).timings.load
    with pytest.raises(PromptError, match=r"the prompt needs \d{3} tokens, the model has 300") as caught:
        short.generate("z" * 280, images=[photo], on_progress=lambda *step: steps.append(step))
    assert caught.value.hint
    assert steps == []
    assert short.generate("Hi.", max_tokens=1).timings.load == loaded_in, "the encoder was loaded"


def test_an_answer_ends_where_the_context_does(short: OneVision):
    empty = short.generate("?", max_tokens=1).usage.prompt_tokens
    for left in (3, 2, 1):
        answer = short.generate("?" * (301 - empty - left), max_tokens=50)
        assert answer.usage.prompt_tokens == 300 - left
        assert answer.usage.completion_tokens == left
        assert answer.finish_reason == "length"
    with pytest.raises(PromptError, match="the prompt needs 300 tokens, the model has 300"):
        short.generate("?" * (301 - empty), max_tokens=50)


BAD_INPUTS = {
    "no such picture": ({"images": ["nowhere.png"]}, ImageError, "nowhere.png does not exist"),
    "picture of no type": ({"images": [3]}, ImageError, "type int"),
    "damaged picture": ({"images": [b"\xff\xd8\xff broken"]}, ImageError, "JPEG"),
    "no such video": ({"video": "nowhere.mp4"}, VideoError, "nowhere.mp4 does not exist"),
    "video of no type": ({"video": 3}, VideoError, "type int"),
    "floats for a video": ({"video": np.zeros((2, 8, 8, 3))}, VideoError, "float64"),
    "unknown option": ({"max_new_tokens": 3}, UsageError, "max_new_tokens"),
    "bad option": ({"temperature": -1}, UsageError, "temperature"),
    "half a character": ({"prompt": "\ud83d"}, PromptError, "not valid Unicode"),
    "empty": ({"prompt": ""}, PromptError, "empty"),
}


@pytest.mark.parametrize(("arguments", "kind", "wrong"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs_are_refused_and_the_model_goes_on(
    model: OneVision, arguments: dict[str, Any], kind: type[OneVisionError], wrong: str
):
    with pytest.raises(kind, match=wrong):
        model.generate(**{"prompt": QUESTION, **arguments})
    assert model.generate("Hi.", max_tokens=1).text is not None


# Stopping, waiting, closing.


def test_threads_queue_and_get_their_own_answers(model: OneVision, photo: Path, clip: Path):
    questions = [
        {"prompt": "Hi."},
        {"prompt": QUESTION, "images": [photo]},
        {"prompt": "Which?", "images": [photo, photo]},
        {"prompt": "What happens?", "video": clip, "frames": 4},
    ]
    alone = [model.generate(**question, max_tokens=12).token_ids for question in questions]
    assert len(set(alone)) == len(alone)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(model.generate, **question, max_tokens=12) for question in questions * 3]
        assert [call.result().token_ids for call in calls] == alone * 3


def test_a_call_waits_for_a_stream_to_end(model: OneVision):
    stream = model.stream("Hi.", max_tokens=8)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model.generate, "Hello.", max_tokens=2)
        rest = list(stream)
        assert rest
        assert call.result(timeout=60).usage.completion_tokens == 2
    assert stream.answer.usage.completion_tokens == 8


def test_a_call_beside_an_open_stream_is_an_error_at_once(model: OneVision):
    """In the thread that reads the stream, it would wait for ever."""
    with model.stream("Hi.", max_tokens=8) as stream:
        first = next(stream)
        for ask in (lambda: model.generate("Hello."), lambda: next(model.stream("Hello."))):
            with pytest.raises(UsageError, match="still open in this thread") as caught:
                ask()
            assert "with model.stream" in str(caught.value.hint)
        chat = model.chat(max_tokens=2)
        with pytest.raises(UsageError, match="still open in this thread"):
            chat.ask("Hello.")
        assert first + "".join(stream) == stream.answer.text, "the stream goes on"
    assert model.generate("Hello.", max_tokens=2).usage.completion_tokens == 2


def test_the_thread_that_reads_a_stream_may_change(model: OneVision):
    """The one that began it then waits like any other."""
    stream = model.stream("Hi.", max_tokens=8)
    next(stream)
    read_on, begun = threading.Event(), threading.Event()

    def read() -> list[str]:
        first = next(stream)
        begun.set()
        assert read_on.wait(60)
        return [first, *stream]

    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read)
        assert begun.wait(60)
        threading.Timer(0.2, read_on.set).start()
        assert model.generate("Hello.", max_tokens=2).usage.completion_tokens == 2
        assert reader.result(timeout=60)


FORKED = """
import os, sys, time
from onevision import OneVision
from onevision.errors import UsageError

with OneVision.load(sys.argv[1], device="cpu", threads=1) as model:
    stream = model.stream("Hi.", max_tokens=8)
    next(stream)
    if (child := os.fork()) == 0:
        start = time.perf_counter()
        try:
            model.generate("Hi.", max_tokens=1)
        except UsageError as error:
            soon = time.perf_counter() - start < 0.1
            model.close()
            os._exit(7 if soon and "forked" in error.message else 1)
        os._exit(2)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_told(toy_bundle: Path):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(toy_bundle)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 7


LEAVE = {
    "closed": lambda stream: stream.close(),
    "closed twice": lambda stream: (stream.close(), stream.close()),
    "dropped": lambda stream: None,
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
@pytest.mark.parametrize("read", [0, 1, 3])
def test_an_abandoned_stream_lets_the_model_go(
    model: OneVision, photo: Path, about_the_photo: Answer, leave: Any, read: int
):
    stream = model.stream(QUESTION, images=[photo], max_tokens=24)
    for _ in range(read):
        next(stream)
    leave(stream)
    del stream
    with ThreadPoolExecutor(1) as pool:  # a thread, so that a model still held is a failure and no hang
        call = pool.submit(model.generate, QUESTION, images=[photo], max_tokens=24)
        assert call.result(timeout=60).token_ids == about_the_photo.token_ids


@pytest.mark.parametrize("stage", ["encode", "prefill"])
def test_ctrl_c_leaves_the_model_usable(model: OneVision, photo: Path, about_the_photo: Answer, stage: str):
    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(QUESTION, images=[photo], on_progress=interrupt)
    assert model.generate(QUESTION, images=[photo], max_tokens=24).token_ids == about_the_photo.token_ids


def test_closing_ends_open_streams(toy_bundle: Path):
    model = OneVision.load(toy_bundle, device="cpu", threads=1)
    stream, unread = (model.stream("Hi.", max_tokens=100) for _ in range(2))
    next(stream)
    closing = threading.Thread(target=model.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = stream.answer
    with pytest.raises(UsageError, match="the model is closed"):
        next(unread)


def test_closing_waits_for_a_call(toy_bundle: Path):
    model = OneVision.load(toy_bundle, device="cpu", threads=1)
    begun, close = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        close.wait(60)

    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(model.generate, "Hi.", max_tokens=20, on_progress=hold)
        assert begun.wait(60)
        closing = pool.submit(model.close)
        close.set()
        assert call.result(timeout=60).usage.completion_tokens == 20
        closing.result(timeout=60)


def test_a_closed_model_says_so(toy_bundle: Path, photo: Path):
    with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
        model.generate(QUESTION, images=[photo], max_tokens=1)
    model.close()
    for ask in (model.generate, lambda prompt: next(model.stream(prompt))):
        with pytest.raises(UsageError, match="the model is closed"):
            ask("Hi.")


def test_an_error_in_a_with_block_is_the_error(toy_bundle: Path):
    """Of a reader that fails while it reads a stream, say because its own reader has gone."""

    def reader() -> None:
        with OneVision.load(toy_bundle, device="cpu", threads=1) as model:
            stream = model.stream("Hi.", max_tokens=100)
            for _ in stream:
                raise BrokenPipeError
            raise AssertionError(stream)

    with ThreadPoolExecutor(1) as pool, pytest.raises(BrokenPipeError):
        pool.submit(reader).result(timeout=60)


# Loading.

BROKEN = {
    "no newline": (NEWLINE, lambda data: b"", "cannot read"),
    "newline of another shape": (NEWLINE, lambda data: npy(np.zeros(64, np.float32)), r"float32 \[64\]"),
    "pickled newline": (NEWLINE, lambda data: npy(np.array([{}])), "cannot read"),
    "no backbone": (BACKBONE, lambda data: b"GGUF", "llama.cpp cannot load"),
}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "change", "wrong"), BROKEN.values(), ids=BROKEN)
def test_files_that_do_not_fit_are_refused(
    toy_bundle: Path, tmp_path: Path, name: str, change: Any, wrong: str
):
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    replace_file(bundle, name, change((bundle / name).read_bytes()))
    with pytest.raises(BundleError, match=wrong):
        OneVision.load(bundle, device="cpu", threads=1)


@pytest.mark.parametrize("threads", [0, -1])
def test_there_is_at_least_one_thread(toy_bundle: Path, threads: int):
    with pytest.raises(UsageError, match="threads"):
        OneVision.load(toy_bundle, device="cpu", threads=threads)


CYCLES = """
import contextlib, sys
from onevision import OneVision

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

bundle, photo, manager = sys.argv[1:]
for cycle in range(100):
    with getattr(contextlib, manager)(OneVision.load(bundle, device="cpu", threads=1)) as model:
        model.generate("What is it?", images=[photo], max_tokens=8)
        next(model.stream("Hi.", max_tokens=8))
    if cycle >= 9:
        print(resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("close", [True, False], ids=["closed", "dropped"])
def test_a_hundred_models_take_the_memory_of_one(toy_bundle: Path, photo: Path, close: bool):
    manager = "closing" if close else "nullcontext"
    command = [sys.executable, "-c", CYCLES, str(toy_bundle), str(photo), manager]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    resident = [int(line) for line in out.split()]
    assert len(resident) == 91
    growth = max(resident[-5:]) - min(resident[:5])
    print(f"resident after 10 cycles {resident[0]} kB, after 100 {resident[-1]} kB")
    assert growth < 5_000, resident
