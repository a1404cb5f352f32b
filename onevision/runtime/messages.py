"""Messages, in the forms that clients have: those of OpenAI, of Ollama and of transformers.

In: parsed JSON or Python objects. Out: :class:`Message` objects whose images and
videos are paths, bytes or Python objects. A part or key that is not known is refused, never dropped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from urllib.parse import unquote, unquote_to_bytes
from urllib.request import url2pathname

from onevision.errors import PromptError, UsageError
from onevision.runtime.options import AnswerOptions, Detail, make_options
from onevision.runtime.schema import requested_schema
from onevision.typed import read_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from onevision.runtime.images import ImageSource
    from onevision.runtime.video import VideoSource

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ImagePart:
    """An image: path, bytes, file object, PIL image or array uint8; ``detail`` overrides the options'.

    ``page`` is the one of a TIFF or PDF, from 1; None: those of the options.
    """

    source: ImageSource
    detail: Detail | None = None
    page: int | None = None


@dataclass(frozen=True)
class VideoPart:
    """A video: see :func:`onevision.runtime.video.read_video`; ``own`` are options for it alone, by name."""

    source: VideoSource
    own: Mapping[str, Any] = field(default_factory=dict)

    def options(self, options: AnswerOptions) -> AnswerOptions:
        """Options for this video: its own where the given ones say nothing."""
        usual = AnswerOptions()
        own = {name: self.own[name] for name in self.own if getattr(options, name) == getattr(usual, name)}
        return replace(options, **own)


Part = str | ImagePart | VideoPart


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: tuple[Part, ...]


#: Options of an answer that a video part may have for itself.
_VIDEO_OPTIONS = ("frames", "fps", "from_time", "to_time", "frames_by")

#: Keys of a chat request that are options of an answer, with the option's name.
_REQUEST_OPTIONS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
    **{name: name for name in _VIDEO_OPTIONS},
    "max_tiles": "max_tiles",
    "detail": "detail",
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
    "choices": "choices",
    "letters": "letters",
    "regex": "regex",
    "response_format": "json_schema",
    "format": "json_schema",
}
#: Keys that say where and how a request is sent, and nothing about the answer.
_REQUEST_ENVELOPE = ("model", "stream", "stream_options", "user", "store", "metadata")

#: What an image part may hold its image under, by type of the part.
_IMAGE_KEYS = {
    "image": ("image", "url", "path", "base64"),
    "image_url": ("image_url",),
    "input_image": ("image_url",),
}
_VIDEO_KEYS = {"video": ("video", "url", "path"), "video_url": ("video_url",), "input_video": ("video_url",)}
_TEXT_KEYS = {"text": ("text",), "input_text": ("text",), "output_text": ("text",)}
_KINDS = (*_TEXT_KEYS, *_IMAGE_KEYS, *_VIDEO_KEYS)


_SHORTEST_BASE64 = 32  # characters; no image format has files of less than 24 bytes


@dataclass(frozen=True)
class Reading:
    """How references in messages are read.

    Attributes:
        base: Folder that relative paths start from; None: the working directory.
        fetch: Fetches an http(s) address; None: addresses are refused.
    """

    base: Path | None = None
    fetch: Callable[[str], bytes] | None = None


@dataclass(frozen=True)
class Request:
    """A chat request: messages, and the options that stood beside them."""

    messages: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


def read_messages(path: Path, *more: Message) -> Request:
    """Messages of a JSON file, or a whole request body, and ``more`` after them.

    Raises:
        PromptError: The file cannot be read, or see :func:`parse_request`.
    """
    try:
        data = read_json(path)
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise PromptError(f"{path} is not valid JSON: {error}") from error
    if isinstance(data, list):
        data = [*data, *more]
    elif isinstance(data, dict) and isinstance(data.get("messages"), list):
        data["messages"] += more
    return parse_request(data, Reading(path.absolute().parent))


def parse_request(data: object, reading: Reading = Reading()) -> Request:
    """Parse a list of messages, or a whole request body that holds one.

    Raises:
        PromptError: See :func:`parse_messages`, or a key of the body that is not known.
    """
    if not isinstance(data, Mapping):
        return Request(parse_messages(cast("Sequence[Any]", data), reading))
    if "messages" not in data:
        raise PromptError(
            "the request has no messages", hint='[{"role": "user", "content": "…"}], or {"messages": […]}'
        )
    options: dict[str, Any] = {}
    for key, value in data.items():
        if key == "messages" or key in _REQUEST_ENVELOPE or value is None:
            continue
        if key not in _REQUEST_OPTIONS:
            raise PromptError(
                f"the request has the unknown key {key!r}",
                hint=f"known: messages, {', '.join((*_REQUEST_OPTIONS, *_REQUEST_ENVELOPE))}",
            )
        name = _REQUEST_OPTIONS[key]
        if name in options:
            raise PromptError(f"the request has {key!r} and another name of the same option")
        options[name] = requested_schema(value) if key in ("response_format", "format") else value
    return Request(parse_messages(data["messages"], reading), options)


def parse_messages(
    messages: Sequence[Message | Mapping[str, Any]], reading: Reading = Reading()
) -> tuple[Message, ...]:
    """Check messages, and parse those that are not :class:`Message` objects.

    A message is ``{"role": "user", "content": "…" | [part, …]}``; a part is

    * ``{"type": "text", "text": …}``, or ``input_text``;
    * ``{"type": "image_url", "image_url": {"url": …, "detail": …} | "…"}``, or ``input_image``;
    * ``{"type": "image", "image" | "url" | "path" | "base64": …}``, with ``"page": 2`` for one of several;
    * ``{"type": "video", "video" | "url" | "path": …}``, ``{"type": "video_url", "video_url": …}``: a file, a
      folder of frames, or a list of them, with ``frames``, ``fps``, ``from_time``, ``to_time`` or
      ``frames_by`` for this video alone.

    Ollama's form has ``"images": [base64, …]`` beside a text content; its images stand before the text. An
    image is a path, a ``file://`` or ``data:`` URI, or an object that :func:`read_image` takes.

    Args:
        messages: In order; ``developer`` is another name for ``system``.
        reading: How references are read.

    Raises:
        PromptError: Another form, an unknown key or part; no message; a last message that is not the user's;
            a system message that is not the first; images outside user messages.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(
            "messages must be a list of messages", hint='[{"role": "user", "content": "Hello"}]'
        )
    parsed = tuple(
        item if isinstance(item, Message) else _message(item, f"messages[{index}]", reading)
        for index, item in enumerate(messages)
    )
    if not parsed:
        raise PromptError("messages is empty")
    if parsed[-1].role != "user":
        raise PromptError(f"the last message must be the user's, not the {parsed[-1].role}'s")
    if not any(part.strip() if isinstance(part, str) else True for part in parsed[-1].content):
        raise PromptError("the prompt is empty")
    for index, message in enumerate(parsed):
        if message.role == "system" and index > 0:
            raise PromptError(f"messages[{index}] is a system message: only the first can be")
        if message.role != "user" and not all(isinstance(part, str) for part in message.content):
            raise PromptError(f"messages[{index}] has an image or video: only user messages can")
    return parsed


def conversation_of(
    prompt: str | None,
    images: Sequence[ImageSource] | ImageSource,
    video: VideoSource | None,
    messages: Sequence[Message | Mapping[str, Any]] | None,
    videos: Sequence[VideoSource] = (),
) -> tuple[Message, ...]:
    """Messages of the arguments that :meth:`OneVision.generate` takes.

    Raises:
        UsageError: Both a prompt and messages, or neither; both ``video`` and ``videos``.
        PromptError: See :func:`parse_messages`, or the prompt is empty.
    """
    given = [] if images is None else _sources(images)
    if isinstance(videos, (str, bytes)) or not isinstance(videos, Sequence):
        raise UsageError("videos must be a list", hint="for one video: video=")
    if video is not None and videos:
        raise UsageError("give either video or videos, not both")
    clips = [*videos] if video is None else [video]
    if messages is not None:
        if prompt is not None or given or clips:
            raise UsageError("give either messages or a prompt with images and video, not both")
        return parse_messages(messages)
    if prompt is None:
        raise UsageError("there is no prompt")
    if not isinstance(prompt, str):
        raise UsageError(f"the prompt is {prompt!r}, it must be a text")
    if not prompt.strip():
        raise PromptError("the prompt is empty")
    parts: list[Part] = [*map(ImagePart, given), *map(VideoPart, clips)]
    return (Message("user", (*parts, prompt)),)


def _sources(images: object) -> list[Any]:
    """Images of a list, or the one image that was given without a list."""
    if isinstance(images, (list, tuple)):
        return list(images)
    return [images]


def _message(item: object, where: str, reading: Reading) -> Message:
    if not isinstance(item, Mapping):
        raise PromptError(f"{where} is not an object with role and content")
    if "role" not in item:
        raise PromptError(f"{where} has no role", hint=f"one of {', '.join(get_args(Role))}")
    role = "system" if item["role"] == "developer" else item["role"]
    if role not in get_args(Role):
        raise PromptError(
            f"{where} has the role {item['role']!r}", hint=f"one of {', '.join(get_args(Role))}"
        )
    _only(item, ("role", "content", "images"), where)
    if item.get("content") is None and (role == "user" or "content" not in item):
        raise PromptError(f"{where} has no content", hint="content is a text or a list of parts")
    content, images = item["content"], item.get("images")
    if content is None:
        parts: list[Part] = []
    elif isinstance(content, str):
        parts = [content]
    elif isinstance(content, Sequence) and not isinstance(content, bytes):
        parts = [_part(part, f"{where}.content[{at}]", reading) for at, part in enumerate(content)]
    else:
        raise PromptError(
            f"{where} has the content {content!r:.60}", hint="content is a text or a list of parts"
        )
    if images is not None:
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            raise PromptError(f"{where}.images is not a list")
        before = [
            ImagePart(_ollama_image(image, f"{where}.images[{at}]", reading))
            for at, image in enumerate(images)
        ]
        parts = [*before, *parts]
    return Message(cast("Role", role), tuple(parts))


def _part(part: object, where: str, reading: Reading) -> Part:
    if isinstance(part, (str, ImagePart, VideoPart)):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in _KINDS:
        fault = "is not an object with a type" if kind is None else f"has the type {kind!r}"
        raise PromptError(f"{where} {fault}", hint=f"one of {', '.join(_KINDS)}")
    if kind in _TEXT_KEYS:
        _only(part, ("type", "text", "annotations"), where)
        if part.get("text") is None:
            raise PromptError(f"{where} has no 'text'")
        if not isinstance(part["text"], str):
            raise PromptError(f"{where}: text must be a string")
        return str(part["text"])
    is_image = kind in _IMAGE_KEYS
    keys = _IMAGE_KEYS[kind] if is_image else _VIDEO_KEYS[kind]
    _only(part, ("type", *keys, *(("detail", "page") if is_image else _VIDEO_OPTIONS)), where)
    found = [key for key in keys if part.get(key) is not None]
    if not found:
        raise PromptError(f"{where} has no {' or '.join(map(repr, keys))}")
    if len(found) > 1:
        raise PromptError(f"{where} has both {found[0]!r} and {found[1]!r}")
    value, detail = part[found[0]], part.get("detail")
    if found[0].endswith("_url") and isinstance(value, Mapping):
        _only(value, ("url", "detail") if is_image else ("url",), f"{where}.{found[0]}")
        detail = value.get("detail", detail)
        value = value.get("url")
        if value is None:
            raise PromptError(f"{where}.{found[0]} has no 'url'")
    if not is_image:
        return _video_part(value, part, where, reading)
    source = _decoded(value, where) if found[0] == "base64" else _referenced(value, where, reading)
    return _image_part(source, detail, part.get("page"), where)


def _video_part(value: Any, part: Mapping[str, Any], where: str, reading: Reading) -> VideoPart:  # noqa: ANN401
    own = {name: part[name] for name in _VIDEO_OPTIONS if part.get(name) is not None}
    try:
        options = make_options(own)
    except UsageError as error:
        raise PromptError(f"{where}: {error.message}", hint=error.hint) from error
    own = {name: getattr(options, name) for name in own}
    if isinstance(value, list):  # frames, as in the messages of transformers
        return VideoPart([_referenced(frame, where, reading) for frame in value], own)
    return VideoPart(_referenced(value, where, reading), own)


def _image_part(source: Any, detail: Any, page: Any, where: str) -> ImagePart:  # noqa: ANN401
    if detail is not None and detail not in get_args(Detail):
        raise PromptError(f"{where} has the detail {detail!r}", hint=f"one of {', '.join(get_args(Detail))}")
    if page is not None and (not isinstance(page, int) or isinstance(page, bool) or page < 1):
        raise PromptError(f"{where} has the page {page!r}", hint="a number from 1")
    return ImagePart(source, detail, page)


def _only(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse keys that are not known, unless they are null or empty: clients fill their whole form in."""
    for key, value in values.items():
        if key not in known and value not in (None, [], {}, ""):
            raise PromptError(f"{where} has the unknown key {key!r}", hint=f"known: {', '.join(known)}")


def _referenced(value: Any, where: str, reading: Reading) -> Any:  # noqa: ANN401
    """The image or video that a value refers to: bytes of a data URI, a path, or the value itself."""
    if not isinstance(value, str):
        return value
    if value[:5].lower() == "data:":
        return _data_uri(value, where)
    scheme, separator, _ = value.partition("://")
    scheme = scheme.lower() if separator else ""
    if scheme in ("http", "https"):
        if reading.fetch is None:
            raise PromptError(
                f"{where} is an address on the web, which is not fetched",
                hint="download the file, and give its path",
            )
        return reading.fetch(value)
    if scheme == "file":
        host, slash, rest = value[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise PromptError(f"{where} is a file of another machine: {host}")
        return Path(url2pathname(unquote(slash + rest)))
    if scheme:
        raise PromptError(f"{where} has an address of the scheme {scheme!r}", hint="file:// or a path")
    if reading.base is None and not value.startswith("~"):
        return value
    path = Path(os.path.expanduser(value))  # noqa: PTH111 - leaves an unknown ~user as it is
    return path if reading.base is None or path.is_absolute() else reading.base / path


def _data_uri(value: str, where: str) -> bytes:
    """Contents of a ``data:`` URI (RFC 2397)."""
    head, comma, data = value.partition(",")
    if not comma:
        raise PromptError(f"{where} is a data URI without data")
    if head.lower().endswith(";base64"):
        return _decoded(unquote(data), where)
    return unquote_to_bytes(data.encode(errors="surrogatepass"))


def _decoded(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise PromptError(f"{where}: base64 must be a string")
    text = "".join(value.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise PromptError(f"{where} is not valid base64") from error


def _ollama_image(value: Any, where: str, reading: Reading) -> Any:  # noqa: ANN401
    """An entry of Ollama's ``images``: base64, as in its API; a path or data URI is accepted too."""
    if not isinstance(value, str) or value[:5].lower() == "data:" or "://" in value:
        return _referenced(value, where, reading)
    path = _referenced(value, where, reading)
    if os.path.isfile(path):  # noqa: PTH113 - a text that is too long for a path is not a file
        return path
    if len(value) < _SHORTEST_BASE64:
        raise PromptError(f"{where} is neither an existing file nor the base64 of an image")
    return _decoded(value, where)
