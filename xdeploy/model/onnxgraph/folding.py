"""What operators compute from constants, in numpy: shape arithmetic, prepared weights, and element-wise functions.

One function per operator, (node, opset, operands) -> results. Sizes are checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.model.onnxgraph.rows import Array, Known, Refused
from xdeploy.onnxfile import ELEMENT_LIMIT, Constant, OnnxNode

Fold = Callable[[OnnxNode, int, Sequence[Array | None]], Any]
FOLDS: dict[str, Fold] = {}
# TensorProto's numbers of the element types that a Cast may give
_TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
          10: np.float32, 11: np.float64, 12: np.uint32, 13: np.uint64, 16: np.float32}  # fmt: skip


def fold(node: OnnxNode, opset: int, operands: Sequence[Known | None]) -> list[Known]:
    """The results of a node whose operands are all known, for both batch sizes.

    Raises:
        Refused: the operator is not computed ahead of time, or its operands do not fit it.
    """
    if node.op not in FOLDS:
        raise Refused("is not computed from constants", "store its result as an initialiser")
    first = _run(node, opset, [None if k is None else k.first for k in operands])
    if all(k is None or k.fixed for k in operands):
        return [Known.constant(a) for a in first]
    second = _run(node, opset, [None if k is None else k.second for k in operands])
    return [Known(a, b) for a, b in zip(first, second, strict=True)]


def _run(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> list[Array]:
    try:
        with np.errstate(all="ignore"):
            found = FOLDS[node.op](node, opset, operands)
    except Refused:
        raise
    except Exception as error:  # any mismatch of hostile or broken operands; numpy raises many kinds
        raise Refused(f"cannot be computed from its constants ({type(error).__name__}: {error})") from None
    results = [np.asarray(a) for a in (found if isinstance(found, list | tuple) else [found])]
    for a in results:
        _limit(a.shape)
    return results


def _limit(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape as ints, if a constant may be so large."""
    dims = tuple(int(d) for d in shape)
    if any(d < 0 for d in dims) or float(np.prod([float(d) for d in dims])) > ELEMENT_LIMIT:
        raise Refused(f"gives a constant of shape {dims}, above the limit of {ELEMENT_LIMIT} elements")
    return dims


def _fold(*names: str) -> Callable[[Fold], Fold]:
    def enter(function: Fold) -> Fold:
        FOLDS.update(dict.fromkeys(names, function))
        return function

    return enter


def _operand(operands: Sequence[Array | None], index: int) -> Array:
    found = operands[index] if index < len(operands) else None
    if found is None:
        raise Refused(f"operand {index} is missing")
    return found


def ints(node: OnnxNode, operands: Sequence[Array | None], name: str, index: int | None) -> list[int] | None:
    """Integers of operand `index`, or of the attribute that held them in older opsets."""
    if index is not None and index < len(operands) and operands[index] is not None:
        return [int(v) for v in _operand(operands, index).reshape(-1)]
    value = node.attrs.get(name)
    return None if value is None else [int(v) for v in (value if isinstance(value, list | tuple) else [value])]


# ----------------------------------------------------------------------------------------------- element-wise
def _erf(x: Array) -> Array:
    import torch

    return np.asarray(torch.erf(torch.from_numpy(np.asarray(x, np.float64).copy())).numpy(), x.dtype)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":  # towards zero, as in C
        return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)), a.dtype)
    return np.asarray(np.divide(a, b))


def _modulo(node: OnnxNode, _: int, operands: Sequence[Array | None]) -> Array:
    function = np.fmod if node.attrs.get("fmod") else np.mod
    return np.asarray(function(_operand(operands, 0), _operand(operands, 1)))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)), x.dtype)


_UNARY: dict[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x, "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Sqrt": np.sqrt,
    "Exp": np.exp, "Log": np.log, "Reciprocal": np.reciprocal, "Not": np.logical_not, "Sign": np.sign, "Erf": _erf,
    "Round": np.rint, "Tanh": np.tanh, "Sigmoid": _sigmoid, "Relu": lambda x: np.maximum(x, 0),
    "Softplus": lambda x: np.logaddexp(x, 0).astype(x.dtype),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Size": lambda x: np.asarray(x.size, np.int64),
}  # fmt: skip
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": lambda a, b: (a**b).astype(a.dtype),
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal, "And": np.logical_and,
    "GreaterOrEqual": np.greater_equal, "Or": np.logical_or,
}  # fmt: skip


def _unary(function: Callable[[Array], Array]) -> Fold:
    return lambda node, opset, operands: function(_operand(operands, 0))


def _binary(function: Callable[[Array, Array], Array]) -> Fold:
    def run(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Array:
        a, b = _operand(operands, 0), _operand(operands, 1)
        _limit(np.broadcast_shapes(a.shape, b.shape))
        return function(a, b)

    return run


def _many(function: Callable[[Array, Array], Array]) -> Fold:
    def run(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Array:
        result = _operand(operands, 0)
        for k in range(1, len(operands)):
            result = function(result, _operand(operands, k))
        return result

    return run


FOLDS.update({name: _unary(f) for name, f in _UNARY.items()})
FOLDS.update({name: _binary(f) for name, f in _BINARY.items()})
FOLDS.update({"Min": _many(np.minimum), "Max": _many(np.maximum), "Sum": _many(np.add), "Mod": _modulo})


@_fold("Clip")
def _clip(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    low, high = (operands[k] if k < len(operands) else None for k in (1, 2))
    low = node.attrs.get("min") if low is None else low
    high = node.attrs.get("max") if high is None else high
    x = _operand(operands, 0)
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


@_fold("HardSigmoid")
def _hard_sigmoid(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    return np.clip(_operand(operands, 0) * node.attrs.get("alpha", 0.2) + node.attrs.get("beta", 0.5), 0, 1)


@_fold("LeakyRelu", "Elu")
def _leaky(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x = _operand(operands, 0)
    below = np.expm1(x) * node.attrs.get("alpha", 1.0) if node.op == "Elu" else x * node.attrs.get("alpha", 0.01)
    return np.where(x >= 0, x, below).astype(x.dtype)


@_fold("Where")
def _where(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    parts = [_operand(operands, k) for k in range(3)]
    _limit(np.broadcast_shapes(*(p.shape for p in parts)))
    return np.where(*parts)


@_fold("Cast")
def _cast(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    kind = _TYPES.get(node.attrs.get("to", 0))
    if kind is None:
        raise Refused(f"casts to element type {node.attrs.get('to')}", attribute="to")
    return _operand(operands, 0).astype(kind)


@_fold("CastLike")
def _cast_like(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    return _operand(operands, 0).astype(_operand(operands, 1).dtype)


@_fold("DequantizeLinear")
def _dequantize(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, scale = _operand(operands, 0), _operand(operands, 1)
    zero = operands[2] if len(operands) > 2 and operands[2] is not None else np.zeros_like(scale)
    block, axis = int(node.attrs.get("block_size", 0)), int(node.attrs.get("axis", 1))
    if scale.ndim and block:
        scale, zero = (np.repeat(a, block, axis=axis)[tuple(map(slice, x.shape))] for a in (scale, zero))
    elif scale.size > 1:
        scale, zero = (a.reshape([-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]) for a in (scale, zero))
    return (x.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)


@_fold("CodebookWeight")
def _codebook(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    index, book, scale = (_operand(operands, k) for k in range(3))
    shape = (-1, *(1,) * (index.ndim - 1)) if scale.ndim else ()
    return book[index.astype(np.int64)].astype(np.float32) * scale.reshape(shape)


# --------------------------------------------------------------------------------------------- shapes and moves
@_fold("Constant")
def _constant(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    for name, kind in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64),
                       ("value_ints", np.int64)):  # fmt: skip
        if name in node.attrs:
            return np.asarray(node.attrs[name], kind)
    value = node.attrs.get("value")
    if not isinstance(value, Constant):
        raise Refused("holds no tensor of numbers")
    return value.array


@_fold("ConstantOfShape")
def _constant_of_shape(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    value = node.attrs.get("value")
    fill = value.array.reshape(-1)[0] if isinstance(value, Constant) else np.float32(0)
    return np.full(_limit(_operand(operands, 0).reshape(-1).tolist()), fill)


@_fold("Shape")
def _shape(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    return shape_of(node, _operand(operands, 0).shape)


def shape_of(node: OnnxNode, shape: Sequence[int]) -> NDArray[np.int64]:
    """What a Shape node gives for a tensor of this shape."""
    return np.asarray(shape[node.attrs.get("start", 0) : node.attrs.get("end")], np.int64)


@_fold("Range")
def _range(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    start, stop, step = (_operand(operands, k).reshape(-1)[0] for k in range(3))
    _limit([max(0, np.ceil((float(stop) - float(start)) / float(step)))])
    return np.arange(start, stop, step)


@_fold("Gather")
def _gather(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, index = _operand(operands, 0), _operand(operands, 1)
    axis = int(node.attrs.get("axis", 0))
    _limit([x.size // max(1, x.shape[axis]) * index.size])
    return np.take(x, index.astype(np.int64), axis=axis)


@_fold("Concat")
def _concat(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    return np.concatenate([_operand(operands, k) for k in range(len(operands))], axis=node.attrs.get("axis", 0))


@_fold("Slice")
def _slice(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x = _operand(operands, 0)
    starts, ends = ints(node, operands, "starts", 1) or [], ints(node, operands, "ends", 2) or []
    axes = ints(node, operands, "axes", 3) or list(range(len(starts)))
    steps = ints(node, operands, "steps", 4) or [1] * len(starts)
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        end_or_none = None if step < 0 and end < -x.shape[axis] else end
        cuts[axis] = slice(start, end_or_none, step)
    return x[tuple(cuts)]


@_fold("Split")
def _split(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, axis = _operand(operands, 0), node.attrs.get("axis", 0)
    sizes = ints(node, operands, "split", 1)
    if sizes is None:
        count = len(node.outputs)
        part = -(-x.shape[axis] // count)
        sizes = [min(part, x.shape[axis] - k * part) for k in range(count)]
    return np.split(x, np.cumsum(sizes)[:-1], axis=axis)


@_fold("Reshape")
def _reshape(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, wanted = _operand(operands, 0), ints(node, operands, "shape", 1) or []
    if not node.attrs.get("allowzero"):
        wanted = [x.shape[k] if d == 0 else d for k, d in enumerate(wanted)]
    return x.reshape(wanted)


@_fold("Flatten")
def _flatten(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, axis = _operand(operands, 0), node.attrs.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


@_fold("Squeeze")
def _squeeze(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    axes = ints(node, operands, "axes", 1)
    return np.squeeze(_operand(operands, 0), None if axes is None else tuple(axes))


@_fold("Unsqueeze")
def _unsqueeze(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    return np.expand_dims(_operand(operands, 0), tuple(ints(node, operands, "axes", 1) or ()))


@_fold("Transpose")
def _transpose(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    return np.transpose(_operand(operands, 0), node.attrs.get("perm"))


@_fold("Expand")
def _expand(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, shape = _operand(operands, 0), tuple(ints(node, operands, "shape", 1) or ())
    return np.broadcast_to(x, _limit(np.broadcast_shapes(x.shape, shape)))


@_fold("Tile")
def _tile(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    x, repeats = _operand(operands, 0), ints(node, operands, "repeats", 1) or []
    _limit([d * r for d, r in zip(x.shape, repeats, strict=True)])
    return np.tile(x, repeats)


@_fold("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean")
def _reduce(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> Any:
    function: Any = {"ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min,
                "ReduceMean": np.mean}[node.op]  # fmt: skip
    x, axes = _operand(operands, 0), ints(node, operands, "axes", 1)
    if not axes and node.attrs.get("noop_with_empty_axes"):
        return x
    return function(x, axis=tuple(axes) if axes else None, keepdims=bool(node.attrs.get("keepdims", 1))).astype(x.dtype)
