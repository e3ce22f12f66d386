"""A codebook while its layer is trained: entries follow their weights, weights choose their entry again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Float64, Int8
from xdeploy.quantise import nearest_entry

Float32 = NDArray[np.float32]


def in_units(weight: Float32, scale: Float32) -> Float64:
    """Weights divided by their channel's scale: what codebook entries approximate."""
    return np.asarray(weight, np.float64) / scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))


def reassign(weight: Float32, book: Int8, scale: Float32) -> Int8:
    """Nearest entry of every weight under entries and scales that stay; codes int8, weight's shape."""
    return nearest_entry(in_units(weight, scale), book)


def move_entries(weight: Float32, codes: Int8, book: Int8, scale: Float32, h: Float64 | None) -> Int8:
    """One Lloyd step: each entry becomes the weighted mean of its weights, rounded; the order is kept.

    Args:
        weight: (O, ...) float32.
        codes: current entry of each weight, same shape.
        book: (k,) ascending entries; entries without weights stay.
        scale: (O,) per channel.
        h: importance of each weight or None.

    Returns:
        (k,) int8, ascending.
    """
    wide = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1)) ** 2
    cost = np.broadcast_to(wide if h is None else wide * h, weight.shape).ravel()
    flat = codes.ravel().astype(np.intp)
    total = np.bincount(flat, weights=cost, minlength=len(book))
    means = np.bincount(flat, weights=cost * in_units(weight, scale).ravel(), minlength=len(book))
    moved = np.where(total > 0, means / np.maximum(total, 1e-300), book)
    return np.sort(np.clip(np.rint(moved), -127, 127)).astype(np.int8)
