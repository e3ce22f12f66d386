"""Add, Sub, Mul, Div, Pow, Min, Max, PRelu, BatchNormalization: with constants and between tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from xdeploy.formats import Float64
from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.operands import Mover, number, real
from xdeploy.lower.resize import expanded
from xdeploy.lower.tables import tabled
from xdeploy.lower.values import Codes, Pending, QConstant, Real, Stop, Value
from xdeploy.lower.views import batched, laid, order_of
from xdeploy.lower.weighted import folded
from xdeploy.onnxfile import Constant, OnnxNode

_RANGE = "operands of shapes that broadcast without the batch axis"


def _constant(value: Value | None) -> Float64 | None:
    return np.asarray(number(value), np.float64) if isinstance(value, Constant | QConstant) else None


def _per_sample(constant: Float64, rank: int) -> Float64:
    """A constant of the ONNX file without the batch axis, filled up to `rank` axes."""
    shape = constant.shape
    if len(shape) > rank + 1 or (len(shape) == rank + 1 and shape[0] != 1):
        raise Stop(f"a constant of shape {shape} on a tensor of rank {rank + 1}", _RANGE)
    shape = shape[1:] if len(shape) == rank + 1 else shape
    return constant.reshape((1,) * (rank - len(shape)) + shape)


def _stretched(b: Builder, node: OnnxNode, x: Real, shape: tuple[int, ...]) -> Real:
    """The operand broadcast to the shape of both operands."""
    if len(shape) != x.index.ndim:
        raise Stop(f"operands of shapes {batched(x.index.shape)} and {batched(shape)}", _RANGE)
    wide = expanded(b, node, x, shape)
    assert isinstance(wide, Real)
    return wide


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(*shapes))
    except ValueError:
        raise Stop(f"operands of shapes {', '.join(map(batched, shapes))}", _RANGE) from None


# ------------------------------------------------------------------------------------------- with constants
def affine(b: Builder, node: OnnxNode, x: Real, gain: Any, offset: Any) -> Real:
    """The function gain * x + offset with constants that broadcast with x's sample shape.

    Folded into the layer before it, a table where both are single numbers, else a node of its own.

    Raises:
        Stop: x is neither quantised nor the result of a layer that takes the constants.
    """
    shape = _broadcast(x.index.shape, np.shape(gain), np.shape(offset))
    x = _stretched(b, node, x, shape)
    g, o = (np.broadcast_to(np.asarray(v, np.float64), shape) for v in (gain, offset))
    inside = folded(x, g, o) or _merged(x, g, o)
    if inside is not None:
        return inside
    if (g == g.flat[0]).all() and (o == o.flat[0]).all():
        return tabled(node, x, lambda t: g.flat[0] * t + o.flat[0])
    if not isinstance(x.source, Codes):
        raise Stop("needs a quantised input", "QuantizeLinear and DequantizeLinear before it")
    order = order_of(x.index)
    return Real(Pending("affine", node.origin, (x,), {"gain": g, "offset": o, "order": order}), laid(shape, order))


def _merged(x: Real, gain: Float64, offset: Float64) -> Real | None:
    """Into an affine function before it, or the divisor of an average."""
    p = x.source
    if not isinstance(p, Pending) or not x.untouched:
        return None
    if (
        p.op == "affine"
        and x.index.shape == p.attrs["gain"].shape
        and np.array_equal(x.index, laid(x.index.shape, p.attrs["order"]))
    ):
        attrs = {**p.attrs, "gain": p.attrs["gain"] * gain, "offset": p.attrs["offset"] * gain + offset}
        return replace(x, source=replace(p, attrs=attrs))
    if p.op == "avg_pool2d" and not offset.any() and gain.flat[0] > 0 and (gain == gain.flat[0]).all():
        attrs = {**p.attrs, "gain": p.attrs.get("gain", 1.0) * float(gain.flat[0])}
        return replace(x, source=replace(p, attrs=attrs))
    return None


def _batch_norm(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    parts = [_constant(a) for a in args[1:5]]
    if node.attrs.get("training_mode", 0) or len(parts) != 4 or any(p is None for p in parts):
        raise Stop("computes its statistics", "the form for inference, with four constants", "training_mode")
    scale, bias, mean, var = (np.asarray(p).reshape(-1, *(1,) * (x.index.ndim - 1)) for p in parts)
    gain = scale / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
    return affine(b, node, x, gain, bias - mean * gain)


def _prelu(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x, given = real(args[0]), _constant(args[1])
    if given is None:
        raise Stop("its slope is not a constant", "a constant slope", "slope")
    shape = x.index.shape
    slope = np.broadcast_to(_per_sample(given, len(shape)), shape)
    if (slope == slope.flat[0]).all():
        return tabled(node, x, lambda t: np.where(t < 0, slope.flat[0] * t, t))
    if not isinstance(x.source, Codes):
        raise Stop("needs a quantised input", "QuantizeLinear and DequantizeLinear before it")
    order = order_of(x.index)
    attrs = {"gain": slope, "offset": np.zeros(shape), "order": order}
    return Real(Pending("prelu", node.origin, (x,), attrs), laid(shape, order))


# ---------------------------------------------------------------------------------------------- two operands
_AFFINE: dict[str, Callable[[Float64, bool], tuple[Any, Any] | None]] = {  # constant, whether it comes first
    "Add": lambda c, first: (1.0, c), "Sub": lambda c, first: (-1.0, c) if first else (1.0, -c),
    "Mul": lambda c, first: (c, 0.0), "Div": lambda c, first: None if first or not c.all() else (1.0 / c, 0.0),
}  # fmt: skip


def _binary(function: Callable[[Any, Any], Any]) -> Mover:
    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        left, right = args[:2]
        for x, constant, first in ((left, _constant(right), False), (right, _constant(left), True)):
            if isinstance(x, Real) and constant is not None:
                return _with_constant(b, node, x, constant, first, function)
        a, c = real(left), real(right)
        if _same_source(a, c) and not (node.op in ("Add", "Sub") and a.untouched and c.untouched):
            other = c.tabulated()
            return tabled(node, a, lambda t: np.asarray(function(t, other)))
        return _of_two(b, node, a, c)

    return handler


def _with_constant(
    b: Builder, node: OnnxNode, x: Real, constant: Float64, first: bool, function: Callable[[Any, Any], Any]
) -> Value:
    c = _per_sample(constant, x.index.ndim)
    known = _AFFINE.get(node.op)
    parts = known(c, first) if known else None
    if parts is not None and (np.ptp(c) != 0 or isinstance(x.source, Pending)):
        return affine(b, node, x, *parts)
    if np.ptp(c) != 0:
        raise Stop(f"with a constant of shape {constant.shape} whose values differ", "one number")
    x = _stretched(b, node, x, _broadcast(x.index.shape, c.shape))
    return tabled(node, x, lambda t: function(c.flat[0], t) if first else function(t, c.flat[0]))


def _same_source(a: Real, b: Real) -> bool:
    if not (isinstance(a.source, Codes) and isinstance(b.source, Codes)):
        return False
    return a.source.tensor == b.source.tensor and np.array_equal(a.index, b.index)


def _of_two(b: Builder, node: OnnxNode, a: Real, c: Real) -> Real:
    """Add, Sub and Mul of two tensors; one per channel, row or column stretches."""
    if node.op not in ("Add", "Sub", "Mul"):
        raise Stop("of two tensors has no integer form", "Add, Sub or Mul, or a function of one tensor")
    shape = _broadcast(a.index.shape, c.index.shape)
    if len(a.index.shape) != len(c.index.shape):
        raise Stop(f"operands of shapes {batched(a.index.shape)} and {batched(c.index.shape)}", _RANGE)
    if node.op != "Mul":
        a, c = _stretched(b, node, a, shape), _stretched(b, node, c, shape)
        return Real(Pending("add", node.origin, (a, c), {"sign": -1 if node.op == "Sub" else 1}), a.index)
    if c.index.size > a.index.size:
        a, c = c, a
    a = _stretched(b, node, a, shape)
    order = order_of(a.index)
    channels = tuple(1 if k != order[-1] else n for k, n in enumerate(shape))
    if len(shape) != 3 or c.index.shape != channels:
        c = _stretched(b, node, c, shape)
    return Real(Pending("mul", node.origin, (a, c), {"order": order}), laid(shape, order))


# -------------------------------------------------------------------------------------------- any number of them
def _folded_left(op: str) -> Mover:
    """Sum and Mean of several: additions one after the other would round in between, so two at most."""

    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        if len(args) == 1:
            return real(args[0])
        if len(args) > 2:
            raise Stop(f"adds {len(args)} tensors without rounding in between", "Adds of two, quantised in between")
        return _BINARY[op](b, replace(node, op=op), args)  # type: ignore[return-value]

    return handler


def _extreme(least: bool) -> Mover:
    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        constants = [c for c in map(_constant, args) if c is not None]
        tensors = [real(a) for a in args if not isinstance(a, Constant | QConstant)]
        joined = reduce(lambda a, c: _extreme_of(b, node, a, c, least), tensors)
        for constant in constants:
            joined = _limited(b, node, joined, constant, least)
        return joined

    return handler


def _limited(b: Builder, node: OnnxNode, x: Real, constant: Float64, least: bool) -> Real:
    c = _per_sample(constant, x.index.ndim)
    if np.ptp(c) != 0:
        raise Stop(f"with a constant of shape {constant.shape} whose values differ", "one number")
    bounds = (-np.inf, float(c.flat[0])) if least else (float(c.flat[0]), np.inf)
    return _stretched(b, node, x, _broadcast(x.index.shape, c.shape)).clamped(*bounds, node.origin)


def _extreme_of(b: Builder, node: OnnxNode, a: Real, c: Real, least: bool) -> Real:
    if _same_source(a, c):
        other, pick = c.tabulated(), np.minimum if least else np.maximum
        return tabled(node, a, lambda t: pick(t, other))
    if not a.index.ndim == c.index.ndim:
        raise Stop(f"operands of shapes {batched(a.index.shape)} and {batched(c.index.shape)}", _RANGE)
    shape = _broadcast(a.index.shape, c.index.shape)
    a, c = _stretched(b, node, a, shape), _stretched(b, node, c, shape)
    order = order_of(a.index)
    return Real(Pending("extreme", node.origin, (a, c), {"order": order, "least": least}), laid(shape, order))


_BINARY: dict[str, Mover] = {
    "Add": _binary(np.add), "Sub": _binary(np.subtract), "Mul": _binary(np.multiply), "Div": _binary(np.divide),
    "Pow": _binary(np.power),
}  # fmt: skip
ARITHMETIC: dict[str, Mover] = {
    **_BINARY, "Sum": _folded_left("Add"), "Min": _extreme(True), "Max": _extreme(False),
    "PRelu": _prelu, "BatchNormalization": _batch_norm,
}  # fmt: skip
