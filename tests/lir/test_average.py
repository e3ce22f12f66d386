"""Averages half way between two codes: the integers against numpy's own float32."""

from __future__ import annotations

import numpy as np
import pytest

from xdeploy.formats import requant
from xdeploy.lir.average import mantissa, settle, single
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import OPS

SCALES = [0.12706914, 1.0, 0.003921569, 7.3e-5, 0.99999994, 3.14159]


def test_single_is_float32() -> None:
    rng = np.random.default_rng(0)
    values = (rng.integers(-(2**40), 2**40, 20000) >> rng.integers(0, 40, 20000)).astype(np.int64)
    edges = np.array([0, 2**24 - 1, 2**24, 2**24 + 1, 2**24 + 3, 2**25 + 2, 2**25 + 6, 2**25 - 1], np.int64)
    for part in (values, edges, -edges):
        np.testing.assert_array_equal(single(part), part.astype(np.float32).astype(np.int64))


@pytest.mark.parametrize("scale", SCALES)
def test_mantissa_is_the_scale(scale: float) -> None:
    m = mantissa(scale)
    assert 2**23 <= m < 2**24
    assert np.log2(m / float(np.float32(scale))) % 1 == 0


@pytest.mark.parametrize("zero", [-128, 0, 90])
@pytest.mark.parametrize("scale", SCALES)
def test_halves_go_where_float32_puts_them(scale: float, zero: int) -> None:
    """Windows of 64 and 16 codes: dequantise, sum tap after tap, divide, quantise, all in float32."""
    rng = np.random.default_rng(1)
    for size in (8, 4, 2):
        count = size * size
        x = rng.integers(-128, 128, (4000, size, size, 1))
        x[:2000] = np.where(rng.random((2000, size, size, 1)) < 0.7, zero, x[:2000])  # as after a ReLU
        r = requant(1 / np.arange(1, count + 1), zero)
        attrs = {
            "kernel": (size, size), "stride": (1, 1), "pads": (0, 0, 0, 0), "include_pad": False, "in_zero": zero,
            "shift": r.shift, "out_zero": zero, "low": -128, "high": 127, "tie": mantissa(scale),
        }  # fmt: skip
        node = Node("a", "avg_pool2d", ("x",), "y", attrs, {"multiplier": r.multiplier})
        ours = OPS["avg_pool2d"].run(node, [x.astype(np.int8)]).reshape(-1)
        real = (x.reshape(-1, count) - zero).astype(np.float32) * np.float32(scale)
        total = np.zeros(len(x), np.float32)
        for tap in real.T:
            total = total + tap
        theirs = np.rint(total / np.float32(count) / np.float32(scale)) + zero
        sums = (x.reshape(-1, count) - zero).sum(axis=1)
        assert (sums % count * 2 == count).sum() > 20
        np.testing.assert_array_equal(ours, np.clip(theirs, -128, 127))


def test_exact_sums_go_to_the_even_neighbour() -> None:
    taps = np.array([[1, 0], [3, 0], [-1, 0], [-3, 0], [250, 255]])
    below = taps.sum(axis=1) // 2
    got = settle(taps, 1, np.full(5, 2), below)
    assert got.tolist() == np.rint(taps.sum(axis=1) / 2).tolist() == [0, 2, 0, -2, 252]
