"""The integer programme against exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

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


def test_equal_distortions_take_the_smaller_format():
    size, error = np.array([[9, 5, 7]]), np.zeros((1, 3))
    assert solve(size, error, np.ones((1, 3), bool), 100).tolist() == [1]
