"""One function per pending operation: writes its integer node once the scale of the output is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8, QParams, requant
from xdeploy.lir.ops import scaled_params, softmax_table, windows
from xdeploy.lower.builder import Builder, Emit
from xdeploy.lower.values import Codes, Index, Pending, Stop
from xdeploy.lower.weights import stored_bias, stored_weight

SOFTMAX_Q = QParams(1.0 / 256.0, -128)


def _weighted(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    codes = b.operand(p.args[0], p.origin)
    assert p.weight is not None
    weight = p.weight
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
    consts: dict[str, NDArray[Any]] = {"codes": stored, "bias": stored_bias(p.bias, scale), "multiplier": r.multiplier}
    if book is not None:
        consts["codebook"] = book
    return b.add(p.origin, p.op, (x,), q, attrs, consts)


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
    attrs = scaled_params(left.q, right.q, q, low=low, high=high)
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
    r = requant(t.q.scale / q.scale / divisor, q.zero_point, low, high)
    attrs = {
        **a, "in_zero": t.q.zero_point, "shift": r.shift, "out_zero": r.zero_point, "low": r.low, "high": r.high,
    }  # fmt: skip
    return b.add(p.origin, "avg_pool2d", (x,), q, attrs, {"multiplier": r.multiplier})


def _selecting(place: Callable[[Builder, Pending, Codes], str]) -> Emit:
    """Max pooling, slicing: they commute with rounding, so a float operand is quantised first, a quantised one last."""

    def emit(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
        real = p.args[0]
        if isinstance(real.source, Pending):
            return b.clamp(place(b, p, b.quantise(real, q, p.origin)), low, high, p.origin)
        codes = b.operand(real, p.origin)
        return b.rescale(place(b, p, codes), q, low, high, f"{p.origin}.rescale")

    return emit


def place_max_pool(b: Builder, p: Pending, codes: Codes) -> str:
    """Max pooling of codes."""
    return b.add(p.origin, "max_pool2d", (b.image(codes, p.origin),), codes.q, p.attrs)


def place_slice(b: Builder, p: Pending, codes: Codes) -> str:
    """Slice of codes; attrs are in ONNX order, (C, H, W) or (F,)."""
    rank = codes.index.ndim
    x = b.image(codes, p.origin) if rank == 3 else b.arrange(codes.tensor, codes.index, p.origin)
    order = (1, 2, 0) if rank == 3 else tuple(range(rank))
    attrs = {k: tuple(p.attrs[k][i] for i in order) for k in ("starts", "stops", "steps")}
    return b.add(p.origin, "slice", (x,), codes.q, attrs)


def place_pad(b: Builder, p: Pending, codes: Codes) -> str:
    """Pad of codes with the code of `value` (None: the zero point)."""
    value = codes.q.zero_point if p.attrs["value"] is None else p.attrs["value"]
    attrs = {"pads": p.attrs["pads"], "channels": p.attrs["channels"], "value": int(value)}
    return b.add(p.origin, "pad", (b.image(codes, p.origin),), codes.q, attrs)


def place_concat(b: Builder, p: Pending, parts: list[Codes], q: QParams) -> str:
    """Concatenation of codes of one scale: images along channels, vectors as they are stored."""
    if parts[0].index.ndim == 3:
        return b.add(p.origin, "concat", tuple(b.image(c, p.origin) for c in parts), q)
    return b.add(p.origin, "concat", tuple(b.vector(c, p.origin) for c in parts), q)


def _concat(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    parts = [b.quantise(a, q, f"{p.origin}.rescale{k}") for k, a in enumerate(p.args)]
    return b.clamp(place_concat(b, p, parts, q), low, high, f"{p.origin}.clamp")


def _softmax(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    codes = b.operand(p.args[0], p.origin)
    x = b.image(codes, p.origin) if codes.index.ndim == 3 else b.vector(codes, p.origin)
    t = b.tensors[x]
    table = softmax_table(t.q.scale, t.shape[-1])
    y = b.add(p.origin, "softmax", (x,), SOFTMAX_Q, {}, {"table": table})
    return b.rescale(y, q, low, high, f"{p.origin}.rescale")


EMIT: dict[str, Emit] = {
    "conv2d": _weighted, "linear": _weighted, "add": _add, "avg_pool2d": _avg_pool, "softmax": _softmax,
    "concat": _concat,
    "max_pool2d": _selecting(place_max_pool), "slice": _selecting(place_slice), "pad": _selecting(place_pad),
}  # fmt: skip
