"""Messages as clients send them: every form is read, whatever is not known is refused."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onevision.errors import PromptError, UsageError
from onevision.runtime.messages import (
    ImagePart,
    Message,
    Reading,
    VideoPart,
    conversation_of,
    parse_messages,
    parse_request,
)
from onevision.runtime.options import AnswerOptions


def png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


PNG = png()
BASE64 = base64.b64encode(PNG).decode()
DATA = f"data:image/png;base64,{BASE64}"


def user(*parts: Any, **keys: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts), **keys}]


DEFAULT = Reading()


def only(part: Any, reading: Reading = DEFAULT) -> Any:
    """The part that a message's one part is read as."""
    ((parsed,),) = (message.content for message in parse_messages(user(part), reading))
    return parsed


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA}},
        {"type": "image_url", "image_url": {"url": DATA, "detail": None}},
        {"type": "image_url", "image_url": DATA},
        {"type": "input_image", "image_url": DATA},
        {"type": "input_image", "image_url": DATA, "file_id": None},
        {"type": "image", "image": DATA},
        {"type": "image", "url": DATA},
        {"type": "image", "path": DATA},
        {"type": "image", "base64": BASE64},
        {"type": "image", "image": PNG},
        {"type": "image", "image": f"DATA:image/png;charset=x;BASE64,{BASE64}"},
        {"type": "image", "image": "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG)},
        {"type": "image", "image": DATA.rstrip("=")},
        {"type": "image", "image": "\n".join(DATA[at : at + 76] for at in range(0, len(DATA), 76))},
    ],
)
def test_every_form_of_an_image(part: dict[str, Any]) -> None:
    assert only(part) == ImagePart(PNG)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", "/base/a.png"),
        ("sub/a b.png", "/base/sub/a b.png"),
        ("../a.png", "/base/../a.png"),
        ("/abs/a.png", "/abs/a.png"),
        ("file:///abs/a%20b.png", "/abs/a b.png"),
        ("file://localhost/abs/a.png", "/abs/a.png"),
        ("~/a.png", str(Path("~/a.png").expanduser())),
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_paths(value: str, expected: str, kind: str) -> None:
    parsed = only({"type": kind, kind: value}, Reading(Path("/base")))
    assert type(parsed) is {"image": ImagePart, "video": VideoPart}[kind]
    assert parsed.source == Path(expected)


def test_without_a_base_paths_stay_as_they_are() -> None:
    assert only({"type": "image", "image": "a.png"}).source == "a.png"


@pytest.mark.parametrize("detail", ["low", "auto", "high"])
def test_detail(detail: str) -> None:
    assert only({"type": "image_url", "image_url": {"url": DATA, "detail": detail}}) == ImagePart(PNG, detail)
    assert only({"type": "input_image", "image_url": DATA, "detail": detail}) == ImagePart(PNG, detail)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": "a.mp4"},
        {"type": "video", "url": "a.mp4"},
        {"type": "video_url", "video_url": {"url": "a.mp4"}},
        {"type": "video_url", "video_url": "a.mp4"},
    ],
)
def test_every_form_of_a_video(part: dict[str, Any]) -> None:
    assert only(part) == VideoPart("a.mp4")
    part = only({**part, "fps": 2, "frames": 4, "from_time": "1:30", "to_time": None, "frames_by": "time"})
    assert part == VideoPart("a.mp4", {"fps": 2, "frames": 4, "from_time": 90.0, "frames_by": "time"})
    options = part.options(AnswerOptions(fps=1, max_tokens=7))
    assert (options.fps, options.frames, options.from_time, options.max_tokens) == (1, 4, 90, 7)


@pytest.mark.parametrize("kind", ["text", "input_text"])
def test_text(kind: str) -> None:
    assert only({"type": kind, "text": "Hello"}) == "Hello"


def test_ollama(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    images = [BASE64, DATA, "a.png", PNG]
    messages = [{"role": "user", "content": "What is it?", "images": images}]
    (message,) = parse_messages(messages, Reading(tmp_path))
    sources = [PNG, PNG, tmp_path / "a.png", PNG]
    assert message == Message("user", (*map(ImagePart, sources), "What is it?"))


def test_addresses_are_fetched_only_where_that_is_allowed() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(PromptError, match="not fetched"):
        only(part)
    assert only(part, Reading(fetch=lambda url: url.encode())) == ImagePart(b"https://example.org/a.png")


def test_roles() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    parsed = parse_messages(messages)
    assert [message.role for message in parsed] == ["system", "user", "assistant", "user"]
    assert [message.content for message in parsed] == [("Be brief.",), ("Hello",), (), ("And?",)]


def test_a_request_body() -> None:
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "stop": ["\n"],
        "stream": True,
        "tools": None,
    }
    request = parse_request(body)
    assert request.messages == (Message("user", ("Hello",)),)
    assert request.options == {"max_tokens": 7, "temperature": 0.5, "stop": ["\n"]}
    assert parse_request(body["messages"]).options == {}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hello", "must be a list"),
        ({"role": "user", "content": "Hello"}, "must be a list"),
        ([], "is empty"),
        (["Hello"], r"messages\[0\] is not an object"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": None}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": 5}], "has the content 5"),
        ([{"role": "tool", "content": "x"}], "has the role 'tool'"),
        ([{"content": "x"}], "has no role"),
        ([{"role": "assistant", "content": "x"}], "must be the user's"),
        ([{"role": "user", "content": "x", "name": "Bo"}], "unknown key 'name'"),
        ([{"role": "user", "content": "x", "image": "a.png"}], "unknown key 'image'"),
        ([{"role": "user", "content": "x", "images": "a.png"}], r"images is not a list"),
        ([{"role": "user", "content": "x", "images": ["no file"]}], "neither an existing file nor"),
        (user({"type": "image"}), "has no 'image' or 'url' or 'path' or 'base64'"),
        (user({"type": "image_url"}), "has no 'image_url'"),
        (user({"type": "image_url", "image_url": {}}), "has no 'url'"),
        (user({"type": "image_url", "url": "a.png"}), "unknown key 'url'"),
        (user({"type": "image_url", "image_url": {"url": DATA, "size": 3}}), "unknown key 'size'"),
        (user({"type": "image_url", "image_url": {"url": DATA, "detail": "huge"}}), "detail 'huge'"),
        (user({"type": "image", "image": "a.png", "path": "b.png"}), "both 'image' and 'path'"),
        (user({"type": "image", "image": "data:image/png;base64"}), "without data"),
        (user({"type": "image", "image": "data:image/png;base64,????"}), "not valid base64"),
        (user({"type": "image", "base64": 3}), "must be a string"),
        (user({"type": "image", "image": "ftp://a/b.png"}), "scheme 'ftp'"),
        (user({"type": "image", "image": "file://server/b.png"}), "another machine: server"),
        (user({"type": "input_image", "file_id": "file-1"}), "unknown key 'file_id'"),
        (user({"type": "input_audio", "input_audio": {}}), "has the type 'input_audio'"),
        (user({"type": "file", "file": {}}), "has the type 'file'"),
        (user({"text": "x"}), "is not an object with a type"),
        (user({"type": "text"}), "has no 'text'"),
        (user({"type": "text", "text": 3}), "text must be a string"),
        (user({"type": "video", "frames": []}), "has no 'video'"),
        (user({"type": "video", "video": "a.mp4", "speed": 2}), "unknown key 'speed'"),
        (user({"type": "video", "video": "a.mp4", "fps": 0}), "content.*: fps is 0, it must be more than 0"),
        (user({"type": "video", "video": "a.mp4", "frames": "8"}), "frames is '8'"),
        (user({"type": "video", "video": "a.mp4", "to_time": "1:75"}), "to_time is '1:75'"),
        (user({"type": "video", "video": "a.mp4", "from_time": 2, "to_time": 1}), "from_time is 2 s, after"),
        (user({"type": "video_url", "video_url": "a.mp4", "frames_by": "x"}), "frames_by is 'x'"),
        (user({"type": "image", "image": "a.png", "fps": 2}), "unknown key 'fps'"),
        (user({"type": ["image"], "image": "a.png"}), "has the type"),
        ([{"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}, *user("x")], "only user"),
        ([*user("x"), {"role": "system", "content": "y"}, *user("z")], "only the first"),
    ],
)
def test_what_is_not_known_is_refused(messages: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_messages(messages)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "Hello"}, "has no messages"),
        ({"messages": user("x"), "tools": [{}]}, "unknown key 'tools'"),
        ({"messages": user("x"), "n": 2}, "unknown key 'n'"),
        ("Hello", "must be a list"),
        (None, "must be a list"),
    ],
)
def test_a_body_that_is_refused(body: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_request(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image", "image_url", "url", "images", "x"])
            | st.text(max_size=3),
            inner | st.sampled_from(["user", "system", "text", "image", "image_url", "video"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(data: Any) -> None:
    """Nothing but a PromptError, and what was read is what stood there."""
    try:
        request = parse_request(json.loads(json.dumps(data)))
    except PromptError:
        return
    assert request.messages[-1].role == "user"


def test_arguments_of_generate(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    for source in (tmp_path / "a.png", "a.png", PNG, BytesIO(PNG), image):
        assert conversation_of("x", source, None, None) == (Message("user", (ImagePart(source), "x")),)
        assert conversation_of("x", [source], None, None) == (Message("user", (ImagePart(source), "x")),)
    assert conversation_of("x", None, None, None) == (Message("user", ("x",)),)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not both"):
        conversation_of("x", (), None, user("y"))
    with pytest.raises(UsageError, match="no prompt"):
        conversation_of(None, ("a.png",), None, None)
    with pytest.raises(UsageError, match="must be a text"):
        conversation_of(5, (), None, None)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="is empty"):
        conversation_of(" \n", (), None, None)
