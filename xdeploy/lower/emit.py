"""One function per pending operation: writes its integer node once the scale of the output is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8, QParams, requant
from xdeploy.lir.average import WINDOW_LIMIT, mantissa
from xdeploy.lir.ops import scaled_params, softmax_table, windows
from xdeploy.lower.affine import affine_conv
from xdeploy.lower.builder import Builder, Emit, image_index
from xdeploy.lower.place import PLACE, in_order, place_concat, place_extreme
from xdeploy.lower.values import Codes, Index, Pending, QConstant, Stop
from xdeploy.lower.weights import stored_bias, stored_weight, two_parts

SOFTMAX_Q = QParams(1.0 / 256.0, -128)


def _weighted(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    codes = b.operand(p.args[0], p.origin)
    assert p.weight is not None
    codes, weight = _doubled(b, p, codes, p.weight)
    fmt, stored, book = stored_weight(weight)
    if p.op == "linear":
        x, columns = b.vector(codes, p.origin), codes.index.reshape(-1)
        if stored.shape[1] != columns.size:
            raise Stop(f"a weight of {stored.shape[1]} inputs on {columns.size} values")
        stored = _columns(stored, columns)
    else:
        x, stored = b.image(codes, p.origin), np.ascontiguousarray(stored.transpose(0, 2, 3, 1))
    before = b.tensors[x].q
    scale = before.scale * weight.channel_scale(len(stored), 0)
    r = requant(scale / q.scale, q.zero_point, low, high)
    attrs = {
        "weight_format": fmt.name, **p.attrs, "in_zero": before.zero_point,
        "shift": r.shift, "out_zero": r.zero_point, "low": r.low, "high": r.high,
    }  # fmt: skip
    bias = stored_bias(p.bias, scale, q.scale)
    consts: dict[str, NDArray[Any]] = {"codes": stored, "bias": bias, "multiplier": r.multiplier}
    if book is not None:
        consts["codebook"] = book
    return b.add(p.origin, p.op, (x,), q, attrs, consts)


def _doubled(b: Builder, p: Pending, codes: Codes, weight: QConstant) -> tuple[Codes, QConstant]:
    """Weights beyond int8 (asymmetric ones, without their zero point) as the sum of two, on the input given twice."""
    both = two_parts(weight)
    if both is None or p.attrs.get("groups", 1) != 1:
        return codes, weight
    if p.op == "linear":
        x, index = b.vector(codes, p.origin), codes.index.reshape(-1)
        index = np.concatenate([index, index + index.size])
    else:
        x, (c, h, w) = b.image(codes, p.origin), codes.index.shape
        index = image_index((2 * c, h, w))
    return Codes(b.add(f"{p.origin}.twice", "concat", (x, x), codes.q), codes.q, index), both


def _columns(weight: Int8, index: Index) -> Int8:
    """Weight columns in the order in which the inputs are stored."""
    result = np.empty_like(weight)
    result[:, index] = weight
    return result


def _add(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    left, right = (b.operand(a, p.origin) for a in p.args)
    order = np.empty(left.index.size, np.int64)
    order[left.index.reshape(-1)] = right.index.reshape(-1)
    other = b.arrange(right.tensor, order.reshape(b.tensors[left.tensor].shape), p.origin)
    attrs = scaled_params(left.q, right.q, q, low=low, high=high, sign=p.attrs.get("sign", 1))
    return b.add(p.origin, "add", (left.tensor, other), q, attrs)


def _avg_pool(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    x = b.image(b.operand(p.args[0], p.origin), p.origin)
    t, a = b.tensors[x], p.attrs
    full = a["kernel"][0] * a["kernel"][1]
    ones = np.ones((1, *t.shape[:2], 1))
    counts = windows(ones, a["kernel"], a["stride"], a["pads"], (1, 1), 0).sum(axis=(3, 4))
    least = full if a["include_pad"] else int(counts.min(initial=full))
    if least < 1:
        raise Stop("a window lies in the padding alone")
    # entries of counts that never occur repeat the smallest one, so that they do not force a shift
    divisor = np.maximum(np.arange(1, full + 1), least).astype(np.float64)
    gain = a.get("gain", 1.0)
    r = requant(t.q.scale * gain / q.scale / divisor, q.zero_point, low, high)
    attrs = {
        **{k: a[k] for k in ("kernel", "stride", "pads", "include_pad")}, "in_zero": t.q.zero_point,
        "shift": r.shift, "out_zero": r.zero_point, "low": r.low, "high": r.high,
    }  # fmt: skip
    used = counts if not a["include_pad"] else np.array(full)
    if (
        gain == 1.0 and t.q.scale == q.scale and (used % 2 == 0).any() and full <= WINDOW_LIMIT
    ):  # averages half way between two codes
        attrs["tie"] = 1 if a.get("exact") else mantissa(q.scale)
    return b.add(p.origin, "avg_pool2d", (x,), q, attrs, {"multiplier": r.multiplier})


def _selecting(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    """Movements commute with rounding, so a float operand is quantised first, a quantised one last."""
    real = p.args[0]
    if isinstance(real.source, Pending) or (p.op == "pad" and p.attrs["value"]):  # the pad at the output's scale
        return b.clamp(PLACE[p.op](b, p, b.quantise(real, q, p.origin)), low, high, p.origin)
    codes = b.operand(real, p.origin)
    return b.rescale(PLACE[p.op](b, p, codes), q, low, high, f"{p.origin}.rescale")


def _concat(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    parts = [b.quantise(a, q, f"{p.origin}.rescale{k}") for k, a in enumerate(p.args)]
    return b.clamp(place_concat(b, p, parts, q), low, high, f"{p.origin}.clamp")


def _extreme(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    parts = [b.quantise(a, q, f"{p.origin}.rescale{k}") for k, a in enumerate(p.args)]
    return b.clamp(place_extreme(b, p, parts, q), low, high, f"{p.origin}.clamp")


def _softmax(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    codes = b.operand(p.args[0], p.origin)  # its index has the axis of the sum last
    index = codes.index if codes.index.ndim in (1, 3) else codes.index.reshape(1, -1, codes.index.shape[-1])
    x = b.arrange(codes.tensor, np.ascontiguousarray(index), p.origin)
    t = b.tensors[x]
    table = softmax_table(t.q.scale, t.shape[-1])
    y = b.add(p.origin, "softmax", (x,), SOFTMAX_Q, {}, {"table": table})
    return b.rescale(y, q, low, high, f"{p.origin}.rescale")


def _affine(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    return _weighted(b, affine_conv(p, b.operand(p.args[0], p.origin), q), q, low, high)


def _prelu(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    """max(x, 0) + slope * min(x, 0): one of the two is exactly zero, so the sum rounds once."""
    codes = b.operand(p.args[0], p.origin)
    zero = codes.q.zero_point
    negative = replace(codes, tensor=b.clamp(codes.tensor, -128, zero, f"{p.origin}.negative"))
    scaled = _weighted(b, affine_conv(replace(p, origin=f"{p.origin}.slope"), negative, q), q, -128, 127)
    positive = b.clamp(in_order(b, codes, p.attrs["order"], p.origin), zero, 127, f"{p.origin}.positive")
    shape = b.tensors[positive].shape
    scaled = b.arrange(scaled, np.arange(int(np.prod(shape))).reshape(shape), p.origin)
    attrs = scaled_params(q, codes.q, q, low=low, high=high)
    return b.add(p.origin, "add", (scaled, positive), q, attrs)


def _mul(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    """Product of two tensors of one shape, or of an image and one value per channel."""
    left, right = (b.operand(a, p.origin) for a in p.args)
    order = p.attrs["order"]
    x = in_order(b, left, order, p.origin)
    if left.index.shape == right.index.shape:
        other = in_order(b, right, order, p.origin)
    else:  # a gate (C, 1, 1) whose axes the order puts last
        other = b.arrange(right.tensor, np.ascontiguousarray(right.index.reshape(1, 1, -1)), p.origin)
    r = requant(left.q.scale * right.q.scale / q.scale, q.zero_point, low, high)
    attrs = {
        "a_zero": left.q.zero_point, "b_zero": right.q.zero_point,
        "shift": r.shift, "out_zero": r.zero_point, "low": r.low, "high": r.high,
    }  # fmt: skip
    return b.add(p.origin, "mul", (x, other), q, attrs, {"multiplier": r.multiplier})


EMIT: dict[str, Emit] = {
    "conv2d": _weighted, "linear": _weighted, "add": _add, "avg_pool2d": _avg_pool, "softmax": _softmax,
    "concat": _concat, "mul": _mul, "affine": _affine, "prelu": _prelu, "extreme": _extreme,
    **dict.fromkeys(PLACE, _selecting),
}  # fmt: skip
