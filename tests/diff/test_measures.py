"""Distances against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import seed
from xdeploy.diff.measures import SQNR_LIMIT, code_distance, real_distance


@pytest.mark.parametrize("share", [0.5, 0.1, 0.001])
def test_noise_of_a_known_share(share: float) -> None:
    """Noise at a right angle to the signal, `share` of its length: both measures have closed forms."""
    a = np.zeros((2, 3, 4), np.float32)
    a[0, 0, 0] = 8.0
    b = a.copy()
    b[1, 2, 3] = 8.0 * share
    got = real_distance(a, b)
    assert got["sqnr_db"] == pytest.approx(-20 * np.log10(share), abs=1e-6)
    assert got["cosine"] == pytest.approx(1 / np.sqrt(1 + share**2), abs=1e-9)
    assert got["max"] == pytest.approx(share)


def test_scaling_changes_noise_and_not_the_cosine() -> None:
    a = np.random.default_rng(seed()).normal(size=(3, 5)).astype(np.float32)
    got = real_distance(a, 1.5 * a)
    assert got["cosine"] == pytest.approx(1.0)
    assert got["sqnr_db"] == pytest.approx(20 * np.log10(2.0), abs=1e-5)


def test_equal_opposite_and_empty_signals() -> None:
    a = np.ones((1, 2), np.float32)
    assert real_distance(a, a) == {"cosine": 1.0, "sqnr_db": SQNR_LIMIT, "max": 0.0}
    assert real_distance(a, -a)["cosine"] == -1.0
    assert real_distance(0 * a, 0 * a) == {"cosine": 1.0, "sqnr_db": SQNR_LIMIT, "max": 0.0}
    assert real_distance(0 * a, a) == {"cosine": 0.0, "sqnr_db": -SQNR_LIMIT, "max": 1.0}


def test_codes_by_brute_force() -> None:
    rng = np.random.default_rng(seed())
    for _ in range(20):
        a, b = (rng.integers(-128, 128, (2, 3, 3, 2)).astype(np.int8) for _ in range(2))
        b = np.where(rng.random(a.shape) < 0.7, a, b)
        places = [p for p in np.ndindex(a.shape) if int(a[p]) != int(b[p])]
        most = max((abs(int(a[p]) - int(b[p])) for p in places), default=0)
        got = code_distance(a, b)
        assert got["max_difference"] == most
        assert got["equal"] == pytest.approx(1 - len(places) / a.size)
        first = next((p for p in places if abs(int(a[p]) - int(b[p])) == most), None)
        assert (got["sample"], got["index"]) == ((first[0], list(first[1:])) if first else (None, None))


def test_the_ends_of_the_range_do_not_wrap() -> None:
    assert code_distance(np.array([[-128]], np.int8), np.array([[127]], np.int8))["max_difference"] == 255
