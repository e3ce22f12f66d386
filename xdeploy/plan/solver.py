"""The integer programme of the plan: one format per layer, least distortion within budgets (HiGHS)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array

from xdeploy.errors import PlanError
from xdeploy.formats import Float64

Int64 = NDArray[np.int64]
Choice = NDArray[np.intp]  # format index of each layer

CUTS = 64  # choices that only rounding let through, before giving up
OBJECTIVE_SCALE = 1e4  # HiGHS works to absolute tolerances near 1e-6: the whole range is brought well above them


@dataclass(frozen=True, slots=True)
class Limit:
    """One more budget: `base` and the sum over layers of `table` (layers, columns), each >= 0, are at most `bound`."""

    name: str  # the recipe key
    unit: str
    table: Int64
    bound: int
    base: int = 0  # what is taken whatever is chosen

    def of(self, choice: Choice) -> int:
        """What a choice takes of it."""
        return self.base + int(self.table[np.arange(len(choice)), choice].sum())


def least_size(size: Int64, allowed: NDArray[np.bool_]) -> int:
    """Bytes of the smallest choice."""
    return int(np.where(allowed, size, np.iinfo(np.int64).max).min(axis=1).sum())


def solve(
    size: Int64, distortion: Float64, allowed: NDArray[np.bool_], budget: int, limits: Sequence[Limit] = ()
) -> Choice:
    """The choice of least total distortion within `budget` bytes and within every further limit.

    Minimise sum x[l, f] * distortion[l, f] subject to sum_f x[l, f] = 1 for every layer,
    sum x[l, f] * size[l, f] <= budget, and the same of each limit, x binary.

    Args:
        size: (layers, formats) bytes, >= 0.
        distortion: (layers, formats), >= 0.
        allowed: (layers, formats), at least one per row.
        budget: bytes.
        limits: further budgets.

    Returns:
        Column of each layer (layers,).

    Raises:
        PlanError: infeasible, with the least there is of the first budget that cannot be met.
    """
    _check_feasible(size, allowed, budget, limits)
    allowed = allowed & ~_beaten([size, *(x.table for x in limits)], distortion, allowed)
    layers, formats = size.shape
    cost = np.where(allowed, distortion, 0.0)
    # what a layer loses with its best format it loses in every plan; only differences decide
    cost = np.where(allowed, cost - np.where(allowed, distortion, np.inf).min(axis=1, keepdims=True), 0.0)
    cost *= OBJECTIVE_SCALE / (cost.max(axis=1).sum() or 1.0)
    one_each = LinearConstraint(block_diag([np.ones((1, formats))] * layers), 1, 1)
    budgets = [Limit("", "bytes", size, budget), *limits]
    rows = [
        LinearConstraint(csr_array(x.table.reshape(1, -1).astype(np.float64)), -np.inf, x.bound - x.base)
        for x in budgets
    ]
    for _ in range(CUTS):
        with _silent_stdout():
            found = milp(
                cost.ravel(), integrality=np.ones(size.size), bounds=Bounds(0, allowed.ravel().astype(np.float64)),
                constraints=[one_each, *rows], options={"mip_rel_gap": 0.0},
            )  # fmt: skip
        if found.x is None:
            break
        choice: Choice = found.x.reshape(size.shape).argmax(axis=1)
        if all(x.of(choice) <= x.bound for x in budgets):
            return choice
        # HiGHS takes 1 + 1e-6 for 1, which in a sum of billions is too much: this choice is out, and once more
        chosen = np.zeros(size.shape)
        chosen[np.arange(layers), choice] = 1.0
        rows.append(LinearConstraint(csr_array(chosen.reshape(1, -1)), -np.inf, layers - 1))
    told = ", ".join([f"{budget} bytes", *(f"{x.name} = {x.bound} {x.unit}" for x in limits)])
    raise PlanError(
        f"no plan meets all of {told}; the integer programme says: {found.message}",
        hint="each can be met by itself but not together: raise one of them" if limits else None,
    )


def _check_feasible(size: Int64, allowed: NDArray[np.bool_], budget: int, limits: Sequence[Limit]) -> None:
    least = least_size(size, allowed)
    if budget < least:
        raise PlanError(
            f"no plan fits {budget} bytes; the smallest with these formats needs {least} bytes",
            hint=f"raise the budget to {least}, or allow formats with fewer bits",
        )
    for x in limits:
        least = x.base + least_size(x.table, allowed)
        if x.bound < least:
            raise PlanError(
                f"no plan fits {x.name} = {x.bound} {x.unit}; the least with these formats is {least}",
                hint=f"raise {x.name} to {least}, or allow formats with fewer bits",
            )


def _beaten(needs: Sequence[Int64], distortion: Float64, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Formats that another of the same layer is at least as good as in everything, the first of equals kept."""
    tables = [*needs, distortion]
    as_good = np.logical_and.reduce([t[:, :, None] <= t[:, None] for t in tables])
    equal = np.logical_and.reduce([t[:, :, None] == t[:, None] for t in tables])
    first = np.arange(distortion.shape[1])[:, None] < np.arange(distortion.shape[1])
    beaten: NDArray[np.bool_] = (allowed[:, :, None] & as_good & (~equal | first)).any(axis=1)
    return beaten


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS writes to the process's standard output on some instances, which belongs to `--json`."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
