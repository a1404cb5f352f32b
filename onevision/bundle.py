"""Bundle: the folder that is copied to a device, and its manifest ``onevision.json``.

In: a folder. Out: a :class:`Bundle` whose files exist with the right size (with ``check=True``: the right
contents). :func:`write_bundle` writes a temporary folder beside the target and renames it when complete.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

from onevision.errors import BundleError, OneVisionError, UsageError
from onevision.files import is_vacant, sha256_of, whole_folder
from onevision.typed import build, parse_json

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

SCHEMA_VERSION = 1
#: First release of this package that reads a schema version.
READABLE_SINCE = {1: "0.1.0"}

MANIFEST = "onevision.json"
VISION = "vision.onnx"
VISION_DATA = "vision.onnx.data"  # the matrices of vision.onnx; the graph holds this name
BACKBONE = "backbone.gguf"
NEWLINE = "image_newline.npy"
PREFILL = "prefill.onnx"  # optional: the prefill graph
PREFILL_DATA = "prefill.onnx.data"
GOLDEN = "golden.npz"
CARD = "README.md"
_MAX_MANIFEST = 1 << 20  # bytes that are read of one; the rest is damage
REQUIRED = (VISION, VISION_DATA, BACKBONE, NEWLINE)
#: All that a bundle may hold.
NAMES = frozenset((MANIFEST, *REQUIRED, PREFILL, PREFILL_DATA, GOLDEN, CARD))


@dataclass(frozen=True)
class FileInfo:
    """One file of a bundle. ``precision`` is None for files that hold no weights."""

    sha256: str
    bytes: int
    precision: str | None = None


@dataclass(frozen=True)
class SourceInfo:
    """Source of the weights. ``revision`` is the commit of a Hub repository, else None."""

    repo: str
    revision: str | None
    format: str
    adapter: str | None = None  # name of the adapter's folder


@dataclass(frozen=True)
class VisionInfo:
    """Shape of the vision encoder, and tiling. ``grid_pinpoints`` are (height, width) in pixels."""

    image_size: int
    patch_size: int
    hidden: int
    intermediate: int
    layers: int
    grid_pinpoints: tuple[tuple[int, int], ...]
    aspect_ratio: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class BackboneInfo:
    """Shape of the language model. ``bits_per_weight`` is measured on the file."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    context_length: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    bits_per_weight: float


@dataclass(frozen=True)
class PromptInfo:
    """Prompt format. ``template`` is a name of :data:`onevision.runtime.options.TEMPLATES`."""

    template: str
    system: str
    image_token: str
    video_token: str
    chat_template: str | None = None  # Jinja, of the format ``own``
    added_tokens: tuple[str, ...] = ()  # of a fine-tune: may be typed, and are shown


#: Where newlines stand among a video's tokens (LLaVA-NeXT's ``mm_newline_position``): after each row of a
#: frame, after each frame, nowhere, or once at the end.
NewlinePosition = Literal["grid", "frame", "no_token", "one_token"]

#: How the features of a frame are halved (``mm_spatial_pool_mode``).
Pooling = Literal["bilinear", "average", "max"]


@dataclass(frozen=True)
class VideoInfo:
    """Frames sampled by default, features per side of a pooled frame, and how tokens are made of them."""

    frames: int
    pooled_side: int
    newline: NewlinePosition = "one_token"
    pooling: Pooling = "bilinear"
    time_instruction: bool = False  # a sentence with the frames' times follows the video (LLaVA-Video)

    def tokens(self, frames: int) -> int:
        """Visual tokens of so many frames, newlines included."""
        side = self.pooled_side
        newlines = {"grid": frames * side, "frame": frames, "no_token": 0, "one_token": 1}
        return frames * side**2 + newlines[self.newline]

    def frames_within(self, tokens: int) -> int:
        """Largest number of frames that so many visual tokens hold; 0 if they hold none."""
        each = self.tokens(2) - self.tokens(1)
        return max(0, 1 + (tokens - self.tokens(1)) // each)


def pooled_side(side: int, pooling: Pooling) -> int:
    """Features per side of a pooled frame that had ``side`` of them."""
    return -(-side // 2) if pooling == "bilinear" else side // 2


@dataclass(frozen=True)
class Manifest:
    """``onevision.json``. See :data:`SCHEMA_VERSION`."""

    schema_version: int
    name: str
    size: str | None
    variant: str | None
    source: SourceInfo
    created_by: dict[str, str]
    vision: VisionInfo
    backbone: BackboneInfo
    prompt: PromptInfo
    video: VideoInfo
    files: dict[str, FileInfo] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Text of the manifest, with sorted keys: the same bundle gives the same bytes."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Manifest:
        """Parse and check a manifest.

        Raises:
            BundleError: Not JSON, an unknown schema version, or keys missing or of another type.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise BundleError(
                f"{where} is not valid JSON: {error}", hint="copy or export the bundle again"
            ) from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise BundleError(f"{where} is not a bundle manifest: it has no schema_version")
        if version not in READABLE_SINCE:
            newer = version > SCHEMA_VERSION
            raise BundleError(
                f"{where} has schema version {version}, this onevision reads {SCHEMA_VERSION}",
                hint="update onevision: pip install -U onevision" if newer else "export the bundle again",
            )
        try:
            manifest = build(cls, data)
        except ValueError as error:
            raise BundleError(f"{where}: {error}", hint="export the bundle again") from error
        if not manifest._is_valid():
            raise BundleError(f"{where} has impossible sizes", hint="copy or export the bundle again")
        return manifest

    def _is_valid(self) -> bool:
        """Whether the sizes are possible, and all files lie in the bundle's folder."""
        vision, backbone, video = self.vision, self.backbone, self.video
        sizes = [
            value
            for section in (vision, backbone, video)
            for value in vars(section).values()
            if type(value) is int
        ]
        return (
            0 < min(sizes) <= max(sizes) < 2**31
            and backbone.heads % backbone.kv_heads == 0
            and vision.patch_size <= vision.image_size
            and video.pooled_side == pooled_side(vision.image_size // vision.patch_size, video.pooling)
            and len(vision.mean) == len(vision.std) == 3
            and all(0 < level < 1 for level in (*vision.mean, *vision.std))
            and all(PurePosixPath(name).name == PureWindowsPath(name).name == name for name in self.files)
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, with its manifest."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.folder / name

    @property
    def bytes(self) -> int:
        """Size of all files, in bytes."""
        return sum(info.bytes for info in self.manifest.files.values())

    def damage(self, *, checksums: bool) -> list[str]:
        """Describe missing and changed files, a text each.

        Args:
            checksums: Read every file and compare its sha256; otherwise compare sizes only.
        """
        found = []
        for name, info in sorted(self.manifest.files.items()):
            path = self.path(name)
            try:
                if not path.is_file():
                    found.append(f"{name} is missing")
                elif (size := path.stat().st_size) != info.bytes:
                    found.append(f"{name} has {size:,} bytes, the manifest says {info.bytes:,}")
                elif checksums and sha256_of(path) != info.sha256:
                    found.append(f"{name} has changed: its sha256 is not the manifest's")
            except OSError as error:
                found.append(f"{name} cannot be read: {error.strerror or error}")
        return found


def open_bundle(folder: str | os.PathLike[str], *, check: bool = False) -> Bundle:
    """Read a bundle's manifest and check its files: sizes, and with ``check`` checksums too.

    Raises:
        BundleError: No bundle there, or a file is missing, truncated or (``check``) changed.
    """
    root = Path(folder)
    path = root / MANIFEST
    try:
        if not root.exists():
            raise BundleError(
                f"no bundle at {root}: there is no such folder",
                hint="onevision export -o FOLDER makes one; "
                "onevision.load and -m also take a size or a Hub id",
            )
        if not root.is_dir():
            raise BundleError(f"{root} is a file, not a bundle folder", hint="give the folder that holds it")
        with path.open("rb") as file:
            text = file.read(_MAX_MANIFEST)
    except FileNotFoundError as error:
        hint = "give the folder that holds onevision.json"
        if (root / "config.json").exists():
            hint = f"this looks like a checkpoint: onevision export --source {root}"
        raise BundleError(f"{root} is not a bundle: it has no {MANIFEST}", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"cannot read {path}: {reason}") from error
    bundle = Bundle(root, Manifest.from_json(text, where=str(path)))
    absent = [name for name in REQUIRED if name not in bundle.manifest.files]
    if absent:
        raise BundleError(f"{path} lists no {' and no '.join(absent)}", hint="export the bundle again")
    if damage := bundle.damage(checksums=check):
        raise BundleError(
            f"bundle {root} is damaged: {'; '.join(damage)}", hint="copy or export the bundle again"
        )
    return bundle


def files_of(paths: Iterable[Path], precisions: Mapping[str, str]) -> dict[str, FileInfo]:
    """Sizes and checksums of finished files, by name.

    Args:
        paths: Files of a bundle, the manifest not among them.
        precisions: Precision by file name, for the files that hold weights.
    """
    return {
        path.name: FileInfo(sha256_of(path), path.stat().st_size, precisions.get(path.name))
        for path in sorted(paths)
    }


def check_target(target: Path, *, force: bool) -> None:
    """Check that a bundle may be written to ``target``, before any work is done.

    Raises:
        UsageError: ``target`` exists; with ``force``: it is not a bundle, or has other files as well.
    """
    if is_vacant(target):
        return
    if not force:
        raise UsageError(f"{target} exists", hint="choose another folder, or --force to replace it")
    if not (target / MANIFEST).is_file():
        raise UsageError(f"{target} is not a bundle, so --force does not replace it")
    if others := sorted({path.name for path in target.iterdir()} - NAMES):
        rest = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"{target} has files that do not belong to a bundle, so --force does not replace it: "
            f"{', '.join(others[:3])}{rest}",
            hint="move them, or choose another folder",
        )


@contextmanager
def write_bundle(target: Path, *, force: bool = False, update: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` if the body succeeds, see :func:`whole_folder`.

    With ``update``, the body puts the files of ``target`` into the folder, those of the user too.

    Raises:
        UsageError: See :func:`check_target`, or the parent folder cannot be written.
        BundleError: The operating system refused a write, for example because the disk is full.
    """
    if not update:
        check_target(target, force=force)
    try:
        with whole_folder(target) as work:
            yield work
    except OSError as error:
        if isinstance(error, OneVisionError):
            raise
        raise BundleError(f"cannot write the bundle {target}: {error.strerror or error}") from error
