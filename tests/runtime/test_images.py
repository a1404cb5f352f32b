"""Anything that is called a picture becomes upright RGB, or a clear error."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onevision.errors import ImageError, InputError
from onevision.runtime import imagefile
from onevision.runtime.images import read_image
from onevision.runtime.kinds import identify
from tests.runtime.media import encode_sound, encode_video, noise, numbered_frames, photograph

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
PHOTO = photograph("flower").resize((120, 80))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(int(v) for v in pixel) for pixel in np.asarray(image).reshape(-1, 3)]


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    middle = b"".join(chunk(*c) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


LOSSLESS = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
}
LOSSY = {"jpeg": "JPEG", "webp": "WEBP", "jpeg2000": "JPEG2000", "mpo": "MPO"}


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_keep_every_pixel(form, tmp_path):
    name, options = LOSSLESS[form]
    data = encoded(PHOTO, name, **options)
    path = tmp_path / "picture"  # the name's suffix plays no part
    path.write_bytes(data)
    for source in (path, str(path), data):
        image = read_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(image, PHOTO)


@pytest.mark.parametrize("form", LOSSY)
def test_lossy_formats_look_alike(form):
    image = read_image(encoded(PHOTO, LOSSY[form], quality=95))
    assert image.mode == "RGB"
    assert image.size == PHOTO.size
    assert np.abs(np.asarray(image, float) - np.asarray(PHOTO)).mean() < 8


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert set(pixels(read_image(data))) == {RED}


def test_a_pil_image_and_an_array_are_taken_as_they_are():
    assert np.array_equal(read_image(PHOTO), PHOTO)
    assert np.array_equal(read_image(np.asarray(PHOTO)), PHOTO)
    flipped = np.asarray(PHOTO)[::-1, ::2]  # not contiguous
    assert np.array_equal(read_image(flipped), flipped)


def test_a_lazy_pil_image_is_left_open(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    with Image.open(path) as image:
        assert np.array_equal(read_image(image), PHOTO)
        assert image.size == PHOTO.size
        assert image.getpixel((0, 0)) == PHOTO.getpixel((0, 0))


@pytest.mark.parametrize("size", [(1, 1), (10_000, 50), (50, 10_000), (3, 65_535)])
@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_extreme_sizes(size, form):
    assert read_image(encoded(Image.new("RGB", size, RED), form)).size == size


# What each EXIF orientation does to a stored picture of 2×2 pixels: red green / blue white.
ORIENTATIONS = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_exif_orientation(orientation, form):
    stored = Image.new("RGB", (2, 2))
    stored.putdata([RED, GREEN, BLUE, WHITE])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert pixels(read_image(data)) == ORIENTATIONS[orientation]
    assert pixels(read_image(data, exif=False)) == [RED, GREEN, BLUE, WHITE]
    with Image.open(io.BytesIO(data)) as image:
        assert pixels(read_image(image)) == ORIENTATIONS[orientation]


def test_exif_orientation_of_a_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PHOTO, "JPEG", exif=exif)
    assert read_image(data).size == (80, 120)
    assert read_image(data, exif=False).size == (120, 80)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish rubbish"])
def test_a_broken_exif_block_does_not_spoil_the_picture(exif):
    assert read_image(encoded(PHOTO, "JPEG", exif=exif)).size == PHOTO.size


def rgba(*values: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint8))


def translucent_palette() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    return encoded(image, "PNG", transparency=b"\x00\xff")


ALPHA = {
    "RGBA": (rgba((*RED, 255), (*RED, 0), (0, 0, 0, 128)), [RED, WHITE, (127, 127, 127)]),
    "RGBA PNG": (encoded(rgba((*RED, 255), (*RED, 0)), "PNG"), [RED, WHITE]),
    "RGBA WebP": (encoded(rgba((*RED, 255), (*RED, 0)), "WEBP", lossless=True), [RED, WHITE]),
    "LA": (rgba((9, 9, 9, 255), (9, 9, 9, 0)).convert("LA"), [(9, 9, 9), WHITE]),
    "PA": (rgba((*RED, 255), (*RED, 0)).convert("PA"), [RED, WHITE]),
    "premultiplied": (rgba((*RED, 255), (0, 0, 0, 0)).convert("RGBa"), [RED, WHITE]),
    "palette, one colour clear": (
        encoded(Image.new("P", (1, 1)), "GIF", transparency=0),
        [WHITE],
    ),
    "palette with alpha": (translucent_palette(), [WHITE, GREEN]),
    "RGB with tRNS": (
        encoded(Image.fromarray(np.array([[RED, BLUE]], np.uint8)), "PNG", transparency=RED),
        [WHITE, BLUE],
    ),
    "grey with tRNS": (encoded(Image.new("L", (1, 1), 7), "PNG", transparency=7), [WHITE]),
}


@pytest.mark.parametrize("kind", ALPHA)
def test_alpha_is_laid_over_white(kind):
    source, expected = ALPHA[kind]
    assert pixels(read_image(source)) == expected


def sixteen(form: str, mode: str) -> bytes:
    values = np.array([[0, 128, 129, 257, 32768, 65534, 65535]], np.uint16)
    if mode == "I":
        return encoded(Image.fromarray(values.astype(np.int32)), form)
    return encoded(Image.fromarray(values), form)


@pytest.mark.parametrize(("form", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I")])
def test_sixteen_bits_are_scaled_and_not_clipped(form, mode):
    grey = [pixel[0] for pixel in pixels(read_image(sixteen(form, mode)))]
    assert grey == [round(value / 257) for value in (0, 128, 129, 257, 32768, 65534, 65535)]
    assert grey == [0, 0, 1, 1, 128, 255, 255]


def test_big_endian_sixteen_bits():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257, 65535))
    assert pixels(read_image(image)) == [(1, 1, 1), WHITE]


MODES = {
    "1 bit": (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), [(0, 0, 0), WHITE]),
    "grey": (Image.new("L", (1, 1), 77), [(77, 77, 77)]),
    "palette": (Image.new("RGB", (1, 1), RED).convert("P", palette=Image.Palette.ADAPTIVE), [RED]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [RED]),
    "YCbCr": (Image.new("RGB", (1, 1), (90, 90, 90)).convert("YCbCr"), [(90, 90, 90)]),
    "HSV": (Image.new("HSV", (1, 1), (0, 255, 255)), [RED]),
    "int beyond 16 bits": (Image.fromarray(np.array([[-5, 10**6]], np.int32)), [(0, 0, 0), WHITE]),
    "float to 1": (Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), [(0,) * 3, (128,) * 3, WHITE]),
    "float to 255": (Image.fromarray(np.array([[-1, 99.6, 300]], np.float32)), [(0,) * 3, (100,) * 3, WHITE]),
    "float, not a number": (Image.fromarray(np.array([[np.nan, np.inf]], np.float32)), [(0,) * 3, WHITE]),
}


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_becomes_rgb(kind):
    source, expected = MODES[kind]
    assert pixels(read_image(source)) == expected


def test_lab_keeps_its_colours():
    lab = Image.new("LAB", (1, 1), (136, 208, 195))  # sRGB red is L 53.2, a 80.1, b 67.2
    assert all(abs(a - b) <= 12 for a, b in zip(pixels(read_image(lab))[0], RED, strict=True))


def test_a_cmyk_jpeg():
    image = read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert all(abs(a - b) <= 3 for pixel in pixels(image) for a, b in zip(pixel, RED, strict=True))


TRUNCATABLE = {
    "JPEG": encoded(noise(40, 60), "JPEG"),
    "PNG": encoded(noise(40, 60), "PNG"),
    "WEBP": encoded(noise(40, 60), "WEBP"),
    "GIF": encoded(noise(40, 60), "GIF"),
    "BMP": encoded(noise(40, 60), "BMP"),
    "TIFF": encoded(noise(40, 60), "TIFF"),
    "JPEG2000": encoded(noise(40, 60), "JPEG2000"),
}


@pytest.mark.parametrize(
    ("form", "part"),  # a JPEG of which most is there can be used
    [
        (form, part)
        for form in TRUNCATABLE
        for part in (0.01, 0.3, 0.6, 0.95)
        if (form, part) != ("JPEG", 0.95)
    ],
)
def test_truncated_files_are_refused(form, part, tmp_path):
    data = TRUNCATABLE[form]
    path = tmp_path / "cut"
    path.write_bytes(data[: max(1, int(len(data) * part))])
    with pytest.raises(ImageError, match="cut") as caught:
        read_image(path)
    assert caught.value.hint


def test_damaged_files_never_raise_anything_else():
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    corpus = [TRUNCATABLE[form] for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    corpus += [
        encoded(PHOTO.resize((40, 30)), "JPEG", exif=exif),
        translucent_palette(),
        sixteen("TIFF", "I;16"),
    ]
    refused = 0
    for data in corpus:
        for _ in range(150):
            damaged = np.frombuffer(data, np.uint8).copy()
            at = rng.integers(0, min(len(damaged), 300), rng.integers(1, 12))
            damaged[at] = rng.integers(0, 256, len(at))
            try:
                assert read_image(damaged.tobytes()).mode == "RGB"
            except ImageError:
                refused += 1
    assert refused > 300


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded():
    row = b"\0" * (1 + 14_000 * 3)
    bomb = png(14_000, 14_000, 8, 2, row * 10)  # 196 megapixels claimed in a few hundred bytes
    assert len(bomb) < 1000
    with pytest.raises(ImageError, match="too large"):
        read_image(bomb)


def test_large_pictures_within_the_limit_do_not_warn():
    size = (12_000, 9_000)  # 108 megapixels, as phones take; Pillow warns from 89
    data = png(*size, 1, 0, (b"\0" + b"\xff" * 1500) * 9000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(data).size == size


def test_a_side_over_the_limit_is_refused():
    with pytest.raises(ImageError, match="too large: 70000x1"):
        read_image(encoded(Image.new("RGB", (70_000, 1)), "PNG"))


def test_the_limit_holds_for_images_and_arrays_too():
    with pytest.raises(ImageError, match="PIL image is too large"):
        read_image(Image.new("1", (20_000, 10_000)))
    with pytest.raises(ImageError, match="array is too large"):
        read_image(np.lib.stride_tricks.as_strided(np.zeros(3, np.uint8), (20_000, 10_000, 3), (0, 0, 1)))


def test_empty_images_are_refused():
    with pytest.raises(ImageError, match=r"no pixels \(0x5\)"):
        read_image(Image.new("RGB", (0, 5)))
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(b"")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), bool),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_another_form_are_refused(array):
    with pytest.raises(ImageError, match="array"):
        read_image(array)


def test_arrays_without_color_and_with_alpha():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    assert np.array_equal(np.asarray(read_image(grey)), expected)
    assert np.array_equal(np.asarray(read_image(grey[:, :, None])), expected)
    alpha = np.dstack([expected, np.array([[0, 255, 255, 255]] * 3, np.uint8)])
    assert np.array_equal(np.asarray(read_image(alpha))[:, 1:], expected[:, 1:])
    assert (np.asarray(read_image(alpha))[:, 0] == 255).all(), "transparent is white"


def test_open_files(tmp_path):
    image = Image.new("RGB", (4, 3), "red")
    image.save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert read_image(file) == image
    assert read_image(io.BytesIO((tmp_path / "a.png").read_bytes())) == image
    with pytest.raises(ImageError, match="open as text"):
        read_image(io.StringIO("x"))


@pytest.mark.parametrize("source", [None, 7, ["a.jpg"], bytearray(b"x")])
def test_other_types_are_refused(source):
    with pytest.raises(ImageError, match="type") as caught:
        read_image(source)
    assert "path" in caught.value.hint


FILES = {
    "text.jpg": (b"not an image at all\n", "not an image that can be read"),
    "zeros.png": (bytes(1000), "not an image that can be read"),
    "page.jpg": (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not an image"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "a.pdf": (b"%PDF-1.7\n", "starts as a PDF document and is damaged"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
    "a.zip": (b"PK\x03\x04" + bytes(100), "is a ZIP archive"),
    "a.heic": (b"\0\0\0\x18ftypheic" + bytes(100), "starts as a HEIC image and is damaged"),
    "a.jpg": (b"\xff\xd8\xff", "JPEG image and is damaged"),
    "a.png": (b"\x89PNG\r\n\x1a\n", "PNG image and is damaged"),
    "empty.png": (b"", "is empty"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_pictures(name, tmp_path):
    data, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(path) in caught.value.message
    assert isinstance(caught.value, InputError)


def test_a_video_or_a_sound_is_called_what_it_is(tmp_path):
    video = encode_video(tmp_path / "clip.mp4", numbered_frames(3))
    with pytest.raises(ImageError, match="is an MP4 video, not an image") as caught:
        read_image(video)
    assert "--video" in caught.value.hint
    with pytest.raises(ImageError, match="is a Matroska or WebM video"):
        read_image(encode_video(tmp_path / "clip.mkv", numbered_frames(3)))
    with pytest.raises(ImageError, match="is an MPEG transport stream video"):
        read_image(encode_video(tmp_path / "clip.ts", numbered_frames(3)))
    with pytest.raises(ImageError, match="is an AVI video"):
        read_image(encode_video(tmp_path / "clip.avi", numbered_frames(3), codec="mpeg4"))
    with pytest.raises(ImageError, match="sound"):
        read_image(encode_sound(tmp_path / "a.m4a"))


def test_paths_that_cannot_be_opened(tmp_path):
    for source, message in [
        (tmp_path / "none.jpg", "none.jpg does not exist"),
        (tmp_path / "none" / "a.jpg", "does not exist"),
        ("", "'' does not exist"),
        (tmp_path, "is a folder"),
        ("a\0b.jpg", "not a path"),
        ("x" * 5000, "not a path|does not exist"),
        ("https://example.org/a.jpg", "is an address, not a file"),
        ("file:///a.jpg", "is an address"),
    ]:
        with pytest.raises(ImageError, match=message) as caught:
            read_image(source)
        assert len(caught.value.message) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_file_stays_open(tmp_path):
    frames = [PHOTO, PHOTO]
    for form in ("GIF", "TIFF", "WEBP", "MPO", "PNG"):
        (tmp_path / form).write_bytes(encoded(PHOTO, form, save_all=True, append_images=frames))
    (tmp_path / "JPEG").write_bytes(encoded(PHOTO, "JPEG"))
    (tmp_path / "broken").write_bytes(TRUNCATABLE["TIFF"][:900])
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = [read_image(path) for path in tmp_path.iterdir() if path.name != "broken"]
    with pytest.raises(ImageError):
        read_image(tmp_path / "broken")
    assert len(kept) == 6
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class SlowImage(Image.Image):
    """A picture that, once its decoding has begun, waits a little for something else to happen."""

    def __init__(self, waits_for: threading.Event):
        super().__init__()
        picture = Image.new("RGB", (2, 2))
        self._im, self._mode, self._size = picture.im, picture.mode, picture.size
        self.begun, self.waits_for = threading.Event(), waits_for

    def load(self):
        self.begun.set()
        self.waits_for.wait(0.3)
        return super().load()


def test_warning_filters_survive_threads():
    before = list(warnings.filters)
    first_done = threading.Event()
    second = SlowImage(waits_for=first_done)
    first = SlowImage(waits_for=second.begun)

    def read_first():
        read_image(first)
        first_done.set()

    threads = [threading.Thread(target=read_first), threading.Thread(target=read_image, args=(second,))]
    threads[0].start()
    assert first.begun.wait(10)
    threads[1].start()
    for thread in threads:
        thread.join()
    # Had both been inside at once, the second would have put back the first one's filters.
    assert warnings.filters == before


def test_identify_knows_nothing_of_plain_text():
    assert identify(b"just some words") is None
    assert identify(b"") is None


def test_no_format_that_runs_programs_is_allowed():
    assert not {"EPS", "PDF", "WMF", "GRIB", "HDF5", "FITS"} & set(imagefile.FORMATS)
