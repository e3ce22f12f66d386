"""Handlers of the ATen operations that pool and reduce (see `aten`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from xdeploy.model.aten import pair, register, spatial_axes
from xdeploy.model.aten_pointwise import scaled
from xdeploy.model.views import Shape, size_of
from xdeploy.model.walk import Refused, Value, Walk


# --------------------------------------------------------------------------------------------------- pooling
def _excess(size: Shape, out: Shape, kernel: Shape, stride: Shape, pad: Shape) -> tuple[int, int]:
    """Padding needed at bottom and right so that flooring gives `out`: at least `pad`, more with ceil_mode."""
    rows = zip(size, out, kernel, stride, pad, strict=True)
    bottom, right = (max(p, (o - 1) * s + k - n - p) for n, o, k, s, p in rows)
    return bottom, right


def _windows(node: fx.Node, a: dict[str, Any]) -> tuple[Shape, Shape, Shape]:
    """Kernel, stride and padding of a pooling as pairs."""
    axes = spatial_axes(node)
    kernel = pair(a["kernel_size"], axes)
    return kernel, pair(a["stride"], axes) if a["stride"] else kernel, pair(a["padding"], axes, unit=0)


def _pooled(node: fx.Node) -> Shape:
    """Output shape as (C, H, W), also of operations that give (values, indices)."""
    val = node.meta["val"]
    shape = (val[0] if isinstance(val, list | tuple) else val).shape[1:]
    return (int(shape[0]), *pair([int(d) for d in shape[1:]], spatial_axes(node)))


@register(
    "max_pool2d.default", "max_pool2d_with_indices.default", "max_pool1d.default", "max_pool1d_with_indices.default"
)
def _max_pool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    kernel, stride, pad = _windows(node, a)
    if set(pair(a["dilation"])) != {1}:
        raise Refused(f"dilation {pair(a['dilation'])} in pooling is not supported", "dilation=1", attribute="dilation")
    value, extra = walk.low_pads.get(a["self"], (None, (0, 0, 0, 0)))
    name, shape = walk.image(value or a["self"])
    top, left, bottom, right = extra
    padded = (shape[1] + top + bottom, shape[2] + left + right)
    out = _pooled(node)
    after = _excess(padded, out[1:], kernel, stride, pad)
    pads = (top + pad[0], left + pad[1], bottom + after[0], right + after[1])
    return walk.emit(node, "max_pool2d", (name,), out, {"kernel": kernel, "stride": stride, "pads": pads})


@register("avg_pool2d.default", "avg_pool1d.default")
def _avg_pool(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a.get("divisor_override") is not None:
        raise Refused("divisor_override is not supported", "multiply by a constant", attribute="divisor_override")
    name, shape = walk.image(a["self"])
    kernel, stride, pad = _windows(node, a)
    out = _pooled(node)
    excess = _excess(shape[1:], out[1:], kernel, stride, pad)
    include = bool(a["count_include_pad"]) and any(pad)
    if include and excess != pad:
        # torch counts the padding but not what ceil_mode adds to it: pad first, then leave out the rest
        padded = (shape[0], shape[1] + 2 * pad[0], shape[2] + 2 * pad[1])
        name = walk.emit(node, "pad", (name,), padded, {"pads": (*pad, *pad), "channels": (0, 0)}).layer
        excess, pad, include = (excess[0] - pad[0], excess[1] - pad[1]), (0, 0), False
    attrs = {"kernel": kernel, "stride": stride, "pads": (*pad, *excess), "include_pad": include}
    return walk.emit(node, "avg_pool2d", (name,), out, attrs)


def _whole(walk: Walk, node: fx.Node, kind: str, name: str, shape: Shape, kernel: Shape) -> Value:
    """Pooling without overlap or rest."""
    attrs: dict[str, Any] = {"kernel": kernel, "stride": kernel, "pads": (0, 0, 0, 0)}
    if kind == "avg_pool2d":
        attrs["include_pad"] = False
    return walk.emit(node, kind, (name,), (shape[0], shape[1] // kernel[0], shape[2] // kernel[1]), attrs)


@register(
    "adaptive_avg_pool2d.default", "_adaptive_avg_pool2d.default", "adaptive_max_pool2d.default",
    "adaptive_avg_pool1d.default", "adaptive_max_pool1d.default",
)  # fmt: skip
def _adaptive(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    name, shape = walk.image(a["self"])
    out = _pooled(node)[1:]
    if shape[1] % out[0] or shape[2] % out[1]:
        raise Refused(
            f"adaptive pooling from {shape[1]}x{shape[2]} to {out[0]}x{out[1]} is not supported; sizes must divide",
            "use a fixed kernel, or an output size that divides the input's", attribute="output_size",
        )  # fmt: skip
    kind = "max_pool2d" if "max" in str(node.target) else "avg_pool2d"
    return _whole(walk, node, kind, name, shape, (shape[1] // out[0], shape[2] // out[1]))


# ------------------------------------------------------------------------------------------------- reductions
@register("mean.dim", "amax.default", "amin.default", "sum.dim_IntList", "max.dim", "min.dim")
def _reduce(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value | tuple[Value, ...]:
    value, dims = walk.value(a["self"]), a["dim"]
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(value.shape) + 1))
    axes = tuple(sorted(walk.axis(d, value.shape) for d in dims))
    kind = str(node.target).split(".")[1]
    if kind in ("min", "amin"):
        value = scaled(walk, node, value, -1.0)  # the smallest is the largest of the negated
    made = _reduced(walk, node, value, axes, "avg_pool2d" if kind in ("mean", "sum") else "max_pool2d")
    if kind in ("min", "amin"):
        made = scaled(walk, node, made, -1.0)
    if kind == "sum":
        made = scaled(walk, node, made, float(size_of([value.shape[i] for i in axes])))
    if kind in ("max", "min"):
        made = made.reshaped(tuple(int(d) for d in node.meta["val"][0].shape[1:]))
        return (made,)  # the indices, where somebody reads them, are refused
    return made


def _reduced(walk: Walk, node: fx.Node, value: Value, axes: Shape, kind: str) -> Value:
    """One pooling over the axes; they stay with size 1."""
    dims = tuple(1 if i in axes else n for i, n in enumerate(value.shape))
    kept = tuple(i for i in range(len(dims)) if i not in axes)
    channels = walk.channels(value)
    how = walk.arrangement([value], channels, image=True)
    kernel = _kernel(value.shape, how.order[how.channels :], how.spatial, axes) if set(channels) <= set(kept) else None
    if kernel is None:
        how = walk.arrangement([value], kept, image=True)
        kernel = how.spatial
    name, shape = walk.arranged(value, how)
    return walk.restored(_whole(walk, node, kind, name, shape, kernel), how, dims)


def _kernel(dims: Shape, rest: Shape, spatial: Shape, axes: Shape) -> Shape | None:
    """The pooling kernel where the axes are the whole height, the whole width or both."""
    ends = np.cumprod([1, *(dims[i] for i in rest)])
    split = next((k for k, end in enumerate(ends) if end == spatial[0]), None)
    if split is None:
        return None
    kernel = []
    for part, size in ((rest[:split], spatial[0]), (rest[split:], spatial[1])):
        inside = [i in axes for i in part if dims[i] > 1]
        if any(inside) and not all(inside):
            return None
        kernel.append(size if any(inside) else 1)
    return tuple(kernel)


@register("softmax.int", "_softmax.default")
def _softmax(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    axis = walk.axis(a["dim"], value.shape)
    if size_of(value.shape) != value.shape[axis]:
        raise Refused(
            f"softmax over axis {a['dim']} of {value.shape} per sample is not supported; it is on (F,)",
            "leave it out: the largest score stays the largest", attribute="dim",
        )  # fmt: skip
    name, shape = walk.flat(value)
    return walk.emit(node, "softmax", (name,), shape)
