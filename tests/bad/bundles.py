"""Bundles whose files are whole and honest, and say something impossible."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from onevision.bundle import REQUIRED
from tests.bad.made import Bad, Make, Place, as_is, bundle, honest, manifest
from tests.conftest import replace_file

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST, NEWLINE, GOLDEN = "onevision.json", "image_newline.npy", "golden.npz"


def copied(place: Place) -> Path:
    return shutil.copytree(place.bundle, place.cwd / "bad")


def sparse(place: Place) -> None:
    """A manifest of 3 GB, of which the disk holds nothing."""
    with (copied(place) / MANIFEST).open("wb") as file:
        file.truncate(3 << 30)


def linked(name: str, target: str) -> Make:
    """A file of the bundle in whose place is a symbolic link."""

    def make(place: Place) -> None:
        path = copied(place) / name
        path.unlink()
        path.symlink_to(target)

    return make


def with_pipe(place: Place) -> None:
    path = copied(place) / "backbone.gguf"
    path.unlink()
    os.mkfifo(path)


def gguf(old: bytes, new: bytes) -> Make:
    """Other bytes in the header of the language model."""

    def make(place: Place) -> None:
        data = (place.bundle / "backbone.gguf").read_bytes()
        assert old in data
        replace_file(copied(place), "backbone.gguf", data.replace(old, new, 1))

    return make


def npy(shape: str, kind: str = "<f4", data: bytes = b"", order: str = "False") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + data


def npz(cases: object, **arrays: object) -> bytes:
    """An archive of reference vectors; ``__`` stands for a slash."""
    out = io.BytesIO()
    named = {name.replace("__", "/"): np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(out, **({} if cases is None else {"cases": np.asarray(cases)}), **named)
    return out.getvalue()


def archive(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr(name, data)
    return out.getvalue()


MANIFESTS = tuple(
    Bad(
        f"manifest with {key.replace('__', '.')} {value!r}"[:60],
        "inspect bad",
        says,
        make=manifest(**{key: value}),
    )
    for key, value, says in (
        ("vision__image_size", 10**30, "impossible sizes"),
        ("vision__image_size", 56.5, "vision.image_size is 56.5, expected int"),
        ("vision__patch_size", True, "vision.patch_size is True, expected int"),
        ("vision__hidden", 0, "impossible sizes"),
        ("vision__layers", -1, "impossible sizes"),
        ("vision__grid_pinpoints", [[56]], r"vision.grid_pinpoints\[0\] is \[56\]"),
        ("vision__grid_pinpoints", [[0, 0]], "the grid 0x0 is not made of tiles"),
        ("vision__mean", [float("nan")] * 3, "impossible sizes"),
        ("vision__std", [float("inf")] * 3, "impossible sizes"),
        ("vision__mean", ["a", "b", "c"], r"vision.mean\[0\] is 'a', expected float"),
        ("vision__aspect_ratio", "anyres_max_0", "the aspect ratio 'anyres_max_0'"),
        ("backbone__context_length", 10**12, "impossible sizes"),
        ("backbone__context_length", -1, "impossible sizes"),
        ("backbone__vocab_size", 0, "impossible sizes"),
        ("backbone__layers", 0, "impossible sizes"),
        ("backbone__heads", 3, "impossible sizes"),
        ("backbone__kv_heads", 0, "impossible sizes"),
        ("backbone__eos_ids", 5, "backbone.eos_ids is 5"),
        ("backbone__eos_ids", ["x"], r"backbone.eos_ids\[0\] is 'x'"),
        ("prompt__system", 5, "prompt.system is 5, expected str"),
        ("video__frames", -1, "impossible sizes"),
        ("name", 5, "name is 5, expected str"),
        ("source", [], "source is not a JSON object"),
        ("created_by", {"a": 1}, "created_by.a is 1, expected str"),
        ("quality", [], r"quality is \[\], expected dict"),
        ("schema_version", True, "has no schema_version"),
        ("schema_version", 1.0, "has no schema_version"),
        ("schema_version", 0, "has schema version 0"),
    )
)
TEXTS = tuple(
    Bad(f"manifest that is {name}", "run Hi -m bad", says, make=bundle(MANIFEST, as_is(data)))
    for name, data, says in (
        ("empty", b"", "it is empty"),
        ("null", b"null", "is not a bundle manifest"),
        ("UTF-16", "{}".encode("utf-16"), "it is not UTF-8 text"),
        ("with a key twice", b'{"name": 1, "name": 2}', "the key 'name' stands twice"),
        ("with a long number", b'{"a": ' + b"9" * 5000, "a number has 5,000 digits"),
        ("longer than any", b"[" + b"[]," * 400_000 + b"[]]", "is not valid JSON"),
    )
)
PLACES = (
    Bad("manifest of 3 GB", "run Hi -m bad", "is not valid JSON", make=sparse),
    Bad(
        "manifest that links to itself",
        "run Hi -m bad",
        "cannot read .*links",
        make=linked(MANIFEST, MANIFEST),
    ),
    Bad("manifest of a device", "run Hi -m bad", "it is empty", make=linked(MANIFEST, "/dev/null")),
    Bad("file that links to itself", "run Hi -m bad", "gguf", make=linked("backbone.gguf", "backbone.gguf")),
    Bad("file that links to nothing", "run Hi -m bad", "gguf is missing", make=linked("backbone.gguf", "no")),
    Bad("file that is a pipe", "run Hi -m bad", "backbone.gguf is missing", make=with_pipe),
    Bad(
        "folder that links to itself",
        "run Hi -m ./bad",
        "no bundle at ./?bad|cannot read",
        make=lambda place: (place.cwd / "bad").symlink_to("bad"),
    ),
    Bad("folder with a long name", f"run Hi -m ./{'a' * 5000}", "no bundle at|File name too long"),
    *(
        Bad(
            f"a file named {name[:9]!r}",
            "inspect bad",
            "impossible sizes|is missing|cannot be read",
            make=manifest(
                files={file: {"sha256": "", "bytes": 1, "precision": None} for file in (name, *REQUIRED)}
            ),
        )
        for name in ("../x", "/etc/passwd", "a\0b", "C:\\x", "a/b", "a" * 300, "a\nb")
    ),
)
NEWLINES = tuple(
    Bad(f"newline {name}", "run Hi -m bad", says, make=honest(NEWLINE, data))
    for name, data, says in (
        ("without dimensions", npy("()", data=bytes(4)), r"is float32 \[\], not float32 \[128\]"),
        ("in float64", npy("(128,)", "<f8", bytes(1024)), "is float64"),
        ("of texts", npy("(128,)", "<U1", bytes(512)), "is <U1"),
        ("of a terabyte", npy("(1099511627776,)"), "it is not an array"),
        ("of objects", npy("(1,)", "|O", b"x"), "it is not an array"),
        ("of columns", npy("(64, 2)", data=bytes(512), order="True"), "it is not an array"),
        ("longer than it says", npy("(128,)", data=bytes(520)), "it is not an array"),
        ("of a later version", b"\x93NUMPY\x09\0" + bytes(50), "it is not an array"),
        ("that is code", npy("__import__('os').abort()"), "it is not an array"),
        ("that is a pickle", b"\x80\x04K\x05.", "it is not an array"),
        ("that is empty", b"", "it is not an array"),
        ("not finite", npy("(128,)", data=struct.pack("<f", float("nan")) * 128), "not finite"),
    )
)
VECTORS = tuple(
    Bad(f"vectors {name}", "verify -m bad", f"golden.npz is damaged{says}", make=honest(GOLDEN, data))
    for name, data, says in (
        ("that are a bomb", archive("cases.npy", npy("(67108864,)", "|u1", bytes(64 << 20))), "$"),
        ("of a terabyte", archive("cases.npy", npy("(1099511627776,)")), ": it is not an array"),
        ("of a negative size", archive("cases.npy", npy("(-1,)")), ": it is not an array"),
        ("of objects", archive("cases.npy", npy("(1,)", "|O", b"x")), ": it is not an array"),
        ("of a text", archive("cases.npy", b"Hello"), ": it is not an array"),
        ("nested without end", archive("cases.npy", npy("(" * 100)), ": it is not an array"),
        ("without cases", npz(None, a=[1.0]), ": it is empty"),
        ("of no case", npz("[]"), ": it has no cases"),
        ("whose cases are a number", npz(5), ": cases is 5"),
        ("whose cases are an object", npz("{}"), ": cases is {}"),
        ("whose cases are numbers", npz("[1]"), r": cases\[0\] is not a JSON object"),
        ("whose cases are no JSON", npz("x"), ": line 1, column 1"),
        ("without a prompt", npz('[{"name": "text"}]'), r": cases\[0\].prompt is missing"),
        ("without ids", npz('[{"name": "a", "prompt": "b"}]'), ": a/prompt_ids is missing"),
        (
            "whose ids are floats",
            npz('[{"name": "a", "prompt": "b"}]', a__prompt_ids=[1.5]),
            ": a/prompt_ids is",
        ),
        (
            "whose image is a line",
            npz('[{"name": "a", "prompt": "b"}]', a__prompt_ids=[1], a__image0=np.zeros(3, "u1")),
            ": a/image0 is uint8 of 1",
        ),
    )
)
BACKBONES = tuple(
    Bad(f"language model {name}", "run Hi -m bad", f"llama.cpp cannot load .*{says}", make=gguf(old, new))
    for name, old, new, says in (
        ("of another kind", b"GGUF", b"GGML", "invalid magic"),
        ("of a later version", b"GGUF\x03", b"GGUF\x63", "version 99"),
        ("of version 1", b"GGUF\x03", b"GGUF\x01", "no longer supported"),
        ("in big-endian", b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "endian"),
        ("of another architecture", b"qwen2", b"qwenX", "architecture: 'qwenX'"),
        ("without its layers", b"qwen2.block_count", b"qwen2.block_cOunt", "qwen2.block_count"),
        ("without its width", b"qwen2.embedding_length", b"qwen2.embedding_lenGth", "embedding_length"),
        ("without its epsilon", b"norm_rms_epsilon", b"norm_rms_epsiLon", "norm_rms_epsilon"),
        ("without tokens", b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokEns", "vocab"),
        ("without merges", b"tokenizer.ggml.merges", b"tokenizer.ggml.mErges", "merges"),
        ("without a tensor", b"blk.0.attn_q.weight", b"blk.0.attn_Q.weight", "attn_q.weight' not found"),
        ("with a tensor twice", b"blk.1.attn_q.weight", b"blk.0.attn_q.weight", "duplicate tensor"),
        ("with bytes for a name", b"output_norm.weight", b"output_nor\xff.weight", "not found"),
    )
)

ROWS = (*MANIFESTS, *TEXTS, *PLACES, *NEWLINES, *VECTORS, *BACKBONES)
