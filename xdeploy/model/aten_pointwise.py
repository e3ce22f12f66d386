"""Handlers of the ATen operations that work element by element: functions, limits, sums, products, constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import fx

from xdeploy.model.aten import register
from xdeploy.model.views import Shape
from xdeploy.model.walk import Float64, Refused, Value, Walk

_FUNCTIONS = {
    "sigmoid.default": ("sigmoid", 0.0, 0.0), "tanh.default": ("tanh", 0.0, 0.0),
    "hardsigmoid.default": ("hard_sigmoid", 1 / 6, 0.5), "hardswish.default": ("hard_swish", 0.0, 0.0),
    "silu.default": ("silu", 0.0, 0.0), "abs.default": ("leaky_relu", -1.0, 0.0),
}  # fmt: skip


def function(walk: Walk, node: fx.Node, value: Value, name: str, alpha: float = 0.0, beta: float = 0.0) -> Value:
    """Append a row of `network.FUNCTIONS`."""
    if name == "leaky_relu" and alpha == 0:
        return walk.pointwise(node, value, "relu")
    attrs = {"function": name, "alpha": float(alpha), "beta": float(beta)}
    return walk.pointwise(node, value, "function", attrs)


@register(*_FUNCTIONS)
def _function(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return function(walk, node, walk.value(a["self"]), *_FUNCTIONS[str(node.target).removeprefix("aten.")])


@register("gelu.default")
def _gelu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return function(walk, node, walk.value(a["self"]), "gelu_tanh" if a["approximate"] == "tanh" else "gelu")


@register("leaky_relu.default")
def _leaky_relu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return function(walk, node, walk.value(a["self"]), "leaky_relu", a["negative_slope"])


@register("rrelu.default")
def _rrelu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["training"]:
        raise Refused("random slopes (training mode) are not supported", "call model.eval()")
    return function(walk, node, walk.value(a["self"]), "leaky_relu", (a["lower"] + a["upper"]) / 2)


@register("elu.default", "celu.default", "selu.default")
def _elu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """Append scale * elu(inner * x) / inner, elu's slope being one above zero and its limit -alpha * inner below."""
    kind = str(node.target).split(".")[1]
    alpha, scale, inner = 1.6732632423543772, 1.0507009873554805, 1.0  # selu's constants
    if kind == "elu":
        alpha, scale, inner = a["alpha"], a["scale"], a["input_scale"]
    elif kind == "celu":
        alpha, scale, inner = a["alpha"], 1.0, 1 / a["alpha"]
    inside = scaled(walk, node, walk.value(a["self"]), float(inner))
    made = function(walk, node, inside, "elu", alpha * inner)
    return scaled(walk, node, made, scale / inner)


@register("softplus.default")
def _softplus(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    beta = float(a["beta"])
    if beta <= 0 or beta * a["threshold"] < 12:
        raise Refused("softplus that turns linear this early is not supported", "threshold=20", attribute="threshold")
    made = function(walk, node, scaled(walk, node, walk.value(a["self"]), beta), "softplus")
    return scaled(walk, node, made, 1 / beta)


@register("log_sigmoid.default")
def _log_sigmoid(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    made = function(walk, node, scaled(walk, node, walk.value(a["self"]), -1.0), "softplus")
    return scaled(walk, node, made, -1.0)


@register("mish.default")
def _mish(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    gate = function(walk, node, function(walk, node, value, "softplus"), "tanh")
    return binary(walk, node, "mul", value, gate)


@register("prelu.default")
def _prelu(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """One slope is a leaky ReLU; a slope per channel is relu(x) + slope * min(x, 0)."""
    value, slope = walk.value(a["self"]), walk.constant(a["weight"], "slope")
    assert slope is not None
    if slope.size == 1 or np.ptp(slope) == 0:
        return function(walk, node, value, "leaky_relu", float(slope.flat[0]))
    below = walk.pointwise(node, value, "clip", {"low": -math.inf, "high": 0.0})
    per_channel = slope.reshape(-1, *[1] * (len(value.shape) - 1))
    return binary(walk, node, "add", walk.pointwise(node, value, "relu"), shifted(walk, node, below, per_channel, 0.0))


# --------------------------------------------------------------------------------------------------- limits
def limit(walk: Walk, node: fx.Node, value: Value, low: Any, high: Any) -> Value:
    """Clamp to [low, high]; None is no limit."""
    bounds = []
    for bound, missing in ((low, -math.inf), (high, math.inf)):
        constant = walk.constant(bound, "limit")
        if constant is not None and np.ptp(constant) != 0:
            raise Refused("a limit per element is not supported", "one limit for the whole tensor")
        bounds.append(missing if constant is None else float(constant.flat[0]))
    if bounds == [0.0, math.inf]:
        return walk.pointwise(node, value, "relu")
    if not bounds[0] < bounds[1]:
        raise Refused(f"limits {bounds[0]:g}..{bounds[1]:g} are not supported", "a lower limit below the upper one")
    if bounds == [-math.inf, math.inf]:
        return value
    return walk.pointwise(node, value, "clip", {"low": bounds[0], "high": bounds[1]})


_LIMITS: dict[str, Callable[[Mapping[str, Any]], tuple[Any, Any]]] = {
    "relu.default": lambda a: (0, None), "relu6.default": lambda a: (0, 6),
    "hardtanh.default": lambda a: (a["min_val"], a["max_val"]),
    "clamp.default": lambda a: (a["min"], a["max"]), "clamp.Tensor": lambda a: (a["min"], a["max"]),
    "clamp_min.default": lambda a: (a["min"], None), "clamp_max.default": lambda a: (None, a["max"]),
    "clamp_min.Tensor": lambda a: (a["min"], None), "clamp_max.Tensor": lambda a: (None, a["max"]),
}  # fmt: skip


@register(*_LIMITS)
def _limit(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return limit(walk, node, walk.value(a["self"]), *_LIMITS[str(node.target).removeprefix("aten.")](a))


@register("maximum.default", "minimum.default", "max.other", "min.other")
def _extreme(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    left, right = a["self"], a["other"]
    if walk.is_constant(left):
        left, right = right, left
    larger = "max" in str(node.target)
    if walk.is_constant(right):
        return limit(walk, node, walk.value(left), *((right, None) if larger else (None, right)))
    # max(a, b) = a + relu(b - a), min(a, b) = a - relu(a - b)
    x, y = walk.value(left), walk.value(right)
    excess = binary(walk, node, "sub", y, x) if larger else binary(walk, node, "sub", x, y)
    return binary(walk, node, "add" if larger else "sub", x, walk.pointwise(node, excess, "relu"))


@register("threshold.default")
def _threshold(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["threshold"] != 0 or a["value"] != 0:
        raise Refused("a threshold other than 0 is not supported", "use ReLU")
    return walk.pointwise(node, walk.value(a["self"]), "relu")


# ---------------------------------------------------------------------------------------- sums and products
@register("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def _sum(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    kind = str(node.target).split(".")[1]
    left, right, factor = a["self"], a["other"], float(a["alpha"])
    if kind == "rsub":
        return _difference(walk, node, right, left, factor)
    if kind == "sub":
        return _difference(walk, node, left, right, factor)
    if walk.is_constant(left):
        return shifted(walk, node, scaled(walk, node, walk.value(right), factor), 1.0, walk.constant(left, "summand"))
    if walk.is_constant(right):
        return shifted(walk, node, walk.value(left), 1.0, _times(walk.constant(right, "summand"), factor))
    return binary(walk, node, "add", walk.value(left), scaled(walk, node, walk.value(right), factor))


def _difference(walk: Walk, node: fx.Node, left: Any, right: Any, factor: float) -> Value:
    """Append left - factor * right; in `rsub` the factor belongs to the tensor that is taken away, as here."""
    if walk.is_constant(right):
        return shifted(walk, node, walk.value(left), 1.0, _times(walk.constant(right, "subtrahend"), -factor))
    if walk.is_constant(left):
        return shifted(walk, node, walk.value(right), -factor, walk.constant(left, "minuend"))
    return binary(walk, node, "sub", walk.value(left), scaled(walk, node, walk.value(right), factor))


@register("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar")
def _product(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    left, right = a["self"], a["other"]
    if "div" in str(node.target):
        if not walk.is_constant(right):
            raise Refused("divides by the data", "multiply by a gate (sigmoid) instead")
        divisor = walk.constant(right, "divisor")
        if divisor is None or not divisor.all():
            raise Refused("divides by zero", "a divisor other than 0")
        return shifted(walk, node, walk.value(left), 1 / divisor, 0.0)
    if walk.is_constant(left):
        left, right = right, left
    if walk.is_constant(right):
        return shifted(walk, node, walk.value(left), walk.constant(right, "factor"), 0.0)
    return binary(walk, node, "mul", walk.value(left), walk.value(right))


@register("neg.default")
def _neg(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return scaled(walk, node, walk.value(a["self"]), -1.0)


@register("square.default")
def _square(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    value = walk.value(a["self"])
    return binary(walk, node, "mul", value, value)


@register("pow.Tensor_Scalar")
def _power(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["exponent"] not in (1, 2, 3, 4):
        raise Refused(f"a power of {a['exponent']} is not supported", "x * x", attribute="exponent")
    value = made = walk.value(a["self"])
    for _ in range(int(a["exponent"]) - 1):
        made = binary(walk, node, "mul", made, value)
    return made


def _times(constant: Float64 | None, factor: float) -> Float64:
    assert constant is not None
    return constant * factor


# ------------------------------------------------------------------------------------------------ constants
def scaled(walk: Walk, node: fx.Node, value: Value, gain: float) -> Value:
    """Append gain * x, for one gain."""
    return shifted(walk, node, value, gain, 0.0)


def shifted(walk: Walk, node: fx.Node, value: Value, gain: Any, shift: Any) -> Value:
    """Append gain * x + shift; numbers, or constants that broadcast to (N, *shape)."""
    gain, shift = (np.asarray(c, np.float64) for c in (gain, shift))
    if (gain == 1).all() and (shift == 0).all() and max(gain.size, shift.size) == 1:
        return value
    rank = len(value.shape)
    full = np.broadcast_shapes(gain.shape, shift.shape, (1,) * rank)
    if len(full) == rank + 1 and full[0] == 1:
        full = full[1:]
    if len(full) != rank or any(f not in (1, s) for f, s in zip(full, value.shape, strict=True)):
        raise Refused(f"a constant of shape {full} widens the data {value.shape}", "expand the data first")
    gain, shift = (np.broadcast_to(c.reshape(_fit(c.shape, rank)), full) for c in (gain, shift))
    first = tuple(i for i, size in enumerate(full) if size > 1)
    if not first:
        count = walk.layer_shape(value.layer)[0]
        made = walk.affine(node, value.layer, *(np.full(count, c.item()) for c in (gain, shift)))
        return Value(made.layer, value.view, node)
    how = walk.arrangement([value], first, image=len(first) > 1)
    name, _ = walk.arranged(value, how)
    return walk.restored(walk.affine(node, name, gain.ravel(), shift.ravel()), how, value.shape)


def _fit(shape: Shape, rank: int) -> Shape:
    """A constant's shape as one of `rank` axes: without the batch, unit axes in front."""
    shape = shape[-rank:] if len(shape) > rank else shape
    return (1,) * (rank - len(shape)) + shape


# ------------------------------------------------------------------------------------------------ two tensors
def binary(walk: Walk, node: fx.Node, kind: str, left: Value, right: Value) -> Value:
    """Append add, sub or mul of two tensors; one may have size 1 on some axes."""
    if len(left.shape) != len(right.shape):
        raise Refused(f"combines {left.shape} and {right.shape}; both must have the same number of axes")
    if left.shape == right.shape:
        return _alike(walk, node, kind, left, right)
    out = tuple(max(pair) for pair in zip(left.shape, right.shape, strict=True))
    if out not in (left.shape, right.shape) or any(
        1 not in pair and len(set(pair)) > 1 for pair in zip(left.shape, right.shape, strict=True)
    ):
        raise Refused(f"combines {left.shape} and {right.shape}; only one of them may be broadcast", "expand one first")
    full, small = (left, right) if out == left.shape else (right, left)
    how = walk.arrangement([full], _kept(small.shape, full.shape), image=True)
    name, shape = walk.arranged(full, how)
    gate = walk.settle(walk.permuted(small, how.order), (shape[0], 1, 1))
    if kind != "mul":
        # sums are of one shape: the small one is repeated first
        repeat = {"rows": (0,) * shape[1], "cols": (0,) * shape[2]}
        gate = walk.emit(node, "resize", (gate,), shape, repeat).layer
    inputs = (gate, name) if kind == "sub" and full is right else (name, gate)
    return walk.restored(walk.emit(node, kind, inputs, shape), how, out)


def _kept(small: Shape, full: Shape) -> tuple[int, ...]:
    """Axes on which the small operand is not repeated."""
    return tuple(i for i, (s, f) in enumerate(zip(small, full, strict=True)) if s == f and f > 1)


def _alike(walk: Walk, node: fx.Node, kind: str, left: Value, right: Value) -> Value:
    """Both of one shape: in the order in which the first lies, or in C order where that is plain features."""
    shapes = [walk.layer_shape(v.layer) for v in (left, right)]
    if left.view == right.view and shapes[0] == shapes[1]:
        made = walk.emit(node, kind, (left.layer, right.layer), shapes[0])
        return Value(made.layer, left.view, node)
    if len([n for n in left.shape if n > 1]) <= 1:
        inputs = (walk.flat(left)[0], walk.flat(right)[0])
        return walk.emit(node, kind, inputs, (max(left.shape, default=1),)).reshaped(left.shape)
    lead = right if left.view.is_flat and not right.view.is_flat else left
    shape = walk.layer_shape(lead.layer)
    inverse = np.argsort(lead.view.perm)
    names = [walk.settle(walk.permuted(v.reshaped(lead.view.ordered), tuple(inverse)), shape) for v in (left, right)]
    return Value(walk.emit(node, kind, (names[0], names[1]), shape).layer, lead.view, node)
