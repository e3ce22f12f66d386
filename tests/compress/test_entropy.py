"""Assignment against brute force over all levels, the share of zeros, lambda, and relevance's factor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeploy.compress.entropy import (
    Assigner,
    Levels,
    entropy,
    nearest_costs,
    probabilities,
    relevance_power,
)
from xdeploy.errors import UsageError
from xdeploy.trainoptions import EcqOptions

INT4 = Levels.of(torch.arange(-7.0, 8.0))


def units(n: int = 4001, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale


def brute_force(unit: torch.Tensor, values: torch.Tensor, offsets: torch.Tensor) -> np.ndarray:
    return (unit.double()[:, None] - values.double()).square() + offsets.double()


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(-127, 127), min_size=2, max_size=20, unique=True),
    bits=st.lists(st.floats(0.0, 40.0), min_size=20, max_size=20),
    never=st.sets(st.integers(0, 19), max_size=4),
    seed=st.integers(0, 99),
)
def test_envelope_is_the_least_cost_of_all_levels(values, bits, never, seed):
    levels = torch.tensor(sorted(values), dtype=torch.float32)
    offsets = torch.tensor(bits[: len(values)], dtype=torch.float64)
    gone = [k for k in never if 0 < k < len(values)]
    offsets[gone] = math.inf
    unit = units(200, seed, 50.0)
    cost = brute_force(unit, levels, offsets)
    found = nearest_costs(unit, levels, offsets)
    taken = cost.gather(1, found[:, None])[:, 0]
    assert (taken - cost.min(dim=1).values <= 1e-3).all()  # float32 borders
    assert not set(found.tolist()) & set(gone)
    assert (found[unit.argsort()].diff() >= 0).all()


def test_ties_go_to_the_larger_level():
    assert nearest_costs(torch.tensor([0.5, -0.5]), INT4.values, torch.zeros(15)).tolist() == [8, 7]


@pytest.mark.parametrize("zeros", [0.3, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_levels_beside_zero_are_the_cheapest_and_zeros_the_cheapest_to_zero(zeros, strength):
    unit = units()
    assigner = Assigner(strength=strength)
    codes = assigner.assign(unit, INT4, zeros, follow=False)
    offsets = -strength * assigner.shares.log2()
    cost = brute_force(unit, INT4.values, offsets)
    at_zero = cost[:, 7].clone()
    cost[:, 7] = math.inf
    other, best = cost.min(dim=1)
    kept = codes != 7
    assert (codes[kept] == best[kept]).double().mean() > 0.999
    margin = at_zero - other
    assert margin[~kept].max() <= margin[kept].min() + 1e-3
    assert abs(float((codes == 7).double().mean()) - zeros) <= 1.0 / len(unit)


def test_natural_zeros_stay_where_fewer_are_asked_for():
    unit = units(scale=0.6)
    natural = (unit.abs() < 0.5).double().mean()
    codes = Assigner().assign(unit, INT4, 0.1)
    assert abs(float((codes == 7).double().mean()) - float(natural)) <= 2.0 / len(unit)
    np.testing.assert_array_equal(INT4.values[codes].numpy(), unit.round().clamp(-7, 7).numpy())


def test_all_and_no_zeros():
    assert (Assigner().assign(units(), INT4, 1.0) == 7).all()
    assert (Assigner().assign(units().abs() + 0.6, INT4, 0.0) != 7).all()


def test_worth_decides_between_channels():
    unit = units(2000).reshape(2, 1000)
    worth = torch.tensor([[0.02], [1.98]])
    zero = Assigner().assign(unit, INT4, 0.6, worth=worth) == 7
    assert zero[0].double().mean() > 0.75 > 0.6 > zero[1].double().mean()


def test_lambda_is_where_zero_and_the_best_other_level_cost_the_same():
    unit, assigner = units(20001), Assigner()
    for _ in range(200):
        codes = assigner.assign(unit, INT4, 0.8)
    assert assigner.strength > 0
    bits = -assigner.shares.log2()
    shares = probabilities(codes, INT4)
    others = torch.arange(15) != 7
    mean_other = float((shares * bits)[others].sum() / shares[others].sum())
    border = unit[codes != 7].abs().min()  # its margin in distortion pays for the bits a zero saves
    distance = (border - border.round()).square()
    saved = mean_other - float(bits[7])
    assert float(border.square() - distance) / saved == pytest.approx(assigner.strength, rel=0.25)
    # the entropy is less than that of the nearest levels with the same zeros
    plain = Assigner().assign(unit, INT4, 0.8, follow=False)
    assert entropy(codes, 15) < entropy(plain, 15) - 0.01
    assert entropy(torch.tensor([0, 1, 2, 3]), 4) == 2.0
    none = Assigner(part=0.0)
    for _ in range(3):
        nearest = none.assign(unit, INT4, 0.8)
    assert none.strength == 0.0
    np.testing.assert_array_equal(INT4.values[nearest[nearest != 7]], unit[nearest != 7].round().clamp(-7, 7))


def test_a_rare_sign_does_not_die_out():
    """A fifth of the weights is positive, and so is a fifth of what is left: c and -c cost the same bits."""
    unit = torch.cat([-torch.linspace(0.2, 3.0, 800), torch.linspace(0.2, 3.0, 200)])
    symmetric = Levels.of(torch.arange(-3, 4, dtype=torch.float32))
    assigner = Assigner(part=1.0)
    for _ in range(200):
        codes = assigner.assign(unit, symmetric, 0.8)
    left = symmetric.values[codes]
    assert int((left > 0).sum()) == int((unit > 0).sum() * 0.2)
    assert int((left < 0).sum()) == int((unit < 0).sum() * 0.2)


def test_relevance_power_is_the_formula():
    share = torch.rand(1000, generator=torch.Generator().manual_seed(1)) ** 3
    mean = float(share.mean())
    beta = relevance_power(share, 2.0)
    assert beta == pytest.approx(-math.log(2.0) / math.log(mean))
    assert 2.0 * mean**beta == pytest.approx(1.0)
    np.testing.assert_allclose((share / mean).pow(beta), 2.0 * share.pow(beta), rtol=1e-5)
    assert relevance_power(torch.ones(4), 2.0) == 1.0


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.1])
def test_regrowth_is_bounded_and_goes_to_the_relevant(tolerance):
    unit = units()
    relevance = torch.rand(len(unit), generator=torch.Generator().manual_seed(2)) ** 4
    plain = Assigner().assign(unit, INT4, 0.8) == 7
    zero = Assigner(tolerance=tolerance).assign(unit, INT4, 0.8, relevance) == 7
    back, gone = plain & ~zero, zero & ~plain
    assert float(back.double().mean()) <= tolerance + 1e-9
    assert abs(int(zero.sum()) - int(plain.sum())) <= 1
    if tolerance:
        assert back.any()
        assert relevance[back].mean() > relevance[gone].mean()


def test_relevance_of_nothing_changes_nothing():
    unit = units()
    plain = Assigner().assign(unit, INT4, 0.8)
    assert torch.equal(Assigner().assign(unit, INT4, 0.8, torch.zeros_like(unit)), plain)
    assert torch.equal(Assigner().assign(unit, INT4, 0.8, torch.ones_like(unit)), plain)


def test_levels_need_zero_and_one_more():
    assert Levels.of(torch.tensor([-1.0, 1.0])) is None
    assert Levels.of(torch.tensor([0.0])) is None
    assert Levels.of(torch.tensor([-3.0, 0.0, 1.0])).zero == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("method", "ecqy"), ("gradient", "signed"), ("rho", 0.5), ("tolerance", 1.5), ("refresh", 0), ("ramp", math.nan)],
)
def test_wrong_options_are_refused(option, value):
    with pytest.raises(UsageError, match=f"ecq.{option}"):
        EcqOptions(**{option: value})
