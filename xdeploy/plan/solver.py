"""The integer programme of the plan, solved exactly: one format per layer, least distortion within a byte budget.

This is the multiple-choice knapsack problem. Partial choices are extended layer by layer; one is dropped when another
is neither larger nor worse (dynamic programming), or when even the linear relaxation of the remaining layers cannot
bring it below a known solution (Dyer, Kayal and Walker 1984). Sizes are integers and distortions are only added and
compared, so no tolerance enters, however many orders of magnitude they span. (General MILP solvers work to absolute
tolerances, and HiGHS writes to stdout on such instances.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import PlanError
from xdeploy.formats import Float64

Int64 = NDArray[np.int64]
Choice = NDArray[np.intp]  # format index of each layer

SLACK = 1.0 + 1e-9  # bounds are compared with room for the rounding of sums


@dataclass(frozen=True, slots=True)
class Options:
    """One layer's sensible formats, by growing size and falling distortion: column, size, distortion."""

    column: Choice
    size: Int64
    distortion: Float64


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Lower bound on the distortion of some layers by the bytes left for them: a convex polyline."""

    size: Float64
    distortion: Float64

    def bound(self, room: Int64) -> Float64:
        """Bound at `room` bytes, which must be at least the smallest size."""
        return np.interp(room, self.size, self.distortion)


def least_size(size: Int64, allowed: NDArray[np.bool_]) -> int:
    """Bytes of the smallest choice."""
    return int(np.where(allowed, size, np.iinfo(np.int64).max).min(axis=1).sum())


def solve(size: Int64, distortion: Float64, allowed: NDArray[np.bool_], budget: int) -> Choice:
    """The choice of least total distortion within `budget` bytes; of equals a smaller one.

    Args:
        size: (layers, formats) bytes, >= 0.
        distortion: (layers, formats), >= 0.
        allowed: (layers, formats), at least one per row.
        budget: bytes.

    Returns:
        Column of each layer (layers,).

    Raises:
        PlanError: infeasible, with the least feasible bytes.
    """
    least = least_size(size, allowed)
    if budget < least:
        raise PlanError(
            f"no plan fits {budget} bytes; the smallest with these formats needs {least} bytes",
            hint=f"raise the budget to {least}, or allow formats with fewer bits",
        )
    layers = [_sensible(s, d, a) for s, d, a in zip(size, distortion, allowed, strict=True)]
    rest = [_relax(layers[k:]) for k in range(1, len(layers) + 1)]
    known = _greedy(layers, budget) * SLACK
    used, error = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[Choice, Choice]] = []
    for options, relaxed in zip(layers, rest, strict=True):
        parent, pick = np.divmod(np.arange(len(used) * len(options.size)), len(options.size))
        used, error = used[parent] + options.size[pick], error[parent] + options.distortion[pick]
        fits = np.flatnonzero(used + relaxed.size[0] <= budget)
        fits = fits[error[fits] + relaxed.bound(budget - used[fits]) <= known]
        kept = fits[_front(used[fits], error[fits])]
        used, error = used[kept], error[kept]
        trail.append((parent[kept], options.column[pick[kept]]))
    return _follow(trail, int(error.argmin()))


def _sensible(size: Int64, distortion: Float64, allowed: NDArray[np.bool_]) -> Options:
    columns = np.flatnonzero(allowed)
    kept = columns[_front(size[columns], distortion[columns])]
    return Options(kept, size[kept], distortion[kept])


def _front(size: Int64, error: Float64) -> Choice:
    """Indices of the entries that no other one beats in both, by growing size."""
    order = np.lexsort((error, size))
    best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best]


def _hull_steps(options: Options) -> tuple[Float64, Float64]:
    """(bytes, distortion saved) of the steps along the lower convex hull of one layer, steepest first."""
    points: list[tuple[float, float]] = []
    for x, y in zip(options.size.tolist(), options.distortion.tolist(), strict=True):
        while len(points) > 1:
            (x0, y0), (x1, y1) = points[-2:]
            if (y0 - y1) * (x - x1) > (y1 - y) * (x1 - x0):
                break
            points.pop()
        points.append((x, y))
    steps = np.diff(np.array(points, np.float64), axis=0)
    return steps[:, 0], -steps[:, 1]


def _relax(layers: list[Options]) -> Relaxation:
    """The linear relaxation: hull steps of all layers, taken by distortion saved per byte."""
    size, error = float(sum(o.size[0] for o in layers)), float(sum(o.distortion[0] for o in layers))
    steps = [_hull_steps(o) for o in layers]
    grow = np.concatenate([s[0] for s in steps]) if steps else np.zeros(0)
    save = np.concatenate([s[1] for s in steps]) if steps else np.zeros(0)
    order = np.argsort(-save / grow, kind="stable")
    sizes = np.concatenate([[size], size + np.cumsum(grow[order])])
    return Relaxation(sizes, np.maximum(np.concatenate([[error], error - np.cumsum(save[order])]), 0.0))


def _greedy(layers: list[Options], budget: int) -> float:
    """Distortion of a good feasible choice: upgrade the layer that saves most per byte while anything fits."""
    at = [0] * len(layers)
    room = budget - sum(int(o.size[0]) for o in layers)
    while True:
        best, move = 0.0, None
        for k, o in enumerate(layers):
            grow, save = o.size[at[k] + 1 :] - o.size[at[k]], o.distortion[at[k]] - o.distortion[at[k] + 1 :]
            rate = np.where(grow <= room, save / grow, 0.0)
            if rate.size and rate.max() > best:
                best, move = float(rate.max()), (k, at[k] + 1 + int(rate.argmax()))
        if move is None:
            return float(sum(o.distortion[j] for o, j in zip(layers, at, strict=True)))
        k, j = move
        room -= int(layers[k].size[j] - layers[k].size[at[k]])
        at[k] = j


def _follow(trail: list[tuple[Choice, Choice]], state: int) -> Choice:
    """Walk back from a final state to the column of each layer."""
    columns = []
    for parent, column in reversed(trail):
        columns.append(int(column[state]))
        state = int(parent[state])
    return np.array(columns[::-1], np.intp)
