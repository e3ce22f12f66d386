"""The integer programme of the plan: one format per layer, least distortion within a byte budget (HiGHS)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_array

from xdeploy.errors import PlanError
from xdeploy.formats import Float64

Int64 = NDArray[np.int64]
Choice = NDArray[np.intp]  # format index of each layer

OBJECTIVE_SCALE = 1e4  # HiGHS works to absolute tolerances near 1e-6: the whole range is brought well above them


def least_size(size: Int64, allowed: NDArray[np.bool_]) -> int:
    """Bytes of the smallest choice."""
    return int(np.where(allowed, size, np.iinfo(np.int64).max).min(axis=1).sum())


def solve(size: Int64, distortion: Float64, allowed: NDArray[np.bool_], budget: int) -> Choice:
    """The choice of least total distortion within `budget` bytes.

    Minimise sum x[l, f] * distortion[l, f] subject to sum_f x[l, f] = 1 for every layer and
    sum x[l, f] * size[l, f] <= budget, x binary.

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
    allowed = allowed & ~_beaten(size, distortion, allowed)
    layers, formats = size.shape
    cost = np.where(allowed, distortion, 0.0)
    # what a layer loses with its best format it loses in every plan; only differences decide
    cost = np.where(allowed, cost - np.where(allowed, distortion, np.inf).min(axis=1, keepdims=True), 0.0)
    cost *= OBJECTIVE_SCALE / (cost.max(axis=1).sum() or 1.0)
    one_each = LinearConstraint(block_diag([np.ones((1, formats))] * layers), 1, 1)
    fits = LinearConstraint(csr_array(size.reshape(1, -1).astype(np.float64)), -np.inf, budget)
    with _silent_stdout():
        found = milp(
            cost.ravel(), integrality=np.ones(size.size), bounds=Bounds(0, allowed.ravel().astype(np.float64)),
            constraints=[one_each, fits], options={"mip_rel_gap": 0.0},
        )  # fmt: skip
    if found.x is None:
        raise PlanError(f"the integer programme for {budget} bytes was not solved: {found.message}")
    choice: Choice = found.x.reshape(size.shape).argmax(axis=1)
    return choice


def _beaten(size: Int64, distortion: Float64, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Formats that another of the same layer is at least as good as in both, the first of equals kept."""
    as_good = (size[:, :, None] <= size[:, None]) & (distortion[:, :, None] <= distortion[:, None])
    equal = (size[:, :, None] == size[:, None]) & (distortion[:, :, None] == distortion[:, None])
    first = np.arange(size.shape[1])[:, None] < np.arange(size.shape[1])
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
