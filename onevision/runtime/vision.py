"""The vision encoder: SigLIP tower and projector, in ONNX Runtime.

In: pixel values of tiles, float32 [T, 3, S, S]. Out: image features, float32 [T, P, H].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onevision.errors import BundleError, GenerationError, InputError
from onevision.graphs.nodes import FEATURES, PIXELS, PRECISION
from onevision.native.device import Device, check_device, default_threads
from onevision.native.ort import EXPORT_HINT, first_line, open_session, ort_errors
from onevision.runtime.cache import Cache, entry_key

# Several tiles in one call are no faster on a CPU, whose cores one tile keeps busy, and cost memory.
_BATCH = {"cpu": 1, "cuda": 8}
#: Bytes of weights from which fp16 costs a CPU enough to say so. The 0.5b encoder takes 1 to 3 s to load and
#: 2 GB of its own memory; in fp32 0.05 s, and maps its file.
_COSTLY_FP16 = 100_000_000
_FP16_ON_CPU = (
    "the vision encoder is fp16, for GPUs: a CPU converts its weights to fp32 at every start, and takes "
    "as long for a tile as in fp32; int8 is smaller and faster"
)


class VisionEncoder:
    """An ONNX Runtime session of a bundle's ``vision.onnx``. Close it to give its memory back.

    Attributes:
    from onevision.errors import BundleError, GenerationError, InputError
    from onevision.graphs.nodes import FEATURES, PIXELS, PRECISION
    from onevision.native.device import Device, check_device, default_threads
        image_size: S, pixels per side of a tile.
        patches: P, features per tile.
        hidden_size: H, width of a feature.

    Args:
        path: The ONNX file; its weights lie beside it in ``vision.onnx.data``.
        device: ``cuda`` needs onnxruntime's CUDA provider, ``auto`` takes it where it works, else the CPU.
        threads: CPU threads; None for all cores that this process may use.

    Raises:
        UsageError: An unknown device, or threads out of range.
        BundleError: A file is missing or damaged, or is another model.
        DeviceError: CUDA was asked for and cannot be used.
    """

    def __init__(self, path: Path, *, device: Device = "auto", threads: int | None = None) -> None:
        check_device(device, threads)
        self._session, self.device, self.notes = open_session(
            path, device, threads or default_threads(), "the vision encoder"
        )
        self.image_size, self.patches, self.hidden_size = _sizes(self._session, path)
        metadata = self._session.get_modelmeta().custom_metadata_map
        weights = path.with_name(f"{path.name}.data")
        if self.device == "cpu" and metadata.get(PRECISION) == "fp16" and _size(weights) >= _COSTLY_FP16:
            self.notes += (_FP16_ON_CPU,)

    def encode(
        self,
        pixel_values: npt.NDArray[np.float32],
        on_tile: Callable[[int, int], object] | None = None,
        *,
        batch: int | None = None,
    ) -> npt.NDArray[np.float32]:
        """Image features of tiles.

        Args:
            pixel_values: Normalized tiles, float32 [T, 3, S, S].
            on_tile: Called after each batch with the number of tiles done, and T.
            batch: Tiles per call of the session; None for what suits the device.

        Returns:
            float32 [T, P, H], in the order of the tiles.

        Raises:
            InputError: Another shape or type.
            GenerationError: ONNX Runtime refused the work, the features are not finite, or this is closed.
        """
        tile = (3, self.image_size, self.image_size)
        if pixel_values.shape[1:] != tile or pixel_values.dtype != np.float32:
            raise InputError(
                f"pixel values are {pixel_values.dtype} {list(pixel_values.shape)}, "
                f"and should be float32 {['T', *tile]}"
            )
        total, step = len(pixel_values), batch or _BATCH[self.device]
        features = np.empty((total, self.patches, self.hidden_size), dtype=np.float32)
        for start in range(0, total, step):
            done = min(start + step, total)
            self._run(pixel_values[start:done], features[start:done])
            if not np.isfinite(features[start:done]).all():
                raise GenerationError(
                    f"image features are not finite (tiles {start + 1} to {done} of {total})",
                    hint="check the bundle with `onevision verify`, or export it with --vision fp32",
                )
            if on_tile:
                on_tile(done, total)
        return features

    def close(self) -> None:
        """Free the session; calling it again does nothing."""
        self._session = None

    def _run(self, tiles: npt.NDArray[np.float32], features: npt.NDArray[np.float32]) -> None:
        """Write the features of tiles into ``features``; a GPU has finished when this returns."""
        if self._session is None:
            raise GenerationError("the vision encoder is closed")
        binding, pixels = self._session.io_binding(), np.ascontiguousarray(tiles)
        try:
            binding.bind_cpu_input(PIXELS, pixels)  # a GPU gets a copy
            binding.bind_output(FEATURES, "cpu", 0, np.float32, features.shape, features.ctypes.data)
            binding.synchronize_inputs()
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except ort_errors() as error:
            raise GenerationError(
                f"onnxruntime could not encode {len(tiles)} tiles: {first_line(error)}",
                hint="free some memory, or use --device cpu",
            ) from error


def _size(file: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return file.stat().st_size if file.exists() else 0


def _sizes(session: Any, path: Path) -> tuple[int, int, int]:  # noqa: ANN401
    """S, P and H of a graph with the input and the output of this class."""
    ends = [(end.name, end.type, *end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
    match ends:
        case [
            (str(source), "tensor(float)", str(), 3, int(side), int(width)),
            (str(target), "tensor(float)", str(), int(patches), int(hidden)),
        ] if (source, target) == (PIXELS, FEATURES) and side == width:
            return side, patches, hidden
    raise BundleError(
        f"{path} is not a vision encoder of this package: its inputs and outputs are {ends}", hint=EXPORT_HINT
    )


def encode_once(
    tiles: npt.NDArray[np.uint8],
    encode: Callable[[npt.NDArray[np.uint8], Callable[[int, int], None]], npt.NDArray[np.float32]],
    cache: Cache | None,
    facts: tuple[object, ...],
    shape: tuple[int, int],
    on_tile: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Image features of tiles, each encoded once: equal tiles share one pass, known ones come from the cache.

    Args:
        tiles: uint8 [T, S, S, 3].
        encode: Features float32 [t, P, H] of some of them; it calls back with the number of t that are done.
        cache: Keeps features; None: only equal tiles share.
        facts: All that features depend on besides the pixels.
        shape: (P, H).
        on_tile: Called with the number of tiles done, and T.

    Returns:
        float32 [T, P, H], in the order of the tiles.
    """
    keys = [entry_key("features", facts, np.ascontiguousarray(tile).data) for tile in tiles]
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    features = np.empty((len(tiles), *shape), np.float32)
    missing = []
    for key, same in places.items():
        if cache is not None and (data := cache.get(key)) is not None:
            features[same] = np.frombuffer(data, np.float32).reshape(shape)
        else:
            missing.append(key)
    known = len(tiles) - sum(len(places[key]) for key in missing)

    def report(done: int, _of_these: int = 0) -> None:
        if on_tile:
            on_tile(known + sum(len(places[key]) for key in missing[:done]), len(tiles))

    if known:
        report(0)
    if missing:
        encoded = encode(tiles[[places[key][0] for key in missing]], report)
        for key, feature in zip(missing, encoded, strict=True):
            features[places[key]] = feature
            if cache is not None:
                cache.put(key, feature.tobytes())
    return features
