"""Orders, masks and shares of zeros against their definitions, computed another way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from xdeploy.errors import UsageError
from xdeploy.ranking import kept_count, lamp, scores, shared_out, wanda, zero_mask


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_lamp_is_its_formula():
    w = draw(3, 4)
    flat = w.astype(np.float64).ravel() ** 2
    expected = [x / flat[flat >= x].sum() for x in flat]
    np.testing.assert_allclose(lamp(w).ravel(), expected, rtol=1e-12)
    assert lamp(w).max() == 1.0
    assert (lamp(np.zeros((2, 2))) == 0).all()


def test_one_threshold_on_lamp_loses_the_least_norm_step_by_step():
    """Removing the weight of least LAMP score is removing the least share of what its layer still has."""
    layers = {n: draw(5, 3, seed=k) * 10.0**k for k, n in enumerate("abc")}
    counts = shared_out({n: lamp(w) for n, w in layers.items()}, 20, dict.fromkeys(layers, 0))
    left = {n: sorted((w.astype(np.float64).ravel() ** 2).tolist()) for n, w in layers.items()}
    for _ in range(45 - 20):
        name = min(left, key=lambda n: left[n][0] / sum(left[n]) if left[n] else np.inf)
        left[name].pop(0)
    assert counts == {n: len(v) for n, v in left.items()}


def test_orders():
    w, r = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1)
    np.testing.assert_array_equal(scores("magnitude", w), np.abs(w))
    np.testing.assert_array_equal(scores("relevance", w, r), np.abs(r))
    np.testing.assert_array_equal(scores("negative-first", w, r), r)
    norm = np.array([2.0, 3.0])
    np.testing.assert_allclose(scores("wanda", w, input_norm=norm)[1, 1, 0, 2], abs(w[1, 1, 0, 2]) * 3.0)
    np.testing.assert_allclose(wanda(w, np.ones((2, 3, 3)) * 2), 2.0 * np.abs(w))
    for order, given in (("relevance", None), ("negative-first", r[:2]), ("wanda", None), ("nosuch", r)):
        with pytest.raises(UsageError):
            scores(order, w, given)


@pytest.mark.parametrize("zeros", range(7))
def test_layer_mask_has_the_least_sum_of_all_masks(zeros):
    score = np.abs(draw(2, 3, seed=zeros)).astype(np.float64)
    mask = zero_mask(score, zeros)
    assert mask.sum() == zeros
    sums = [score.ravel()[list(c)].sum() for c in itertools.combinations(range(6), zeros)]
    assert score[mask].sum() == pytest.approx(min(sums))


def test_row_masks_share_zeros_evenly():
    score = np.abs(draw(4, 5)).astype(np.float64)
    for zeros in range(21):
        mask = zero_mask(score, zeros, "row")
        counts = mask.sum(axis=1)
        assert mask.sum() == zeros
        assert counts.max() - counts.min() <= 1
        for row, gone in zip(score, mask, strict=True):
            assert row[gone].max(initial=-np.inf) <= row[~gone].min(initial=np.inf)
        one_more = [row[gone].max() for row, gone in zip(score, mask, strict=True) if gone.sum() > zeros // 4]
        spared = [row[~gone].min() for row, gone in zip(score, mask, strict=True) if gone.sum() == zeros // 4 < 5]
        if one_more and spared:
            assert max(one_more) <= min(spared)


def test_equal_scores_go_in_order():
    np.testing.assert_array_equal(zero_mask(np.ones((2, 3)), 4), [[True, True, True], [True, False, False]])
    np.testing.assert_array_equal(zero_mask(np.ones((2, 3)), 3, "row"), [[True, True, False], [True, False, False]])


@pytest.mark.parametrize("seed", range(5))
def test_shares_keep_the_largest_sum_with_floors(seed):
    rng = np.random.default_rng(seed)
    layers = {n: rng.integers(0, 9, size).astype(float) for n, size in (("a", 3), ("b", 4), ("c", 2))}
    least = {"a": 1, "b": 0, "c": 1}
    best = {n: [np.sort(s)[::-1][:k].sum() for k in range(len(s) + 1)] for n, s in layers.items()}
    for kept in range(2, 10):
        found = shared_out(layers, kept, least)
        assert sum(found.values()) == kept
        assert all(found[n] >= least[n] for n in layers)
        options = itertools.product(*(range(least[n], len(s) + 1) for n, s in layers.items()))
        most = max(sum(best[n][k] for n, k in zip(layers, o, strict=True)) for o in options if sum(o) == kept)
        assert sum(best[n][k] for n, k in found.items()) == most


def test_impossible_numbers_are_refused():
    with pytest.raises(UsageError, match="7 of 6"):
        zero_mask(np.ones((2, 3)), 7)
    with pytest.raises(UsageError, match="column"):
        zero_mask(np.ones((2, 3)), 1, "column")
    with pytest.raises(UsageError, match="floors need 2"):
        shared_out({"a": np.ones(3)}, 1, {"a": 2})


def test_a_share_of_a_count_gives_the_count_back():
    for size in (1, 7, 27, 4608):
        assert [kept_count(k / size, size) for k in range(0, size + 1, max(1, size // 50))] == list(
            range(0, size + 1, max(1, size // 50))
        )
