"""One handler per ATen operation: what a node of the exported graph becomes.

The graph is functional (no in-place operations), so `+=` and `relu_` arrive as `add` and `relu`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import fx

from xdeploy.model.walk import Refused, Shape, Value, Walk

Handler = Callable[[Walk, fx.Node, dict[str, Any]], Value | tuple[Value, ...]]
H = TypeVar("H", bound=Handler)
HANDLERS: dict[str, Handler] = {}

SUPPORTED = (
    "Conv2d (grouped, depthwise, dilated), Linear, BatchNorm, ReLU, ReLU6 and clamp, max, average and adaptive "
    "pooling, mean over height and width, flatten, add, cat over channels, zero padding, slices, Dropout, Identity, "
    "Softmax"
)
HINTS = {
    "log_softmax": "leave it out, or use softmax: the predicted class is the same",
    "native_dropout": "pass training=self.training to F.dropout, or use nn.Dropout",
    "dropout": "pass training=self.training to F.dropout, or use nn.Dropout",
    "batch_norm": "call model.eval() before torch.export, and keep track_running_stats=True",
    "_native_batch_norm_legit": "call model.eval() before torch.export, and keep track_running_stats=True",
    "conv1d": "use Conv2d with a kernel of height 1",
    "conv3d": "use Conv2d",
    "conv_transpose2d": "use Conv2d",
    "gelu": "use ReLU or ReLU6", "silu": "use ReLU or ReLU6", "hardswish": "use ReLU or ReLU6",
    "leaky_relu": "use ReLU or ReLU6", "elu": "use ReLU or ReLU6", "prelu": "use ReLU or ReLU6",
    "layer_norm": "use BatchNorm", "group_norm": "use BatchNorm",
    "permute": "keep images as (N, C, H, W) throughout", "transpose": "keep images as (N, C, H, W) throughout",
}  # fmt: skip


def handle(walk: Walk, node: fx.Node) -> None:
    """Convert one node; an obstacle is noted in the walk, never raised."""
    try:
        if node.target is operator.getitem:
            walk.values[node] = _getitem(walk, node)
            return
        handler = HANDLERS.get(str(node.target))
        if handler is None:
            short = str(node.target).removeprefix("aten.").split(".")[0]
            raise Refused("not supported", HINTS.get(short))
        if not isinstance(node.meta.get("val"), list | tuple):
            walk.shape_of(node)
        walk.values[node] = handler(walk, node, arguments(node))
    except Refused as refused:
        walk.refuse(node, refused)


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a node by the names of the operation's schema, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema), node.args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | given | dict(node.kwargs)


def register(*names: str) -> Callable[[H], H]:
    """Decorator that enters a handler for ATen operations, given as `name.overload`."""

    def enter(handler: H) -> H:
        HANDLERS.update(dict.fromkeys([f"aten.{n}" for n in names], handler))
        return handler

    return enter


def pair(value: Any) -> tuple[int, int]:
    """An int, [a] or [a, b] as (a, b)."""
    values = [value] if isinstance(value, int) else list(value)
    if len(values) > 2:
        raise Refused(f"works on {len(values)} spatial axes; 2 are supported", HINTS["conv3d"])
    return int(values[0]), int(values[-1])


def _getitem(walk: Walk, node: fx.Node) -> Value:
    source, index = node.args
    assert isinstance(source, fx.Node)
    found = walk.values.get(source)
    if isinstance(found, Value) and index == 0:
        return found
    if isinstance(found, tuple) and isinstance(index, int) and index < len(found):
        return found[index]
    raise Refused("this second result is not supported", node=source)


# ------------------------------------------------------------------------------------- convolution and linear
@register("conv2d.default")
def _conv2d(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    top, left = pair(a["padding"])
    return _conv(walk, node, a, (top, left, top, left))


@register("conv2d.padding")
def _conv2d_named_padding(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["padding"] != "same":
        return _conv(walk, node, a, (0, 0, 0, 0))
    weight = walk.constant(a["weight"], "weight")
    assert weight is not None
    total = [d * (k - 1) for d, k in zip(pair(a["dilation"]), weight.shape[2:], strict=True)]
    before = [t // 2 for t in total]
    return _conv(walk, node, a, (*before, *(t - b for t, b in zip(total, before, strict=True))))


@register("convolution.default")
def _convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["transposed"]:
        raise Refused("a transposed convolution is not supported", HINTS["conv_transpose2d"])
    if len(a["stride"]) == 1:
        raise Refused("a 1-D convolution is not supported", HINTS["conv1d"])
    return _conv2d(walk, node, a)


def _conv(walk: Walk, node: fx.Node, a: dict[str, Any], pads: Shape) -> Value:
    name, _ = walk.image(a["input"])
    weight, bias = walk.constant(a["weight"], "weight"), walk.constant(a["bias"], "bias")
    assert weight is not None
    attrs = {
        "stride": pair(a["stride"]), "pads": tuple(int(p) for p in pads), "dilation": pair(a["dilation"]),
        "groups": int(a["groups"]),
    }  # fmt: skip
    return walk.emit(node, "conv2d", (name,), walk.shape_of(node), attrs, (weight, bias))


@register("linear.default")
def _linear(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _dense(walk, node, a["input"], walk.constant(a["weight"], "weight"), a["bias"])


@register("addmm.default")
def _addmm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise Refused(f"beta={a['beta']}, alpha={a['alpha']} are not supported; both must be 1")
    weight = walk.constant(a["mat2"], "weight")
    assert weight is not None
    return _dense(walk, node, a["mat1"], weight.T, a["self"])


@register("mm.default", "matmul.default")
def _matmul(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    left, right = node.args[:2]
    if isinstance(left, fx.Node) and walk.is_constant(left):
        raise Refused("a product with the constant on the left is not supported", "write it as nn.Linear")
    weight = walk.constant(right, "right operand")
    assert weight is not None
    if weight.ndim != 2:
        raise Refused(f"a product with a constant of shape {weight.shape} is not supported", "write it as nn.Linear")
    return _dense(walk, node, left, weight.T, None)


def _dense(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any) -> Value:
    name, _ = walk.flat(x)
    offset = walk.constant(bias, "bias")
    if offset is not None:
        offset = np.broadcast_to(offset.reshape(-1), (len(weight),))
    return walk.emit(node, "linear", (name,), walk.shape_of(node), {}, (weight, offset))


@register("_native_batch_norm_legit_no_training.default", "batch_norm.default")
def _batch_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a.get("training", False):
        raise Refused("batch statistics (training mode) are not supported", HINTS["batch_norm"])
    name, shape = walk.read(a["input"])
    mean, var = walk.constant(a["running_mean"], "mean"), walk.constant(a["running_var"], "variance")
    weight, bias = walk.constant(a["weight"], "weight"), walk.constant(a["bias"], "bias")
    if mean is None or var is None:
        raise Refused("it has no running statistics", HINTS["batch_norm"])
    gain = (1.0 if weight is None else weight) / np.sqrt(var + a["eps"])
    shift = (0.0 if bias is None else bias) - mean * gain
    if len(shape) == 3:
        attrs = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": shape[0]}
        value = walk.emit(node, "conv2d", (name,), shape, attrs)
    else:
        value = walk.emit(node, "linear", (name,), shape)
    walk.norms[value.layer] = (gain, shift)
    return value


# ----------------------------------------------------------------------------------------------- elementwise
@register("relu.default")
def _relu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    name, shape = walk.read(a["self"])
    return walk.emit(node, "relu", (name,), shape)


@register("relu6.default")
def _relu6(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _clip(walk, node, {**a, "min": 0, "max": 6})


@register("hardtanh.default")
def _hardtanh(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _clip(walk, node, {**a, "min": a["min_val"], "max": a["max_val"]})


@register("clamp.default")
def _clip(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    low, high = a["min"], a["max"]
    name, shape = walk.read(a["self"])
    if low == 0 and high is None:
        return walk.emit(node, "relu", (name,), shape)
    if low is None or high is None or not low < high:
        raise Refused(f"limits {low}..{high} are not supported", "give both limits, or clamp(min=0) for ReLU")
    return walk.emit(node, "clip", (name,), shape, {"low": float(low), "high": float(high)})


@register("clamp_min.default")
def _clamp_min(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _clip(walk, node, {**a, "max": None})


@register("add.Tensor")
def _add(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["alpha"] != 1:
        raise Refused(f"alpha={a['alpha']} is not supported; it must be 1")
    (left, shape), (right, other) = walk.read(a["self"]), walk.read(a["other"])
    if shape != other:
        raise Refused(f"adds {shape} and {other}; both must have the same shape")
    return walk.emit(node, "add", (left, right), shape)


@register("softmax.int", "_softmax.default")
def _softmax(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    name, shape = walk.flat(a["self"])
    if a["dim"] not in (-1, 1):
        raise Refused(f"softmax over axis {a['dim']} is not supported; it must be the last")
    return walk.emit(node, "softmax", (name,), shape)


# -------------------------------------------------------------------------------------------- no layer of their own
@register(
    "clone.default", "detach.default", "alias.default", "contiguous.default", "lift_fresh_copy.default",
    "_to_copy.default", "to.dtype", "lift_fresh.default",
)  # fmt: skip
def _same(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return walk.value(node.args[0])


@register("dropout.default", "feature_dropout.default", "alpha_dropout.default")
def _dropout(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["train"]:
        raise Refused("dropout in training mode is not supported", HINTS["dropout"])
    return walk.value(a["input"])


@register(
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "squeeze.default", "squeeze.dim",
    "squeeze.dims", "unsqueeze.default", "unflatten.int",
)  # fmt: skip
def _view(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return Value(walk.value(node.args[0]).layer, walk.shape_of(node), node)
