"""Conv, ConvTranspose, Gemm and MatMul with constant weights, and what folds into them afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from xdeploy.formats import Float64
from xdeploy.lower.affine import scaled_weight
from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.operands import Mover, number, real
from xdeploy.lower.transposed import transposed_conv
from xdeploy.lower.values import Codes, Pending, QConstant, Real, Stop, Value
from xdeploy.lower.views import as_image, batched, plain
from xdeploy.lower.windows import Window, image_size, window
from xdeploy.onnxfile import Constant, OnnxNode


def weight_of(value: Value | None) -> QConstant:
    """The operand as a quantised constant.

    Raises:
        Stop: it is float, or computed at run time.
    """
    if isinstance(value, QConstant):
        return value
    if isinstance(value, Constant):
        raise Stop("its weight is not quantised", "int8 weights with DequantizeLinear")
    raise Stop("its weight is not a constant", "constant weights")


def bias_of(value: Value | None) -> Float64 | QConstant | None:
    """The operand as a bias.

    Raises:
        Stop: it is computed at run time.
    """
    if value is None or isinstance(value, QConstant):
        return value
    if isinstance(value, Constant):
        return value.array.astype(np.float64)
    raise Stop("its bias is not a constant", "a constant bias")


# -------------------------------------------------------------------------------------------- convolution
def _conv(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    given, weight = real(args[0]), weight_of(args[1])
    bias = bias_of(args[2] if len(args) > 2 else None)
    rank = given.index.ndim
    if weight.codes.ndim != rank + 1 or rank not in (2, 3):
        raise Stop(f"a weight {weight.codes.shape} on a tensor {batched(given.index.shape)}", "1-D or 2-D convolution")
    x = as_image(given)
    assert isinstance(x, Real)
    channels, size = image_size(x.index.shape)
    groups = int(node.attrs.get("group", 1))
    if groups < 1 or weight.codes.shape[1] * groups != channels or len(weight.codes) % groups:
        raise Stop(f"a weight {weight.codes.shape} in {groups} groups on {channels} channels", attribute="group")
    shape = window(node, weight.codes.shape[2:], size)
    return _signal(convolved(node.origin, x, weight, bias, shape, groups), rank)


def convolved(
    origin: str, x: Real, weight: QConstant, bias: Float64 | QConstant | None, shape: Window, groups: int
) -> Real:
    """The convolution of an image with weights (O, I/groups, kh, kw), or (O, I/groups, k) as height 1."""
    if weight.codes.ndim == 3:
        weight = replace(weight, codes=weight.codes[:, :, None, :], axis=0 if weight.axis == 0 else weight.axis + 1)
    size = image_size(x.index.shape)[1]
    attrs = {"stride": shape.stride, "pads": shape.pads, "dilation": shape.dilation, "groups": groups}
    return Real(Pending("conv2d", origin, (x,), attrs, weight, bias), plain(shape.output(len(weight.codes), size)))


def _signal(y: Real, rank: int) -> Real:
    """The result of an image operator with the rank its input had."""
    return y if rank == 3 else replace(y, index=y.index[:, 0, :])


def _conv_transpose(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    given, weight = real(args[0]), weight_of(args[1])
    bias = bias_of(args[2] if len(args) > 2 else None)
    rank = given.index.ndim
    if weight.codes.ndim != rank + 1 or rank not in (2, 3):
        raise Stop(
            f"a weight {weight.codes.shape} on a tensor {batched(given.index.shape)}", "1-D or 2-D ConvTranspose"
        )
    x = as_image(given)
    assert isinstance(x, Real)
    y = transposed_conv(b, node, x, weight, bias)
    assert isinstance(y, Real)
    return _signal(y, rank)


# ------------------------------------------------------------------------------------------------- linear
def _linear(node: OnnxNode, x: Real, weight: QConstant, bias: Float64 | QConstant | None) -> Real:
    """Weight (O, I) on (N, I), or on the last axis of (N, ..., I) as a 1x1 convolution."""
    shape = x.index.shape
    if weight.codes.ndim != 2 or weight.codes.shape[1] != shape[-1]:
        raise Stop(f"a weight {weight.codes.shape} (out, in) on a tensor {batched(shape)}", "Flatten before it")
    if len(shape) == 1:
        return Real(Pending("linear", node.origin, (x,), {}, weight, bias), plain((len(weight.codes),)))
    rows = x.index.reshape(-1, shape[-1]) if len(shape) != 3 else x.index
    rows = rows[None] if rows.ndim == 2 else rows  # (H, W, I)
    pointwise = replace(weight, codes=weight.codes[:, :, None, None])
    y = convolved(node.origin, replace(x, index=rows.transpose(2, 0, 1)), pointwise, bias, _POINT, 1)
    return replace(y, index=y.index.transpose(1, 2, 0).reshape(*shape[:-1], len(weight.codes)))


_POINT = Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))


def _gemm(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    a = node.attrs
    alpha, beta = float(a.get("alpha", 1.0)), float(a.get("beta", 1.0))
    if a.get("transA", 0):
        raise Stop("transA is set", "transA = 0", "transA")
    weight, bias = weight_of(args[1]), bias_of(args[2] if len(args) > 2 else None)
    if weight.codes.ndim == 2 and not a.get("transB", 0):
        weight = weight.transposed((1, 0))
    if alpha != 1.0:
        weight = scaled_weight(weight, np.full(len(weight.codes), alpha))
    if beta != 1.0 and bias is not None:
        bias = (bias.real if isinstance(bias, QConstant) else bias) * beta
    return _linear(node, real(args[0]), weight, bias)


def _matmul(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    if isinstance(args[0], Constant | QConstant) or not isinstance(args[1], Constant | QConstant):
        raise Stop("multiplies matrices that are both computed, or a constant from the left", "constant weights second")
    weight = weight_of(args[1])
    return _linear(node, real(args[0]), weight.transposed((1, 0)) if weight.codes.ndim == 2 else weight, None)


# ------------------------------------------------------------------------------------------ on integer codes
def _on_codes(plain_op: str) -> Mover:
    """ConvInteger and MatMulInteger: sums of centred codes, which are real numbers in steps of the input's scale."""

    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        x, weight = args[0], args[1]
        if not isinstance(x, Codes) or not isinstance(weight, Constant):
            raise Stop("wants codes from a QuantizeLinear and constant integer weights", "QDQ form")
        points = [np.zeros(1, np.int64) if p is None else number(p) for p in (*args[2:], None, None)[:2]]
        if points[0] is None or points[1] is None:
            raise Stop("its zero points are not constants", "static quantisation", "x_zero_point")
        zero = x.q.zero_point + 128 * x.unsigned
        if np.size(points[0]) != 1 or int(points[0].reshape(-1)[0]) != zero:
            raise Stop(f"reads codes of zero point {zero} with {points[0].tolist()}", "one zero point", "x_zero_point")
        wide = (-1,) + (1,) * (weight.array.ndim - 1) if plain_op == "Conv" else (-1,)
        codes = weight.array.astype(np.int64) - points[1].astype(np.int64).reshape(wide)
        constant = QConstant(codes, np.array(1.0 / x.q.scale), 0, weight.bits)
        return WEIGHTED[plain_op](b, node, (Real(x, x.index), constant))  # type: ignore[return-value]

    return handler


# ------------------------------------------------------------------------------------------------ folding
def folded(x: Real, gain: Float64, offset: Float64) -> Real | None:
    """Puts gain * x + offset inside the weights and bias of the convolution or linear layer that gives x.

    gain and offset have x's ONNX shape. None where x is no such layer, or the constants differ within a channel.

    Raises:
        Stop: codebook weights cannot take the sign.
    """
    source = x.source
    if not isinstance(source, Pending) or source.weight is None or not x.untouched:
        return None
    channels = len(source.weight.codes)
    parts = [_by_channel(x, values, channels) for values in (gain, offset)]
    if parts[0] is None or parts[1] is None:
        return None
    before = source.bias.real if isinstance(source.bias, QConstant) else source.bias
    bias: Any = parts[1] if before is None else np.broadcast_to(before.reshape(-1), (channels,)) * parts[0] + parts[1]
    weight = source.weight if (parts[0] == 1.0).all() else scaled_weight(source.weight, parts[0])
    return replace(x, source=replace(source, weight=weight, bias=bias))


def _by_channel(x: Real, values: Float64, channels: int) -> Float64 | None:
    """One value per output channel, which is the last axis in memory; None where they differ."""
    stored = np.empty(x.index.size, np.float64)
    stored[x.index.reshape(-1)] = values.reshape(-1)
    rows = stored.reshape(-1, channels)
    return rows[0].copy() if (rows == rows[:1]).all() else None


WEIGHTED: dict[str, Mover] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul,
    "ConvInteger": _on_codes("Conv"), "MatMulInteger": _on_codes("MatMul"),
}  # fmt: skip
