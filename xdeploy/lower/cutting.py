"""Slice, Split, Pad and Concat: parts of tensors, and tensors made of parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments, axes_of
from xdeploy.lower.operands import Mover, Outcome, activation, number, sample_axis, select
from xdeploy.lower.place import place_concat
from xdeploy.lower.values import Codes, Pending, Real, Stop, Value, arranged
from xdeploy.lower.views import batched, laid, order_of
from xdeploy.onnxfile import Constant, OnnxNode


def _slice(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    xs = [a.array if isinstance(a, Constant) else None for a in args]
    read = [
        np.asarray(xs[k] if len(xs) > k and xs[k] is not None else node.attrs.get(name, ())).reshape(-1)
        for k, name in ((1, "starts"), (2, "ends"), (4, "steps"))
    ]
    starts, ends, steps = ([int(v) for v in part] for part in read)
    axes, shape = axes_of(node, xs, 3), x.index.shape
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = steps or [1] * len(starts)
    if not starts or not len(starts) == len(ends) == len(axes) == len(steps):
        raise Stop("starts, ends, axes and steps must be constants of one length")
    cuts: list[tuple[int, int, int]] = [(0, n, 1) for n in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        k = sample_axis(axis, len(shape), "slices")
        if step == 0:
            raise Stop("a step of 0", "steps of at least 1", "steps")
        cuts[k] = slice(start, end, step).indices(shape[k])
    return cut(b, node, x, cuts)


def cut(b: Builder, node: OnnxNode, x: Codes | Real, cuts: list[tuple[int, int, int]]) -> Codes | Real:
    """What (start, stop, step) along every sample axis leave of x; a backward step gathers.

    Raises:
        Stop: nothing is left.
    """
    ranges = [range(*c) for c in cuts]
    sizes = tuple(len(r) for r in ranges)
    if 0 in sizes:
        raise Stop(f"the slice {cuts} of shape {batched(x.index.shape)} is empty", "a slice that keeps something")
    if any(step < 0 for _, _, step in cuts):
        return take(b, node, x, {k: tuple(r) for k, r in enumerate(ranges) if cuts[k] != (0, x.index.shape[k], 1)})
    attrs = dict(zip(("starts", "stops", "steps"), (tuple(part) for part in zip(*cuts, strict=True)), strict=True))
    return select(b, node, x, "slice", {**attrs, "order": order_of(x.index)}, sizes)


def take(b: Builder, node: OnnxNode, x: Codes | Real, sources: dict[int, tuple[int, ...]]) -> Codes | Real:
    """The tensor with the listed source indices along some sample axes; the others stay whole."""
    shape = x.index.shape
    every = tuple(sources.get(k) for k in range(len(shape)))
    sizes = tuple(n if s is None else len(s) for n, s in zip(shape, every, strict=True))
    if 0 in sizes:
        raise Stop(f"nothing is left of shape {batched(shape)}", "indices that keep something")
    if all(s is None or s == tuple(range(n)) for s, n in zip(every, shape, strict=True)):
        return x
    return select(b, node, x, "take", {"sources": every, "order": order_of(x.index)}, sizes)


def _split(b: Builder, node: OnnxNode, args: Arguments) -> Outcome:
    x = activation(args[0])
    given = number(args[1]) if len(args) > 1 else node.attrs.get("split")
    if len(args) > 1 and args[1] is not None and given is None:
        raise Stop("its sizes are not constants", "constant sizes", "split")
    k = sample_axis(int(node.attrs.get("axis", 0)), x.index.ndim, "splits")
    size, count = x.index.shape[k], len(node.outputs)
    step = -(-size // count)
    sizes = [int(v) for v in np.asarray(given).reshape(-1)] if given is not None else [
        min(step, size - step * i) for i in range(count)
    ]  # fmt: skip
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        raise Stop(f"sizes {sizes} for {count} outputs of an axis of {size}", "sizes that add up", "split")
    ends = np.cumsum(sizes)
    whole: list[tuple[int, int, int]] = [(0, n, 1) for n in x.index.shape]
    return tuple(
        cut(b, node, x, [*whole[:k], (int(end - n), int(end), 1), *whole[k + 1 :]])
        for n, end in zip(sizes, ends, strict=True)
    )


def _pad(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    xs = [a.array if isinstance(a, Constant) else None for a in args]
    given = xs[1] if len(xs) > 1 else node.attrs.get("pads")
    axes, rank = axes_of(node, xs, 3) if len(xs) > 3 else None, x.index.ndim
    if given is None or rank > 3:
        raise Stop(f"pads must be a constant, on {batched(x.index.shape)}", "constant pads on an image", "pads")
    flat, axes = [int(v) for v in np.asarray(given).reshape(-1)], axes or tuple(range(rank + 1))
    if len(flat) != 2 * len(axes):
        raise Stop(f"{len(flat)} pads for {len(axes)} axes", "two pads per axis", "pads")
    widths = [(0, 0)] * (rank + 1)
    for k, axis in enumerate(axes):
        widths[axis % (rank + 1)] = (flat[k], flat[k + len(axes)])
    if widths[0] != (0, 0):
        raise Stop("pads the batch axis", "pads of the sample's axes", "pads")
    x, kept = _cropped(b, node, x, widths[1:])
    mode = node.attrs.get("mode", "constant")
    if mode == "constant":
        return _padded(b, node, x, kept, _pad_value(x, node, xs))
    if mode not in _BORDERS:
        raise Stop(f"padding mode {mode!r}", f"constant, {', '.join(_BORDERS)}", "mode")
    pairs = enumerate(zip(x.index.shape, kept, strict=True))
    return take(b, node, x, {k: _BORDERS[mode](n, lo, hi) for k, (n, (lo, hi)) in pairs if lo or hi})


def _edge(size: int, before: int, after: int) -> tuple[int, ...]:
    return tuple(min(max(i, 0), size - 1) for i in range(-before, size + after))


def _reflect(size: int, before: int, after: int) -> tuple[int, ...]:
    if max(before, after) >= size:
        raise Stop(f"reflects {max(before, after)} elements of an axis of {size}", "smaller pads", "pads")
    return tuple(size - 1 - abs(size - 1 - abs(i)) for i in range(-before, size + after))


_BORDERS: dict[str, Callable[[int, int, int], tuple[int, ...]]] = {
    "edge": _edge, "reflect": _reflect,
    "wrap": lambda size, before, after: tuple(i % size for i in range(-before, size + after)),
}  # fmt: skip


def _cropped(
    b: Builder, node: OnnxNode, x: Codes | Real, widths: list[tuple[int, int]]
) -> tuple[Codes | Real, list[tuple[int, int]]]:
    """Negative pads cut."""
    cuts = [(max(0, -lo), n - max(0, -hi), 1) for n, (lo, hi) in zip(x.index.shape, widths, strict=True)]
    inside = x if all(min(w) >= 0 for w in widths) else cut(b, node, x, cuts)
    return inside, [(max(0, lo), max(0, hi)) for lo, hi in widths]


def _padded(b: Builder, node: OnnxNode, x: Codes | Real, widths: list[tuple[int, int]], value: float) -> Value:
    shape = tuple(n + sum(w) for n, w in zip(x.index.shape, widths, strict=True))
    missing = 3 - len(shape)  # vectors and signals are images with axes of one element after the first
    image = arranged(x, x.index.reshape(x.index.shape[0], *(1,) * missing, *x.index.shape[1:]))
    wide = [widths[0], *[(0, 0)] * missing, *widths[1:]]
    attrs = {"widths": tuple(wide), "value": value, "order": order_of(image.index), "codes": isinstance(x, Codes)}
    result = select(b, node, image, "pad", attrs, (shape[0], *(1,) * missing, *shape[1:]))
    return arranged(result, result.index.reshape(shape))


def _pad_value(x: Codes | Real, node: OnnxNode, xs: list[Any]) -> float:
    """The pad's value: a code on codes, a real number on floats."""
    given = xs[2] if len(xs) > 2 else None
    value = (
        float(np.asarray(given).reshape(-1)[0])
        if given is not None and np.size(given)
        else node.attrs.get("value", 0.0)
    )
    return value - 128 * x.unsigned if isinstance(x, Codes) else value


def _concat(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    parts = [activation(a) for a in args]
    shapes, rank = [p.index.shape for p in parts], parts[0].index.ndim
    axis = sample_axis(int(node.attrs["axis"]), rank, "joins")
    if any(
        len(s) != rank or (*s[:axis], *s[axis + 1 :]) != (*shapes[0][:axis], *shapes[0][axis + 1 :]) for s in shapes
    ):
        raise Stop(f"joins shapes {shapes} along axis {axis + 1}", "operands that differ along that axis only")
    total = (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])
    order = order_of(parts[0].index)
    index = laid(total, order)
    if rank == 1:  # stored as the parts are stored, one after the other
        starts = np.cumsum([0, *(s[0] for s in shapes[:-1])])
        index = np.concatenate([p.index + s for p, s in zip(parts, starts, strict=True)])
    attrs = {"axis": axis, "order": order}
    codes = [p for p in parts if isinstance(p, Codes)]
    if not codes:
        reals = tuple(p for p in parts if isinstance(p, Real))
        return Real(Pending("concat", node.origin, reals, attrs), index)
    if len(codes) < len(parts) or any((c.q, c.unsigned) != (codes[0].q, codes[0].unsigned) for c in codes):
        raise Stop("joins codes of different scales", "DequantizeLinear before, QuantizeLinear after it")
    tensor = place_concat(b, Pending("concat", node.origin, (), attrs), codes, codes[0].q)
    return replace(codes[0], tensor=tensor, index=index)


CUTTING: dict[str, Mover] = {"Slice": _slice, "Split": _split, "Pad": _pad, "Concat": _concat}
