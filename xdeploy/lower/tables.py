"""Functions of one tensor: exact tables of 256 entries, or clamps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xdeploy.formats import Float64
from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.operands import Mover, number, real
from xdeploy.lower.values import Codes, Real, Stop, Value
from xdeploy.onnxfile import OnnxNode

_Function = Callable[[Float64, OnnxNode], Float64]


def tabled(node: OnnxNode, x: Real, function: Callable[[Float64], Float64]) -> Real:
    """function(x) as a table over the 256 codes of x's source.

    Raises:
        Stop: x is not quantised, or the function is not defined on its whole range.
    """
    values = x.tabulated()
    with np.errstate(all="ignore"):
        table = np.asarray(function(values), np.float64)
    if np.isnan(table).any():
        raise Stop(
            f"is not defined on all of its input's range {values.min():g}..{values.max():g}",
            "a range it is defined on (Clip or Relu before it)",
        )
    return Real(x.source, x.index, table=table, origin=node.origin)


def _unary(function: _Function) -> Mover:
    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        return tabled(node, real(args[0]), lambda x: function(x, node))

    return handler


def _limit(node: OnnxNode, args: Arguments, place: int, name: str, default: float) -> float:
    value = args[place] if len(args) > place else None
    if value is None:
        return float(node.attrs.get(name, default))
    array = number(value)
    if array is None or np.size(array) != 1:
        raise Stop("its limits are not constants", "constant limits", name)
    return float(np.asarray(array).reshape(-1)[0])


def _clip(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    low, high = _limit(node, args, 1, "min", -np.inf), _limit(node, args, 2, "max", np.inf)
    low = min(low, high)  # max wins
    if isinstance(args[0], Codes):
        return _limited(b, node, args[0], low, high)
    return real(args[0]).clamped(low, high, node.origin)


def _limited(b: Builder, node: OnnxNode, x: Codes, low: float, high: float) -> Codes:
    """Limits on the codes themselves, as quantisers write narrow ranges (QuantizeLinear, Clip, DequantizeLinear)."""
    bounds = np.clip(np.array([low, high]) - 128 * x.unsigned, -128, 127).astype(int)
    return replace(x, tensor=b.clamp(x.tensor, int(bounds[0]), int(bounds[1]), node.origin))


def _relu(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    if isinstance(args[0], Codes):
        return _limited(b, node, args[0], 0.0, np.inf)
    return real(args[0]).clamped(0.0, np.inf, node.origin)


def _erf(x: Float64) -> Float64:
    return np.array([math.erf(v) for v in x.reshape(-1)]).reshape(x.shape)


def _sigmoid(x: Float64) -> Float64:
    return np.exp(-np.logaddexp(0.0, -x))


def _hard_sigmoid(x: Float64, alpha: float, beta: float) -> Float64:
    return np.clip(alpha * x + beta, 0.0, 1.0)


def _gelu(x: Float64, node: OnnxNode) -> Float64:
    kind = node.attrs.get("approximate", "none")
    if kind == "tanh":
        return x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))) / 2.0
    if kind != "none":
        raise Stop(f"approximation {kind!r}", "none or tanh", "approximate")
    return x * (1.0 + _erf(x / math.sqrt(2.0))) / 2.0


def _selu(x: Float64, node: OnnxNode) -> Float64:
    alpha, gamma = (
        node.attrs.get("alpha", 1.67326319217681884765625),
        node.attrs.get("gamma", 1.05070102214813232421875),
    )
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(x)))


def _celu(x: Float64, node: OnnxNode) -> Float64:
    alpha = node.attrs.get("alpha", 1.0)
    return np.asarray(np.maximum(0.0, x) + np.minimum(0.0, alpha * np.expm1(x / alpha)))


def _shrink(x: Float64, node: OnnxNode) -> Float64:
    bias, lambd = node.attrs.get("bias", 0.0), node.attrs.get("lambd", 0.5)
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0.0))


FUNCTIONS: dict[str, _Function] = {
    "Sigmoid": lambda x, n: _sigmoid(x), "Tanh": lambda x, n: np.tanh(x),
    "HardSigmoid": lambda x, n: _hard_sigmoid(x, n.attrs.get("alpha", 0.2), n.attrs.get("beta", 0.5)),
    "HardSwish": lambda x, n: x * _hard_sigmoid(x, 1.0 / 6.0, 0.5),
    "LeakyRelu": lambda x, n: np.where(x < 0, x * n.attrs.get("alpha", 0.01), x),
    "ThresholdedRelu": lambda x, n: np.where(x > n.attrs.get("alpha", 1.0), x, 0.0),
    "Elu": lambda x, n: np.where(x < 0, n.attrs.get("alpha", 1.0) * np.expm1(x), x),
    "Selu": _selu, "Celu": _celu, "Gelu": _gelu, "Shrink": _shrink,
    "Mish": lambda x, n: x * np.tanh(np.logaddexp(0.0, x)),
    "Swish": lambda x, n: x * _sigmoid(n.attrs.get("alpha", 1.0) * x),
    "Softplus": lambda x, n: np.logaddexp(0.0, x), "Softsign": lambda x, n: x / (1.0 + np.abs(x)),
    "Abs": lambda x, n: np.abs(x), "Neg": lambda x, n: -x, "Sign": lambda x, n: np.sign(x),
    "Exp": lambda x, n: np.exp(x), "Log": lambda x, n: np.log(x), "Sqrt": lambda x, n: np.sqrt(x),
    "Reciprocal": lambda x, n: 1.0 / x, "Erf": lambda x, n: _erf(x),
    "Floor": lambda x, n: np.floor(x), "Ceil": lambda x, n: np.ceil(x), "Round": lambda x, n: np.rint(x),
    "Sin": lambda x, n: np.sin(x), "Cos": lambda x, n: np.cos(x), "Tan": lambda x, n: np.tan(x),
    "Asin": lambda x, n: np.arcsin(x), "Acos": lambda x, n: np.arccos(x), "Atan": lambda x, n: np.arctan(x),
    "Sinh": lambda x, n: np.sinh(x), "Cosh": lambda x, n: np.cosh(x),
    "Asinh": lambda x, n: np.arcsinh(x), "Acosh": lambda x, n: np.arccosh(x), "Atanh": lambda x, n: np.arctanh(x),
}  # fmt: skip
TABLES: dict[str, Mover] = {"Relu": _relu, "Clip": _clip, **{op: _unary(f) for op, f in FUNCTIONS.items()}}
