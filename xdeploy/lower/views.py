"""Arrangements of a tensor: which ONNX axis lies where in memory, and small changes of rank. No data moves here.

An `order` lists ONNX sample axes (without the batch) from the slowest to the fastest in memory: (1, 2, 0) is an image
(C, H, W) that is stored as (H, W, C); (0, 1, 2) one whose ONNX form has channels last already.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from xdeploy.lower.values import Codes, Index, Real, Stop, arranged
from xdeploy.onnxfile import ACTIVATION_LIMIT

Order = tuple[int, ...]


def default_order(rank: int) -> Order:
    """Channels last for images, as it is otherwise."""
    return (1, 2, 0) if rank == 3 else tuple(range(rank))


def order_of(index: Index) -> Order:
    """The order in which the axes of `index` lie in memory; the default one where no order fits or several do."""
    usual = default_order(index.ndim)
    if _is_order(index, usual):
        return usual
    first = (0,) * index.ndim
    steps = [
        int(index[(*first[:k], 1, *first[k + 1 :])] - index[first]) if index.shape[k] > 1 else 0
        for k in range(index.ndim)
    ]
    found = tuple(sorted(range(index.ndim), key=lambda k: -steps[k]))
    return found if _is_order(index, found) else usual


def _is_order(index: Index, order: Order) -> bool:
    return bool((index.transpose(order).reshape(-1) == np.arange(index.size)).all())


@lru_cache(maxsize=16)
def laid(shape: tuple[int, ...], order: Order) -> Index:
    """Index of a fresh ONNX tensor `shape` whose axes are stored in `order`. Read only.

    Raises:
        Stop: it is too large.
    """
    size = float(np.prod([float(d) for d in shape]))
    if size > ACTIVATION_LIMIT:
        raise Stop(f"an activation of shape {shape} is too large ({size:.3g} elements, {ACTIVATION_LIMIT} at most)")
    back = tuple(order.index(k) for k in range(len(shape)))
    index: Index = np.arange(int(size), dtype=np.int64).reshape([shape[k] for k in order]).transpose(back)
    index.setflags(write=False)
    return index


def plain(shape: tuple[int, ...]) -> Index:
    """Index of a fresh tensor of that ONNX shape in the default order. Read only."""
    return laid(shape, default_order(len(shape)))


def as_image(x: Codes | Real) -> Codes | Real:
    """A signal (C, L) as the image (C, 1, L) of height 1; images as they are.

    Raises:
        Stop: another rank.
    """
    if x.index.ndim == 2:
        return arranged(x, x.index[:, None, :])
    if x.index.ndim != 3:
        raise Stop(
            f"wants an image (N, C, H, W) or a signal (N, C, L), got {batched(x.index.shape)}",
            "1-D or 2-D operators on images or signals",
        )
    return x


def batched(shape: tuple[int, ...]) -> str:
    """A sample's shape as a reader of the ONNX file knows it: (N, ...)."""
    return f"(N, {', '.join(map(str, shape))})"
