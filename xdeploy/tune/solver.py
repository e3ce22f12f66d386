"""The integer programme of the choice: one option per node, parts of the flash counted once (HiGHS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Cut = list[tuple[str, list[int]]]  # node -> options; not all of these nodes may take one of theirs


class InfeasibleError(Exception):
    """No choice satisfies the limits."""


@dataclass(slots=True)
class Problem:
    """Node -> options as (value, parts of the flash by key); bytes of flash that may be taken; cuts."""

    table: Mapping[str, list[tuple[float, Mapping[str, int]]]]
    flash: int | None
    cuts: list[Cut] = field(default_factory=list)


def minimise(problem: Problem, objective: Literal["value", "flash"]) -> dict[str, int]:
    """The option of each node with the least total value, or the fewest bytes.

    Minimise sum c x subject to: one x per node; x <= y of each part it needs; sum size y <= flash; the cuts. x is
    binary; y need not be, because a part that something needs is at 1 and costs nothing to leave at 0 otherwise.

    Raises:
        InfeasibleError: nothing fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    at = {(n, i): k for k, (n, i) in enumerate((n, i) for n, options in problem.table.items()
                                               for i in range(len(options)))}  # fmt: skip
    sizes: dict[str, int] = {}
    for _, parts in (option for options in problem.table.values() for option in options):
        sizes |= {k: max(v, sizes.get(k, 0)) for k, v in parts.items()}
    part = {key: len(at) + k for k, key in enumerate(sizes)}
    rows, lows, highs = _constraints(problem, at, part, sizes)
    width = len(at) + len(part)
    costs = np.zeros(width)
    if objective == "flash":
        costs[len(at) :] = list(sizes.values())
    else:
        for (n, i), k in at.items():
            costs[k] = problem.table[n][i][0] - min(v for v, _ in problem.table[n])  # small numbers solve exactly
    matrix = np.zeros((len(rows), width))
    for row, entries in zip(matrix, rows, strict=True):
        for k, v in entries.items():
            row[k] = v
    integral = np.r_[np.ones(len(at)), np.zeros(len(part))]
    scale = max(1.0, float(costs.max(initial=0.0)) / 1e6)
    found = milp(costs / scale, constraints=LinearConstraint(matrix, lows, highs), integrality=integral,
                 bounds=Bounds(0, 1), options={"mip_rel_gap": 0.0})  # fmt: skip
    if found.x is None:
        raise InfeasibleError
    return {n: i for (n, i), k in at.items() if found.x[k] > 0.5}


def _constraints(
    problem: Problem, at: Mapping[tuple[str, int], int], part: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[list[dict[int, float]], list[float], list[float]]:
    """Rows of the matrix as {column: factor}, with the bounds of each."""
    rows: list[dict[int, float]] = []
    lows: list[float] = []
    highs: list[float] = []

    def add(row: dict[int, float], low: float, high: float) -> None:
        rows.append(row)
        lows.append(low)
        highs.append(high)

    for n, options in problem.table.items():
        add({at[n, i]: 1.0 for i in range(len(options))}, 1.0, 1.0)
        for i, (_, parts) in enumerate(options):
            for key in parts:
                add({part[key]: 1.0, at[n, i]: -1.0}, 0.0, 1.0)
    if problem.flash is not None:
        # bytes are whole: half a byte of room keeps an exact fit from being lost to the solver's tolerance
        add({part[k]: float(v) for k, v in sizes.items()}, -np.inf, problem.flash + 0.5)
    for cut in problem.cuts:
        add({at[n, i]: 1.0 for n, options in cut for i in options}, -np.inf, float(len(cut) - 1))
    return rows, lows, highs
