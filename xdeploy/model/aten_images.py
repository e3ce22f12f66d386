"""Handlers of the ATen operations that pool, pad, slice and join images (see `aten`)."""

from __future__ import annotations

from typing import Any

from torch import fx

from xdeploy.model.aten import pair, register
from xdeploy.model.walk import Refused, Shape, Value, Walk


# --------------------------------------------------------------------------------------------------- pooling
def _excess(size: Shape, out: Shape, kernel: Shape, stride: Shape, pad: Shape) -> tuple[int, int]:
    """Padding needed at bottom and right so that flooring gives `out`: at least `pad`, more with ceil_mode."""
    rows = zip(size, out, kernel, stride, pad, strict=True)
    bottom, right = (max(p, (o - 1) * s + k - n - p) for n, o, k, s, p in rows)
    return bottom, right


@register("max_pool2d.default", "max_pool2d_with_indices.default")
def _max_pool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    name, shape = walk.image(a["self"])
    kernel, pad = pair(a["kernel_size"]), pair(a["padding"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    if pair(a["dilation"]) != (1, 1):
        raise Refused(f"dilation {pair(a['dilation'])} in pooling is not supported")
    out = _pooled_shape(walk, node)
    attrs = {"kernel": kernel, "stride": stride, "pads": (*pad, *_excess(shape[1:], out[1:], kernel, stride, pad))}
    return walk.emit(node, "max_pool2d", (name,), out, attrs)


def _pooled_shape(walk: Walk, node: fx.Node) -> Shape:
    """Output shape, also of operations that give (values, indices)."""
    val = node.meta["val"]
    return tuple(int(d) for d in val[0].shape[1:]) if isinstance(val, list | tuple) else walk.shape_of(node)


@register("avg_pool2d.default")
def _avg_pool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["divisor_override"] is not None:
        raise Refused("divisor_override is not supported")
    name, shape = walk.image(a["self"])
    kernel, pad = pair(a["kernel_size"]), pair(a["padding"])
    stride = pair(a["stride"]) if a["stride"] else kernel
    out = walk.shape_of(node)
    excess = _excess(shape[1:], out[1:], kernel, stride, pad)
    include = bool(a["count_include_pad"]) and any(pad)
    if include and excess != pad:
        # torch counts the padding but not what ceil_mode adds to it: pad first, then leave out the rest
        padded = (shape[0], shape[1] + 2 * pad[0], shape[2] + 2 * pad[1])
        name = walk.emit(node, "pad", (name,), padded, {"pads": (*pad, *pad), "channels": (0, 0)}).layer
        excess, pad, include = (excess[0] - pad[0], excess[1] - pad[1]), (0, 0), False
    attrs = {"kernel": kernel, "stride": stride, "pads": (*pad, *excess), "include_pad": include}
    return walk.emit(node, "avg_pool2d", (name,), out, attrs)


def _adaptive(walk: Walk, node: fx.Node, source: Any, size: Any, kind: str) -> Value:
    name, shape = walk.image(source)
    out = pair(size)
    if shape[1] % out[0] or shape[2] % out[1]:
        raise Refused(
            f"adaptive pooling from {shape[1]}x{shape[2]} to {out[0]}x{out[1]} is not supported; sizes must divide",
            "use a fixed kernel, or an output size that divides the input's",
        )
    kernel = (shape[1] // out[0], shape[2] // out[1])
    attrs: dict[str, Any] = {"kernel": kernel, "stride": kernel, "pads": (0, 0, 0, 0)}
    if kind == "avg_pool2d":
        attrs["include_pad"] = False
    return walk.emit(node, kind, (name,), (shape[0], *out), attrs)


@register("adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default")
def _adaptive_avg(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _adaptive(walk, node, a["self"], a["output_size"], "avg_pool2d")


@register("adaptive_max_pool2d.default")
def _adaptive_max(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _adaptive(walk, node, a["self"], a["output_size"], "max_pool2d")


@register("mean.dim", "amax.default")
def _global_pool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    what = "mean" if "mean" in str(node.target) else "maximum"
    source = walk.value(a["self"])
    axes = sorted(d % (len(source.shape) + 1) for d in a["dim"] or ())
    if axes != [2, 3] or len(source.shape) != 3:
        raise Refused(f"a {what} over axes {list(a['dim'] or ())} is not supported; height and width (2, 3) are")
    pooled = _adaptive(walk, node, a["self"], (1, 1), "avg_pool2d" if what == "mean" else "max_pool2d")
    return Value(pooled.layer, walk.shape_of(node), node)


# ----------------------------------------------------------------------------------------- padding and slices
@register("pad.default", "constant_pad_nd.default")
def _pad(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a.get("mode", "constant") != "constant" or a["value"] not in (None, 0):
        raise Refused(
            f"padding with mode {a.get('mode', 'constant')!r} and value {a['value']} is not supported", "pad with zeros"
        )
    name, _ = walk.image(a["self"])
    widths = [int(w) for w in a["pad"]] + [0] * (8 - len(a["pad"]))
    if min(widths) < 0:
        raise Refused("negative padding is not supported", "slice instead")
    left, right, top, bottom, before, after, *batch = widths
    if any(batch):
        raise Refused("pads the batch")
    if not any(widths):
        return walk.value(a["self"])
    attrs = {"pads": (top, left, bottom, right), "channels": (before, after)}
    return walk.emit(node, "pad", (name,), walk.shape_of(node), attrs)


@register("slice.Tensor")
def _slice(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    source = walk.value(a["self"])
    axis = a["dim"] % (len(source.shape) + 1) - 1
    if walk.shape_of(node) == source.shape and a["step"] == 1:
        return source
    name, shape = walk.image(a["self"])
    if axis < 0:
        raise Refused("slices the batch")
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(shape[axis])
    return _cut(walk, node, name, shape, axis, (start, stop, step))


def _cut(walk: Walk, node: fx.Node, name: str, shape: Shape, axis: int, cut: tuple[int, int, int]) -> Value:
    cuts = [(0, n, 1) for n in shape]
    cuts[axis] = cut
    starts, stops, steps = (tuple(int(v) for v in column) for column in zip(*cuts, strict=True))
    out = tuple(len(range(*c)) for c in cuts)
    return walk.emit(node, "slice", (name,), out, {"starts": starts, "stops": stops, "steps": steps})


@register("split.Tensor", "split_with_sizes.default", "chunk.default")
def _split(walk: Walk, node: fx.Node, a: dict[str, Any]) -> tuple[Value, ...]:
    name, shape = walk.image(a["self"])
    axis = a["dim"] % (len(shape) + 1) - 1
    if axis < 0:
        raise Refused("splits the batch")
    sizes = [int(part.shape[axis + 1]) for part in node.meta["val"]]
    used = {u.args[1] for u in node.users}
    parts, start = [], 0
    for i, size in enumerate(sizes):
        # a part nobody reads gets no layer
        cut = _cut(walk, node, name, shape, axis, (start, start + size, 1)) if i in used else Value(name, shape, node)
        parts.append(cut)
        start += size
    return tuple(parts)


@register("cat.default")
def _cat(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    read = [walk.read(t) for t in a["tensors"]]
    if len(read) == 1:
        return walk.value(a["tensors"][0])
    if a["dim"] % (len(read[0][1]) + 1) != 1:
        raise Refused(f"cat over axis {a['dim']} is not supported; channels (1) are")
    return walk.emit(node, "concat", tuple(name for name, _ in read), walk.shape_of(node))
