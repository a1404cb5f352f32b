"""Image features of tiles, each encoded once: equal tiles share one pass, known ones come from the cache."""

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
