"""Image features of tiles, each encoded once: equal tiles share one pass, known ones come from the cache.

Frames of a video that are nearly equal can be made equal beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onevision.runtime.cache import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from onevision.runtime.cache import Cache


def encode_once(
    tiles: npt.NDArray[np.uint8],
    encode: Callable[[npt.NDArray[np.uint8], Callable[[int, int], None]], npt.NDArray[np.float32]],
    cache: Cache | None,
    facts: tuple[object, ...],
    shape: tuple[int, int],
    on_tile: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Image features of tiles.

    Args:
        tiles: uint8 [T, S, S, 3].
        encode: Features of some of them, float32 [t, P, H]; it tells how many of t are done.
        cache: Where features are kept; None: equal tiles are found all the same.
        facts: All that features depend on besides the pixels.
        shape: (P, H).
        on_tile: Called with the tiles that are done and T.

    Returns:
        float32 [T, P, H], in the order of the tiles.
    """
    keys = [key_of("features", facts, np.ascontiguousarray(tile).data) for tile in tiles]
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
        found = encode(tiles[[places[key][0] for key in missing]], report)
        for key, feature in zip(missing, found, strict=True):
            features[places[key]] = feature
            if cache is not None:
                cache.put(key, feature.tobytes())
    return features


def share_frames(frames: npt.NDArray[np.uint8], threshold: float) -> tuple[npt.NDArray[np.uint8], int]:
    """Puts the nearest earlier frame in the place of each one that is like it, so that it is encoded once.

    Two frames are alike if the mean of the absolute differences of their levels (0 to 255, all pixels and
    colours) is at most ``threshold``. A frame that was replaced stands in for no other: nothing drifts.

    Args:
        frames: uint8 [F, S, S, 3].
        threshold: In levels; 0 for identical frames only.

    Returns:
        The frames, and how many of them were replaced.
    """
    kept: list[int] = []
    source = []
    for at, frame in enumerate(frames):
        distances = [_distance(frame, frames[other]) for other in kept]
        nearest = min(range(len(kept)), key=distances.__getitem__, default=None)
        if nearest is not None and distances[nearest] <= threshold:
            source.append(kept[nearest])
        else:
            kept.append(at)
            source.append(at)
    reused = len(frames) - len(kept)
    return (frames[source] if reused else frames), reused


def _distance(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    # The larger less the smaller stays within uint8.
    return float((np.maximum(one, other) - np.minimum(one, other)).mean())
