"""Float weights -> integer codes: per-channel uniform grids and layer codebooks of int8 entries, in plain numpy.

The plan asks these functions what a format would cost and `compress` calls the same ones for the final codes, so the
prediction is the deed. Both minimise the weighted squared error `sum h * (w - scale * value)^2` with h >= 0 the
importance of each weight; both are deterministic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Float64, Int8, WeightFormat

Float32 = NDArray[np.float32]
AnyFloat = NDArray[np.floating]

# A channel whose scale is this far below the layer's largest adds less than one output code; finer buys nothing and
# would cost multiplier precision.
SMALLEST_SCALE = 2.0**-20
# Clipping points tried, as shares of the largest magnitude. Short rows fit some scales by luck; more tries are cheap.
COARSE = np.geomspace(0.12, 0.5, 8)
FINE = (16, 128)  # least and most candidates above one half
FINE_WORK = 2**20  # weights times fine candidates, about
REFINEMENTS = 4
GRID = np.arange(-127, 128, dtype=np.float64)  # the int8 entries a codebook may hold


def importance(sensitivity: AnyFloat | None, exponent: float) -> Float64 | None:
    """Weights h of the squared error from a relevance sensitivity: sensitivity^exponent, mean 1, at least 0.01.

    The lower bound keeps weights that no sample used from drifting anywhere. None (or exponent 0) means unweighted.
    """
    if sensitivity is None or exponent == 0:
        return None
    powered = np.asarray(sensitivity, np.float64) ** exponent
    mean = float(powered.mean())
    if not np.isfinite(mean) or mean <= 0:
        return None
    return np.maximum(powered / mean, 0.01)


def weighted_error(weight: AnyFloat, values: Int8, scale: Float32, h: AnyFloat | None = None) -> float:
    """`sum h * (w - scale[c] * value)^2` over a layer; h None counts every weight as 1."""
    rows = _rows(weight)
    error = (rows - _rows(values) * scale.astype(np.float64)[:, None]) ** 2
    return float(error.sum() if h is None else (error * _rows(h)).sum())


def uniform_codes(
    weight: AnyFloat, fmt: WeightFormat, h: AnyFloat | None = None, floor: Float64 | None = None
) -> tuple[Int8, Float32]:
    """Symmetric per-channel codes with the scale of least weighted error.

    8 bits use the full range of each channel. Fewer bits search the clipping point: candidates down to 0.12 of the
    largest magnitude, then alternating between codes and the least-squares scale of these codes.

    Args:
        weight: (O, ...) finite floats.
        fmt: a uniform format.
        h: importance of each weight, same shape, or None.
        floor: (O,) smallest scale allowed per channel, or None.

    Returns:
        codes int8 (O, ...), within +-fmt.limit, and scale float32 (O,), > 0.
    """
    rows = _rows(weight)
    weights = np.ones_like(rows) if h is None else _rows(h)
    top = np.abs(rows).max(axis=1, initial=0.0)
    full = _floored(top / fmt.limit, floor)
    best = full if fmt.bits == 8 else _floored(_search(rows, weights, full, fmt.limit), floor)
    scale = best.astype(np.float32)
    codes = _round(rows, scale.astype(np.float64), fmt.limit).astype(np.int8)
    return codes.reshape(weight.shape), scale


def codebook_codes(
    weight: AnyFloat, fmt: WeightFormat, h: AnyFloat | None = None, floor: Float64 | None = None, zero: bool = False
) -> tuple[Int8, Int8, Float32]:
    """The layer's best codebook of 2^bits int8 entries and the nearest entry of every weight.

    Weights are divided by scale[c] = max|w| / 127. As entries are integers in -127..127, the best table is found
    exactly: a shortest path over the 255 possible entries, whose edge (i, j) costs the error of the weights between i
    and j (1-D k-means by dynamic programming, Wang and Song 2011, on a fixed grid). Zero is an entry when it pays.

    Args:
        weight: (O, ...) finite floats.
        fmt: a codebook format.
        h: importance of each weight, same shape, or None.
        floor: (O,) smallest scale allowed per channel, or None.
        zero: whether zero must be an entry.

    Returns:
        codes int8 (O, ...) in 0..2^bits-1, codebook int8 (2^bits,) strictly ascending, scale float32 (O,).
    """
    rows = _rows(weight)
    scale = channel_scale(weight, floor)
    wide = scale.astype(np.float64)[:, None]
    unit = np.clip(rows / wide, -127.0, 127.0)
    cost = np.broadcast_to(wide**2, rows.shape) if h is None else wide**2 * _rows(h)
    book = best_codebook(unit.ravel(), cost.ravel(), 2**fmt.bits, zero)
    codes = nearest_entry(unit, book)
    return codes.reshape(weight.shape), book, scale


def channel_scale(weight: AnyFloat, floor: Float64 | None = None) -> Float32:
    """The scale (O,), > 0, with which the largest magnitude of each channel of a weight (O, ...) is 127."""
    return _floored(np.abs(_rows(weight)).max(axis=1, initial=0.0) / 127.0, floor).astype(np.float32)


def nearest_entry(unit: AnyFloat, book: Int8) -> Int8:
    """Index of the nearest entry of an ascending codebook; a tie goes to the larger entry."""
    wide = book.astype(np.float64)
    return np.searchsorted((wide[1:] + wide[:-1]) / 2.0, unit, side="right").astype(np.int8)


def best_codebook(unit: Float64, h: Float64, entries: int, zero: bool = False) -> Int8:
    """The `entries` distinct integers in -127..127 with the least `sum h * (u - nearest)^2`, ascending.

    Args:
        unit: (n,) values in [-127, 127].
        h: (n,) weights >= 0.
        entries: 1..255.
        zero: whether zero must be one of them.
    """
    edge, first, last = _edges(unit, h)
    if zero:  # no path may pass it by
        edge[:127, 128:] = first[128:] = last[:127] = np.inf
    cost, back = first, []
    for _ in range(entries - 1):
        step = cost[:, None] + edge
        back.append(step.argmin(axis=0))
        cost = step.min(axis=0)
    path = [int((cost + last).argmin())]
    for previous in reversed(back):
        path.append(int(previous[path[-1]]))
    return GRID[path[::-1]].astype(np.int8)


def _edges(unit: Float64, h: Float64) -> tuple[Float64, Float64, Float64]:
    """Costs of neighbouring entries (i, j), of everything below the first entry, of everything above the last.

    The border between two integer entries is a multiple of one half, so sums over cells of one half tell everything.
    """
    cell = np.minimum(np.floor(2.0 * (unit + 127.0)).astype(np.int64), 2 * 254)
    sums = [np.bincount(cell, weights=h * unit**p, minlength=2 * 254 + 1) for p in (0, 1, 2)]
    below = [np.concatenate([[0.0], np.cumsum(s)]) for s in sums]

    def between(low: NDArray[np.int64], high: NDArray[np.int64], entry: Float64) -> Float64:
        s0, s1, s2 = (b[high] - b[low] for b in below)
        cost: Float64 = np.maximum(s2 - 2.0 * entry * s1 + entry**2 * s0, 0.0)
        return cost

    i, j = np.meshgrid(np.arange(255), np.arange(255), indexing="ij")
    edge = between(2 * i, np.maximum(i + j, 2 * i), GRID[i]) + between(i + j, np.maximum(2 * j, i + j), GRID[j])
    edge[i >= j] = np.inf
    grid = np.arange(255)
    first = between(np.zeros_like(grid), 2 * grid, GRID)
    last = between(2 * grid, np.full_like(grid, 2 * 254 + 1), GRID)
    return edge, first, last


def _rows(array: NDArray[np.floating] | NDArray[np.integer]) -> Float64:
    return np.asarray(array, np.float64).reshape(len(array), -1)


def _floored(scale: Float64, floor: Float64 | None) -> Float64:
    """Raise scales that are zero or uselessly small; a layer of zeros gets a small positive one."""
    top = float(scale.max(initial=0.0)) or 1.0
    raised: Float64 = np.maximum(scale, top * SMALLEST_SCALE)
    if floor is not None:
        raised = np.maximum(raised, floor)
    return raised


def _round(rows: Float64, scale: Float64, limit: int) -> Float64:
    codes: Float64 = np.clip(np.rint(rows / scale[:, None]), -limit, limit)
    return codes


def _search(rows: Float64, h: Float64, full: Float64, limit: int) -> Float64:
    """Per-channel scale of least weighted error, starting from the scales that cover the full range."""
    best, least = full.copy(), np.full(len(rows), np.inf)

    def offer(scale: Float64) -> Float64:
        codes = _round(rows, scale, limit)
        error = np.einsum("ck,ck->c", h, (rows - codes * scale[:, None]) ** 2)
        better = error < least
        best[better], least[better] = scale[better], error[better]
        return codes

    fine = int(np.clip(FINE_WORK // max(rows.size, 1), *FINE))
    for factor in (*COARSE, *np.linspace(0.5, 1.0, fine)):
        offer(full * factor)
    for _ in range(REFINEMENTS):
        codes = _round(rows, best, limit)
        top = np.einsum("ck,ck,ck->c", h, rows, codes)
        bottom = np.einsum("ck,ck,ck->c", h, codes, codes)
        offer(np.where((bottom > 0) & (top > 0), top / np.maximum(bottom, 1e-300), best))
    return best
