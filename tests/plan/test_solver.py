"""The exact solver against exhaustive search and against HiGHS, an independent solver."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from xdeploy.errors import PlanError
from xdeploy.plan.solver import least_size, solve


def problem(seed: int, layers: int, formats: int, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (layers, formats)
    size = (10.0 ** rng.uniform(1, 5, (layers, 1)) * rng.uniform(0.1, 1.0, shape)).astype(np.int64) + 1
    error = 10.0 ** rng.uniform(-spread, spread, shape)
    allowed = rng.random(shape) < 0.85
    allowed[:, 0] = True
    return size, error, allowed


@pytest.mark.parametrize("spread", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("seed", range(6))
def test_equals_exhaustive_search(seed, spread):
    size, error, allowed = problem(seed, 5, 4, spread)
    rows = np.arange(5)
    every = [c for c in map(list, itertools.product(range(4), repeat=5)) if allowed[rows, c].all()]
    sizes = [int(size[rows, c].sum()) for c in every]
    assert least_size(size, allowed) == min(sizes)
    for budget in np.quantile(sizes, [0.0, 0.1, 0.5, 0.9, 1.0]).astype(int):
        best = min(error[rows, c].sum() for c, s in zip(every, sizes, strict=True) if s <= budget)
        choice = solve(size, error, allowed, int(budget))
        assert size[rows, choice].sum() <= budget
        assert allowed[rows, choice].all()
        assert error[rows, choice].sum() == pytest.approx(best, rel=1e-12)
    with pytest.raises(PlanError, match=str(min(sizes))):
        solve(size, error, allowed, min(sizes) - 1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_general_solver(seed):
    size, error, allowed = problem(seed, 20, 6, 0.7)
    budget = int(0.5 * size.mean(axis=1).sum() + 0.5 * least_size(size, allowed))
    one_each = LinearConstraint(np.kron(np.eye(20), np.ones(6)), 1, 1)
    result = milp(
        error.ravel(), integrality=np.ones(error.size), bounds=Bounds(0, allowed.ravel().astype(float)),
        constraints=[one_each, LinearConstraint(size.ravel()[None], -np.inf, budget)], options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    assert error[np.arange(20), solve(size, error, allowed, budget)].sum() == pytest.approx(result.fun, rel=1e-6)


def test_a_deep_network_is_quick():
    size, error, allowed = problem(1, 120, 11, 2.0)
    start = time.process_time()
    for share in (0.2, 0.5, 0.8):
        least, most = least_size(size, allowed), int(size.max(axis=1).sum())
        solve(size, error, allowed, int(least + share * (most - least)))
    assert time.process_time() - start < 5.0


def test_equal_distortions_take_the_smaller_format():
    size, error = np.array([[9, 5, 7]]), np.zeros((1, 3))
    assert solve(size, error, np.ones((1, 3), bool), 100).tolist() == [1]
