"""QDQ patterns: DequantizeLinear .. operator .. (Relu, Clip) .. QuantizeLinear become one node each.

The ONNX nodes are visited in order. DequantizeLinear opens a float value, operators wrap it, QuantizeLinear closes it:
only then the scales of both sides are known and the integer node is written (`emit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Float64
from xdeploy.lir.ops import window_shape
from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.movement import activation, plain, select
from xdeploy.lower.values import Codes, Pending, QConstant, Real, Stop, Value
from xdeploy.onnxfile import Constant, OnnxNode

Handler = Callable[[Builder, OnnxNode, Arguments], Value]
_DEQUANTISE = "DequantizeLinear before it"


def real(value: Value | None) -> Real:
    """The operand as a float activation.

    Raises:
        Stop: it is something else.
    """
    if isinstance(value, Codes):
        raise Stop("works on integer codes", _DEQUANTISE)
    x = activation(value)
    assert isinstance(x, Real)
    return x


# ---------------------------------------------------------------------------------------------- windows
def _window(node: OnnxNode, kernel: tuple[int, ...], size: tuple[int, ...]) -> dict[str, Any]:
    """kernel, stride, pads (top, left, bottom, right) and dilation of a 2-D window operator."""
    a, rank = node.attrs, len(kernel)
    stride = tuple(int(v) for v in a.get("strides", (1,) * rank))
    dilation = tuple(int(v) for v in a.get("dilations", (1,) * rank))
    pads = _pads(node, kernel, stride, dilation, size)
    if any(len(v) != rank for v in (stride, dilation)) or len(pads) != 2 * rank or len(size) != rank:
        raise Stop(f"a window of rank {rank} on an image of shape {size}")
    if min(*kernel, *stride, *dilation) < 1 or min(pads) < 0:
        raise Stop("kernel, strides and dilations must be positive, pads not negative")
    window = {"kernel": kernel, "stride": stride, "pads": pads, "dilation": dilation}
    if a.get("ceil_mode"):
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        totals = [n + pads[k] + pads[k + rank] for k, n in enumerate(size)]
        if any((t - s) % step for t, s, step in zip(totals, spans, stride, strict=True)):
            raise Stop("ceil_mode adds a partial window", "pads that make the windows fit")
    return window


def _pads(node: OnnxNode, kernel: Any, stride: Any, dilation: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return tuple(int(v) for v in node.attrs.get("pads", (0,) * (2 * len(kernel))))
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    totals = [
        max(0, (math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n)
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]
    small = [t // 2 for t in totals]
    large = [t - t // 2 for t in totals]
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Stop(f"auto_pad {mode!r}", "explicit pads")
    return (*small, *large) if mode == "SAME_UPPER" else (*large, *small)


def _image(x: Codes | Real) -> tuple[int, int, int]:
    if x.index.ndim != 3:
        raise Stop(f"wants an image (N, C, H, W), got rank {x.index.ndim + 1}", "2-D operators on images")
    c, h, w = x.index.shape
    return c, h, w


def _output(channels: int, size: tuple[int, ...], window: dict[str, Any]) -> tuple[int, ...]:
    shape = (channels, *window_shape(size, window["kernel"], window["stride"], window["pads"], window["dilation"]))
    if min(shape) < 1:
        raise Stop(f"the window is larger than the image {size}")
    return shape


# ---------------------------------------------------------------------------------------------- weighted
def _weight(value: Value | None) -> QConstant:
    if isinstance(value, QConstant):
        return value
    if isinstance(value, Constant):
        raise Stop("its weight is not quantised", "int8 weights with DequantizeLinear")
    raise Stop("its weight is not a constant", "constant weights")


def _bias(value: Value | None) -> Float64 | QConstant | None:
    if value is None or isinstance(value, QConstant):
        return value
    if isinstance(value, Constant):
        return value.array.astype(np.float64)
    raise Stop("its bias is not a constant", "a constant bias")


def _conv(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x, weight = real(args[0]), _weight(args[1])
    channels, *size = _image(x)
    if weight.codes.ndim != 4:
        raise Stop(f"a convolution of rank {weight.codes.ndim}", "2-D convolution")
    groups = int(node.attrs.get("group", 1))
    out, per, *kernel = weight.codes.shape
    if groups < 1 or per * groups != channels or out % groups:
        raise Stop(f"weight {weight.codes.shape} in {groups} groups on {channels} channels")
    window = _window(node, tuple(kernel), tuple(size))
    attrs = {**{k: window[k] for k in ("stride", "pads", "dilation")}, "groups": groups}
    bias = _bias(args[2] if len(args) > 2 else None)
    return Real(Pending("conv2d", node.origin, (x,), attrs, weight, bias), plain(_output(out, tuple(size), window)))


def _linear(node: OnnxNode, x: Real, weight: QConstant, bias: Float64 | QConstant | None) -> Value:
    if weight.codes.ndim != 2 or x.index.ndim != 1 or weight.codes.shape[1] != x.index.size:
        raise Stop(
            f"a weight {weight.codes.shape} on a tensor (N, {', '.join(map(str, x.index.shape))})", "Flatten before it"
        )
    return Real(Pending("linear", node.origin, (x,), {}, weight, bias), plain((len(weight.codes),)))


def _gemm(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    a = node.attrs
    if a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0 or a.get("transA", 0):
        raise Stop("alpha, beta or transA is set", "alpha = beta = 1, transA = 0")
    weight = _weight(args[1])
    if weight.codes.ndim == 2 and not a.get("transB", 0):
        weight = weight.transposed((1, 0))
    return _linear(node, real(args[0]), weight, _bias(args[2] if len(args) > 2 else None))


def _matmul(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    weight = _weight(args[1])
    return _linear(node, real(args[0]), weight.transposed((1, 0)) if weight.codes.ndim == 2 else weight, None)


# ---------------------------------------------------------------------------------------------- pooling
def _max_pool(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    channels, *size = _image(x)
    window = _window(node, tuple(int(k) for k in node.attrs["kernel_shape"]), tuple(size))
    return _max(b, node, x, channels, tuple(size), window)


def _max(
    b: Builder, node: OnnxNode, x: Codes | Real, channels: int, size: tuple[int, ...], window: dict[str, Any]
) -> Value:
    if window["dilation"] != (1, 1):
        raise Stop("dilated pooling", "dilation 1")
    attrs = {k: window[k] for k in ("kernel", "stride", "pads")}
    return select(b, node, x, "max_pool2d", attrs, _output(channels, size, window))


def _global(size: tuple[int, ...]) -> dict[str, Any]:
    return {"kernel": size, "stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1)}


def _global_max(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    channels, *size = _image(x)
    return _max(b, node, x, channels, tuple(size), _global(tuple(size)))


def _avg_pool(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    size = _image(x)[1:]
    window = _window(node, tuple(int(k) for k in node.attrs["kernel_shape"]), size)
    if window["dilation"] != (1, 1):
        raise Stop("dilated pooling", "dilation 1")
    return _average(node, x, window, bool(node.attrs.get("count_include_pad", 0)))


def _average(node: OnnxNode, x: Real, window: dict[str, Any], include_pad: bool) -> Real:
    channels, *size = _image(x)
    attrs = {**{k: window[k] for k in ("kernel", "stride", "pads")}, "include_pad": include_pad}
    return Real(Pending("avg_pool2d", node.origin, (x,), attrs), plain(_output(channels, tuple(size), window)))


def _global_avg(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    return _average(node, x, _global(_image(x)[1:]), False)


def _reduce_mean(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    """Mean over both image axes, channels first or last."""
    x = real(args[0])
    given = args[1].array.reshape(-1) if len(args) > 1 and isinstance(args[1], Constant) else node.attrs.get("axes", ())
    axes = sorted(int(a) % (x.index.ndim + 1) for a in given)
    if x.index.ndim != 3 or axes not in ([2, 3], [1, 2]):
        raise Stop(f"mean over axes {axes}", "the mean over both image axes")
    last = axes == [1, 2]
    first = replace(x, index=x.index.transpose(2, 0, 1)) if last else x
    pooled = _average(node, first, _global(_image(first)[1:]), False)
    index = pooled.index.transpose(1, 2, 0) if last else pooled.index
    return replace(pooled, index=index if node.attrs.get("keepdims", 1) else index.reshape(-1))


# ---------------------------------------------------------------------------------------------- element-wise
def _limit(node: OnnxNode, args: Arguments, place: int, name: str, default: float) -> float:
    value = args[place] if len(args) > place else None
    if value is None:
        return float(node.attrs.get(name, default))
    if isinstance(value, Constant | QConstant):
        array = value.array if isinstance(value, Constant) else value.real
        return float(array.reshape(-1)[0])
    raise Stop("its limits are not constants", "constant limits")


def _clip(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    low, high = _limit(node, args, 1, "min", -np.inf), _limit(node, args, 2, "max", np.inf)
    if not low <= high:
        raise Stop(f"limits {low:g} and {high:g}", "min below max")
    return real(args[0]).clamped(low, high, node.origin)


def _unary(function: Callable[[Float64, OnnxNode], Float64]) -> Handler:
    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        return _tabled(node, real(args[0]), lambda x: function(x, node))

    return handler


def _tabled(node: OnnxNode, x: Real, function: Callable[[Float64], Float64]) -> Real:
    with np.errstate(all="ignore"):
        table = np.asarray(function(x.tabulated()), np.float64)
    if np.isnan(table).any():
        raise Stop("is not defined on the whole range of its input")
    return Real(x.source, x.index, table=table, origin=node.origin)


def _binary(function: Callable[[Any, Any], Any]) -> Handler:
    """With a scalar, or with another function of the same tensor (x * sigmoid(x)): a table of 256 entries."""

    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        left, right = args[:2]
        if node.op == "Add":
            added = _with_bias(left, right) or _with_bias(right, left)
            if added is not None:
                return added
        for x, other, flip in ((left, right, False), (right, left, True)):
            scalar = _scalar(other)
            if isinstance(x, Real) and scalar is not None:
                return _tabled(node, x, lambda t, s=scalar, f=flip: function(s, t) if f else function(t, s))  # type: ignore[misc]
        a, c = real(left), real(right)
        if _same_source(a, c) and not (node.op == "Add" and a.untouched and c.untouched):
            other_table = c.tabulated()
            return _tabled(node, a, lambda t: np.asarray(function(t, other_table)))
        if node.op != "Add":
            raise Stop("of two tensors has no integer kernel", "Add, or a function of one tensor")
        if a.index.shape != c.index.shape:
            raise Stop(f"adds shapes {a.index.shape} and {c.index.shape}", "operands of one shape")
        return Real(Pending("add", node.origin, (a, c)), a.index)

    return handler


def _scalar(value: Value | None) -> float | None:
    if isinstance(value, Constant | QConstant):
        array: NDArray[Any] = value.array if isinstance(value, Constant) else value.real
        return float(array.reshape(-1)[0]) if array.size == 1 else None
    return None


def _same_source(a: Real, b: Real) -> bool:
    if not (isinstance(a.source, Codes) and isinstance(b.source, Codes)):
        return False
    return a.source.tensor == b.source.tensor and np.array_equal(a.index, b.index)


def _with_bias(x: Value | None, constant: Value | None) -> Real | None:
    """The bias of a convolution or linear layer that stands in an Add of its own."""
    if not (isinstance(x, Real) and isinstance(x.source, Pending) and x.untouched and x.source.bias is None):
        return None
    if x.source.weight is None or not isinstance(constant, Constant | QConstant):
        return None
    shape = constant.array.shape if isinstance(constant, Constant) else constant.codes.shape
    channels = len(x.source.weight.codes)
    per_channel = (channels,) + (1,) * (x.index.ndim - 1)
    whole = np.array_equal(x.index, plain(x.index.shape))
    if int(np.prod(shape)) not in (1, channels) or not whole:
        return None
    if int(np.prod(shape)) == channels and shape[-len(per_channel) :] != per_channel:
        return None
    return replace(x, source=replace(x.source, bias=_bias(constant)))


def _softmax(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    rank = x.index.ndim + 1
    axis = int(node.attrs.get("axis", -1)) % rank
    if axis != 1 or rank not in (2, 4):
        raise Stop(f"softmax over axis {axis} of rank {rank}", "softmax over the channels (axis 1)")
    index = x.index if rank == 2 else plain(x.index.shape)
    return Real(Pending("softmax", node.origin, (x,)), index)


def _sigmoid(x: Float64) -> Float64:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _hard_sigmoid(x: Float64, alpha: float, beta: float) -> Float64:
    return np.clip(alpha * x + beta, 0.0, 1.0)


PATTERNS: dict[str, Handler] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "MaxPool": _max_pool, "GlobalMaxPool": _global_max,
    "AveragePool": _avg_pool, "GlobalAveragePool": _global_avg, "ReduceMean": _reduce_mean, "Softmax": _softmax,
    "Relu": lambda b, n, a: real(a[0]).clamped(0.0, np.inf, n.origin), "Clip": _clip,
    "Add": _binary(np.add), "Sub": _binary(np.subtract), "Mul": _binary(np.multiply), "Div": _binary(np.divide),
    "Sigmoid": _unary(lambda x, n: _sigmoid(x)), "Tanh": _unary(lambda x, n: np.tanh(x)),
    "HardSigmoid": _unary(lambda x, n: _hard_sigmoid(x, n.attrs.get("alpha", 0.2), n.attrs.get("beta", 0.5))),
    "HardSwish": _unary(lambda x, n: x * _hard_sigmoid(x, 1.0 / 6.0, 0.5)),
    "LeakyRelu": _unary(lambda x, n: np.where(x < 0, x * n.attrs.get("alpha", 0.01), x)),
    "Elu": _unary(lambda x, n: np.where(x < 0, n.attrs.get("alpha", 1.0) * np.expm1(x), x)),
    "Abs": _unary(lambda x, n: np.abs(x)), "Neg": _unary(lambda x, n: -x), "Exp": _unary(lambda x, n: np.exp(x)),
    "Sqrt": _unary(lambda x, n: np.sqrt(x)), "Erf": _unary(lambda x, n: np.array([math.erf(v) for v in x])),
    "Softplus": _unary(lambda x, n: np.logaddexp(0.0, x)),
}  # fmt: skip
