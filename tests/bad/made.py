"""The form of a row of bad input, and makers of what it needs."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.conftest import replace_file

Make = Callable[["Place"], object]


@dataclass(frozen=True)
class Place:
    """An empty working folder, and good inputs elsewhere."""

    cwd: Path
    bundle: Path
    checkpoint: Path
    photo: Path
    clip: Path


@dataclass(frozen=True)
class Bad:
    """One kind of bad input.

    ``{bundle}``, ``{checkpoint}``, ``{photo}`` and ``{clip}`` in a command are good ones; other names are of
    the working folder, in which ``make`` puts what is needed.
    """

    name: str
    command: str
    says: str  # a regular expression that the error line matches somewhere
    status: int = 1
    make: Make = lambda place: None


def file(name: str, data: bytes | str = b"") -> Make:
    """Write a file."""
    raw = data.encode() if isinstance(data, str) else data
    return lambda place: (place.cwd / name).write_bytes(raw)


def folder(*names: str) -> Make:
    """Make folders."""
    return lambda place: [(place.cwd / name).mkdir(parents=True) for name in names]


def cut(source: str, name: str, keep: float) -> Make:
    """The first part of the good photo or clip."""

    def make(place: Place) -> None:
        data = getattr(place, source).read_bytes()
        (place.cwd / name).write_bytes(data[: int(len(data) * keep)])

    return make


def messages(*conversation: object) -> Make:
    """Write ``m.json``."""
    return file("m.json", json.dumps(conversation))


def png(width: int, height: int, *, rows: int | None = None, interlaced: bool = False) -> bytes:
    """A PNG of any size, and as many of its rows as are wanted."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    pixels = (b"\0" + bytes(3 * width)) * (height if rows is None else rows)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def bmp(side: int) -> bytes:
    """The header of a square BMP."""
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(99)


def cut_image(form: str, name: str) -> Make:
    """Half of the good photo in another format."""

    def make(place: Place) -> None:
        with Image.open(place.photo) as image:
            image.resize((64, 48)).save(place.cwd / name, form)
        data = (place.cwd / name).read_bytes()
        (place.cwd / name).write_bytes(data[: len(data) // 2])

    return make


def two_pages(name: str) -> Make:
    """A document of two pages."""
    page = Image.new("RGB", (8, 8))
    return lambda place: page.save(place.cwd / name, save_all=True, append_images=[page])


def still(name: str) -> Make:
    """An image."""
    return lambda place: Image.new("RGB", (8, 8)).save(place.cwd / name)


def in_folder(name: str) -> Make:
    """An empty file in the folder ``d``."""

    def make(place: Place) -> None:
        (place.cwd / "d").mkdir()
        (place.cwd / "d" / name).touch()

    return make


def pipe(name: str) -> Make:
    """A named pipe that nobody writes to."""
    return lambda place: os.mkfifo(place.cwd / name)


#: A GIF of 65,535 by 65,535 pixels.
GIF_BOMB = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;"
#: A PDF document without a page.
EMPTY_PDF = (
    "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj "
    "trailer<</Root 1 0 R>>"
)


# Damage to a copy of the bundle, "bad", or of the checkpoint, "ck".


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def as_is(data: bytes) -> Callable[[bytes], bytes]:
    """Damage that replaces a file's contents."""
    return lambda _: data


def bundle(name: str, damage: Callable[[bytes], bytes] | None = None) -> Make:
    """A copy of the bundle whose file is damaged, or missing."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.bundle, place.cwd / "bad") / name
        path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()

    return make


def honest(name: str, data: bytes) -> Make:
    """A copy of the bundle one of whose files is of another kind, with size and checksum to match."""

    def make(place: Place) -> None:
        replace_file(shutil.copytree(place.bundle, place.cwd / "bad"), name, data)

    return make


def json_edit(path: Path, changes: dict[str, object]) -> None:
    """Set values by dotted keys; ``...`` takes the key away."""
    data = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = data
        for section in sections:
            target = target[section]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    path.write_text(json.dumps(data), encoding="utf-8")


def manifest(**changes: object) -> Make:
    """A copy of the bundle with another manifest; ``__`` stands for a dot."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.bundle, place.cwd / "bad") / "onevision.json"
        json_edit(path, {key.replace("__", "."): value for key, value in changes.items()})

    return make


def checkpoint(name: str, damage: Callable[[bytes], bytes] | None = None) -> Make:
    """A copy of the checkpoint whose file is damaged, or missing."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / name
        path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()

    return make


def template(text: str | bytes, name: str = "chat_template.jinja") -> Make:
    """A copy of the checkpoint with a chat template."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


def lmms_lab(**changes: object) -> Make:
    """A small checkpoint in lmms-lab naming with another config."""

    def make(place: Place) -> None:
        from onevision.export.synth import SynthSpec, synthesize

        made = synthesize(place.cwd / "ck", SynthSpec(naming="lmms-lab", layers=1, vision_layers=1))
        json_edit(made / "config.json", dict(changes))

    return make


def config(**changes: object) -> Make:
    """A copy of the checkpoint with another config; ``__`` stands for a dot."""

    def make(place: Place) -> None:
        path = shutil.copytree(place.checkpoint, place.cwd / "ck") / "config.json"
        json_edit(path, {key.replace("__", "."): value for key, value in changes.items()})

    return make


def pickles(place: Place) -> None:
    path = shutil.copytree(place.checkpoint, place.cwd / "ck") / "model.safetensors"
    path.rename(path.with_name("pytorch_model.bin"))


def lost_shard(place: Place) -> None:
    path = shutil.copytree(place.checkpoint, place.cwd / "ck") / "model.safetensors"
    path.rename(path.with_name("model-00001-of-00002.safetensors"))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def no_tokenizer(place: Place) -> None:
    copy = shutil.copytree(place.checkpoint, place.cwd / "ck")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / name).unlink()


def other_checkpoint(**spec: object) -> Make:
    """A checkpoint of another shape, "other"."""

    def make(place: Place) -> None:
        from onevision.export.synth import SynthSpec, synthesize

        synthesize(place.cwd / "other", SynthSpec(**spec))

    return make
