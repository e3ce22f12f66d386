"""Packing and the rounding rule, against Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeploy.errors import UnsupportedError, UsageError
from xdeploy.formats import FORMATS, QParams, Requant, is_identifier, prove_accumulator, requant, weight_format

EDGES = [-(2**31), -(2**31) + 1, -(2**30), -1, 0, 1, 2**30 - 1, 2**30, 2**31 - 2, 2**31 - 1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 5), st.integers(1, 37), st.randoms(use_true_random=False))
def test_packing_round_trip_and_bit_positions(name: str, channels: int, row: int, random: object) -> None:
    fmt = FORMATS[name]
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    low, high = (0, 2**fmt.bits) if fmt.codebook else (-(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1))
    codes = rng.integers(low, high, (channels, row)).astype(np.int8)
    packed = fmt.pack(codes)
    assert packed.shape == (channels, fmt.row_bytes(row))
    np.testing.assert_array_equal(fmt.unpack(packed, row), codes)
    for c in range(channels):  # one long little-endian number per row, code k at bit k*bits
        number = sum((int(v) & (2**fmt.bits - 1)) << (k * fmt.bits) for k, v in enumerate(codes[c]))
        assert int.from_bytes(packed[c].tobytes(), "little") == number
    assert fmt.packed_bytes(channels, row) == packed.size + (2**fmt.bits if fmt.codebook else 0)


def test_values_look_the_codebook_up() -> None:
    book = np.array([-100, -3, 5, 127], np.int8)
    fmt = weight_format("c2s8")
    assert fmt.values(np.array([[3, 0, 1]], np.int8), book).tolist() == [[127, -100, -3]]
    with pytest.raises(ValueError, match="needs a codebook"):
        fmt.values(np.zeros((1, 1), np.int8), None)
    assert weight_format("int4").values(np.array([[-7]], np.int8), None).tolist() == [[-7]]
    with pytest.raises(UsageError, match="unknown weight format 'int7'"):
        weight_format("int7")


def rounded(acc: int, scale: Fraction) -> int:
    """Half up, the exact product."""
    return int((acc * scale + Fraction(1, 2)).__floor__())


@settings(max_examples=200, deadline=None)
@given(
    st.floats(1e-9, 0.49), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8), st.integers(-128, 127)
)
def test_requantise_is_the_exact_product_rounded_once(scale: float, accs: list[int], zero: int) -> None:
    r = requant(scale, zero)
    assert r.shift == 0
    m = int(r.multiplier[0])
    assert m % 2 == 0
    assert 0 <= m < 2**31
    acc = np.array(accs + EDGES, np.int64)
    want = [max(-128, min(127, zero + rounded(int(a), Fraction(m, 2**32)))) for a in acc]
    assert r.apply(acc.reshape(-1, 1))[:, 0].tolist() == want
    near = [max(-128, min(127, zero + rounded(int(a), Fraction(scale)))) for a in acc]
    # m is off by at most 1 of 2^32, so at most 2^31 / 2^32 of a code from the real product
    assert max(abs(a - b) for a, b in zip(want, near, strict=True)) <= 1


@pytest.mark.parametrize("scale", [0.4999999999, 0.5, 0.75, 0.999999, 1.0, 3.3, 1000.0, 32767.9])
def test_scales_of_a_half_and_more_shift_first(scale: float) -> None:
    r = requant(scale, 3)
    m = int(r.multiplier[0])
    assert 0 < m < 2**31
    assert r.shift == 0 or Fraction(m, 2**32) >= Fraction(1, 8)
    assert abs(m * 2.0**r.shift / 2**32 / scale - 1) < 1e-8
    for acc in (-50, -1, 0, 1, 2, 50):
        exact = 3 + rounded(acc, Fraction(m << r.shift, 2**32))
        assert r.apply(np.array([[acc]], np.int64))[0, 0] == max(-128, min(127, exact))


def test_half_goes_up_and_channels_lie_on_the_last_axis() -> None:
    r = Requant(np.array([2**30, 2**29], np.int32), 0, 0, -128, 127)  # 1/4 and 1/8
    acc = np.array([[2, 4], [-2, -4], [6, 12], [-6, -12]], np.int64)  # all ties
    assert r.apply(acc).tolist() == [[1, 1], [0, 0], [2, 2], [-1, -1]]
    narrow = Requant(np.array([2**30], np.int32), 0, 5, 0, 6)
    assert narrow.apply(np.array([[-400], [0], [400]], np.int64))[:, 0].tolist() == [0, 5, 6]


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 2.0**15])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(UnsupportedError, match="requantisation scale"):
        requant(np.array([0.1, scale]), 0)


def test_accumulator_bound_by_brute_force() -> None:
    values = np.array([[3, -2], [127, 127]], np.int8)
    bias = np.array([10, -20], np.int32)
    extremes = [abs(sum(w * x for w, x in zip(v, xs, strict=True))) + abs(int(b))
                for v, b in zip(values.astype(int), bias, strict=True)
                for xs in ((255, 255), (255, -255))]  # fmt: skip
    assert prove_accumulator(values, bias, 0, "n") == max(extremes)
    assert prove_accumulator(values, bias, 2, "n") == 4 * max(extremes)
    with pytest.raises(UnsupportedError, match="n: the int32 accumulator could overflow"):
        prove_accumulator(values, bias, 16, "n")


@settings(max_examples=100, deadline=None)
@given(st.floats(-1000, 1000), st.floats(0.001, 1000))
def test_ranges_are_covered_and_hold_zero(low: float, width: float) -> None:
    q = QParams.from_range(low, low + width)
    assert q.scale == float(np.float32(q.scale))
    assert q.quantise(np.zeros(1))[0] == q.zero_point
    for edge in (min(low, 0.0), max(low + width, 0.0)):
        assert abs(float(q.dequantise(q.quantise(np.array([edge])))[0]) - edge) <= q.scale * 1.01


def test_quantise_rounds_half_to_even_and_saturates() -> None:
    q = QParams(0.5, 10)
    real = np.array([0.25, 0.75, -0.25, -0.75, 1e9, -1e9, np.inf, -np.inf])
    assert q.quantise(real).tolist() == [10, 12, 10, 8, 127, -128, 127, -128]
    every = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(q.quantise(q.dequantise(every)), every)
    for scale, zero in ((0.0, 0), (-1.0, 0), (np.nan, 0), (1.0, 128)):
        with pytest.raises(ValueError, match="must be"):
            QParams(scale, zero)


def test_identifiers() -> None:
    assert is_identifier("net_1")
    for name in ("1net", "", "a-b", "a" * 64, "ä", "a\n"):
        assert not is_identifier(name)
