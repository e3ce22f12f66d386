"""Handlers of the ATen operations that only move data: views, permutations, slices, padding, joins, repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from xdeploy.model.aten import register
from xdeploy.model.views import View
from xdeploy.model.walk import Arrangement, Refused, Value, Walk


# ---------------------------------------------------------------------------------------- views: nothing moves
@register(
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "squeeze.default", "squeeze.dim",
    "squeeze.dims", "unsqueeze.default", "unflatten.int", "view_copy.default", "squeeze_copy.dim",
    "unsqueeze_copy.default",
)  # fmt: skip
def _view(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(node.args[0])
    return Value(value.layer, value.view.reshaped(walk.shape_of(node)), node)


@register("permute.default", "transpose.int", "t.default", "movedim.int", "mT.default", "permute_copy.default")
def _permute(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(node.args[0])
    rank = len(value.shape) + 1
    order = list(range(rank))
    if "permute" in str(node.target):
        order = [d % rank for d in a["dims"]]
    elif "transpose" in str(node.target):
        i, j = a["dim0"] % rank, a["dim1"] % rank
        order[i], order[j] = j, i
    elif "movedim" in str(node.target):
        order.insert(a["destination"] % rank, order.pop(a["source"] % rank))
    else:
        order[-1], order[-2] = order[-2], order[-1]
    if order[0] != 0:
        raise Refused(f"moves the batch: axes {order}", "keep the batch first")
    made = walk.permuted(value, [d - 1 for d in order[1:]])
    return Value(made.layer, made.view, node)


@register("pixel_shuffle.default", "pixel_unshuffle.default")
def _pixel_shuffle(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    channels, height, width = value.shape
    if "unshuffle" in str(node.target):
        r = int(a["downscale_factor"])
        split, order = (channels, height // r, r, width // r, r), (0, 2, 4, 1, 3)
    else:
        r = int(a["upscale_factor"])
        split, order = (channels // (r * r), r, r, height, width), (0, 3, 1, 4, 2)
    return walk.permuted(value.reshaped(split), order)


@register("channel_shuffle.default")
def _channel_shuffle(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value, groups = walk.value(a["self"]), int(a["groups"])
    rest = value.shape[1:]
    split = value.reshaped((groups, value.shape[0] // groups, *rest))
    return walk.permuted(split, (1, 0, *range(2, 2 + len(rest))))


# --------------------------------------------------------------------------------------- one axis at a time
def place(walk: Walk, value: Value, axis: int) -> tuple[Arrangement, int]:
    """An arrangement as (C, H, W) in which one axis of it is `axis` alone, and which; without moving if possible."""
    size, layer = value.shape[axis], walk.layer_shape(value.layer)
    if value.view.is_flat and value.shape == layer and len(layer) == 3:
        return Arrangement((0, 1, 2), 1, layer[1:]), axis
    as_channels = walk.arrangement([value], (axis,), image=True)
    if _lies(walk, value, as_channels) or len(value.shape) == 1:
        return as_channels, 0
    how = walk.arrangement([value], walk.channels(value), image=True)
    ends = np.cumprod([1, *(value.shape[i] for i in how.order[how.channels :])])
    at = how.order.index(axis) - how.channels
    if at >= 0 and _lies(walk, value, how) and size > 1:
        if ends[at] == 1 and ends[at + 1] == how.spatial[0]:
            return how, 1
        if ends[at] == how.spatial[0] and ends[at + 1] == math.prod(how.spatial):
            return how, 2
    others = tuple(i for i in range(len(value.shape)) if i != axis)
    return Arrangement((*others, axis), len(others), (size, 1)), 1


def _lies(walk: Walk, value: Value, how: Arrangement) -> bool:
    view = value.view.permuted(how.order)
    shape = walk.layer_shape(value.layer)
    return view is not None and view.is_flat and shape[1:] == how.spatial


def take(walk: Walk, node: fx.Node, value: Value, axis: int, index: Sequence[int]) -> Value:
    """Elements `index` of one axis, in that order: a slice where they rise evenly, else nearest resizing."""
    index = [int(i) for i in index]
    if index == list(range(value.shape[axis])):
        return value
    if not index:
        raise Refused("leaves nothing of the data", "a range with at least one element")
    steps = set(np.diff(index).tolist()) or {1}
    even = len(steps) == 1 and min(steps) > 0
    how, at = place(walk, value, axis)
    if at == 0 and not even:
        others = tuple(i for i in range(len(value.shape)) if i != axis)
        how, at = Arrangement((*others, axis), len(others), (value.shape[axis], 1)), 1
    name, shape = walk.arranged(value, how)
    out = tuple(len(index) if i == at else n for i, n in enumerate(shape))
    if even:
        cuts = [(0, n, 1) for n in shape]
        cuts[at] = (index[0], index[-1] + 1, steps.pop())
        starts, stops, strides = (tuple(column) for column in zip(*cuts, strict=True))
        made = walk.emit(node, "slice", (name,), out, {"starts": starts, "stops": stops, "steps": strides})
    else:
        rows, cols = (tuple(index) if i == at else tuple(range(shape[i])) for i in (1, 2))
        made = walk.emit(node, "resize", (name,), out, {"rows": rows, "cols": cols})
    dims = tuple(len(index) if i == axis else n for i, n in enumerate(value.shape))
    return walk.restored(made, how, dims)


@register("slice.Tensor", "narrow.default")
def _slice(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    if "narrow" in str(node.target):
        start, stop, step = a["start"], a["start"] + a["length"], 1
    else:
        start, stop, step = a["start"], a["end"], a["step"]
    if a["dim"] % (len(value.shape) + 1) == 0 and (start or 0) == 0 and step == 1:
        return value  # the whole batch: shape_of has checked it
    axis = walk.axis(a["dim"], value.shape)
    return take(walk, node, value, axis, range(value.shape[axis])[slice(start, stop, step)])


@register("select.int")
def _select(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    axis = walk.axis(a["dim"], value.shape)
    return take(walk, node, value, axis, [range(value.shape[axis])[a["index"]]])


@register(
    "split.Tensor", "split_with_sizes.default", "chunk.default", "unbind.int", "tensor_split.sections",
    "tensor_split.indices",
)  # fmt: skip
def _split(walk: Walk, node: fx.Node, a: dict[str, Any]) -> tuple[Value, ...]:
    value = walk.value(a["self"])
    axis = walk.axis(a["dim"], value.shape)
    shapes = [tuple(int(d) for d in part.shape[1:]) for part in node.meta["val"]]
    sizes = [1 if "unbind" in str(node.target) else shape[axis] for shape in shapes]
    used = {u.args[1] for u in node.users}
    parts, start = [], 0
    for i, (size, shape) in enumerate(zip(sizes, shapes, strict=True)):
        # a part nobody reads gets no layer
        part = take(walk, node, value, axis, range(start, start + size)) if i in used else None
        parts.append(part.reshaped(shape) if part else Value(value.layer, View.of(shape), node))
        start += size
    return tuple(parts)


@register("flip.default", "roll.default", "index_select.default", "repeat_interleave.self_int")
def _reordered(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """Axes read in another order, each on its own: found by moving an index along."""
    value, kind = walk.value(a["self"]), str(node.target).split(".")[1]
    dims = a["dim"] if "dim" in a else a["dims"]
    if dims in (None, []):
        raise Refused(f"{kind} of the flattened batch is not supported", "give the axis", attribute="dim")
    dims = [dims] if isinstance(dims, int) else list(dims)
    shifts = [a["shifts"]] if isinstance(a.get("shifts"), int) else list(a.get("shifts") or [0] * len(dims))
    for dim, shift in zip(dims, shifts, strict=True):
        axis = walk.axis(dim, value.shape)
        index = np.arange(value.shape[axis])
        if kind == "index_select":
            index = index[_positions(walk, a["index"])]
        elif kind == "repeat_interleave":
            index = np.repeat(index, int(a["repeats"]))
        else:
            index = np.roll(index, shift) if kind == "roll" else index[::-1]
        value = take(walk, node, value, axis, index.tolist())
    return value


@register("index.Tensor")
def _index(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """Constant indices, each on one axis, so that the result is made axis by axis."""
    value = walk.value(a["self"])
    chosen = {dim: _positions(walk, i) for dim, i in enumerate(a["indices"]) if i is not None}
    alone = [int(np.argmax(c.shape)) if c.ndim else 0 for c in chosen.values()]
    crossed = all(c.size == max(c.shape, default=1) for c in chosen.values()) and alone == sorted(set(alone))
    if not crossed or len(chosen) != max(chosen) - min(chosen) + 1:
        raise Refused("indexing point by point is not supported", "index one axis at a time")
    for dim, positions in chosen.items():
        axis = walk.axis(dim, value.shape)
        index = np.arange(value.shape[axis])[positions.ravel()]
        value = take(walk, node, value, axis, index.tolist())
    return value


def _positions(walk: Walk, arg: Any) -> NDArray[np.int64]:
    if not walk.is_constant(arg):
        raise Refused("its index is computed from the input", "indices have to be constants")
    found = walk.evaluate(arg).numpy()
    return np.flatnonzero(found) if found.dtype == np.bool_ else found.astype(np.int64)


@register("expand.default", "expand_copy.default", "repeat.default", "tile.default")
def _repeated(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value, out = walk.value(a["self"]), walk.shape_of(node)
    if len(out) < len(value.shape):
        raise Refused(f"expands {value.shape} to {out}")
    if len(out) > len(value.shape):
        raise Refused("new axes before the batch are not supported", "unsqueeze after the batch")
    for axis, (size, wanted) in enumerate(zip(value.shape, out, strict=True)):
        value = take(walk, node, value, axis, np.tile(np.arange(size), wanted // size).tolist())
    return value
