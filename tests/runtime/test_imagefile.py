"""Files that hold less than they should, more than one image, or more than 8 bits."""

from __future__ import annotations

import io
import logging
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from onevision.errors import ImageError
from onevision.runtime.images import read_image
from onevision.runtime.messages import ImagePart, Message
from onevision.runtime.options import AnswerOptions, make_options
from onevision.runtime.pages import paged, paged_messages
from onevision.runtime.pdf import PAGE_SIDE
from tests.runtime.media import photograph

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
COLORS = (RED, GREEN, BLUE)
PHOTO = photograph("flower").resize((320, 214))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def several(form: str, **options) -> bytes:
    pages = [Image.new("RGB", (40, 20), color) for color in COLORS]
    return encoded(pages[0], form, save_all=True, append_images=pages[1:], **options)


def read(source, **options) -> tuple[Image.Image, list[str]]:
    warnings: list[str] = []
    return read_image(source, warn=warnings.append, **options), warnings


# JPEG files without their end


@pytest.mark.parametrize(
    "image",
    [PHOTO, PHOTO.convert("L"), PHOTO.convert("CMYK"), Image.new("RGB", (320, 214))],
    ids=lambda i: i.mode,
)
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}]
)
@pytest.mark.parametrize("end", [1, 2])
def test_a_jpeg_without_its_end_marker_is_whole(image, options, end):
    data = encoded(image, "JPEG", **options)
    whole, none = read(data)
    assert not none
    cut, warnings = read(data[:-end])
    assert np.array_equal(cut, whole)
    missing = f"the image of {len(data) - end:,} bytes is cut off: only its end marker is missing"
    if "progressive" in options:
        assert len(warnings) == 1
    elif image.mode == "CMYK":  # without subsampling, libjpeg may need nothing after the last row
        assert warnings in ([], [missing])
    else:
        assert warnings == [missing]


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_rows_of_a_cut_jpeg_are_counted(mode, options):
    data = encoded(PHOTO.convert(mode), "JPEG", **options)
    whole = np.asarray(read_image(data))
    counts = []
    for part in np.linspace(0.3, 0.99, 12):
        cut = data[: int(part * len(data))]
        try:
            image, (warning,) = read(cut)
        except ImageError as error:
            warning, image = error.message, None
        rows = int(warning.split("cut off: ")[1].split(" of 214 rows")[0])
        counts.append(rows)
        assert (image is not None) == (2 * rows >= 214)
        if image is not None:
            # The last rows that are there may be blended with the next by the upsampling of colors.
            assert np.array_equal(np.asarray(image)[: rows - 1], whole[: rows - 1])
            assert not np.array_equal(np.asarray(image)[rows:], whole[rows:])
    assert all(more >= fewer - 1 for fewer, more in pairwise(counts))
    assert counts[0] < 107 < counts[-1]


def test_a_cut_progressive_jpeg_is_less_sharp():
    data = encoded(PHOTO, "JPEG", progressive=True, quality=90)
    whole = np.asarray(read_image(data), float)
    image, (warning,) = read(data[: len(data) // 2])
    assert warning.endswith("is cut off: its finest scans are missing or cut, so it may be less sharp")
    assert np.abs(np.asarray(image) - whole).mean() < 8
    with pytest.raises(ImageError, match="is cut off: its finest scans are missing"):
        read(data[: len(data) // 20])


def test_a_cut_jpeg_is_turned_like_a_whole_one():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PHOTO, "JPEG", exif=exif)
    assert np.array_equal(read(data[:-2])[0], read_image(data))


@pytest.mark.parametrize("length", [0.0, 0.2, 0.5, 3.0])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.9])
def test_a_rest_of_zeros_is_missing(part, length):
    data = encoded(PHOTO, "JPEG", quality=90)
    cut = data[: int(part * len(data))]
    zeros = bytes(int(length * len(data)))
    if part < 0.5:
        with pytest.raises(ImageError, match=r"is cut off: \d\d of 214 rows are there"):
            read(cut + zeros)
        return
    image, (warning,) = read(cut + zeros)
    expected, (same,) = read(cut)
    assert np.array_equal(image, expected)
    assert same.partition(" bytes ")[2] == warning.partition(" bytes ")[2]
    assert np.array_equal(read(data + zeros)[0], read_image(data))
    assert read(data + zeros)[1] == []


def test_a_cut_mpo_shows_its_first_image():
    data = encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO])
    whole = np.asarray(read_image(data))
    image, warnings = read(data[: int(len(data) * 0.45)])
    assert np.array_equal(np.asarray(image)[:107], whole[:107])
    assert "of 214 rows are there" in warnings[0]


def test_warnings_go_to_the_log_by_default(caplog):
    with caplog.at_level(logging.WARNING, "onevision"):
        read_image(encoded(PHOTO, "JPEG")[:-2])
    assert "end marker" in caplog.text


# Several images in a file

PAGED = {
    "TIFF": {"compression": "tiff_lzw"},
    "GIF": {},
    "WEBP": {"lossless": True},
    "PNG": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "PDF": {},
}


def color(image: Image.Image) -> int:
    """Which of the colors an image has."""
    pixel = np.asarray(image, int)[image.height // 2, image.width // 2]
    distances = [np.abs(pixel - known).max() for known in COLORS]
    assert min(distances) < 8
    return int(np.argmin(distances))


@pytest.mark.parametrize("form", PAGED)
def test_pages(form):
    data = several(form, **PAGED[form])
    image, (warning,) = read(data)
    assert color(image) == 0
    unit = "pages" if form in ("TIFF", "PDF") else "frames"
    assert f"has 3 {unit}, of which the first is used: see --page" in warning
    assert ("--video" in warning) == (unit == "frames")
    for page in (1, 2, 3):
        image, warnings = read(data, page=page)
        assert (color(image), warnings) == (page - 1, [])
    with pytest.raises(ImageError, match="has no page 4: it has 3"):
        read(data, page=4)


def test_an_mpo_or_icon_is_one_image():
    for form, options in (
        ("MPO", {"save_all": True, "append_images": [PHOTO]}),
        ("ICO", {"sizes": [(16, 16)] * 2}),
    ):
        assert read(encoded(PHOTO, form, **options))[1] == []


@pytest.mark.parametrize(
    ("selection", "pages"),
    [("2", [2]), ("all", [1, 2, 3]), ("1,3", [1, 3]), ("2-3", [2, 3]), ("3,1-2", [3, 1, 2])],
)
@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
def test_chosen_pages_are_images_of_their_own(selection, pages, kind, tmp_path):
    (tmp_path / "a.tif").write_bytes(several("TIFF"))
    source = {
        "path": tmp_path / "a.tif",
        "bytes": several("TIFF"),
        "file": io.BytesIO(several("TIFF")),
    }[kind]
    message = Message("user", ("Before", ImagePart(source, "low"), "After"))
    (read_message,) = paged_messages([message], AnswerOptions(page=selection))
    before, *parts, after = read_message.content
    assert (before, after) == ("Before", "After")
    assert [part.page for part in parts] == pages
    assert {part.detail for part in parts} == {"low"}
    assert [color(read_image(part.source, page=part.page)) + 1 for part in parts] == pages


def test_without_a_choice_messages_stay_as_they_are():
    messages = [Message("user", (ImagePart("no.tif"), "Hi"))]
    assert paged_messages(messages, AnswerOptions()) is messages


def test_a_part_with_a_page_keeps_it():
    part = ImagePart(several("TIFF"), page=2)
    assert paged(part, AnswerOptions(page="all")) == [part]


@pytest.mark.parametrize("source", [PHOTO, np.asarray(PHOTO), encoded(PHOTO, "PNG")])
def test_an_image_is_a_document_of_one_page(source):
    assert len(paged(ImagePart(source), AnswerOptions(page="all"))) == 1
    assert len(paged(ImagePart(source), make_options({"page": 1}))) == 1
    with pytest.raises(ImageError, match="has no page 2: it has 1"):
        paged(ImagePart(source), make_options({"page": 2}))


def test_a_page_of_a_pdf_fills_the_largest_canvas():
    page = PHOTO.crop((0, 0, 200, 100))
    image = read_image(encoded(page, "PDF", quality=95))
    assert image.size == (PAGE_SIDE, PAGE_SIDE // 2)
    assert np.abs(np.asarray(image.resize(page.size), float) - np.asarray(page)).mean() < 8


def test_a_damaged_pdf():
    with pytest.raises(ImageError, match="starts as a PDF document and is damaged"):
        read_image(several("PDF")[:300])


# HEIC


def heic(image: Image.Image, **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_heic(mode):
    data = heic(PHOTO.convert(mode), quality=90)
    image, warnings = read(data)
    assert not warnings
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, float) - np.asarray(PHOTO.convert(mode).convert("RGB"))).mean() < 4


def test_a_damaged_heic():
    data = heic(PHOTO)
    for part in (0.05, 0.5):
        with pytest.raises(ImageError, match="HEIC image and is damaged"):
            read_image(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("package", "data", "message"),
    [
        ("pillow_heif", b"\0\0\0\x18ftypheic" + bytes(100), "a HEIC image, which cannot be read here"),
        ("pypdfium2", b"%PDF-1.7\n", "a PDF document, which cannot be read here"),
    ],
)
def test_readers_that_are_not_installed(package, data, message, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(data)
    assert "pip install 'onevision[" in caught.value.hint


# More than 8 bits


def gray(values, kind=np.uint16) -> Image.Image:
    return Image.fromarray(np.array([values], kind))


LEVELS = {
    "12 in 16 bits": (
        gray([0, 2048, 4095]),
        "from 0 to 4,095, where 0 is black and 65,535 white",
        [0, 8, 16],
    ),
    "a few around the middle": (gray([30000, 30100, 30200]), "from 30,000 to 30,200", [117, 117, 118]),
    "mode I beyond 16 bits": (gray([-5, 0, 70_000], np.int32), "from -5 to 70,000", [0, 0, 255]),
    "float beyond 255": (
        gray([0, 500, 1000], np.float32),
        "from 0 to 1,000, where 0 is black and 255",
        [0, 255, 255],
    ),
    "float within a tenth": (gray([0, 0.05, 0.1], np.float32), "0 is black and 1 white", [0, 13, 26]),
}


@pytest.mark.parametrize("kind", LEVELS)
def test_a_small_part_of_the_range(kind):
    source, says, plain = LEVELS[kind]
    image, (warning,) = read(source)
    assert says in warning
    assert warning.endswith("see --stretch")
    assert np.asarray(image)[0, :, 0].tolist() == plain
    stretched, warnings = read(source, stretch=True)
    assert warnings == []
    values = np.asarray(source, float)[0]
    expected = np.rint((values - values.min()) / (values.max() - values.min()) * 255)
    assert np.asarray(stretched)[0, :, 0].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "source", [gray([0, 40_000]), gray([7, 7]), gray([0.0, 0.5], np.float32), gray([0.0, 200], np.float32)]
)
def test_a_range_that_is_used_needs_no_warning(source):
    assert read(source)[1] == []


def test_sixteen_bit_colors():
    values = np.linspace(0, 4095, 120, dtype=">u2").reshape(5, 8, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    from tests.runtime.test_images import png

    data = png(8, 5, 16, 2, rows)
    image, (warning,) = read(data)
    assert "from 0 to 15, where 0 is black and 255 white" in warning
    assert np.asarray(image).max() == 15
    assert np.asarray(read(data, stretch=True)[0]).max() == 255


def test_eight_bits_stay_as_they_are():
    dark = Image.fromarray(np.array([[3, 9]], np.uint8))
    image, warnings = read(dark, stretch=True)
    assert (np.asarray(image)[0, :, 0].tolist(), warnings) == ([3, 9], [])


def test_a_preview_is_called_so():
    data = encoded(PHOTO, "TIFF", tiffinfo={254: 1})
    assert read(data)[1] == [
        f"the image of {len(data):,} bytes: only a preview of 320x214 pixels is read of it"
    ]
    assert read(encoded(PHOTO, "TIFF"))[1] == []
