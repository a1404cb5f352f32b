"""Bundles: manifests that come back as they went, damage that is named, and nothing half written."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision import OneVision
from onevision.bundle import (
    BACKBONE,
    CARD,
    GOLDEN,
    MANIFEST,
    NEWLINE,
    REQUIRED,
    SCHEMA_VERSION,
    VISION,
    VISION_DATA,
    FileInfo,
    Manifest,
    SourceInfo,
    check_target,
    files_of,
    open_bundle,
    write_bundle,
)
from onevision.errors import BundleError, OneVisionError, UsageError
from onevision.files import sha256_of
from tests.conftest import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = (VISION, VISION_DATA, BACKBONE, NEWLINE, GOLDEN, CARD)


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def manifest(toy_bundle: Path) -> Manifest:
    return open_bundle(toy_bundle).manifest


# The manifest.


def test_a_bundle_has_the_files_of_its_manifest(toy_bundle: Path, manifest: Manifest):
    assert set(manifest.files) == set(FILES)
    assert {path.name for path in toy_bundle.iterdir()} == {*FILES, MANIFEST}
    assert set(REQUIRED) == {VISION, VISION_DATA, BACKBONE, NEWLINE}
    precisions = {name: info.precision for name, info in manifest.files.items() if info.precision}
    assert precisions == {VISION: "fp32", VISION_DATA: "fp32", BACKBONE: "f32"}
    for name, info in manifest.files.items():
        assert info.bytes == (toy_bundle / name).stat().st_size
        assert info.sha256 == sha256_of(toy_bundle / name)
    assert open_bundle(toy_bundle, check=True).bytes == sum(info.bytes for info in manifest.files.values())


names = st.text(min_size=1, max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
def test_a_manifest_comes_back_as_it_went(manifest: Manifest, data: st.DataObject):
    changed = replace(
        manifest,
        name=data.draw(names),
        size=data.draw(st.none() | names),
        source=SourceInfo(data.draw(names), data.draw(st.none() | names), data.draw(names)),
        created_by=data.draw(st.dictionaries(names, names, max_size=4)),
        vision=replace(
            manifest.vision,
            grid_pinpoints=tuple(
                data.draw(st.lists(st.tuples(st.integers(), st.integers()), min_size=1, max_size=4))
            ),
        ),
        backbone=replace(
            manifest.backbone,
            eos_ids=tuple(data.draw(st.lists(st.integers(), max_size=3))),
            bits_per_weight=data.draw(st.floats(allow_nan=False)),
        ),
        files={
            name: FileInfo(data.draw(names), data.draw(st.integers()), data.draw(st.none() | names))
            for name in data.draw(st.sets(st.text("abc", min_size=1)))
        },
        quality=data.draw(st.dictionaries(names, json_values, max_size=3)),
    )
    text = changed.to_json()
    assert Manifest.from_json(text, where="here") == changed
    assert Manifest.from_json(text, where="here").to_json() == text


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, by the keys that lead there."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


def put(value: Any, path: tuple[Any, ...], junk: Any) -> None:
    """Put junk at a place, or nothing where it is GONE, if the place is still there."""
    *parents, last = path
    try:
        for key in parents:
            value = value[key]
        if junk is GONE:
            del value[last]
        else:
            value[last] = junk
    except (KeyError, IndexError, TypeError):
        return


GONE = object()


def read_or_refuse(text: str) -> None:
    """Anything but a BundleError that says where is a failure."""
    try:
        Manifest.from_json(text, where="here")
    except BundleError as error:
        if "here" not in error.message:
            raise AssertionError from error


@given(data=st.data())
@settings(max_examples=300)
def test_a_damaged_manifest_is_a_bundle_error_or_a_manifest(manifest: Manifest, data: st.DataObject):
    value = json.loads(manifest.to_json())
    spots = [path for path in places(value) if path and path[0] != "quality"]
    for path in data.draw(st.lists(st.sampled_from(spots), min_size=1, max_size=2, unique=True)):
        put(value, path, data.draw(st.just(GONE) | json_values))
    read_or_refuse(json.dumps(value))


@given(data=st.data())
def test_a_damaged_text_is_a_bundle_error_or_a_manifest(manifest: Manifest, data: st.DataObject):
    text = manifest.to_json()
    start, end = sorted(data.draw(st.integers(0, len(text))) for _ in range(2))
    read_or_refuse(text[:start] + data.draw(st.text(max_size=5)) + text[end:])


SENSELESS = {
    "no JSON": lambda value: "{",
    "empty": lambda value: "",
    "deep": lambda value: "[" * 100_000,
    "a list": lambda value: [],
    "a number": lambda value: 7,
    "null": lambda value: None,
    "no version": lambda value: value.pop("schema_version") and value,
    "version is a text": lambda value: value | {"schema_version": "1"},
    "version is true": lambda value: value | {"schema_version": True},
    "no vision": lambda value: value.pop("vision") and value,
    "vision is a list": lambda value: value | {"vision": []},
    "name is a number": lambda value: value | {"name": 3},
    "tile of no pixels": lambda value: value | {"vision": value["vision"] | {"image_size": 0}},
    "patch of no pixels": lambda value: value | {"vision": value["vision"] | {"patch_size": 0}},
    "patch above tile": lambda value: value | {"vision": value["vision"] | {"patch_size": 57}},
    "two channels": lambda value: value | {"vision": value["vision"] | {"mean": [0.5, 0.5]}},
    "division by zero": lambda value: value | {"vision": value["vision"] | {"std": [0.5, 0.5, 0]}},
    "not a number": lambda value: value | {"vision": value["vision"] | {"std": [0.5, 0.5, float("nan")]}},
    "pinpoints of three": lambda value: value | {"vision": value["vision"] | {"grid_pinpoints": [[1, 2, 3]]}},
    "no frames": lambda value: value | {"video": value["video"] | {"frames": 0}},
    "pooled to nothing": lambda value: (
        value
        | {
            "vision": value["vision"] | {"patch_size": value["vision"]["image_size"]},
            "video": value["video"] | {"pooling": "max", "pooled_side": 0},
        }
    ),
    "unknown newlines": lambda value: value | {"video": value["video"] | {"newline": "row"}},
    "pooled otherwise": lambda value: value | {"video": value["video"] | {"pooled_side": 3}},
    "file outside": lambda value: value | {"files": {"../x": value["files"][CARD]}},
    "absolute file": lambda value: value | {"files": {"/etc/passwd": value["files"][CARD]}},
    "file on a drive": lambda value: value | {"files": {"C:\\x": value["files"][CARD]}},
    "file without a name": lambda value: value | {"files": {"": value["files"][CARD]}},
    "files is a list": lambda value: value | {"files": [CARD]},
}


@pytest.mark.parametrize("change", SENSELESS.values(), ids=SENSELESS)
def test_senseless_manifests_are_refused(bundle: Path, change: Callable[[Any], Any]):
    path = bundle / MANIFEST
    changed = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed), encoding="utf-8")
    with pytest.raises(BundleError, match=r"onevision\.json"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("version", "hint"), [(SCHEMA_VERSION + 1, "pip install -U onevision"), (0, "export the bundle again")]
)
def test_other_schema_versions_are_refused_with_what_to_do(bundle: Path, version: int, hint: str):
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value | {"schema_version": version}), encoding="utf-8")
    with pytest.raises(BundleError, match=f"schema version {version}, this onevision reads 1") as caught:
        open_bundle(bundle)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_manifest_lists_all_that_a_run_needs(bundle: Path, name: str):
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["files"][name]
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(BundleError, match=f"lists no {name}"):
        open_bundle(bundle)


def test_a_manifest_of_before_has_the_defaults_of_then(bundle: Path):
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    value["video"] = {name: value["video"][name] for name in ("frames", "pooled_side")}
    del value["source"]["adapter"]
    path.write_text(json.dumps(value), encoding="utf-8")
    manifest = open_bundle(bundle).manifest
    video = manifest.video
    assert (video.newline, video.pooling, video.time_instruction) == ("one_token", "bilinear", False)
    assert manifest.source.adapter is None


def test_keys_of_the_future_are_passed_over(bundle: Path):
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value | {"colour": "green"}), encoding="utf-8")
    assert open_bundle(bundle).manifest.name == value["name"]


# Its files.


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str, check: bool):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"is damaged: {name} is missing"):
        open_bundle(bundle, check=check)
    (bundle / name).mkdir()
    with pytest.raises(BundleError, match=f"is damaged: {name} is missing"):
        open_bundle(bundle, check=check)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_named(bundle: Path, name: str, change: int, check: bool):
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, size + change)
    with pytest.raises(BundleError, match=f"{name} has {size + change:,} bytes, the manifest says {size:,}"):
        open_bundle(bundle, check=check)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_found_by_its_checksum(bundle: Path, name: str):
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    open_bundle(bundle)
    with pytest.raises(BundleError, match=f"{name} has changed") as caught:
        open_bundle(bundle, check=True)
    assert caught.value.hint


def test_all_damage_is_told_at_once(bundle: Path):
    (bundle / VISION).unlink()
    (bundle / CARD).write_text("changed", encoding="utf-8")
    with pytest.raises(BundleError, match=r"README\.md has 7 bytes.*; vision\.onnx is missing"):
        open_bundle(bundle)


def test_a_file_whose_name_is_too_long_is_named(bundle: Path):
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    value["files"]["x" * 5000] = value["files"][CARD]
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(BundleError, match=r"xxx (cannot be read|is missing)"):
        open_bundle(bundle)


def test_places_that_hold_no_bundle(tmp_path: Path, toy_checkpoint: Path, bundle: Path):
    with pytest.raises(BundleError, match="there is no such folder") as caught:
        open_bundle(tmp_path / "nowhere")
    assert "onevision export" in str(caught.value.hint)
    for name in ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "7b"):  # names are for what stands above
        with pytest.raises(BundleError, match=f"no bundle at {name}") as caught:
            open_bundle(name)
        assert "onevision.load and -m also take a size or a Hub id" in str(caught.value.hint)
    with pytest.raises(BundleError, match="is a file"):
        open_bundle(bundle / VISION)
    with pytest.raises(BundleError, match=r"it has no onevision\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"it has no onevision\.json") as caught:
        open_bundle(toy_checkpoint)
    assert f"onevision export --source {toy_checkpoint}" in str(caught.value.hint)
    (bundle / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match="it is not UTF-8 text"):
        open_bundle(bundle)


def test_a_bundle_works_wherever_it_is_copied(toy_bundle: Path, tmp_path: Path, photo: Path):
    copy = shutil.copytree(toy_bundle, tmp_path / "größer 模型" / "my bundle")
    answers = []
    for folder in (toy_bundle, copy):
        with OneVision.load(folder, device="cpu", threads=1, check=True) as model:
            answers.append(model.generate("What is it?", images=[photo], max_tokens=8).token_ids)
    assert answers[0] == answers[1]


def test_the_prompt_format_must_be_known(bundle: Path):
    path = bundle / MANIFEST
    value = json.loads(path.read_text(encoding="utf-8"))
    value["prompt"]["template"] = "alpaca"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(BundleError, match="'alpaca' is unknown"):
        OneVision.load(bundle, device="cpu", threads=1)


# Writing.


def tree(folder: Path) -> dict[str, bytes | None]:
    """All there is below a folder: contents by path, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def small(folder: Path, text: str = "old") -> Path:
    """What passes for a bundle when one is replaced."""
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    (folder / GOLDEN).touch()
    return folder


def test_a_bundle_appears_when_it_is_complete(tmp_path: Path):
    target = tmp_path / "a" / "b" / "bundle"
    with write_bundle(target) as folder:
        assert folder.parent == target.parent
        assert not target.exists()
        (folder / "x").write_text("new", encoding="utf-8")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/bundle": None, "a/b/bundle/x": b"new"}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_bundle_is_as_readable_as_any_folder(tmp_path: Path):
    with write_bundle(tmp_path / "bundle"):
        pass
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "plain").stat().st_mode


def write_half(target: Path, error: BaseException, *, force: bool) -> None:
    with write_bundle(target, force=force) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("half", encoding="utf-8")
        raise error


INTERRUPTIONS = (KeyboardInterrupt(), SystemExit(143), RuntimeError("bug"), UsageError("no"), MemoryError())


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("standing", ["nothing", "an empty folder", "a bundle", "missing parents"])
def test_whatever_interrupts_leaves_all_as_it_was(tmp_path: Path, error: BaseException, standing: str):
    target = tmp_path / "bundle"
    if standing == "a bundle":
        small(target)
    elif standing == "an empty folder":
        target.mkdir()
    elif standing == "missing parents":
        target = tmp_path / "a" / "b" / "bundle"
    before = tree(tmp_path)
    with pytest.raises(type(error)):
        write_half(target, error, force=standing == "a bundle")
    assert tree(tmp_path) == before


def test_a_full_disk_is_a_bundle_error(tmp_path: Path):
    with (
        pytest.raises(BundleError, match=r"cannot write the bundle .*: No space left"),
        write_bundle(tmp_path / "bundle"),
    ):
        raise OSError(28, "No space left on device")
    assert tree(tmp_path) == {}


def test_force_replaces_a_bundle_whole(tmp_path: Path):
    target = small(tmp_path / "bundle")
    with write_bundle(target, force=True) as folder:
        assert tree(target) == {GOLDEN: b"", MANIFEST: b"old"}
        (folder / MANIFEST).write_text("new", encoding="utf-8")
    assert tree(tmp_path) == {"bundle": None, f"bundle/{MANIFEST}": b"new"}


def test_an_empty_folder_is_taken(tmp_path: Path):
    (tmp_path / "bundle").mkdir()
    with write_bundle(tmp_path / "bundle") as folder:
        (folder / "x").touch()
    assert tree(tmp_path) == {"bundle": None, "bundle/x": b""}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_what_a_link_leads_to_is_replaced(tmp_path: Path):
    small(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with write_bundle(tmp_path / "link", force=True) as folder:
        (folder / MANIFEST).write_text("new", encoding="utf-8")
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}
    assert tree(tmp_path / "real") == {MANIFEST: b"new"}


def occupied(kind: str, target: Path) -> None:
    if kind == "a bundle":
        small(target)
    elif kind == "a bundle and more":
        (small(target) / "my_notes.txt").touch()
        (target / "photos").mkdir()
    elif kind == "another folder":
        (target / "photos").mkdir(parents=True)
    elif kind == "a file":
        target.write_text("mine", encoding="utf-8")
    else:
        target.symlink_to(target.with_name("nowhere"))


@pytest.mark.parametrize(
    ("kind", "force", "wrong"),
    [
        ("a bundle", False, "exists"),
        (
            "a bundle and more",
            True,
            "do not belong to a bundle, so --force does not replace it: my_notes.txt, photos",
        ),
        ("another folder", False, "exists"),
        ("another folder", True, "is not a bundle, so --force does not replace it"),
        ("a file", False, "exists and is not a folder"),
        ("a file", True, "exists and is not a folder"),
        pytest.param(
            "a dead link",
            True,
            "exists and is not a folder",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="links need rights there"),
        ),
    ],
)
def test_what_stands_there_is_not_touched(tmp_path: Path, kind: str, force: bool, wrong: str):
    target = tmp_path / "bundle"
    occupied(kind, target)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=wrong):
        check_target(target, force=force)
    with pytest.raises(UsageError, match=wrong), write_bundle(target, force=force):
        pytest.fail("began all the same")
    assert tree(tmp_path) == before


def test_a_parent_that_is_a_file_is_wrong_usage(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file"), write_bundle(tmp_path / "file" / "deep" / "bundle"):
        pytest.fail("began all the same")
    assert tree(tmp_path) == {"file": b""}


def test_a_target_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with write_bundle(Path("bundle")) as folder:
        (folder / "x").touch()
        monkeypatch.chdir("/")  # where the process goes meanwhile does not matter
    assert tree(tmp_path) == {"bundle": None, "bundle/x": b""}


def test_files_are_described_by_name(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(b"hello")
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    described = files_of(tmp_path.iterdir(), {"a": "f16"})
    assert described == {"a": FileInfo(sha256, 5, "f16"), "b": FileInfo(sha256, 5, None)}
    assert list(described) == ["a", "b"]


def test_errors_have_hints(bundle: Path):
    replace_file(bundle, BACKBONE, b"GGUF")
    with pytest.raises(OneVisionError) as caught:
        OneVision.load(bundle, device="cpu")
    assert caught.value.hint
