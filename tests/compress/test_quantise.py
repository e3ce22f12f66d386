"""The one-dimensional quantisers against brute force and against their own definition."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from xdeploy.formats import FORMATS
from xdeploy.quantise import (
    best_codebook,
    codebook_codes,
    importance,
    nearest_entry,
    uniform_codes,
    weighted_error,
)

UNIFORM = [f for f in FORMATS.values() if not f.codebook]
BOOKS = [f for f in FORMATS.values() if f.codebook]


def weights(shape: tuple[int, ...] = (5, 3, 3, 3), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape).astype(np.float32) * 0.1, rng.gamma(0.5, size=shape)


@pytest.mark.parametrize("fmt", UNIFORM, ids=lambda f: f.name)
def test_uniform_codes_are_the_nearest_and_in_range(fmt):
    w, h = weights()
    codes, scale = uniform_codes(w, fmt, h)
    wide = scale[:, None, None, None].astype(np.float64)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    assert np.abs(codes).max() <= fmt.limit
    levels = np.arange(-fmt.limit, fmt.limit + 1)
    brute = np.abs(w[..., None] - wide[..., None] * levels).min(axis=-1)
    np.testing.assert_allclose(np.abs(w - wide * codes), brute, atol=1e-9)


@pytest.mark.parametrize("fmt", [f for f in UNIFORM if f.bits < 8], ids=lambda f: f.name)
def test_clipping_search_is_close_to_an_exhaustive_one(fmt):
    w, h = weights((4, 50), 1)
    codes, scale = uniform_codes(w, fmt, h)
    for row, weight, chosen, got in zip(w, h, scale, codes, strict=True):
        fine = np.abs(row).max() / fmt.limit * np.linspace(0.05, 1.0, 3000)
        tried = np.clip(np.rint(row / fine[:, None]), -fmt.limit, fmt.limit)
        best = (weight * (row - tried * fine[:, None]) ** 2).sum(axis=1).min()
        assert (weight * (row - got * chosen) ** 2).sum() <= best * 1.25


def test_scales_respect_the_floor_and_zero_channels_stay_positive():
    w, _ = weights()
    w[2] = 0
    floor = np.full(5, 0.5)
    for codes, scale in (
        uniform_codes(w, FORMATS["int8"], None, floor),
        codebook_codes(w, FORMATS["c3s8"], None, floor)[::2],
    ):
        assert (scale >= 0.5).all()
        assert codes.shape == w.shape
    codes, scale = uniform_codes(w, FORMATS["int4"])
    assert scale[2] > 0
    assert not codes[2].any()
    codes, book, scale = codebook_codes(np.zeros((2, 4), np.float32), FORMATS["c2s8"])
    assert (scale > 0).all()
    assert not book[codes].any()


@pytest.mark.parametrize("entries", [1, 2, 3, 4])
def test_best_codebook_equals_brute_force(entries):
    rng = np.random.default_rng(entries)
    unit = rng.uniform(-5, 5, 40)
    unit[:4] = [-5.0, 5.0, 0.5, 0.0]
    h = rng.gamma(0.5, size=40)
    errors = (unit[:, None] - np.arange(-6, 7)) ** 2 * h[:, None]
    best = min(errors[:, list(c)].min(axis=1).sum() for c in itertools.combinations(range(13), entries))
    book = best_codebook(unit, h, entries)
    got = ((unit[:, None] - book.astype(float)) ** 2 * h[:, None]).min(axis=1).sum()
    assert got == pytest.approx(best, rel=1e-9)
    assert (np.diff(book.astype(int)) > 0).all()


@pytest.mark.parametrize("fmt", BOOKS, ids=lambda f: f.name)
def test_codebook_codes_point_to_the_nearest_entry(fmt):
    w, h = weights()
    codes, book, scale = codebook_codes(w, fmt, h)
    assert book.shape == (2**fmt.bits,)
    assert codes.min() >= 0
    assert codes.max() < 2**fmt.bits
    unit = w / scale[:, None, None, None].astype(np.float64)
    brute = np.abs(unit[..., None] - book.astype(np.float64)).min(axis=-1)
    np.testing.assert_allclose(np.abs(unit - book[codes]), brute, atol=1e-6)


def test_more_entries_and_more_bits_never_hurt():
    w, h = weights((8, 40), 3)
    books = [weighted_error(w, b[c], s, h) for c, b, s in (codebook_codes(w, f, h) for f in BOOKS)]
    grids = [
        weighted_error(w, c, s, h) for c, s in (uniform_codes(w, f, h) for f in sorted(UNIFORM, key=lambda f: f.bits))
    ]
    assert books == sorted(books, reverse=True)
    assert grids == sorted(grids, reverse=True)


def test_nearest_entry_ties_go_up():
    assert nearest_entry(np.array([1.0, 0.99, -5.0, 9.0]), np.array([0, 2, 4], np.int8)).tolist() == [1, 0, 0, 2]


def test_importance_is_normalised_and_bounded():
    h = importance(np.array([[0.0, 1.0, 4.0]]), 0.5)
    np.testing.assert_allclose(h, [[0.01, 1.0, 2.0]])
    assert importance(None, 0.5) is None
    assert importance(np.zeros((2, 2)), 0.5) is None


def test_two_million_weights_are_fast_and_deterministic():
    w, h = weights((512, 4096), 4)
    start = time.process_time()
    first = codebook_codes(w, FORMATS["c4s8"], h)
    assert time.process_time() - start < 4.0
    second = codebook_codes(w, FORMATS["c4s8"], h)
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()
