"""Messages and requests as JSON that somebody wrote by hand, or a program wrote wrongly."""

from __future__ import annotations

import json

from tests.bad.made import Bad, file

RUN = "run --messages m.json -m {bundle}"
USER = {"role": "user", "content": "Hello"}
IMAGE = "data:image/png;base64,"


def text(name: str, data: str | bytes, says: str, status: int = 1) -> Bad:
    """A row whose ``m.json`` holds this text."""
    return Bad(name, RUN, says, status, make=file("m.json", data))


def values(name: str, data: object, says: str, status: int = 1) -> Bad:
    """A row whose ``m.json`` holds this value."""
    return text(name, json.dumps(data), says, status)


TEXTS = tuple(
    text(f"JSON that is {name}", data, f"m.json is not valid JSON: {says}")
    for name, data, says in (
        ("empty", "", "it is empty"),
        ("blank", " \n\t", "it is empty"),
        ("UTF-16", "[]".encode("utf-16"), "it is not UTF-8 text"),
        ("Latin-1", '["é"]'.encode("latin-1"), "it is not UTF-8 text"),
        ("null bytes", bytes(9), "line 1, column 1: "),
        ("with a comma too many", '[{"role": "user"},\n]', "line 2, column 1: "),
        ("with a comment", "// Hello\n[]", "line 1, column 1: "),
        ("Python", "[{'role': 'user'}]", "line 1, column 3: "),
        ("two documents", "[]\n[]", "line 2, column 1: Extra data"),
        ("cut in a text", '[{"role": "us', "line 1, column 11: Unterminated string"),
        ("with a line end in a text", '["a\nb"]', "line 1, column 4: Invalid control character"),
        ("with a key twice", '[{"role": "user", "role": "system"}]', "the key 'role' stands twice"),
        ("with all messages twice", '{"messages": [], "messages": []}', "the key 'messages' stands twice"),
        ("with a number of 5,000 digits", f"[{'9' * 5000}]", "a number has 5,000 digits"),
        ("closed 100,000 lists deep", "[" * 100_000 + "]" * 100_000, "it is nested too deeply"),
        ("100,000 objects deep", '{"a":' * 100_000, "it is nested too deeply"),
    )
)

WHOLE = tuple(
    values(f"instead of messages {name}", data, says)
    for name, data, says in (
        ("null", None, "must be a list of messages"),
        ("true", True, "must be a list of messages"),
        ("a number", 7, "must be a list of messages"),
        ("a text", "Hello", "must be a list of messages"),
        ("NaN", float("nan"), "must be a list of messages"),
        ("null in a request", {"messages": None}, "must be a list of messages"),
        ("a text in a request", {"messages": "Hello"}, "must be a list of messages"),
        ("one message in a request", {"messages": USER}, "must be a list of messages"),
        ("a prompt in a request", {"model": "x", "prompt": "Hello"}, "the request has no messages"),
        ("tools in a request", {"messages": [USER], "tools": [{}]}, "the unknown key 'tools'"),
        ("options of Ollama", {"messages": [USER], "options": {"num_predict": 5}}, "unknown key 'options'"),
        ("a limit twice", {"messages": [USER], "max_tokens": 2, "max_completion_tokens": 3}, "another name"),
    )
)

OPTIONS = tuple(
    values(f"request with {name} {value!r}", {"messages": [USER], name: value}, says, 2)
    for name, value, says in (
        ("max_tokens", 0, "max_tokens is 0"),
        ("max_tokens", "5", "max_tokens is '5'"),
        ("max_tokens", True, "max_tokens is True"),
        ("max_tokens", 1.5, "max_tokens is 1.5"),
        ("max_tokens", [], r"max_tokens is \[\]"),
        ("temperature", "hot", "temperature is 'hot'"),
        ("temperature", True, "temperature is True"),
        ("temperature", float("inf"), "temperature is inf"),
        ("top_p", "1", "top_p is '1'"),
        ("top_k", 1.5, "top_k is 1.5"),
        ("seed", "x", "seed is 'x'"),
        ("seed", 2**40, "seed is 1099511627776"),
        ("stop", 5, "a stop string is empty, or not a string"),
        ("stop", {"a": 1}, "a stop string is empty, or not a string"),
        ("stop", [""], "a stop string is empty, or not a string"),
        ("frames", "8", "frames is '8'"),
        ("max_tiles", "3", "max_tiles is '3'"),
        ("detail", 3, "detail is 3"),
    )
)

MESSAGES = tuple(
    values(f"message {name}", [message], says)
    for name, message, says in (
        ("null", None, "is not an object with role and content"),
        ("a list", [], "is not an object with role and content"),
        ("without a role", {"content": "x"}, "has no role"),
        ("whose role is null", {"role": None, "content": "x"}, "has the role None"),
        ("whose role is a list", {"role": ["user"], "content": "x"}, r"has the role \['user'\]"),
        ("whose role is in capitals", {"role": "User", "content": "x"}, "has the role 'User'"),
        ("of a tool", {"role": "tool", "content": "x"}, "has the role 'tool'"),
        ("whose content is null", {"role": "user", "content": None}, "has no content"),
        ("whose content is a number", {"role": "user", "content": 5}, "has the content 5"),
        ("whose content is an object", {"role": "user", "content": {"type": "text"}}, "has the content {"),
        ("whose content is empty", {"role": "user", "content": ""}, "the prompt is empty"),
        ("whose content is blank", {"role": "user", "content": " \n"}, "the prompt is empty"),
        ("of no parts", {"role": "user", "content": []}, "the prompt is empty"),
        ("of an empty part", {"role": "user", "content": [{"type": "text", "text": ""}]}, "prompt is empty"),
        ("with a name", {"role": "user", "content": "x", "name": "Bob"}, "the unknown key 'name'"),
        ("with tool calls", {"role": "user", "content": "x", "tool_calls": [{}]}, "unknown key 'tool_calls'"),
        ("with half a character", {"role": "user", "content": "\ud800"}, "is not valid Unicode"),
        ("whose images are a text", {"role": "user", "content": "x", "images": "a"}, "images is not a list"),
        ("whose images are an object", {"role": "user", "content": "x", "images": {}}, "is not a list"),
        ("with the images 5", {"role": "user", "content": "x", "images": [5]}, "cannot be read from a value"),
        ("with images of nothing", {"role": "user", "content": "x", "images": [""]}, "neither an existing"),
        ("with images of no base64", {"role": "user", "content": "x", "images": ["!" * 40]}, "valid base64"),
    )
)

PARTS = tuple(
    values(f"part {name}", [{"role": "user", "content": [part, "Hello"]}], says)
    for name, part, says in (
        ("null", None, "is not an object with a type"),
        ("a number", 5, "is not an object with a type"),
        ("without a type", {"text": "x"}, "is not an object with a type"),
        ("whose type is a list", {"type": []}, r"has the type \[\]"),
        ("whose type is in capitals", {"type": "TEXT", "text": "x"}, "has the type 'TEXT'"),
        ("of sound", {"type": "input_audio", "input_audio": {}}, "has the type 'input_audio'"),
        ("text without text", {"type": "text"}, "has no 'text'"),
        ("text that is a list", {"type": "text", "text": ["x"]}, "text must be a string"),
        ("image without an image", {"type": "image"}, "has no 'image'"),
        ("image twice", {"type": "image", "image": "a", "url": "b"}, "has both 'image' and 'url'"),
        ("image that is a list", {"type": "image", "image": [[0]]}, "cannot be read from a value"),
        ("image of an unknown user", {"type": "image", "image": "~nobody-here/a.jpg"}, "does not exist"),
        ("image by FTP", {"type": "image", "image": "ftp://host/a.jpg"}, "of the scheme 'ftp'"),
        ("image of no host", {"type": "image", "image": "http://[::1/a.jpg"}, "an address on the web"),
        (
            "image of another machine",
            {"type": "image", "image": "file://host/a.jpg"},
            "another machine: host",
        ),
        (
            "image with a null byte",
            {"type": "image", "image": "file:///a%00.jpg"},
            r"/a\\x00.jpg is not a path",
        ),
        ("image with a line end", {"type": "image", "image": "a\nb.jpg"}, r"a\\nb.jpg does not exist"),
        ("image of half a character", {"type": "image", "image": "\ud800.jpg"}, "is not a path"),
        ("data URI without data", {"type": "image_url", "image_url": IMAGE[:-1]}, "a data URI without data"),
        ("data URI of no base64", {"type": "image_url", "image_url": IMAGE + "@@@"}, "is not valid base64"),
        ("data URI of letters", {"type": "image_url", "image_url": IMAGE + "é"}, "is not valid base64"),
        ("data URI of half a character", {"type": "image_url", "image_url": "data:,\ud800"}, "not an image"),
        ("data URI of a text", {"type": "image_url", "image_url": "data:,Hello"}, "is not an image"),
        ("URL of nothing", {"type": "image_url", "image_url": {}}, "image_url has no 'url'"),
        (
            "URL that is a number",
            {"type": "image_url", "image_url": {"url": 5}},
            "cannot be read from a value",
        ),
        (
            "URL with a size",
            {"type": "image_url", "image_url": {"url": "a", "size": 3}},
            "unknown key 'size'",
        ),
        ("detail that is a list", {"type": "image", "image": "a", "detail": []}, r"has the detail \[\]"),
        ("base64 that is a number", {"type": "image", "base64": 5}, "base64 must be a string"),
        ("base64 of one letter", {"type": "image", "base64": "A"}, "is not valid base64"),
        ("base64 of nothing", {"type": "image", "base64": ""}, "the image has 0 bytes"),
        ("video without a video", {"type": "video"}, "has no 'video'"),
        ("video that is missing", {"type": "video", "video": "no.mp4"}, "no.mp4 does not exist"),
    )
)

ROWS = (*TEXTS, *WHOLE, *OPTIONS, *MESSAGES, *PARTS)
