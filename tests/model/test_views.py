"""Views against numpy itself: random chains of reshapes and permutations, each compared element by element."""

from __future__ import annotations

import numpy as np
import pytest

from xdeploy.model.views import View, size_of


def factorise(size: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A random shape of that size, with unit axes here and there."""
    shape = []
    while size > 1:
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        shape.append(int(rng.choice(divisors)))
        size //= shape[-1]
    for _ in range(rng.integers(0, 3)):
        shape.insert(int(rng.integers(0, len(shape) + 1)), 1)
    return tuple(shape) or (1,)


@pytest.mark.parametrize("seed", range(60))
def test_chains_are_what_numpy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = factorise(int(rng.choice([1, 7, 12, 24, 36, 60, 64])), rng)
    view, array = View.of(shape), np.arange(size_of(shape)).reshape(shape)
    for _ in range(6):
        if rng.random() < 0.5:
            target = factorise(array.size, rng)
            view, array = view.reshaped(target), array.reshape(target)
        else:
            axes = tuple(int(a) for a in rng.permutation(array.ndim))
            moved = view.permuted(axes)
            if moved is None:  # borders cross: no single reshape, permutation, reshape of the source does it
                continue
            view, array = moved, array.transpose(axes)
        assert view.shape == array.shape
        np.testing.assert_array_equal(view.index(), array.ravel())
        assert view.is_flat == bool((array.ravel() == np.arange(array.size)).all())
        back = view.inverse(shape)
        np.testing.assert_array_equal(view.index()[back.index()], np.arange(array.size))
        assert 1 not in view.atoms


def test_pairs_cancel() -> None:
    image = View.of((3, 4, 5))
    nhwc = image.permuted((1, 2, 0))
    assert nhwc is not None
    assert (nhwc.atoms, nhwc.perm, nhwc.shape) == ((3, 20), (1, 0), (4, 5, 3))
    assert nhwc.permuted((2, 0, 1)) == image
    assert nhwc.source_order() == (2, 0, 1)
    folded = nhwc.reshaped((20, 3)).permuted((1, 0))
    assert folded is not None
    assert folded.is_flat
    assert folded.reshaped((3, 4, 5)) == image


def test_crossing_borders_have_no_view() -> None:
    turned = View.of((4, 6)).permuted((1, 0))
    assert turned is not None
    assert turned.reshaped((4, 6)).permuted((1, 0)) is None
    assert turned.reshaped((3, 2, 4)).permuted((2, 1, 0)) is not None


def test_unit_axes_are_free() -> None:
    view = View.of((6, 1, 9)).reshaped((6, 9)).permuted((1, 0))
    assert view is not None
    assert view.reshaped((9, 1, 6, 1)).permuted((2, 1, 3, 0)).is_flat  # type: ignore[union-attr]


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="size"):
        View.of((4, 6)).reshaped((5, 5))
