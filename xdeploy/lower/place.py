"""Movements of codes: max pooling, slices, gathers, pads, concatenation. They keep the scale and commute with rounding.

Attributes are in ONNX order, per sample; `order` (see `views`) says how the result is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from xdeploy.formats import QParams
from xdeploy.lower.builder import Builder
from xdeploy.lower.values import Codes, Index, Pending

Place = Callable[[Builder, Pending, Codes], str]
Sources = tuple[tuple[int, ...] | None, ...]  # per axis the source index of every output index; None: all as they are


def in_order(b: Builder, codes: Codes, order: Sequence[int], origin: str) -> str:
    """The codes as a tensor whose axes lie in `order`."""
    return b.arrange(codes.tensor, np.ascontiguousarray(codes.index.transpose(order)), origin)


def place_max_pool(b: Builder, p: Pending, codes: Codes) -> str:
    """Max pooling of codes."""
    return b.add(p.origin, "max_pool2d", (b.image(codes, p.origin),), codes.q, p.attrs)


def place_slice(b: Builder, p: Pending, codes: Codes) -> str:
    """Slice of codes."""
    order = p.attrs["order"]
    attrs = {k: tuple(p.attrs[k][i] for i in order) for k in ("starts", "stops", "steps")}
    return b.add(p.origin, "slice", (in_order(b, codes, order, p.origin),), codes.q, attrs)


def place_pad(b: Builder, p: Pending, codes: Codes) -> str:
    """Pad of an image's codes with `value`: a code itself (`codes`), or a real number."""
    value = p.attrs["value"] if p.attrs["codes"] else codes.q.quantise(np.array(p.attrs["value"], np.float32))
    (top, bottom), (left, right), channels = (p.attrs["widths"][k] for k in p.attrs["order"])
    attrs = {"pads": (top, left, bottom, right), "channels": channels, "value": int(value)}
    return b.add(p.origin, "pad", (in_order(b, codes, p.attrs["order"], p.origin),), codes.q, attrs)


def place_take(b: Builder, p: Pending, codes: Codes) -> str:
    """Along every axis the listed source indices: ranges become a slice, the rest nearest resizing."""
    order = p.attrs["order"]
    tensor = in_order(b, codes, order, p.origin)
    sources: list[tuple[int, ...] | None] = [p.attrs["sources"][k] for k in order]
    shape = list(b.tensors[tensor].shape)
    cuts = [_progression(s, n) for s, n in zip(sources, shape, strict=True)]
    if any(c is not None and c != (0, n, 1) for c, n in zip(cuts, shape, strict=True)):
        whole = [(0, n, 1) if c is None else c for c, n in zip(cuts, shape, strict=True)]
        attrs = dict(zip(("starts", "stops", "steps"), map(tuple, zip(*whole, strict=True)), strict=True))
        tensor = b.add(p.origin, "slice", (tensor,), codes.q, attrs)
        shape = list(b.tensors[tensor].shape)
    left = [k for k, cut in enumerate(cuts) if cut is None]
    while left:
        k = left.pop(0)
        both = left.pop(0) if left and left[0] == k + 1 and int(np.prod(shape[:k])) == 1 else k
        tensor = _resized(b, p.origin, tensor, shape, sources, (k, both))
        shape = [len(s) if s is not None and j in (k, both) else shape[j] for j, s in enumerate(sources)]
    return b.arrange(tensor, np.arange(int(np.prod(shape))).reshape(shape), p.origin)


def _progression(source: tuple[int, ...] | None, size: int) -> tuple[int, int, int] | None:
    """(start, stop, step) where the indices are a forward range, else None."""
    if source is None:
        return 0, size, 1
    step = source[1] - source[0] if len(source) > 1 else 1
    stop = source[0] + step * (len(source) - 1) + 1
    return (source[0], stop, step) if step > 0 and source == tuple(range(source[0], stop, step)) else None


def _resized(
    b: Builder, origin: str, tensor: str, shape: Sequence[int], sources: Sequence[tuple[int, ...] | None],
    axes: tuple[int, int],
) -> str:  # fmt: skip
    """A gather along one stored axis, or two in a row, as the nearest resizing of (rows, columns, rest)."""
    first, last = axes
    if len(shape) == 3 and last < 2:  # an image's own rows and columns
        rows, cols = (sources[k] if k in axes else tuple(range(shape[k])) for k in (0, 1))
        return b.add(origin, "resize", (tensor,), b.tensors[tensor].q, {"rows": rows, "cols": cols})
    before, after = int(np.prod(shape[:first])), int(np.prod(shape[last + 1 :]))
    rows, cols = sources[first], sources[last]
    assert rows is not None
    assert cols is not None
    view = (shape[first], shape[last], after)
    if first == last:
        rows, view = tuple(range(before)), (before, shape[last], after)
        if after == 1 and len(shape) == 3 and first == 2:  # channels: fewer entries with the columns folded in
            rows, view = tuple(range(shape[0])), (shape[0], shape[1] * shape[2], 1)
            cols = tuple(w * shape[2] + c for w in range(shape[1]) for c in cols)
    x = b.arrange(tensor, np.arange(int(np.prod(view))).reshape(view), origin)
    return b.add(origin, "resize", (x,), b.tensors[tensor].q, {"rows": rows, "cols": cols})


def place_concat(b: Builder, p: Pending, parts: list[Codes], q: QParams) -> str:
    """Concatenation of codes of one scale along the ONNX axis `axis`; the result lies in `order`."""
    order, axis = p.attrs["order"], p.attrs["axis"]
    if parts[0].index.ndim == 1:  # vectors as they are stored, one after the other
        return b.add(p.origin, "concat", tuple(b.vector(c, p.origin) for c in parts), q)
    place = order.index(axis)
    views: list[Index] = [np.ascontiguousarray(c.index.transpose(order)) for c in parts]
    if place < len(order) - 1 or len(order) != 3:  # not the channels: all from that axis on lies in one piece
        views = [v.reshape(1, int(np.prod(v.shape[:place])), -1) for v in views]
    inputs = tuple(b.arrange(c.tensor, v, p.origin) for c, v in zip(parts, views, strict=True))
    return b.add(p.origin, "concat", inputs, q)


def place_extreme(b: Builder, p: Pending, parts: list[Codes], q: QParams) -> str:
    """The largest (or smallest) code of several tensors of one shape and scale: a window over the stack of them."""
    order, least = p.attrs["order"], p.attrs["least"]
    flat = [np.ascontiguousarray(c.index.transpose(order)).reshape(1, 1, -1) for c in parts]
    tensors = [b.arrange(c.tensor, v, p.origin) for c, v in zip(parts, flat, strict=True)]
    if least:
        tensors = [mirrored(b, t, p.origin) for t in tensors]
    qs = b.tensors[tensors[0]].q
    joined = b.add(f"{p.origin}.concat", "concat", tuple(tensors), qs)
    stack = b.arrange(joined, np.arange(b.tensors[joined].size).reshape(len(parts), 1, -1), p.origin)
    window = {"kernel": (len(parts), 1), "stride": (1, 1), "pads": (0, 0, 0, 0)}
    result = b.add(p.origin, "max_pool2d", (stack,), qs, window)
    return mirrored(b, result, p.origin) if least else result


def mirrored(b: Builder, tensor: str, origin: str) -> str:
    """Codes c as -1 - c, so that the largest becomes the smallest; twice gives the codes back."""
    q = b.tensors[tensor].q
    table = np.arange(127, -129, -1).astype(np.int8)
    return b.add(f"{origin}.mirror", "lut", (tensor,), QParams(q.scale, -1 - q.zero_point), {}, {"table": table})


def place_min_pool(b: Builder, p: Pending, codes: Codes) -> str:
    """Min pooling without padding, as max pooling of mirrored codes."""
    image = b.image(codes, p.origin)
    flipped = mirrored(b, image, p.origin)
    pooled = b.add(p.origin, "max_pool2d", (flipped,), b.tensors[flipped].q, p.attrs)
    return mirrored(b, pooled, p.origin)


PLACE: dict[str, Place] = {
    "max_pool2d": place_max_pool, "min_pool2d": place_min_pool, "slice": place_slice, "pad": place_pad,
    "take": place_take,
}  # fmt: skip


def moved(b: Builder, p: Pending, codes: Codes, index: Index) -> Codes:
    """The movement `p` of codes, as codes with the result's arrangement."""
    return replace(codes, tensor=PLACE[p.op](b, p, codes), index=index)
