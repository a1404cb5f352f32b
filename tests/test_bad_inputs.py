"""What a user can get wrong: each is one clear error, an exit status of 1 or 2, and nothing else happens."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onevision.cli import _run
from tests.bad import bundles, checkpoints, options, requests
from tests.bad.made import (
    EMPTY_PDF,
    GIF_BOMB,
    Bad,
    Place,
    as_is,
    bmp,
    bundle,
    checkpoint,
    config,
    cut,
    cut_image,
    file,
    flipped,
    folder,
    halved,
    honest,
    in_folder,
    lmms_lab,
    lost_shard,
    manifest,
    messages,
    no_tokenizer,
    other_checkpoint,
    pickles,
    pipe,
    png,
    still,
    template,
    two_pages,
)
from tests.runtime.media import encode_sound

PICTURES = (
    Bad("missing", "run Hi -i no.jpg -m {bundle}", "no.jpg does not exist"),
    Bad("a folder", "run Hi -i d -m {bundle}", "d is a folder", make=folder("d")),
    Bad("empty", "run Hi -i e.jpg -m {bundle}", r"e.jpg is empty \(0 bytes\)", make=file("e.jpg")),
    Bad("a text", "run Hi -i t.jpg -m {bundle}", "t.jpg is not an image", make=file("t.jpg", "Hello, world")),
    *(
        Bad(name, "run Hi -i x.jpg -m {bundle}", f"x.jpg {says}", make=file("x.jpg", data))
        for name, data, says in (
            ("a damaged PDF", "%PDF-1.7\n", "starts as a PDF document and is damaged"),
            ("a PDF of no pages", EMPTY_PDF, "starts as a PDF document and is damaged"),
            ("a damaged HEIC", b"\0\0\0\x18ftypheic" + bytes(99), "starts as a HEIC image and is damaged"),
            ("a damaged AVIF", b"\0\0\0\x18ftypavif" + bytes(99), "starts as an AVIF image and is damaged"),
            ("a Photoshop document", b"8BPS" + bytes(99), "is a Photoshop document, not an image"),
            ("a JPEG XL", b"\xff\x0a" + bytes(99), "is a JPEG XL file, not an image"),
            ("a JPEG XL container", b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL file, not an image"),
            ("a DICOM file", bytes(128) + b"DICM" + bytes(99), "is a DICOM file, not an image"),
            ("an OpenEXR file", b"\x76\x2f\x31\x01" + bytes(99), "is an OpenEXR file, not an image"),
            ("a Radiance file", b"#?RADIANCE\n" + bytes(99), "is a Radiance HDR file, not an image"),
            ("a raw photo", b"\0\0\0\x18ftypcrx " + bytes(99), "is a raw photo, not an image"),
            ("a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
            ("PostScript", "%!PS-Adobe-3.0\n", "is a PostScript document, not an image"),
            ("an SVG", "<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG or other XML document"),
            ("a gzip archive", b"\x1f\x8b" + bytes(99), "is a gzip archive, not an image"),
            ("an office document", b"PK\x03\x04" + bytes(99), "is a ZIP archive, not an image"),
            ("zeros", bytes(5000), "is not an image that can be read"),
            ("a data URI", "data:image/png;base64,iVBORw0KGgo=", "is not an image that can be read"),
            ("an error as JSON", '{"error": "not found"}', "is not an image that can be read"),
            ("an interlaced PNG cut off", png(64, 64, rows=7, interlaced=True), "is damaged or cut off"),
            ("a GIF of 4 gigapixels", GIF_BOMB, "is too large"),
            ("a BMP of 4 gigapixels", bmp(60_000), "is too large"),
        )
    ),
    *(
        Bad(
            f"a {form} cut off",
            "run Hi -i x -m {bundle}",
            "x is damaged or cut off",
            make=cut_image(form, "x"),
        )
        for form in ("WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PNG", "PPM")
    ),
    *(
        Bad(
            f"page {page}",
            f"run Hi -i {{photo}} --page '{page}' -m {{bundle}}",
            f"--page is '{page}', it must",
            2,
        )
        for page in ("0", "-1", "two", "2-1", "1,", "1-2-3", "")
    ),
    Bad("a page of a photo", "run Hi -i {photo} --page 2 -m {bundle}", "china.jpg has no page 2: it has 1"),
    Bad(
        "a page that is not there",
        "run Hi -i a.tif --page 1-3 -m {bundle}",
        "a.tif has no page 3: it has 2",
        make=two_pages("a.tif"),
    ),
    Bad(
        "a page of a plan",
        "plan a.tif --page 5 -m {bundle}",
        "a.tif has no page 5: it has 2",
        make=two_pages("a.tif"),
    ),
    Bad("stdin twice", "run Hi -i - -i - -m {bundle}", "stdin can be read once", 2),
    Bad("stdin for prompt and image", "run - -i - -m {bundle}", "stdin can be read once", 2),
    Bad("stdin in a conversation", "chat -i - -m {bundle}", "the questions come from stdin", 2),
    Bad("a device", "run Hi -i /dev/null -m {bundle}", "/dev/null is not a regular file"),
    Bad("a pipe", "run Hi -i p -m {bundle}", "p is not a regular file", make=pipe("p")),
    Bad(
        "a web page",
        "run Hi -i w.png -m {bundle}",
        "w.png is a web page",
        make=file("w.png", "<!DOCTYPE html>"),
    ),
    Bad(
        "a truncated JPEG",
        "run Hi -i c.jpg -m {bundle}",
        "c.jpg is cut off: [0-9]+ of [0-9]+ rows are there",
        make=cut("photo", "c.jpg", 0.3),
    ),
    Bad(
        "a JPEG of its first bytes",
        "run Hi -i c.jpg -m {bundle}",
        "damaged",
        make=cut("photo", "c.jpg", 0.001),
    ),
    Bad("of no pixels", "run Hi -i z.png -m {bundle}", "z.png", make=file("z.png", png(0, 0))),
    Bad(
        "a decompression bomb",
        "run Hi -i b.png -m {bundle}",
        "b.png is too large",
        make=file("b.png", png(60000, 60000, rows=0)),
    ),
    Bad("a video", "run Hi -i {clip} -m {bundle}", "is an MP4 video, not an image"),
    Bad("an address", "run Hi -i https://example.org/a.jpg -m {bundle}", "is an address, not a file"),
    Bad("an unreadable name", "run Hi -i \udcff.jpg -m {bundle}", "does not exist"),
    Bad("a name with a null byte", "run Hi -i a\0b.jpg -m {bundle}", "is not a path"),
    Bad("a name that is too long", f"run Hi -i {'a' * 5000}.jpg -m {{bundle}}", "is not a path"),
    Bad("an empty name", "run Hi -i '' -m {bundle}", "-i is empty", 2),
    Bad("the second of two", "run Hi -i {photo} -i no.jpg -m {bundle}", "no.jpg does not exist"),
)

VIDEOS = (
    Bad("missing", "run Hi -v no.mp4 -m {bundle}", "no.mp4 does not exist"),
    Bad("an empty folder", "run Hi -v d -m {bundle}", "d is a folder without images", make=folder("d")),
    Bad(
        "a folder of folders",
        "run Hi -v d -m {bundle}",
        "d is a folder without images",
        make=folder("d/x"),
    ),
    Bad(
        "a folder of texts",
        "run Hi -v d -m {bundle}",
        "d is a folder without images",
        make=in_folder("a.txt"),
    ),
    Bad(
        "a folder of damaged frames",
        "run Hi -v d -m {bundle}",
        r"frame 1 of d: d.a\.png is empty",
        make=in_folder("a.png"),
    ),
    Bad(
        "the rate of a folder",
        "run Hi -v d --fps 2 -m {bundle}",
        "it is not known when the frames of d are shown",
        make=in_folder("a.png"),
    ),
    Bad(
        "a still WebP",
        "run Hi -v a.webp -m {bundle}",
        "a.webp is a WebP image, not a video",
        make=still("a.webp"),
    ),
    Bad(
        "a still PNG", "run Hi -v a.png -m {bundle}", "a.png is a PNG image, not a video", make=still("a.png")
    ),
    Bad("the rate of a picture", "run Hi -v {photo} --fps 1 -m {bundle}", "is a JPEG image, not a video"),
    Bad(
        "a document",
        "run Hi -v a.pdf -m {bundle}",
        "a.pdf is a PDF document, not a video",
        make=two_pages("a.pdf"),
    ),
    Bad(
        "pages", "run Hi -v a.tif -m {bundle}", "a.tif is a TIFF image, not a video", make=two_pages("a.tif")
    ),
    Bad(
        "a damaged animation",
        "run Hi -v a.webp -m {bundle}",
        "a.webp",
        make=file("a.webp", b"RIFF\x20\0\0\0WEBPVP8X" + bytes(20)),
    ),
    Bad("the second of two", "run Hi -v {clip} -v no.mp4 -m {bundle}", "no.mp4 does not exist"),
    Bad("stdin", "run Hi -v - -m {bundle}", "- does not exist"),
    Bad("a device", "run Hi -v /dev/null -m {bundle}", "/dev/null is not a regular file"),
    Bad("empty", "run Hi -v e.mp4 -m {bundle}", "e.mp4 is empty", make=file("e.mp4")),
    Bad("a text", "run Hi -v t.mp4 -m {bundle}", "t.mp4 is not a video", make=file("t.mp4", "Hello, world")),
    Bad("a picture", "run Hi -v {photo} -m {bundle}", "is a JPEG image, not a video"),
    Bad(
        "sound alone",
        "run Hi -v s.m4a -m {bundle}",
        "has sound and no video",
        make=lambda place: encode_sound(place.cwd / "s.m4a"),
    ),
    Bad("cut off early", "run Hi -v c.mp4 -m {bundle}", "c.mp4", make=cut("clip", "c.mp4", 0.1)),
    Bad(
        "no frames in it",
        "run Hi -v n.y4m -m {bundle}",
        "no frame of n.y4m can be decoded",
        make=file("n.y4m", "YUV4MPEG2 W16 H16 F10:1\n"),
    ),
    Bad("from after its end", "run Hi -v {clip} --from 1:00 -m {bundle}", "wanted from 60 s on"),
    Bad("a part after its end", "plan {clip} --from 0:09:00 --to 600", "wanted from 540 s on"),
    Bad("an address", "run Hi -v rtsp://example.org/cam -m {bundle}", "is an address, not a file"),
    Bad("no tiles wanted", "run Hi -i {photo} --max-tiles 0 -m {bundle}", "max-tiles is 0", 2),
    Bad(
        "no such detail",
        "run Hi -i {photo} --detail most -m {bundle}",
        "--detail is 'most', it must be one of low, auto, high",
        2,
    ),
    Bad("two budgets", "run Hi -i {photo} --detail high --max-tiles 3 -m {bundle}", "exclude each other", 2),
    Bad("no such distance", "run Hi -v {clip} --dedup -1 -m {bundle}", "dedup is -1.0", 2),
    Bad("no time", "run Hi -i {photo} --ttft-target 0s -m {bundle}", "--ttft-target is '0s'", 2),
    Bad(
        "a time of no unit", "run Hi -i {photo} --ttft-target 5min -m {bundle}", "--ttft-target is '5min'", 2
    ),
    Bad("a speed not measured", "run Hi -i {photo} --ttft-target 5s -m {bundle}", "was not measured yet", 2),
    Bad(
        "no frames a second",
        "run Hi -v {clip} --fps 0 -m {bundle}",
        "--fps is 0.0, it must be more than 0",
        2,
    ),
    Bad("fewer than none", "run Hi -v {clip} --fps -1 -m {bundle}", "--fps is -1.0", 2),
    Bad("fps is no number", "run Hi -v {clip} --fps nan -m {bundle}", "--fps is nan", 2),
    Bad("fps without end", "run Hi -v {clip} --fps inf -m {bundle}", "--fps is inf", 2),
    Bad("fps in words", "run Hi -v {clip} --fps many -m {bundle}", "--fps is 'many', it must be a number", 2),
    Bad(
        "from in words",
        "run Hi -v {clip} --from start -m {bundle}",
        "--from is 'start', it must be a time",
        2,
    ),
    Bad("from before the start", "run Hi -v {clip} --from -1 -m {bundle}", "--from is '-1'", 2),
    Bad("75 seconds in a minute", "run Hi -v {clip} --to 1:75 -m {bundle}", "--to is '1:75'", 2),
    Bad("to is no number", "run Hi -v {clip} --to nan -m {bundle}", "--to is 'nan'", 2),
    Bad(
        "from after to",
        "run Hi -v {clip} --from 3 --to 0:02 -m {bundle}",
        "--from is 3 s, after --to, 2 s",
        2,
    ),
    Bad("no such spread", "run Hi -v {clip} --by index -m {bundle}", "--by is 'index'", 2),
    Bad("no frames wanted", "run Hi -v {clip} --frames 0 -m {bundle}", "frames is 0", 2),
)

USER = {"role": "user", "content": "Hello"}
PICTURE = {"type": "image", "image": "a.jpg"}

PROMPTS = (
    Bad("none", "run -m {bundle}", "there is no prompt", 2),
    Bad("empty", "run '' -m {bundle}", "the prompt is empty"),
    Bad("blank", "run '  \t\n' -m {bundle}", "the prompt is empty"),
    Bad("not Unicode", "run 'Hi \udcff' -m {bundle}", "the text is not valid Unicode"),
    Bad("system prompt not Unicode", "run Hi --system \udcff -m {bundle}", "the text is not valid Unicode"),
    Bad("two", "run Hi there -m {bundle}", "unexpected extra argument", 2),
    Bad("messages missing", "run --messages no.json -m {bundle}", "cannot read no.json: No such file"),
    Bad("messages a folder", "run --messages d -m {bundle}", "cannot read d", make=folder("d")),
    Bad(
        "messages not JSON", "run --messages m.json -m {bundle}", "not valid JSON", make=file("m.json", "[{")
    ),
    Bad(
        "messages binary",
        "run --messages m.json -m {bundle}",
        "not valid JSON",
        make=file("m.json", b"\xff\xfe\0"),
    ),
    Bad(
        "messages nested without end",
        "run --messages m.json -m {bundle}",
        "not valid JSON",
        make=file("m.json", "[" * 100_000),
    ),
    Bad(
        "messages an object",
        "run --messages m.json -m {bundle}",
        "has no messages",
        make=file("m.json", "{}"),
    ),
    Bad("messages empty", "run --messages m.json -m {bundle}", "messages is empty", make=messages()),
    Bad("message a string", "run --messages m.json -m {bundle}", "is not an object", make=messages("Hello")),
    Bad(
        "unknown role",
        "run --messages m.json -m {bundle}",
        "has the role 'robot'",
        make=messages({"role": "robot", "content": "Hello"}),
    ),
    Bad("no content", "run --messages m.json -m {bundle}", "has no content", make=messages({"role": "user"})),
    Bad(
        "unknown part",
        "run --messages m.json -m {bundle}",
        "has the type 'sound'",
        make=messages({"role": "user", "content": [{"type": "sound", "sound": "a.wav"}]}),
    ),
    Bad(
        "text that is a number",
        "run --messages m.json -m {bundle}",
        "text must be a string",
        make=messages({"role": "user", "content": [{"type": "text", "text": 7}]}),
    ),
    Bad(
        "picture that is an object",
        "run --messages m.json -m {bundle}",
        "cannot be read from a value of type dict",
        make=messages({"role": "user", "content": [{"type": "image", "image": {"url": "a.jpg"}}]}),
    ),
    Bad(
        "frames that are no images",
        "run --messages m.json -m {bundle}",
        "frame 1 of the list: an image cannot be read from a value of type int",
        make=messages({"role": "user", "content": [{"type": "video", "video": [1, 2]}]}),
    ),
    Bad(
        "no frames",
        "run --messages m.json -m {bundle}",
        "the list of frames is empty",
        make=messages({"role": "user", "content": [{"type": "video", "video": []}]}),
    ),
    *(
        Bad(
            f"page {page}",
            "run --messages m.json -m {bundle}",
            "has the page",
            make=messages({"role": "user", "content": [{**PICTURE, "page": page}]}),
        )
        for page in (0, -1, "1", 1.5, True)
    ),
    Bad(
        "the page of a video",
        "run --messages m.json -m {bundle}",
        "unknown key 'page'",
        make=messages({"role": "user", "content": [{"type": "video", "video": "a.mp4", "page": 1}]}),
    ),
    Bad(
        "the assistant's picture",
        "run --messages m.json -m {bundle}",
        "only user messages can",
        make=messages(USER, {"role": "assistant", "content": [PICTURE]}, USER),
    ),
    Bad(
        "the assistant's last word",
        "run --messages m.json -m {bundle}",
        "the last message must be the user's",
        make=messages(USER, {"role": "assistant", "content": "Yes"}),
    ),
    Bad(
        "a late system message",
        "run --messages m.json -m {bundle}",
        "only the first can be",
        make=messages(USER, {"role": "system", "content": "Be brief"}, USER),
    ),
    Bad(
        "messages and an empty prompt",
        "run ' ' --messages m.json -m {bundle}",
        "the prompt is empty",
        make=messages(USER),
    ),
    Bad(
        "messages and a picture",
        "run --messages m.json -i a.jpg -m {bundle}",
        "--image and --video beside --messages need a prompt",
        2,
        messages(USER),
    ),
    Bad(
        "too long",
        "run --messages m.json -m {bundle}",
        "the prompt needs [0-9,]+ tokens, the model has 32,768",
        make=messages({"role": "user", "content": "0123456789" * 5_000}),
    ),
)

OPTIONS = (
    *(
        Bad(f"{option} {value}", f"run Hi {option}={value} -m {{bundle}}", says, 2)
        for option, value, says in (
            ("--max-tokens", "0", "max-tokens is 0, it must be 1 or more"),
            ("--max-tokens", "many", "--max-tokens is 'many', it must be a whole number"),
            ("--temperature", "-1", "temperature is -1.0"),
            ("--temperature", "nan", "temperature is nan"),
            ("--temperature", "inf", "temperature is inf"),
            ("--temperature", "warm", "--temperature is 'warm', it must be a number"),
            ("--top-k", "-1", "top-k is -1"),
            ("--top-k", "1.5", "--top-k is '1.5', it must be a whole number"),
            ("--top-p", "0", "top-p is 0.0"),
            ("--top-p", "1.1", "top-p is 1.1"),
            ("--min-p", "-0.1", "min-p is -0.1"),
            ("--min-p", "2", "min-p is 2.0"),
            ("--repetition-penalty", "0", "repetition-penalty is 0.0"),
            ("--seed", "-1", "seed is -1"),
            ("--seed", "4294967296", "seed is 4294967296"),
            ("--frames", "-3", "frames is -3"),
            ("--stop", "", "a --stop string is empty"),
            ("--template", "alpaca", "--template is 'alpaca', it must be one of training, hf"),
            ("--device", "tpu", "--device is 'tpu'"),
            ("--threads", "0", "--threads is 0, it must be "),
            ("--threads", "100000", "--threads is 100000, it must be "),
            ("--threads", "two", "--threads is 'two', it must be a whole number"),
        )
    ),
    *(
        Bad(f"form: {flags}", f"run Hi {flags} -m {{bundle}}", says, 2, make)
        for flags, says, make in (
            ("--regex 'a('", "--regex: unclosed group", file("x")),
            ("--grammar 'start: x'", '--grammar: line 1, column 8: unknown name: "x"', file("x")),
            ("--choices yes", "--choices has one choice", file("x")),
            ("--choices yes,yes", "--choices has 'yes' twice", file("x")),
            ("--choices yes,", "--choices has '', each must be a text", file("x")),
            ("--choices yes,no --regex a", "--regex and --choices exclude each other", file("x")),
            ("--letters", "--letters are for --choices", file("x")),
            ("--logprobs", "--logprobs need --json", file("x")),
            ("--top-logprobs 3", "--top-logprobs needs --logprobs", file("x")),
            ("--json-schema s.json", "cannot read the --json-schema 's.json'", file("x")),
            (
                "--json-schema s.json",
                "--json-schema is not valid JSON: .* line 1 column 10",
                file("s.json", '{"type": '),
            ),
            ("--json-schema s.json", "has the keyword 'not' at #", file("s.json", '{"not": {}}')),
            ("--json-schema s.json", "refers to 'http://a.b'", file("s.json", '{"$ref": "http://a.b"}')),
            ("--json-schema s.json", "s.json is not UTF-8", file("s.json", b"\xff")),
        )
    ),
    Bad(
        "a request for several answers of a schema",
        "run --messages m.json -m {bundle}",
        "unknown key 'n'",
        make=file("m.json", json.dumps({"messages": [USER], "format": "json", "n": 4})),
    ),
    Bad("no template of its own", "run Hi --template own -m {bundle}", "has no chat template of its own", 2),
    Bad("no such option", "run Hi --frobnicate -m {bundle}", "no such option: --frobnicate", 2),
    Bad("an option without its value", "run Hi -m {bundle} --seed", "requires an argument", 2),
    Bad("no such command", "frobnicate", "no such command 'frobnicate'", 2),
    Bad("no such option of all", "--frobnicate", "no such option: --frobnicate", 2),
)

FILES = (
    "vision.onnx",
    "vision.onnx.data",
    "backbone.gguf",
    "image_newline.npy",
    "golden.npz",
    "README.md",
)
MANIFEST = "onevision.json"


BUNDLES = (
    Bad(
        "more frames than its context holds",
        "run Hi -v {clip} --frames 24 -m bad",
        "24 frames of .* are too many: the model's context holds 1",
        make=manifest(backbone__context_length=99),
    ),
    Bad("missing", "run Hi -m no", "no bundle at no: there is no such folder"),
    Bad("a file", "run Hi -m {photo}", "is a file, not a bundle folder"),
    Bad("a checkpoint", "run Hi -m {checkpoint}", "is not a bundle"),
    Bad("an empty folder", "run Hi -m d", "d is not a bundle", make=folder("d")),
    Bad("manifest a folder", "run Hi -m d", "cannot read d", make=folder("d/onevision.json")),
    *(
        Bad(name, "run Hi -m bad", says, make=make)
        for name, says, make in (
            ("manifest truncated", "is not valid JSON", bundle(MANIFEST, halved)),
            ("manifest binary", "it is not UTF-8 text", bundle(MANIFEST, as_is(b"\xff\xfe"))),
            ("manifest a list", "is not a bundle manifest", bundle(MANIFEST, as_is(b"[]"))),
            ("manifest nested without end", "is not valid JSON", bundle(MANIFEST, as_is(b"[" * 100_000))),
            ("newer schema", "has schema version 99", manifest(schema_version=99)),
            ("schema a text", "has no schema_version", manifest(schema_version="1")),
            ("no means", "vision.mean is missing", manifest(vision__mean=...)),
            (
                "a text for a number",
                "backbone.hidden is '896', expected int",
                manifest(backbone__hidden="896"),
            ),
            ("null for a section", "video is not a JSON object", manifest(video=None)),
            ("no files", "lists no vision.onnx", manifest(files={})),
            ("another width", r"is float32 \[128\], not float32 \[64\]", manifest(backbone__hidden=64)),
            ("no GGUF", "llama.cpp cannot load", honest("backbone.gguf", b"no GGUF at all")),
            ("an empty GGUF", "llama.cpp cannot load", honest("backbone.gguf", b"")),
            ("no newline", "cannot read bad/image_newline.npy", honest("image_newline.npy", b"no array")),
        )
    ),
    *(
        Bad(f"{name}, {command.split()[0]}", command, says, make=manifest(**changes))
        for command in ("run Hi -m bad", "inspect bad")
        for name, says, changes in (
            ("no grids", "the list of grids is empty", {"vision__grid_pinpoints": []}),
            ("parts of tiles", "56x57 is not made of tiles", {"vision__grid_pinpoints": [[56, 57]]}),
            ("an unknown cut", "the aspect ratio 'wild'", {"vision__aspect_ratio": "wild"}),
        )
    ),
    Bad(
        "an unknown prompt format",
        "run Hi -m bad",
        "prompt format 'wild'",
        make=manifest(prompt__template="wild"),
    ),
    *(
        Bad(name, "inspect bad", "onevision.json has impossible sizes", make=manifest(**changes))
        for name, changes in (
            ("another tile", {"vision__image_size": 28}),
            ("no tile", {"vision__image_size": 0}),
            ("a negative tile", {"vision__image_size": -56}),
            ("no patch", {"vision__patch_size": 0}),
            ("a patch larger than a tile", {"vision__patch_size": 57}),
            ("two colours", {"vision__mean": [0.5, 0.5]}),
            ("no deviation", {"vision__std": [0.5, 0.5, 0.0]}),
            ("no heads", {"backbone__heads": 0}),
            ("no frames", {"video__frames": 0}),
            ("another pooling", {"video__pooled_side": 99}),
        )
    ),
    Bad("no ONNX", "run Hi -i {photo} -m bad", "not an ONNX", make=honest("vision.onnx", b"no ONNX at all")),
    *(
        Bad(f"{name} {how}", f"run Hi -m bad{check}", f"{name} {says}", make=bundle(name, damage))
        for name in FILES
        for how, check, says, damage in (
            ("missing", "", "is missing", None),
            ("truncated", "", "has [0-9,]+ bytes", halved),
            ("flipped", " --check", "has changed", flipped),
        )
    ),
)

WEIGHTS = "model.safetensors"


def diary(place: Place) -> None:
    """A copy of the bundle, with something of the user's in its folder."""
    (shutil.copytree(place.bundle, place.cwd / "bad") / "diary").touch()


EXPORT = (
    Bad("no such folder", "export --source ./no", "there is no folder ./no"),
    Bad("no Hub id", "export --source a/b/c", "there is no folder a/b/c"),
    Bad("no possible Hub id", "export --source 'a b/c?'", "neither a folder nor a Hub id"),
    Bad("a file", "export --source {photo}", "is a file"),
    Bad("an empty folder", "export --source d", "d is empty", make=folder("d")),
    Bad("unknown size", "export --size 3b", "--size is '3b', it must be one of tiny, 0.5b, 7b, 72b", 2),
    Bad("tiny of one stage less", "export --size tiny --variant si", "no size tiny, variant si", 2),
    Bad(
        "a chat model that is not there", "export --size 0.5b --variant chat", "no size 0.5b, variant chat", 2
    ),
    Bad("a video model that is not there", "export --size 0.5b --variant video", "variant video", 2),
    Bad("unknown variant", "export --size 7b --variant xl", "--variant is 'xl', it must be one of ov, si", 2),
    *(
        Bad(name, f"export --source {{checkpoint}} {more}", says, 2, make)
        for name, more, says, make in (
            ("size and source", "--size 7b", "not both", folder()),
            ("variant of a source", "--variant si", "--variant is for a --size", folder()),
            ("revision of a folder", "--revision main", "only the Hub has revisions", folder()),
            ("unknown vision precision", "--vision int3", "--vision is 'int3'", folder()),
            ("unknown backbone precision", "--backbone q9", "--backbone is 'q9'", folder()),
            ("unknown prompt format", "--template chatml", "--template is 'chatml'", folder()),
            ("tower of a config that has one", "--vision-tower x", "--vision-tower is for", folder()),
            ("target exists", "-o d", "d exists", folder("d/diary")),
            ("target is a file", "-o f", "f exists and is not a folder", file("f", "x")),
            ("target below a file", "-o f/g/h", "cannot make the folder", file("f", "x")),
            ("--force on other files", "--force -o d", "d is not a bundle", folder("d/diary")),
            ("--force on more", "--force -o bad", "do not belong to a bundle.*: diary", diary),
        )
    ),
    *(
        Bad(name, "export --source ck", says, make=make)
        for name, says, make in (
            ("pickles alone", "only as pickles", pickles),
            ("weights missing", "has no weights", checkpoint(WEIGHTS)),
            ("weights truncated", "truncated or corrupt", checkpoint(WEIGHTS, halved)),
            ("weights garbage", "truncated or corrupt", checkpoint(WEIGHTS, as_is(b"x" * 99))),
            ("weights empty", "truncated or corrupt", checkpoint(WEIGHTS, as_is(b""))),
            (
                "weights not fetched",
                "a Git LFS pointer",
                checkpoint(WEIGHTS, as_is(b"version https://git-lfs")),
            ),
            ("a shard missing", "lacks model-00002-of-00002.safetensors", lost_shard),
            ("config missing", "ck has no config.json", checkpoint("config.json")),
            ("config not JSON", "is not valid JSON", checkpoint("config.json", halved)),
            ("config a list", "is not a JSON object", checkpoint("config.json", as_is(b"[]"))),
            ("another architecture", 'model_type is "llama"', config(model_type="llama")),
            ("another tower", "model_type is", config(vision_config__model_type="clip_vision_model")),
            ("another activation", "hidden_act", config(text_config__hidden_act="relu")),
            ("another projector", "projector_hidden_act", config(projector_hidden_act="silu")),
            ("rope scaling", "rope_scaling.*yarn", config(text_config__rope_scaling={"type": "yarn"})),
            ("a sliding window", "use_sliding_window", config(text_config__use_sliding_window=True)),
            ("quantised", "quantization_config", config(quantization_config={"bits": 4})),
            ("layers that are not there", "missing: ", config(text_config__num_hidden_layers=3)),
            ("tensors that are too many", "unexpected: ", config(text_config__num_hidden_layers=1)),
            ("tensors of another shape", "of the wrong shape", config(text_config__vocab_size=900)),
            ("a number that is a text", "hidden_size", config(text_config__hidden_size="128")),
            ("tokenizer missing", "tokenizer", no_tokenizer),
            ("tokenizer damaged", "is not valid JSON", checkpoint("tokenizer.json", halved)),
            ("tokenizer empty", "tokenizer.json", checkpoint("tokenizer.json", as_is(b"{}"))),
            ("a template that is none", "TemplateSyntaxError", template("{% if %}")),
            ("a template that refuses", "no images", template("{{ raise_exception('no images') }}")),
            (
                "a template without images",
                "does not place <image>",
                template("{{ messages[0].content[1].text }}"),
            ),
            ("a template without texts", "leaves out a text", template("<image>")),
            ("a template with another type", "TypeError", template("{{ messages + 1 }}")),
            (
                "a template that reads a file",
                "TemplateError|TypeError",
                template("{% include '/etc/passwd' %}"),
            ),
            (
                "a template that breaks out",
                "SecurityError",
                template("{{ messages.__class__.__base__.__subclasses__() }}"),
            ),
            ("a template not in UTF-8", "cannot read .*chat_template.jinja", template(b"\xff\xfe")),
            ("templates not JSON", "not valid JSON", template("{", "chat_template.json")),
            (
                "a template that is a number",
                "must be a text",
                template('{"chat_template": 7}', "chat_template.json"),
            ),
            ("newlines somewhere else", "mm_newline_position is .row.", lmms_lab(mm_newline_position="row")),
            ("another pooling", "mm_spatial_pool_mode is .median.", lmms_lab(mm_spatial_pool_mode="median")),
            ("a faster video", "add_faster_video is true", lmms_lab(add_faster_video=True)),
            ("a flag that is a text", "add_time_instruction is .yes.", lmms_lab(add_time_instruction="yes")),
            ("a trainer's path", "no published SigLIP tower", lmms_lab(mm_vision_tower="/mnt/bn/tower")),
            (
                "a tower of no fixed size",
                "no published SigLIP tower",
                lmms_lab(mm_vision_tower="google/siglip2-so400m-patch16-naflex"),
            ),
            (
                "a tower of another width",
                "mm_hidden_size is 64",
                lmms_lab(mm_vision_tower="x/siglip-so400m-patch14-384"),
            ),
            (
                "other pixels",
                "image_mean",
                checkpoint("preprocessor_config.json", as_is(b'{"image_mean": 0}')),
            ),
        )
    ),
)

VERIFY = (
    Bad("picture without reference", "verify -i {photo} -m {bundle}", "need --reference", 2),
    Bad("question without reference", "verify --prompt Hi -m {bundle}", "need --reference", 2),
    Bad("vectors missing", "verify -m bad", "golden.npz is missing", make=bundle("golden.npz")),
    Bad("no vectors", "verify -m bad", "golden.npz is damaged", make=honest("golden.npz", b"no archive")),
    Bad("reference missing", "verify -m {bundle} --reference no", "there is no folder no"),
    Bad("reference a file", "verify -m {bundle} --reference {photo}", "is a file, not the folder"),
    Bad("reference a bundle", "verify -m {bundle} --reference {bundle}", "has no config.json"),
    Bad(
        "reference and no picture",
        "verify -m {bundle} --reference {checkpoint} -i no.jpg",
        "no.jpg does not exist",
    ),
    Bad(
        "reference of another width",
        "verify -m {bundle} --reference other",
        "hidden size 64, the bundle 128",
        make=other_checkpoint(hidden=64, heads=2, kv_heads=1),
    ),
    Bad(
        "reference of other tiles",
        "verify -m {bundle} --reference other",
        "tiles of 42, the bundle 56",
        make=other_checkpoint(image_size=42),
    ),
    Bad(
        "reference of another vocabulary",
        "verify -m {bundle} --reference other",
        "a vocabulary of 1,000, the bundle 768",
        make=other_checkpoint(vocab=1000),
    ),
    Bad("unknown device", "verify -m {bundle} --device tpu", "--device is 'tpu'", 2),
)

SYNTH = (
    Bad("no folder", "synth", "missing argument", 2),
    Bad("folder not empty", "synth d", "d exists and is not an empty folder", 2, folder("d/diary")),
    Bad("folder a file", "synth f", "f exists", 2, file("f", "x")),
    Bad("heads that do not divide", "synth --hidden 130 --heads 4 ck", "hidden must divide by heads", 2),
    Bad("kv heads that do not divide", "synth --heads 4 --kv-heads 3 ck", "heads must divide by kv-heads", 2),
    Bad("no layers", "synth --layers 0 ck", "must be positive", 2),
    Bad(
        "layers without end",
        "synth --layers 1000000000 ck",
        "--layers is 1000000000, it must be at most 1000",
        2,
    ),
    Bad("a patch larger than a tile", "synth --image-size 7 ck", "patch-size must not exceed image-size", 2),
    Bad("a vocabulary too small", "synth --vocab 10 ck", "vocab must be at least", 2),
    Bad("more than the disk", "synth --hidden 4000000 ck", "not enough disk space"),
    Bad("unknown size", "synth --size 72b ck", "--size is '72b'", 2),
    Bad("unknown naming", "synth --naming mlx ck", "--naming is 'mlx'", 2),
    Bad("unknown type", "synth --dtype int4 ck", "--dtype is 'int4'", 2),
    Bad("unknown cut", "synth --aspect-ratio square ck", "aspect-ratio", 2),
)

PLAN = (
    Bad("no such file", "plan no.jpg", "no.jpg does not exist"),
    Bad("a text", "plan t.jpg", "t.jpg is not an image", make=file("t.jpg", "Hello, world")),
    Bad("a cut video", "plan c.mp4", "c.mp4", make=cut("clip", "c.mp4", 0.1)),
    Bad("no size", "plan --image-size big", "--image-size is 'big'", 2),
    Bad("a size of nothing", "plan --image-size 0x480", "--image-size is '0x480'", 2),
    Bad("a size too large", "plan --image-size 1234567x480", "--image-size is '1234567x480'", 2),
    Bad("no frames", "plan {clip} --frames 0", "--frames is 0, it must be 1 or more", 2),
    Bad("unknown model", "plan {photo} --size 3b", "--size is '3b'", 2),
    Bad("two budgets", "plan {photo} --detail low --max-tiles 3", "exclude each other", 2),
    Bad("a speed not measured", "plan {photo} --ttft-target 5s -m {bundle}", "was not measured yet", 2),
    Bad("the speed of no bundle", "plan {photo} --ttft-target 5s --size 7b", "needs a bundle", 2),
    Bad("no prefill graph", "plan {photo} -m {bundle} --prefill onnx", "has no prefill graph", 2),
    Bad("bundle missing", "plan {photo} -m no", "no bundle at no"),
    Bad(
        "bundle with no GGUF",
        "plan -m bad",
        "llama.cpp cannot load",
        make=honest("backbone.gguf", b"no GGUF"),
    ),
)

INSPECT = (
    Bad("bundle missing", "inspect no", "no bundle at no"),
    Bad("a checkpoint", "inspect {checkpoint}", "is not a bundle"),
    Bad(
        "a file changed",
        "inspect bad --check",
        "vision.onnx has changed",
        make=bundle("vision.onnx", flipped),
    ),
    Bad("two bundles", "inspect {bundle} {bundle}", "unexpected extra argument", 2),
)

DEMO = (
    Bad("somebody's folder", "demo -o d -m {bundle}", "no demo's, such as diary", 2, folder("d/diary")),
    Bad(
        "the working folder", "demo -o . -m {bundle}", "no demo's, such as index.html", 2, file("index.html")
    ),
    Bad("a file", "demo -o {photo} -m {bundle}", "exists and is not a folder", 2),
    Bad("bundle missing", "demo -m no", "no bundle at no"),
)

CACHE = (
    Bad("no such folder", "cache list --cache no", "there is no cache no", 2),
    Bad("nothing to clear there", "cache clear --cache no", "there is no cache no", 2),
    Bad("a file", "cache clear --cache {photo}", "is not a folder", 2),
    Bad("a negative age", "cache clear --older-than -1", "--older-than is -1, it must be 0", 2),
    Bad("an age of nothing", "cache clear --older-than nan", "--older-than is nan, it must be 0", 2),
    Bad("an age in words", "cache clear --older-than week", "--older-than is 'week'", 2),
    Bad("no such command", "cache purge", "purge", 2),
)

MODELS = (
    Bad("a size and a bundle", "plan --size 0.5b -m {bundle}", "--size and -m exclude each other", 2),
    Bad("a size with a typo", "run Hi -m 0.6b", "there is no size '0.6b'", 2),
    Bad("a size that is not published", "run Hi -m 13b", "there is no size '13b'", 2),
    Bad("an unknown variant", "chat -m 7b-xl", "there is no size '7b-xl'", 2),
    Bad("a variant of the tiny model", "run Hi -m tiny-si", "no bundle at tiny-si"),
    Bad("a path that no Hub id is", "verify -m a/b/c", "no bundle at a/b/c"),
    Bad("a Hub's address", "run Hi -m https://huggingface.co/someone/thing", "no bundle at https://"),
    Bad("a folder that is not there", "eval -m ./0.5b", "no bundle at ./0.5b"),
    Bad("a folder in a folder that is", "plan -m d/llava", "no bundle at d/llava", make=folder("d")),
    Bad("a parent's folder", "run Hi -m ../llava", "no bundle at ../llava"),
    Bad("an empty name", "inspect -m ''", "no bundle at"),
    Bad("a name with a line break", "run Hi -m 'a\nb'", "no bundle at"),
    Bad("a name that is too long", f"run Hi -m {'x' * 5000}", "no bundle at xxx"),
    Bad("an unknown size for quant", "quant apply 0.6b out", "there is no size '0.6b'", 2),
    Bad("an unknown bundle for bench", "bench -m nowhere", "no bundle at nowhere"),
    Bad("nothing to remove", "rm", "missing argument", 2),
    Bad("to remove what is not there", "rm 0.5b --yes", "no bundle '0.5b' in the cache"),
    Bad("to remove a folder", "rm {bundle} --yes", "no bundle .* in the cache"),
    Bad("to remove by a path", "rm ../models --yes", "no bundle '../models' in the cache"),
    Bad("an argument of list", "list 0.5b", "unexpected extra argument", 2),
)

GROUPS = {
    "model": MODELS,
    "picture": PICTURES,
    "video": VIDEOS,
    "prompt": PROMPTS,
    "option": OPTIONS,
    "bundle": BUNDLES,
    "export": EXPORT,
    "verify": VERIFY,
    "synth": SYNTH,
    "plan": PLAN,
    "inspect": INSPECT,
    "demo": DEMO,
    "request": requests.ROWS,
    "value": options.ROWS,
    "honest bundle": bundles.ROWS,
    "checkpoint": checkpoints.ROWS,
    "cache": CACHE,
}
KINDS = [pytest.param(bad, id=f"{group}: {bad.name}") for group, table in GROUPS.items() for bad in table]


@pytest.fixture
def place(
    tmp_path: Path,
    toy_bundle: Path,
    toy_checkpoint: Path,
    photo: Path,
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    """A working folder of its own, and an environment that says nothing."""
    for name in ("ONEVISION_MODEL", "ONEVISION_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    cwd = tmp_path / "here"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    return Place(cwd, toy_bundle, toy_checkpoint, photo, clip)


def arguments(command: str, place: Place) -> list[str]:
    """A command of the tables, with the good inputs filled in."""
    known = {name: str(path) for name, path in vars(place).items()}
    return [re.sub(r"\{(\w+)\}", lambda match: known[match[1]], word) for word in shlex.split(command)]


def listing(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of everything below some folders."""
    found = [path for root in folders for path in root.rglob("*")]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found if path.is_file()} | {
        path: (-1, -1) for path in found if path.is_dir()
    }


def check_error(status: int, out: str, err: str, *, says: str, expected: int, steps: bool = False) -> None:
    """The error comes alone: no output, no traceback, and a hint at most; ``steps`` may have ended before."""
    assert "Traceback" not in err, err
    assert out == ""
    lines = [line for line in err.splitlines() if not (steps and line.startswith(("✓ ", "  ")))]
    assert lines, "nothing was said"
    assert lines[0].startswith("error: "), err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), err
    assert re.search(says, lines[0]), err
    assert not any(line.endswith((".", ": ", ":")) for line in lines), err
    assert status == expected, err


@pytest.mark.parametrize("bad", KINDS)
def test_bad_input(bad: Bad, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    bad.make(place)
    watched = (place.cwd, place.bundle, place.checkpoint)
    before = listing(*watched)
    capfd.readouterr()
    status = _run(arguments(bad.command, place))
    out, err = capfd.readouterr()
    check_error(status, out, err, says=bad.says, expected=bad.status)
    assert listing(*watched) == before


# What no command line can say: the streams, the machine and the network.


@pytest.mark.parametrize(("data", "says"), [(b"", "prompt is empty"), (b"\x89PNG\r\n", "not UTF-8 text")])
def test_bad_stdin(
    data: bytes,
    says: str,
    place: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    capfd.readouterr()
    status = _run(["run", "-", "-m", str(place.bundle)])
    check_error(status, *capfd.readouterr(), says=says, expected=1)


@pytest.mark.parametrize(
    ("data", "says", "expected"),
    [
        (b"", "the image on stdin has 0 bytes", 1),
        (b"Hello", "the image of 5 bytes is not an image that can be read", 1),
        (None, "stdin is a terminal, not an image", 2),
    ],
)
def test_bad_image_on_stdin(
    data: bytes | None,
    says: str,
    expected: int,
    place: Place,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(data or b""))
    monkeypatch.setattr(stdin.buffer, "isatty", lambda: data is None, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    capfd.readouterr()
    status = _run(["run", "Hi", "-i", "-", "-m", str(place.bundle)])
    check_error(status, *capfd.readouterr(), says=says, expected=expected)


def test_cuda_that_is_not_there(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        pytest.skip("llama.cpp has a GPU here")
    capfd.readouterr()
    status = _run(["run", "Hi", "--device", "cuda", "-m", str(place.bundle)])
    check_error(status, *capfd.readouterr(), says="built without CUDA", expected=1)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("option", ["--image", "--video", "--messages"])
def test_file_of_somebody_else(option: str, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    secret = place.cwd / "secret"
    secret.write_bytes(b"secret")
    secret.chmod(0)
    question = [] if option == "--messages" else ["Hi"]
    capfd.readouterr()
    status = _run(["run", *question, option, str(secret), "-m", str(place.bundle)])
    check_error(status, *capfd.readouterr(), says="Permission denied", expected=1)


@pytest.mark.parametrize("command", ["export --source {checkpoint} -o b", "synth b"])
def test_disk_too_small(
    command: str, place: Place, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place.cwd)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    capfd.readouterr()
    status = _run(arguments(command, place))
    check_error(status, *capfd.readouterr(), says="not enough disk space", expected=1, steps=True)
    assert not listing(place.cwd)


def start(place: Place, *words: str, **environment: str) -> subprocess.Popen[str]:
    """A real process."""
    return subprocess.Popen(
        [sys.executable, "-m", "onevision", *words],
        cwd=place.cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Status as a shell tells it, and the rest of both streams."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    # Where the interrupt struck inside exec(), Python ends by the signal itself after all has been done.
    status = process.returncode
    return (128 - status if status < 0 else status), out, err


@pytest.mark.parametrize(
    ("command", "says", "expected"),
    [
        ("run Hi -i no.jpg -m {bundle}", "no.jpg does not exist", 1),
        ("export --size tiny --variant si", "no size tiny, variant si", 2),
        ("inspect {photo}", "is a file, not a bundle folder", 1),
        ("frobnicate", "no such command 'frobnicate'", 2),
    ],
)
def test_bad_input_of_a_process(command: str, says: str, expected: int, place: Place) -> None:
    status, out, err = finish(start(place, *arguments(command, place)))
    check_error(status, out, err, says=says, expected=expected)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set and someone/thing is not in the cache"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}, "the connection to .* failed"),
    ],
    ids=["offline", "unreachable"],
)
def test_no_hub(environment: dict[str, str], says: str, place: Place, tmp_path: Path) -> None:
    export = ("export", "--source", "someone/thing")
    status, out, err = finish(start(place, *export, HF_HOME=str(tmp_path / "home"), **environment))
    check_error(status, out, err, says=says, expected=1)
    assert not listing(place.cwd)


def test_disk_that_refuses(place: Place) -> None:
    resource = pytest.importorskip("resource")
    process = subprocess.run(
        [sys.executable, "-m", "onevision", "export", "--source", str(place.checkpoint), "-o", "b"],
        cwd=place.cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    check_error(
        process.returncode, process.stdout, process.stderr, says="cannot write", expected=1, steps=True
    )
    assert not listing(place.cwd)


# Ends that come from outside.

posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes at once")


@posix_signals
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_export_leaves_nothing(number: signal.Signals, expected: int, place: Place) -> None:
    process = start(place, "export", "--source", str(place.checkpoint), "-o", "b")
    while process.poll() is None and not list(place.cwd.glob(".b.*.partial/*")):
        time.sleep(0.01)
    process.send_signal(number)
    status, out, err = finish(process)
    assert (status, out) == (expected, "")
    assert "Traceback" not in err
    assert ("error: interrupted" in err) == (number == signal.SIGINT)
    assert not listing(place.cwd)


@posix_signals
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_answer(number: signal.Signals, expected: int, place: Place) -> None:
    process = start(place, "run", "Hi", "-m", str(place.bundle), "--max-tokens", "30000")
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == expected
    assert err == ("error: interrupted\n" if number == signal.SIGINT else "")


@posix_signals
@pytest.mark.parametrize("command", ["run Hi --max-tokens 30000 -m {bundle}", "inspect {bundle} --json"])
def test_reader_that_goes_away(command: str, place: Place) -> None:
    process = start(place, *arguments(command, place))
    assert process.stdout is not None
    if "run" in command:
        assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as stderr:
        assert stderr.read() == ""
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["run Hi --max-tokens 5 -m {bundle}", "inspect {bundle}", "plan --json"])
def test_output_that_cannot_be_written(command: str, place: Place) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        process = subprocess.run(
            [sys.executable, "-m", "onevision", *arguments(command, place)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    err = re.sub("warning: the machine is busy.*\n", "", process.stderr)
    check_error(process.returncode, "", err, says="No space left on device", expected=1)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
def test_streams_that_are_closed(place: Place) -> None:
    run = [sys.executable, "-m", "onevision", "run", "-", "-m", str(place.bundle)]
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *run], capture_output=True, text=True, check=False, timeout=60
    )
    check_error(process.returncode, process.stdout, process.stderr, says="the prompt is empty", expected=1)
