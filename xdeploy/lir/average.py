"""Averages that fall exactly between two codes: the one place where float32 noise decides codes for a whole network.

Where input and output of an average pooling share their scale (TensorFlow Lite demands it), the average of a window
of 4, 16 or 64 elements is often exactly half way between two codes. Rounding halves up is then wrong in half of these
cases against any float runtime, which sums `scale * (code - zero)` in float32, tap after tap, and rounds half to even.
Here the same is done in integers: with the scale's 24-bit mantissa m, every product m * (code - zero) and every
partial sum is rounded to 24 significant bits, as float32 does, and the sum is compared with the half. With m = 1
nothing is ever rounded and halves go to the even neighbour, as the integer pooling operators define it.
"""

from __future__ import annotations

import numpy as np

from xdeploy.formats import Int64

BITS = 24  # significant bits of float32
WINDOW_LIMIT = 2**20  # elements: with these, sums of products stay below 2^53


def mantissa(scale: float) -> int:
    """The scale's float32 significand as an integer in [2^23, 2^24)."""
    fraction, _ = np.frexp(np.float32(scale))
    return int(fraction * 2.0**BITS)


def single(values: Int64) -> Int64:
    """Integers rounded to 24 significant bits, halves to even."""
    size = np.abs(values)
    n = np.maximum(np.frexp(size.astype(np.float64))[1].astype(np.int64) - BITS, 0)  # exact below 2^53
    half = (1 << n) >> 1
    rounded = np.where(n > 0, (size + half - 1 + ((size >> n) & 1)) >> n << n, size)
    result: Int64 = np.where(values < 0, -rounded, rounded)
    return result


def settle(taps: Int64, m: int, count: Int64, below: Int64) -> Int64:
    """Round averages that lie exactly between `below` and `below + 1`.

    Args:
        taps: (n, window) centred codes in row-major order of the window, 0 in the padding.
        m: mantissa of the scale, or 1 for exact sums.
        count: (n,) what the sum is divided by.
        below: (n,) the lower neighbour.

    Returns:
        (n,) `below` or `below + 1`.
    """
    total = np.zeros(len(taps), np.int64)
    for tap in taps.T:
        total = single(total + single(m * tap))
    odd = np.abs(2 * below + 1)  # twice the half way's magnitude
    ahead = 2 * total - (2 * below + 1) * count * m
    # a quotient within half a unit in the last place of the half way is rounded onto it
    band = (count * m) >> (BITS + 1 - np.frexp(odd.astype(np.float64))[1].astype(np.int64))
    up: Int64 = ((ahead > band) | ((ahead >= -band) & (below % 2 != 0))).astype(np.int64)
    return below + up
