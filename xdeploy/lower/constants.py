"""Constants of the ONNX graph: folding what converters compute from them, and scales, weights and codebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from xdeploy.formats import QParams
from xdeploy.lower.values import Codes, Poison, QConstant, Real, Stop, Value
from xdeploy.onnxfile import Constant, OnnxNode
from xdeploy.onnxguard import RANK_LIMIT

Arguments = Sequence[Value | None]
FOLD_LIMIT = 2**22  # elements of a computed constant that is larger than what it is computed from
_INTEGER = (np.int8, np.uint8, np.int32)


def activation_params(
    scale: Value | None, zero: Value | None, node: OnnxNode, unsigned: bool = True
) -> tuple[QParams, bool]:
    """Per-tensor parameters of a QuantizeLinear or DequantizeLinear of an activation, and whether it is uint8.

    uint8 codes are moved by 128, so that the lowered graph is int8 throughout.

    Args:
        scale: what the node reads as its scale.
        zero: what the node reads as its zero point, None if nothing.
        node: the node.
        unsigned: the codes' type where neither a zero point nor `output_dtype` tells it.

    Raises:
        Stop: per-axis, not constant, another type, or not a legal scale.
    """
    if not isinstance(scale, Constant) or not (zero is None or isinstance(zero, Constant)):
        raise Stop("scale and zero point must be constants", "static quantisation")
    if scale.array.size != 1 or (zero is not None and zero.array.size != 1):
        raise Stop("activations are quantised per tensor, not per axis", "per-tensor activations")
    if zero is None:
        kind, point = int(node.attrs.get("output_dtype", 0)) if node.op == "QuantizeLinear" else 0, 0
        if kind not in (0, TensorProto.UINT8, TensorProto.INT8):
            raise Stop(f"activations of type {TensorProto.DataType.Name(kind).lower()}", "int8 or uint8 activations")
        unsigned = kind == TensorProto.UINT8 if kind else unsigned
    else:
        if zero.bits or zero.array.dtype not in (np.int8, np.uint8):
            raise Stop(f"activations of type {zero.array.dtype}", "int8 or uint8 activations")
        unsigned, point = zero.array.dtype == np.uint8, int(zero.array.reshape(-1)[0])
    try:
        return QParams(float(np.float32(scale.array.reshape(-1)[0])), point - 128 * unsigned), bool(unsigned)
    except ValueError as error:
        raise Stop(str(error)) from None


def dequantised(node: OnnxNode, args: Arguments) -> QConstant:
    """DequantizeLinear of a constant: the integers stay, the zero point is taken off them.

    Raises:
        Stop: blocked scales, scales that are no constants, not an integer type.
    """
    codes, scale, zero = args[0], args[1], args[2] if len(args) > 2 else None
    if not isinstance(codes, Constant) or not isinstance(scale, Constant):
        raise Stop("scale must be a constant", "static quantisation")
    if codes.array.dtype not in _INTEGER:
        raise Stop(f"weights of type {codes.array.dtype}", "int8 weights")
    if node.attrs.get("block_size", 0) or scale.array.ndim > 1:
        node, scale, zero = _unblocked(node, codes, scale, zero)
    values, axis = codes.array.astype(np.int64), 0
    scales = scale.array.astype(np.float64).reshape(() if scale.array.size == 1 else -1)
    if scales.ndim:
        axis = _axis(int(node.attrs.get("axis", 1)), values.ndim)
        if values.shape[axis] != scales.size:
            raise Stop(f"{scales.size} scales for an axis of {values.shape[axis]}")
    if isinstance(zero, Constant):
        point = zero.array.astype(np.int64)
        values = values - (
            point.reshape([-1 if k == axis else 1 for k in range(values.ndim)]) if point.size > 1 else point.sum()
        )
    return QConstant(values, scales, axis, codes.bits, None, node.meta)


def _unblocked(
    node: OnnxNode, codes: Constant, scale: Constant, zero: Value | None
) -> tuple[OnnxNode, Constant, Value | None]:
    """Scales in blocks that are the same all along every axis but one: as scales of that axis.

    Raises:
        Stop: several blocks differ within a channel.
    """
    shape, axis = codes.array.shape, _axis(int(node.attrs.get("axis", 1)), codes.array.ndim)
    size = int(node.attrs.get("block_size", 0)) or shape[axis]
    parts = [scale.array, zero.array if isinstance(zero, Constant) else np.zeros_like(scale.array, np.int64)]
    if any(p.ndim != len(shape) or p.shape[axis] != -(-shape[axis] // size) for p in parts):
        raise Stop(f"scales {scale.array.shape} in blocks of {size} for a weight {shape}", attribute="block_size")
    full = [np.repeat(p, size, axis=axis).take(range(shape[axis]), axis=axis) for p in parts]
    for k in range(len(shape)):
        rows = [np.moveaxis(p, k, 0).reshape(p.shape[k], -1) for p in full]
        if all((r == r[:, :1]).all() for r in rows):
            point = Constant(rows[1][:, 0]) if isinstance(zero, Constant) else None
            attrs = {**node.attrs, "axis": k, "block_size": 0}
            return replace(node, attrs=attrs), Constant(rows[0][:, 0]), point
    raise Stop(
        f"weight scales in blocks of {size}", "one scale per output channel (a block as long as the axis)", "block_size"
    )


def codebook_weight(node: OnnxNode, args: Arguments) -> QConstant:
    """CodebookWeight(idx, book, scale): indices and book stay apart.

    Raises:
        Stop: not constants, or an index outside the book.
    """
    index, book, scale = args
    if not (isinstance(index, Constant) and isinstance(book, Constant) and isinstance(scale, Constant)):
        raise Stop("index, codebook and scale must be constants")
    codes = index.array.astype(np.int64)
    if book.array.dtype != np.int8 or book.array.ndim != 1 or codes.ndim == 0 or scale.array.shape != (codes.shape[0],):
        raise Stop("a codebook is int8 of one axis, its scale has one entry per output channel")
    if codes.min(initial=0) < 0 or codes.max(initial=0) >= book.array.size:
        raise Stop(f"indices {codes.min()}..{codes.max()} of a codebook with {book.array.size} entries")
    return QConstant(codes, scale.array.astype(np.float64), 0, index.bits, book.array, node.meta)


# ------------------------------------------------------------------------------------------------- folding
def foldable(node: OnnxNode, args: Arguments) -> bool:
    """Whether the node only computes on constants (or asks for a shape)."""
    if node.op == "Shape":
        return not isinstance(args[0], Poison) and args[0] is not None
    return node.op in _FOLD and all(a is None or isinstance(a, Constant) for a in args)


def fold(node: OnnxNode, args: Arguments) -> Constant:
    """The constant a node computes.

    Raises:
        Stop: the computation fails or grows too large.
    """
    if node.op == "Shape":
        return Constant(np.array(_shape(args[0]), np.int64)[node.attrs.get("start", 0) : node.attrs.get("end", None)])
    arrays: list[Any] = [a.array if isinstance(a, Constant) else None for a in args]
    try:
        present = [a for a in arrays if a is not None]
        if _result_size(node, present) > max(FOLD_LIMIT, sum(a.size for a in present)):
            raise Stop("the constant it computes is too large", "constants computed when exporting")
        result = np.asarray(_FOLD[node.op](node, arrays))
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, FloatingPointError) as error:
        raise Stop(f"its constants do not fit ({error})") from None
    moves = node.op in ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
    first = args[0] if args else None
    bits = first.bits if isinstance(first, Constant) and (moves or _widens(node, first)) else 0
    return Constant(result, _clipped_bits(result, arrays[1:]) if node.op == "Clip" else bits)


def _clipped_bits(codes: NDArray[Any], limits: list[Any]) -> int:
    """Width of integer codes behind a Clip, which is how narrow weights are written in int8 (QCDQ); 0 if not narrow."""
    if codes.dtype not in (np.int8, np.uint8) or len(limits) < 2 or any(v is None or v.size != 1 for v in limits[:2]):
        return 0
    low, high = (int(v.reshape(-1)[0]) for v in limits[:2])
    signed = codes.dtype == np.int8
    bits = max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0) + signed
    return bits if bits in (2, 3, 4, 5, 6) else 0


def _clip(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    low, high = [*xs[1:], None, None][:2]
    low, high = (node.attrs.get(k) if v is None else v for k, v in (("min", low), ("max", high)))
    return np.asarray(np.clip(xs[0], low, high).astype(xs[0].dtype))


def _result_size(node: OnnxNode, arrays: list[Any]) -> float:
    """Upper bound of the elements a folded node gives, known before it is computed."""
    if node.op in ("Add", "Sub", "Mul", "Div", "Equal", "Where"):
        return float(np.prod([float(d) for d in np.broadcast_shapes(*(a.shape for a in arrays))]))
    if node.op in ("ConstantOfShape", "Expand"):  # the shape is what the last operand says
        target = [float(d) for d in arrays[-1].reshape(-1)]
        if min(target, default=0.0) < 0 or len(target) > RANK_LIMIT:
            raise ValueError(f"shape {target}")
        return float(np.prod(target)) * max(1, arrays[0].size if node.op == "Expand" else 1)
    if node.op == "Gather":
        return float(arrays[0].size / max(1, arrays[0].shape[node.attrs.get("axis", 0)]) * arrays[1].size)
    return float(sum(a.size for a in arrays))


def _widens(node: OnnxNode, value: Constant) -> bool:
    """Cast of a packed type to a wider integer: the codes still need only `bits`."""
    return node.op == "Cast" and bool(value.bits) and node.attrs.get("to") in (TensorProto.INT8, TensorProto.INT32)


def _shape(value: Value | None) -> tuple[int, ...]:
    if isinstance(value, Constant):
        return value.array.shape
    if isinstance(value, Codes | Real):
        return (1, *value.index.shape)
    raise Stop("the shape is not known")


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Stop(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def _constant(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    attrs = node.attrs
    if "value" in attrs:
        return np.asarray(attrs["value"].array)
    for key, kind in (
        ("value_float", np.float32),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_ints", np.int64),
    ):
        if key in attrs:
            return np.asarray(attrs[key], kind)
    raise ValueError("Constant without a numeric value")


def _cast(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    to = int(node.attrs["to"])
    if to in (TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2, TensorProto.STRING):
        raise ValueError("Cast to this type is not supported")
    return np.asarray(xs[0].astype(helper.tensor_dtype_to_np_dtype(to)))


def _quantise(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    """QuantizeLinear of a float weight, as exporters of fake-quantised training write it."""
    x, scale = xs[0].astype(np.float32), xs[1].astype(np.float32)
    zero = xs[2] if len(xs) > 2 and xs[2] is not None else np.zeros((), np.uint8)
    if scale.size > 1:
        if scale.size != x.shape[int(node.attrs.get("axis", 1))]:
            raise ValueError(f"{scale.size} scales for shape {x.shape}")
        shape = [-1 if k == int(node.attrs.get("axis", 1)) % x.ndim else 1 for k in range(x.ndim)]
        scale, zero = scale.reshape(shape), np.broadcast_to(zero.reshape(-1), scale.size).reshape(shape)
    limits = np.iinfo(zero.dtype)
    codes = np.clip(np.rint(x / scale) + zero.astype(np.float64), limits.min, limits.max)
    return np.asarray(codes.astype(zero.dtype))


def _reshape(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    target = [
        xs[0].shape[k] if d == 0 and not node.attrs.get("allowzero") else int(d) for k, d in enumerate(xs[1].tolist())
    ]
    return np.asarray(xs[0].reshape(target))


def axes_of(node: OnnxNode, xs: list[Any], place: int = 1) -> tuple[int, ...] | None:
    """Axes given as the input at `place` or, in older opsets, as an attribute."""
    if len(xs) > place and xs[place] is not None:
        return tuple(int(v) for v in np.asarray(xs[place]).reshape(-1))
    value = node.attrs.get("axes")
    return None if value is None else tuple(int(v) for v in value)


def _slice(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    starts, ends = xs[1].tolist(), xs[2].tolist()
    axes = axes_of(node, xs, 3) or range(len(starts))
    steps = xs[4].tolist() if len(xs) > 4 and xs[4] is not None else [1] * len(starts)
    cuts = [slice(None)] * xs[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end, step)
    return np.asarray(xs[0][tuple(cuts)])


def _binary(run: Callable[[Any, Any], Any]) -> Callable[[OnnxNode, list[Any]], Any]:
    return lambda node, xs: run(xs[0], xs[1]).astype(xs[0].dtype)


def _filled(node: OnnxNode, xs: list[Any]) -> NDArray[Any]:
    value = node.attrs["value"].array.reshape(-1)[0] if "value" in node.attrs else np.float32(0)
    return np.full(tuple(int(d) for d in xs[0].reshape(-1)), value)


_FOLD: dict[str, Callable[[OnnxNode, list[Any]], Any]] = {
    "Constant": _constant, "Identity": lambda n, x: x[0], "Cast": _cast, "Reshape": _reshape, "Slice": _slice,
    "QuantizeLinear": _quantise, "Clip": _clip,
    "Transpose": lambda n, x: x[0].transpose(n.attrs.get("perm")),
    "Squeeze": lambda n, x: x[0].squeeze(axes_of(n, x)),
    "Unsqueeze": lambda n, x: np.expand_dims(x[0], axes_of(n, x) or ()),
    "Concat": lambda n, x: np.concatenate(x, axis=n.attrs["axis"]),
    "Gather": lambda n, x: np.take(x[0], x[1], axis=n.attrs.get("axis", 0)),
    "Add": _binary(np.add), "Sub": _binary(np.subtract), "Mul": _binary(np.multiply),
    "Div": lambda n, x: x[0] // x[1] if x[0].dtype.kind == "i" else x[0] / x[1],
    "ConstantOfShape": _filled, "Expand": lambda n, x: np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, x[1])),
    "Equal": lambda n, x: np.equal(x[0], x[1]), "Where": lambda n, x: np.where(x[0], x[1], x[2]),
    "Sqrt": lambda n, x: np.sqrt(x[0]), "Neg": lambda n, x: -x[0],
}  # fmt: skip
