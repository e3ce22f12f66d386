"""Rows of the element-wise operators: activations, and arithmetic with constants or between two tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.onnxgraph.rows import Array, Call, Data, Known, Refused, Step, attributes, operator, tensor

_FORM = "no integer form"


# ------------------------------------------------------------------------------------------------ activations
def _plain(op: str, function: Callable[[Tensor], Tensor]) -> None:
    operator(op)(lambda call: call.step(lambda part, x: function(x)))


_plain("Relu", F.relu)
_plain("Sigmoid", torch.sigmoid)
_plain("Tanh", torch.tanh)
_plain("HardSwish", F.hardswish)
_plain("Softplus", F.softplus)
_plain("Silu", F.silu)
_plain("Mish", lambda x: x * torch.tanh(F.softplus(x)))
_plain("Neg", lambda x: x * -1.0)
_plain("Abs", lambda x: F.relu(x) + F.relu(x * -1.0))


def _float_only(op: str, function: Callable[[Tensor], Tensor], rewrite: str) -> None:
    attributes(op)(lambda call: call.remark(f"{op} has {_FORM}", rewrite))
    _plain(op, function)


for _op, _function, _rewrite in (
    ("Exp", torch.exp, "softmax or sigmoid"), ("Log", torch.log, "softplus"), ("Sqrt", torch.sqrt, "a constant scale"),
    ("Erf", torch.erf, "Gelu"), ("Reciprocal", torch.reciprocal, "a constant scale"), ("Floor", torch.floor, ""),
    ("Ceil", torch.ceil, ""), ("Round", torch.round, ""), ("Sign", torch.sign, ""),
    ("Softsign", F.softsign, "Tanh"),
):  # fmt: skip
    _float_only(_op, _function, _rewrite)


@operator("Gelu")
def _gelu(call: Call) -> Step:
    kind = str(call.attr("approximate", "none"))
    return call.step(lambda part, x: F.gelu(x, approximate=kind))


@operator("LeakyRelu")
def _leaky_relu(call: Call) -> Step:
    alpha = float(call.attr("alpha", 0.01))
    return call.step(lambda part, x: F.leaky_relu(x, alpha))


@operator("Elu", "Selu", "Celu")
def _elu(call: Call) -> Step:
    if call.node.op == "Selu":
        alpha, gamma = float(call.attr("alpha", 1.6732632423543772)), float(call.attr("gamma", 1.0507009873554805))
        return call.step(lambda part, x: F.elu(x, alpha) * gamma)
    alpha = float(call.attr("alpha", 1.0))
    if call.node.op == "Celu" and alpha != 1.0:
        return call.step(lambda part, x: F.elu(x * (1.0 / alpha)) * alpha)
    return call.step(lambda part, x: F.elu(x, alpha))


@operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> Step:
    alpha, beta = float(call.attr("alpha", 0.2)), float(call.attr("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return call.step(lambda part, x: F.hardsigmoid(x))
    return call.step(lambda part, x: torch.clamp(x * alpha + beta, 0.0, 1.0))


@operator("Swish")
def _swish(call: Call) -> Step:
    alpha = float(call.attr("alpha", 1.0))
    if alpha == 1.0:
        return call.step(lambda part, x: F.silu(x))
    return call.step(lambda part, x: x * torch.sigmoid(x * alpha))


@operator("Clip")
def _clip(call: Call) -> Step | Data:
    low, high = call.scalar(1, "min"), call.scalar(2, "max")
    low = low if low is not None or call.attr("min") is None else float(call.attr("min"))
    high = high if high is not None or call.attr("max") is None else float(call.attr("max"))
    # exporters write "no limit" as the type's own
    low = None if low is None or low <= float(np.finfo(np.float32).min) else low
    high = None if high is None or high >= float(np.finfo(np.float32).max) else high
    if low is None and high is None:
        return call.data()
    return call.step(lambda part, x: torch.clamp(x, low, high))


@operator("PRelu")
def _prelu(call: Call) -> Step:
    slope = call.weight(1, "slope")
    shape = call.data().shape
    if slope.numel() == 1:
        alpha = float(slope.reshape(-1)[0])
        return call.step(lambda part, x: F.leaky_relu(x, alpha))
    aligned = (1,) * (len(shape) + 1 - slope.ndim) + tuple(slope.shape)
    if aligned == (1, *shape[:1], *(1,) * (len(shape) - 1)):
        return call.step(lambda part, x: F.prelu(x, part.weight), weight=slope.reshape(-1))
    return call.step(lambda part, x: F.relu(x) - F.relu(x * -1.0) * part.constant, constant=slope)


@attributes("LogSoftmax")
def _log_softmax(call: Call) -> None:
    call.remark(f"LogSoftmax has {_FORM}", "leave it out, or Softmax: the predicted class is the same")


@attributes("Softmax", "LogSoftmax")
def _over_samples(call: Call) -> None:
    if call.attr("axis") == 0:
        raise Refused("works along the batch axis; samples are independent of each other", "axis=1", "axis")


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Step:
    function = F.softmax if call.node.op == "Softmax" else F.log_softmax
    shape = call.data().shape
    axis = int(call.attr("axis", -1 if call.opset >= 13 else 1))
    dim = call.axis(axis)
    if call.opset >= 13 or dim == len(shape):
        last = -1 if dim == len(shape) else dim
        return call.step(lambda part, x: function(x, dim=last))
    # before opset 13 all axes from this one on are one
    kept = shape[: dim - 1]
    return call.step(lambda part, x: function(x.reshape(x.shape[0], *kept, -1), dim=-1).reshape(x.shape[0], *shape))


# ------------------------------------------------------------------------------------------------- arithmetic
def _broadcastable(call: Call, known: Known) -> Array:
    """A constant operand without a batch axis of its own."""
    array, rank = known.first, len(call.data(0 if isinstance(call.operands[0], Data) else 1).shape) + 1
    if not known.fixed or array.dtype.kind not in "fiu":
        raise Refused("its constant depends on the batch size, or is no number", "a constant per channel")
    if array.ndim > rank or (array.ndim == rank and array.shape[0] != 1):
        raise Refused(f"its constant of shape {array.shape} is one per sample", "a constant per channel")
    return array


def _with_constant(call: Call, run: Callable[[Tensor, Any], Tensor], array: Array) -> Step:
    """`run(data, constant)`, the constant as a plain number where it is one."""
    source = next(o for o in call.operands if isinstance(o, Data))
    if array.size == 1 and array.ndim <= len(source.shape) + 1:
        value = float(array.reshape(-1)[0])
        return call.step(lambda part, x: run(x, value), source)
    return call.step(lambda part, x: run(x, part.constant), source, constant=tensor(array))


def _pairs(call: Call) -> tuple[Data | Known, Data | Known]:
    left, right = call.operands[0], call.operands[1]
    assert left is not None
    assert right is not None
    return left, right


@operator("Add")
def _add(call: Call) -> Step:
    left, right = _pairs(call)
    if isinstance(left, Data) and isinstance(right, Data):
        return call.step(lambda part, a, b: a + b, left, right)
    known = right if isinstance(right, Known) else left
    assert isinstance(known, Known)
    return _with_constant(call, lambda x, c: x + c, _broadcastable(call, known))


@operator("Sub")
def _sub(call: Call) -> Step:
    left, right = _pairs(call)
    if isinstance(left, Data) and isinstance(right, Data):
        return call.step(lambda part, a, b: a - b, left, right)
    if isinstance(right, Known):
        return _with_constant(call, lambda x, c: x + c, -_broadcastable(call, right).astype(np.float32))
    assert isinstance(left, Known)
    return _with_constant(call, lambda x, c: x * -1.0 + c, _broadcastable(call, left))


@operator("Mul")
def _mul(call: Call) -> Step:
    left, right = _pairs(call)
    if isinstance(left, Data) and isinstance(right, Data):
        gate_first = len(left.shape) == 3 and left.shape[1:] == (1, 1) and right.shape != left.shape
        pair = (right, left) if gate_first else (left, right)
        return call.step(lambda part, a, b: a * b, *pair)
    known = right if isinstance(right, Known) else left
    assert isinstance(known, Known)
    return _with_constant(call, lambda x, c: x * c, _broadcastable(call, known))


@operator("Div")
def _div(call: Call) -> Step:
    left, right = _pairs(call)
    if isinstance(right, Known):
        divisor = _broadcastable(call, right).astype(np.float64)
        if not divisor.all():
            raise Refused("divides by zero")
        return _with_constant(call, lambda x, c: x * c, 1.0 / divisor)
    call.remark(f"a division by data has {_FORM}", "a constant divisor")
    if isinstance(left, Data):
        return call.step(lambda part, a, b: a / b, left, right)
    return _with_constant(call, lambda x, c: c / x, _broadcastable(call, left))


@operator("Pow")
def _pow(call: Call) -> Step | Data:
    exponent = call.scalar(1, "exponent")
    if exponent is None:
        raise Refused("its exponent is missing")
    if exponent == 1.0:
        return call.data()
    if exponent == 2.0:
        return call.step(lambda part, x: x * x)
    if exponent == 3.0:
        return call.step(lambda part, x: x * x * x)
    call.remark(f"a power of {exponent:g} has {_FORM}", "a square, as a product with itself")
    return call.step(lambda part, x: x**exponent)


@operator("Max", "Min")
def _extreme(call: Call) -> Step | Data:
    found = [o for o in call.operands if o is not None]
    data = tuple(o for o in found if isinstance(o, Data))
    known = [_broadcastable(call, o) for o in found if isinstance(o, Known)]
    highest = call.node.op == "Max"
    function = torch.maximum if highest else torch.minimum

    def run(part: Any, *xs: Tensor) -> Tensor:
        result = xs[0]
        for x in xs[1:]:
            result = function(result, x)
        return result

    if not known:
        return data[0] if len(data) == 1 else call.step(run, *data)
    limit = known[0]
    for other in known[1:]:
        limit = np.maximum(limit, other) if highest else np.minimum(limit, other)
    if limit.size == 1 and len(data) == 1:
        value = float(limit.reshape(-1)[0])
        low, high = (value, None) if highest else (None, value)
        return call.step(lambda part, x: torch.clamp(x, low, high), data[0])
    return call.step(lambda part, *xs: run(part, *xs, part.constant), *data, constant=tensor(limit))


@operator("Sum", "Mean")
def _sum(call: Call) -> Step:
    data = tuple(o for o in call.operands if isinstance(o, Data))
    known = [tensor(_broadcastable(call, o)) for o in call.operands if isinstance(o, Known)]
    scale = 1.0 / len(call.operands) if call.node.op == "Mean" and len(call.operands) > 1 else None
    constants = {"constant": sum(known[1:], known[0])} if known else {}

    def run(part: Any, *xs: Tensor) -> Tensor:
        result = xs[0]
        for x in xs[1:]:
            result = result + x
        result = result + part.constant if known else result
        return result if scale is None else result * scale

    return call.step(run, *data, **constants)
