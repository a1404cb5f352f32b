"""Image features to visual tokens, after the vision encoder.

In: image features float32 [T, P, H], P = side**2 rows of patches. Out: visual tokens float32 [n, H].

The arithmetic is that of transformers' ``pack_image_features`` (``llava_onevision``), in float32 unless said
otherwise. Sizes are (height, width).
"""

from __future__ import annotations

import math
from functools import reduce
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onevision.arrays import parse_array
from onevision.bundle import NewlinePosition, Pooling, pooled_side
from onevision.errors import BundleError
from onevision.runtime.anyres import AnyRes


def read_newline(path: Path, hidden: int) -> NDArray[np.float32]:
    """The learned embedding at the end of each row of features, float32 [H], from a bundle's file.

    Args:
        path: ``image_newline.npy``.
        hidden: H.

    Raises:
        BundleError: The file cannot be read, or holds another shape or type.
    """
    hint = "copy or export the bundle again"
    try:
        newline: NDArray[np.float32] = parse_array(path.read_bytes())
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}", hint=hint) from error
    except ValueError as error:
        raise BundleError(f"cannot read {path}: {error}", hint=hint) from error
    if newline.shape != (hidden,) or newline.dtype != np.float32:
        found = f"{newline.dtype} {list(newline.shape)}"
        raise BundleError(f"{path} is {found}, not float32 [{hidden}]", hint=hint)
    if not np.isfinite(newline).all():
        raise BundleError(f"{path} has values that are not finite", hint=hint)
    return newline


def pack_image(
    features: NDArray[np.float32], size: tuple[int, int], spec: AnyRes, newline: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Join the features of a tiled image to its visual tokens.

    Args:
        features: Image features [1 + rows·columns, P, H] of ``split``'s tiles.
        size: (height, width) of the image.
        spec: Tiling that the image was split by.
        newline: The learned ``image_newline`` [H].

    Returns:
        [n, H] with n = ``spec.token_count(size)``: the base view's P features, then the grid's row by row,
        each row ended by a newline.
    """
    grid_rows, grid_cols = spec.grid_shape(size)
    side, hidden = spec.side, features.shape[-1]
    rows, cols = spec.packed_shape(size)
    plane = (
        features[1:]
        .reshape(grid_rows, grid_cols, side, side, hidden)
        .swapaxes(1, 2)
        .reshape(grid_rows * side, grid_cols * side, hidden)[spec.unpadded(size)]
    )
    out = np.empty((side**2 + rows * (cols + 1), hidden), np.float32)
    out[: side**2] = features[0]
    lines = out[side**2 :].reshape(rows, cols + 1, hidden)
    lines[:, :cols] = resize_bilinear(plane, (rows, cols))
    lines[:, cols] = newline
    return out


def pack_square(features: NDArray[np.float32], newline: NDArray[np.float32]) -> NDArray[np.float32]:
    """Visual tokens [P + 1, H] of a padded square: its features [1, P, H] and one newline."""
    return np.concatenate([features[0], newline[None]])


def pool_frames(
    features: NDArray[np.float32], side: int, pooling: Pooling = "bilinear"
) -> NDArray[np.float32]:
    """Halve the features [F, P, H] of video frames along both axes: [F, pooled², H].

    As ``get_2dPool`` (stride 2) of LLaVA-NeXT; ``bilinear`` also as ``apply_pooling`` of transformers.
    """
    frames, _, hidden = features.shape
    pooled = pooled_side(side, pooling)
    if pooling != "bilinear":
        plane = features.reshape(frames, side, side, hidden)
        corners = (plane[:, y : 2 * pooled : 2, x : 2 * pooled : 2] for y in (0, 1) for x in (0, 1))
        whole = reduce(np.add if pooling == "average" else np.maximum, corners)
        if pooling == "average":
            whole /= np.float32(4)
        return whole.reshape(frames, pooled**2, hidden)
    out = np.empty((frames, pooled, pooled, hidden), np.float32)
    for frame, small in zip(features, out, strict=True):
        small[:] = resize_bilinear(frame.reshape(side, side, hidden), (pooled, pooled))
    return out.reshape(frames, pooled**2, hidden)


def pack_video(
    features: NDArray[np.float32],
    side: int,
    newline: NDArray[np.float32],
    position: NewlinePosition = "one_token",
    pooling: Pooling = "bilinear",
) -> NDArray[np.float32]:
    """Visual tokens [n, H] of a video: its pooled frames, and newlines as ``position`` says.

    n is :meth:`onevision.bundle.VideoInfo.tokens`. As ``prepare_inputs_labels_for_multimodal`` of LLaVA-NeXT.
    """
    pooled = pool_frames(features, side, pooling)
    frames, count, hidden = pooled.shape
    if position == "no_token":
        return pooled.reshape(-1, hidden)
    # Tokens between two newlines.
    line = {"grid": math.isqrt(count), "frame": count, "one_token": frames * count}[position]
    out = np.empty((frames * count // line, line + 1, hidden), np.float32)
    out[:, :line] = pooled.reshape(-1, line, hidden)
    out[:, line] = newline
    return out.reshape(-1, hidden)


def resize_bilinear(x: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample a plane [h, w, C] to [*size, C], as torch's ``interpolate(mode="bilinear")``.

    That is without ``align_corners`` and without antialiasing. Each output row is made from two input rows,
    which stay in the processor's cache. ``x`` itself is returned if it has the size already.
    """
    height, width, channels = x.shape
    if (height, width) == size:
        return x
    left, right, near, far = _neighbours(width, size[1])
    near, far = near[:, None], far[:, None]
    out = np.empty((*size, channels), np.float32)
    for y, (above, below, upper, lower) in enumerate(zip(*_neighbours(height, size[0]), strict=True)):
        row = x[above] * upper + x[below] * lower
        np.multiply(row[left], near, out=out[y])
        out[y] += row[right] * far
    return out


def _neighbours(
    source: int, target: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """For each of ``target`` positions on an axis: its two neighbours among ``source``, and their weights.

    torch computes the coordinate in float32 with a fused multiply-add, which rounds once; so does this. With
    plain double precision the weights differ by 1e-5.
    """
    scale = np.float32(source) / np.float32(max(target, 1))
    coordinate = (float(scale) * (np.arange(target) + 0.5) - 0.5).clip(0).astype(np.float32)
    first = coordinate.astype(np.intp)
    weight = coordinate - first.astype(np.float32)
    return first, np.minimum(first + 1, source - 1), 1 - weight, weight
