"""Handlers of the ATen operations that resize, pad and join images (see `aten`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from xdeploy.model.aten import register
from xdeploy.model.aten_moves import place, take
from xdeploy.model.aten_pointwise import binary, function, shifted
from xdeploy.model.views import Shape, View
from xdeploy.model.walk import Refused, Value, Walk

_LOWEST = -1e30  # padding values below are meant as minus infinity


# -------------------------------------------------------------------------------------------- resizing
@register(
    "upsample_nearest1d.default", "upsample_nearest1d.vec", "upsample_nearest2d.default", "upsample_nearest2d.vec",
    "_upsample_nearest_exact1d.default", "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.default",
    "_upsample_nearest_exact2d.vec", "reflection_pad1d.default", "reflection_pad2d.default",
    "replication_pad1d.default", "replication_pad2d.default",
)  # fmt: skip
def _copied(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """Each output row and column is one of the input's: found by running the operation on their numbers."""
    name, shape = walk.image(node.args[0])
    lines = [(0,), *_lines(node, walk.value(node.args[0]).shape)][-2:]
    out = (shape[0], *map(len, lines))
    return walk.emit(node, "resize", (name,), out, {"rows": lines[0], "cols": lines[1]})


def _lines(node: fx.Node, shape: Shape) -> list[tuple[int, ...]]:
    """Per spatial axis the input line that each output line is."""
    assert callable(node.target)
    lines = []
    for axis in range(1, len(shape)):
        numbers = torch.arange(shape[axis], dtype=torch.float64)
        grid = numbers.reshape([1, 1, *(n if i == axis else 1 for i, n in enumerate(shape) if i)])
        moved = node.target(grid.expand(1, 1, *shape[1:]).contiguous(), *node.args[1:], **node.kwargs)[0, 0]
        along = moved.movedim(axis - 1, 0)
        lines.append(tuple(round(i) for i in along.reshape(len(along), -1)[:, 0].tolist()))
    return lines


# --------------------------------------------------------------------------------------------- padding
@register("pad.default", "constant_pad_nd.default")
def _pad(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a.get("mode", "constant") != "constant":
        return _copied(walk, node, a)
    value, fill = walk.value(a["self"]), float(a["value"] or 0)
    rank = len(value.shape) + 1
    widths = [(rank - 1 - i // 2, int(a["pad"][i]), int(a["pad"][i + 1])) for i in range(0, len(a["pad"]), 2)]
    wanted = {walk.axis(dim, value.shape): (before, after) for dim, before, after in widths if before or after}
    for axis, (before, after) in wanted.items():  # a negative width cuts
        lines = range(max(0, -before), value.shape[axis] + min(0, after))
        value = take(walk, node, value, axis, lines)
    pads = {axis: (max(0, b), max(0, e)) for axis, (b, e) in wanted.items() if b > 0 or e > 0}
    if not pads or fill == 0:
        return padded(walk, node, value, pads)
    if fill > _LOWEST:
        return shifted(walk, node, padded(walk, node, shifted(walk, node, value, 1.0, -fill), pads), 1.0, fill)
    return _low_padded(walk, node, value, pads)


def padded(walk: Walk, node: fx.Node, value: Value, pads: dict[int, tuple[int, int]]) -> Value:
    """Zeros around some axes, (before, after) each: one layer where they are the layer's own axes."""
    if not pads:
        return value
    places = {axis: place(walk, value, axis) for axis in pads}
    how, _ = next(iter(places.values()))
    if any(other != how for other, _ in places.values()):
        for axis, width in pads.items():
            value = padded(walk, node, value, {axis: width})
        return value
    name, shape = walk.arranged(value, how)
    by_layer = {at: pads[axis] for axis, (_, at) in places.items()}
    channels, rows, cols = (by_layer.get(i, (0, 0)) for i in range(3))
    out = tuple(n + sum(by_layer.get(i, (0, 0))) for i, n in enumerate(shape))
    attrs = {"pads": (rows[0], cols[0], rows[1], cols[1]), "channels": channels}
    dims = tuple(n + sum(pads.get(i, (0, 0))) for i, n in enumerate(value.shape))
    return walk.restored(walk.emit(node, "pad", (name,), out, attrs), how, dims)


def _low_padded(walk: Walk, node: fx.Node, value: Value, pads: dict[int, tuple[int, int]]) -> Value:
    """Padding with minus infinity is known to max pooling alone, which takes it over."""
    readers = {str(user.target) for user in node.users}
    if not all("max_pool" in reader for reader in readers) or 0 in pads or len(value.shape) not in (2, 3):
        raise Refused("padding with minus infinity is supported before max pooling only", "pad with zeros")
    rows, cols = [(0, 0), *(pads.get(axis, (0, 0)) for axis in range(1, len(value.shape)))][-2:]
    walk.low_pads[node] = (value, (rows[0], cols[0], rows[1], cols[1]))
    return Value(value.layer, View.of(walk.shape_of(node)), node)  # read by nobody but the pooling, through low_pads


# --------------------------------------------------------------------------------------------- joining
@register("cat.default", "concat.default", "concatenate.default")
def _cat(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    values = [t for t in a["tensors"] if not _is_empty(t)]
    rank = len(walk.shape_of(node))
    zeros = [walk.is_constant(t) for t in values]
    if any(zeros):
        return _cat_zeros(walk, node, values, zeros, a["dim"] % (rank + 1))
    return _joined(walk, node, [walk.value(t) for t in values], walk.axis(a["dim"], walk.shape_of(node)))


def _is_empty(tensor: fx.Node) -> bool:
    return 0 in tuple(tensor.meta["val"].shape)


def _joined(walk: Walk, node: fx.Node, values: list[Value], axis: int) -> Value:
    if len(values) == 1:
        return values[0]
    how = walk.arrangement(values, (axis,))
    names = [walk.arranged(v, how)[0] for v in values]
    total = sum(v.shape[axis] for v in values)
    shape = (total, *how.spatial)
    dims = tuple(total if i == axis else n for i, n in enumerate(values[0].shape))
    return walk.restored(walk.emit(node, "concat", tuple(names), shape), how, dims)


def _cat_zeros(walk: Walk, node: fx.Node, tensors: list[fx.Node], zeros: list[bool], dim: int) -> Value:
    """Zeros before or after the data are padding."""
    first, last = zeros.index(False), len(zeros) - zeros[::-1].index(False)
    constants = [t for t, zero in zip(tensors, zeros, strict=True) if zero]
    if any(zeros[first:last]) or any(bool(walk.evaluate(t).any()) for t in constants):
        raise Refused("joins the data with a constant", "only zeros before or after the data are supported: padding")
    value = _joined(walk, node, [walk.value(t) for t in tensors[first:last]], dim - 1)
    widths = [sum(int(t.meta["val"].shape[dim]) for t in part) for part in (tensors[:first], tensors[last:])]
    return padded(walk, node, value, {dim - 1: (widths[0], widths[1])})


@register("stack.default")
def _stack(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    out = walk.shape_of(node)
    axis = walk.axis(a["dim"], out)
    values = [walk.value(t) for t in a["tensors"]]
    single = tuple(1 if i == axis else n for i, n in enumerate(out))
    return _joined(walk, node, [v.reshaped(single) for v in values], axis)


@register("glu.default")
def _glu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    axis = walk.axis(a["dim"], value.shape)
    half = value.shape[axis] // 2
    left, right = (take(walk, node, value, axis, range(s, s + half)) for s in (0, half))
    return binary(walk, node, "mul", left, function(walk, node, right, "sigmoid"))
