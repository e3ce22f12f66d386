"""The integer vocabulary: every op's attributes, shape rule and exact meaning in numpy integers.

This is the reference (S21): a kernel on any target equals it bit for bit. Batches run at once: arrays are
(N, H, W, C) or (N, F), int8. Sums are formed in float64 by BLAS where they are exact (|acc| < 2^53), then int64.

The second rounding rule, used by `add` and `rescale`, stays in int32: y = clamp((a*x0 + b*x1 + const) >> shift),
arithmetic shift, with `const` holding the zero points and the rounding half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError
from xdeploy.formats import INT32_LIMIT, Float64, Int8, Int32, Int64, QParams, prove_accumulator, saturate
from xdeploy.lir.average import settle
from xdeploy.lir.floating import run_float
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.products import mul_shape, prove_product, run_mul
from xdeploy.lir.rows import run_stack, stack_shape

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One op: required attributes and constants, number of inputs, output shape, numpy meaning."""

    attrs: tuple[str, ...]
    consts: tuple[str, ...]
    inputs: tuple[int, ...]  # allowed numbers of inputs; (-1,) = any
    shape: Callable[[Node, list[Shape]], Shape]
    run: Callable[[Node, list[Int8]], Int8]


# ------------------------------------------------------------------------------------------ windows and sums
def window_shape(size: Shape, kernel: Shape, stride: Shape, pads: Shape, dilation: Shape = (1, 1)) -> Shape:
    """(OH, OW) of a window op over (H, W); pads are (top, left, bottom, right)."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padded = (size[0] + pads[0] + pads[2], size[1] + pads[1] + pads[3])
    return tuple((p - s) // t + 1 for p, s, t in zip(padded, spans, stride, strict=True))


def windows(x: NDArray[Any], kernel: Shape, stride: Shape, pads: Shape, dilation: Shape, fill: int) -> NDArray[Any]:
    """View (N, OH, OW, kh, kw, C) of the padded input's windows."""
    t, left, b, r = pads
    padded = np.pad(x, ((0, 0), (t, b), (left, r), (0, 0)), constant_values=fill)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(1, 2))
    view = view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return np.moveaxis(view, 3, -1)


_UNFOLDED = 2**23  # elements of the copy of the windows, which are float64


def _products(view: NDArray[Any], weight: Float64) -> Float64:
    """Sums (N, OH, OW, O) of windows (N, OH, OW, kh, kw, C) times weights (G, O/G, kh, kw, C/G)."""
    groups, each, per = len(weight), weight.shape[1], weight.shape[-1]
    if groups == 1:
        flat: Float64 = view.reshape(*view.shape[:3], -1) @ weight.reshape(each, -1).T
        return flat
    cut = view.reshape(*view.shape[:5], groups, per)
    sums: Float64 = np.einsum("nhwklgi,gokli->nhwgo", cut, weight, optimize=True)
    return sums.reshape(*view.shape[:3], groups * each)


def accumulate(node: Node, x: Int8) -> Int64:
    """The int32 accumulator of a conv2d or linear node, bias included, as int64 (N, ..., O)."""
    values = node.values
    centred = x.astype(np.float64) - node.attrs["in_zero"]
    if node.op == "linear":
        sums = centred @ values.astype(np.float64).T
    else:
        a = node.attrs
        out, kh, kw, per = values.shape
        view = windows(centred, (kh, kw), a["stride"], a["pads"], a["dilation"], 0)
        groups = a["groups"]
        weight = values.reshape(groups, out // groups, kh, kw, per).astype(np.float64)
        rows = max(1, _UNFOLDED // (view.size // view.shape[1]))  # windows of so many rows are copied at once
        parts = [_products(view[:, i : i + rows], weight) for i in range(0, view.shape[1], rows)]
        sums = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    acc: Int64 = sums.astype(np.int64) + node.consts["bias"].astype(np.int64)
    return acc


def _scaled(a: Mapping[str, Any], prefix: str, x0: Int8, x1: Int8 | None) -> Int8:
    acc = x0.astype(np.int64) * a[f"{prefix}a"] + a[f"{prefix}const"]
    if x1 is not None:
        acc = acc + x1.astype(np.int64) * a[f"{prefix}b"]
    return saturate(acc >> a[f"{prefix}shift"], a[f"{prefix}low"], a[f"{prefix}high"])


# ------------------------------------------------------------------------------------------------- meanings
def _run_weighted(node: Node, xs: list[Int8]) -> Int8:
    y = node.requant.apply(accumulate(node, xs[0]))
    return _scaled(node.attrs, "add_", y, xs[1]) if len(xs) == 2 else y


def _run_avg(node: Node, xs: list[Int8]) -> Int8:
    a, x = node.attrs, xs[0]
    view = windows(x.astype(np.int64) - a["in_zero"], a["kernel"], a["stride"], a["pads"], (1, 1), 0)
    ones = np.ones((1, *x.shape[1:3], 1), np.int64)
    counts = windows(ones, a["kernel"], a["stride"], a["pads"], (1, 1), 0).sum(axis=(3, 4))
    if a["include_pad"]:
        counts = np.full_like(counts, a["kernel"][0] * a["kernel"][1])
    acc = view.sum(axis=(3, 4))
    product = (acc << a["shift"]) * node.consts["multiplier"].astype(np.int64)[counts - 1]
    code, below = (product + (1 << 31)) >> 32, product >> 32
    if a.get("tie", 0):  # the mantissa that decides halves where both sides have one scale: lir.average
        count = np.broadcast_to(counts, acc.shape)
        at = np.nonzero(2 * acc == (2 * below + 1) * count)
        taps = view[at[0], at[1], at[2], :, :, at[3]].reshape(len(at[0]), a["kernel"][0] * a["kernel"][1])
        code[at] = settle(taps, a["tie"], count[at], below[at])
    return saturate(a["out_zero"] + code, a["low"], a["high"])


def _run_max(node: Node, xs: list[Int8]) -> Int8:
    a = node.attrs
    result: Int8 = windows(xs[0], a["kernel"], a["stride"], a["pads"], (1, 1), -128).max(axis=(3, 4))
    return result


def _run_pad(node: Node, xs: list[Int8]) -> Int8:
    t, left, b, r = node.attrs["pads"]
    widths = ((0, 0), (t, b), (left, r), node.attrs["channels"])
    return np.pad(xs[0], widths, constant_values=node.attrs["value"])


def _run_slice(node: Node, xs: list[Int8]) -> Int8:
    a = node.attrs
    cuts = (slice(None), *(slice(*s) for s in zip(a["starts"], a["stops"], a["steps"], strict=True)))
    return np.ascontiguousarray(xs[0][cuts])


def softmax_table(scale: float, classes: int) -> Int32:
    """exp(-d * scale) for code differences d = 0..255, fixed point, so that 256 * e + sum/2 stays below 2^31."""
    bits = min(22, 30 - int(np.ceil(np.log2(max(classes, 1)))))
    table: Int32 = np.rint(np.exp(-np.arange(256) * scale) * 2.0**bits).astype(np.int32)
    return table


def _run_softmax(node: Node, xs: list[Int8]) -> Int8:
    """Softmax: y = clamp(-128 + (256 * e + sum/2) / sum), e = table[max - x]; output scale 1/256, zero point -128."""
    x = xs[0].astype(np.int64)
    e = node.consts["table"].astype(np.int64)[x.max(axis=-1, keepdims=True) - x]
    total = e.sum(axis=-1, keepdims=True)
    return saturate(-128 + (256 * e + total // 2) // total)


def _run_lut(node: Node, xs: list[Int8]) -> Int8:
    result: Int8 = node.consts["table"][xs[0].astype(np.int64) + 128]
    return result


# -------------------------------------------------------------------------------------------------- shapes
def _same(node: Node, shapes: list[Shape]) -> Shape:
    return shapes[0]


def _conv_shape(node: Node, shapes: list[Shape]) -> Shape:
    a, codes = node.attrs, node.consts["codes"]
    spatial = window_shape(shapes[0][:2], codes.shape[1:3], a["stride"], a["pads"], a["dilation"])
    return (*spatial, codes.shape[0])


def _pool_shape(node: Node, shapes: list[Shape]) -> Shape:
    a = node.attrs
    return (*window_shape(shapes[0][:2], a["kernel"], a["stride"], a["pads"]), shapes[0][2])


def _pad_shape(node: Node, shapes: list[Shape]) -> Shape:
    t, left, b, r = node.attrs["pads"]
    h, w, c = shapes[0]
    return (h + t + b, w + left + r, c + sum(node.attrs["channels"]))


def _slice_shape(node: Node, shapes: list[Shape]) -> Shape:
    a = node.attrs
    return tuple(
        len(range(*slice(*s).indices(n)))
        for n, s in zip(shapes[0], zip(a["starts"], a["stops"], a["steps"], strict=True), strict=True)
    )


def _resize_shape(node: Node, shapes: list[Shape]) -> Shape:
    rows, cols = node.attrs["rows"], node.attrs["cols"]
    for indices, size in ((rows, shapes[0][0]), (cols, shapes[0][1])):
        if not all(0 <= i < size for i in indices):
            raise ValueError(f"resize reads index {max(indices)} or {min(indices)} of an axis of {size}")
    return (len(rows), len(cols), shapes[0][2])


def _concat_shape(node: Node, shapes: list[Shape]) -> Shape:
    return (*shapes[0][:-1], sum(s[-1] for s in shapes))


_OUT = ("shift", "out_zero", "low", "high")
_WEIGHT = ("codes", "bias", "multiplier")


def _linear_shape(node: Node, shapes: list[Shape]) -> Shape:
    return (node.consts["codes"].shape[0],)


def _run_resize(node: Node, xs: list[Int8]) -> Int8:
    a = node.attrs
    result: Int8 = xs[0][:, list(a["rows"])][:, :, list(a["cols"])]
    return result


def _run_clamp(node: Node, xs: list[Int8]) -> Int8:
    return saturate(xs[0], node.attrs["low"], node.attrs["high"])


def _run_transpose(node: Node, xs: list[Int8]) -> Int8:
    return np.ascontiguousarray(xs[0].transpose(0, *(p + 1 for p in node.attrs["perm"])))


_CONV = ("weight_format", "stride", "pads", "dilation", "groups", "in_zero", *_OUT)
_SCALED = ("a", "const", "shift", "low", "high")
_POOL = ("kernel", "stride", "pads")

OPS: dict[str, Op] = {
    # an optional second input is a residual, added in the epilogue:
    # y = clamp((add_a * conv + add_b * x1 + add_const) >> add_shift)
    "conv2d": Op(_CONV, _WEIGHT, (1, 2), _conv_shape, _run_weighted),
    "linear": Op(("weight_format", "in_zero", *_OUT), _WEIGHT, (1, 2), _linear_shape, _run_weighted),
    "add": Op((*_SCALED, "b"), (), (2,), _same, lambda n, x: _scaled(n.attrs, "", x[0], x[1])),
    "rescale": Op(_SCALED, (), (1,), _same, lambda n, x: _scaled(n.attrs, "", x[0], None)),
    "clamp": Op(("low", "high"), (), (1,), _same, _run_clamp),
    "max_pool2d": Op(_POOL, (), (1,), _pool_shape, _run_max),
    # multiplier[count-1] serves windows of `count` elements
    "avg_pool2d": Op((*_POOL, "include_pad", "in_zero", *_OUT), ("multiplier",), (1,), _pool_shape, _run_avg),
    "pad": Op(("pads", "channels", "value"), (), (1,), _pad_shape, _run_pad),
    "slice": Op(("starts", "stops", "steps"), (), (1,), _slice_shape, _run_slice),  # (H, W, C) order
    "stack": Op((), (), (-1,), stack_shape, run_stack),  # below each other; of one input: a copy
    "concat": Op((), (), (-1,), _concat_shape, lambda n, x: np.concatenate(x, axis=-1)),
    # a change of shape only; never moves data
    "reshape": Op(
        ("shape",), (), (1,), lambda n, s: n.attrs["shape"], lambda n, x: x[0].reshape(len(x[0]), *n.attrs["shape"])
    ),
    "transpose": Op(("perm",), (), (1,), lambda n, s: tuple(s[0][p] for p in n.attrs["perm"]), _run_transpose),
    # (H, W, C) or (F,) times the same shape, or (H, W, C) times (1, 1, C); multiplier has one element
    "mul": Op(("a_zero", "b_zero", *_OUT), ("multiplier",), (2,), mul_shape, run_mul),
    # nearest: the source row of each output row, the source column of each output column
    "resize": Op(("rows", "cols"), (), (1,), _resize_shape, _run_resize),
    # an ONNX model between dequantised and quantised codes: lir.floating
    "float": Op(
        ("in_scale", "in_zero", "out_scale", "out_zero", "ops", "shape"),
        ("onnx",),
        (1,),
        lambda n, s: n.attrs["shape"],
        run_float,
    ),
    "softmax": Op((), ("table",), (1,), _same, _run_softmax),
    "lut": Op((), ("table",), (1,), _same, _run_lut),  # table int8[256], indexed by code + 128
}


def scaled_params(
    q0: QParams, q1: QParams | None, out: QParams, prefix: str = "", low: int = -128, high: int = 127, sign: int = 1
) -> dict[str, int]:
    """Attributes of `add` (or, with q1 None, `rescale`): the largest shift at which the int32 sum cannot overflow.

    With `sign` -1 the second operand is subtracted: b is negative.

    Raises:
        UnsupportedError: the scales are so far apart that no shift of at least 1 fits.
    """
    ratios = [f * q.scale / out.scale for q, f in ((q0, 1), (q1, sign)) if q is not None]
    zeros = [q.zero_point for q in (q0, q1) if q is not None]
    for shift in range(24, 0, -1):
        mult = [round(r * 2**shift) for r in ratios]
        const = (out.zero_point << shift) + (1 << (shift - 1)) - sum(z * m for z, m in zip(zeros, mult, strict=True))
        if sum(abs(m) * 128 for m in mult) + abs(const) < INT32_LIMIT:
            named = dict(zip(("a", "b"), mult, strict=False))
            return {
                f"{prefix}{k}": v
                for k, v in {**named, "const": const, "shift": shift, "low": low, "high": high}.items()
            }
    raise UnsupportedError(
        f"scales {[q.scale for q in (q0, q1) if q]} -> {out.scale} are too far apart to add in int32"
    )


def has_residual(node: Node) -> bool:
    """Whether a conv2d or linear node adds a second tensor in its epilogue."""
    return node.op in ("conv2d", "linear") and len(node.inputs) == 2


def macs(graph: LoweredGraph, node: Node) -> int:
    """Multiply-accumulates of one sample."""
    if node.op not in ("conv2d", "linear"):
        return 0
    return int(node.consts["codes"][0].size) * graph.tensors[node.output].size


def verify(graph: LoweredGraph) -> None:
    """Check every node against the op table: attributes, inputs, shapes, and the accumulator's range.

    Raises:
        ValueError: the graph is malformed (our bug). UnsupportedError: an accumulator could overflow.
    """
    known = {graph.input}
    for n in graph.nodes:
        op = OPS.get(n.op)
        if op is None:
            raise ValueError(f"{n.name}: unknown op {n.op}")
        if op.inputs != (-1,) and len(n.inputs) not in op.inputs:
            raise ValueError(f"{n.name}: {n.op} takes {op.inputs} inputs, got {len(n.inputs)}")
        lacking = [k for k in op.attrs if k not in n.attrs] + [k for k in op.consts if k not in n.consts]
        unknown = [i for i in n.inputs if i not in known]
        if lacking or unknown or n.output in known:
            raise ValueError(f"{n.name}: lacks {lacking}, reads unknown {unknown} or writes {n.output} twice")
        shape = op.shape(n, [graph.tensors[i].shape for i in n.inputs])
        if shape != graph.tensors[n.output].shape:
            raise ValueError(f"{n.name}: shape {graph.tensors[n.output].shape} declared, {shape} computed")
        if n.op in ("conv2d", "linear"):
            prove_accumulator(n.values.reshape(len(n.values), -1), n.consts["bias"], n.attrs["shift"], n.name)
        if n.op == "mul":
            prove_product(n)
        if n.op == "avg_pool2d" and len(n.consts["multiplier"]) * 255 << n.attrs["shift"] >= INT32_LIMIT:
            raise UnsupportedError(f"{n.name}: the sum of a window of {n.attrs['kernel']} could overflow int32")
        known.add(n.output)
    if graph.output not in known:
        raise ValueError(f"output {graph.output} is never written")


def run(graph: LoweredGraph, codes: Int8, keep: bool = False) -> dict[str, Int8]:
    """The reference run: int8 inputs (N, ...) in device layout -> {tensor: codes}; all tensors if `keep`."""
    live: dict[str, Int8] = {graph.input: codes}
    last = {i: k for k, n in enumerate(graph.nodes) for i in n.inputs}
    for k, n in enumerate(graph.nodes):
        live[n.output] = OPS[n.op].run(n, [live[i] for i in n.inputs])
        if not keep:
            for i in set(n.inputs):
                if last[i] == k and i != graph.output:
                    del live[i]
    return live
