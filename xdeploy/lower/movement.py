"""ONNX operators that arrange, cut or join tensors. Most of them only rearrange the index and move no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments, axes_of
from xdeploy.lower.cutting import CUTTING
from xdeploy.lower.operands import Mover, activation, real
from xdeploy.lower.resize import RESIZING
from xdeploy.lower.values import Index, QConstant, Stop, Value, arranged
from xdeploy.lower.views import batched
from xdeploy.onnxfile import Constant, OnnxNode

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


# --------------------------------------------------------------------------------------------- arrangement
def _rearranged(move: Callable[[OnnxNode, Index, list[Any]], Index]) -> Mover:
    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        constants = [a.array if isinstance(a, Constant) else None for a in args]
        first = args[0]
        try:
            if isinstance(first, QConstant):
                return _constant_moved(node, first, move, constants)
            x = activation(first)
            index = move(node, x.index[None], constants)
        except (ValueError, IndexError, TypeError, ArithmeticError) as error:
            raise Stop(f"shapes do not fit ({error})") from None
        if index.ndim < 2 or index.shape[0] != 1:
            raise Stop("the batch axis must stay first and alone", "reshape to (-1, ...) with the sample's own shape")
        return arranged(x, index[0])

    return handler


def _constant_moved(node: OnnxNode, value: QConstant, move: Callable[..., Index], constants: list[Any]) -> QConstant:
    if node.op == "Transpose":
        return value.transposed(tuple(node.attrs.get("perm", range(value.codes.ndim)[::-1])))
    if value.scale.ndim and value.scale.size > 1 and node.op != "Identity":
        raise Stop("a reshape of weights with a scale per channel", "reshape the weights before they are quantised")
    return replace(value, codes=move(node, value.codes, constants), axis=0)


def _reshape(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    given = xs[1] if len(xs) > 1 else np.array(node.attrs.get("shape", ()))
    if given is None:
        raise Stop("the new shape is not a constant", "a fixed shape with a free batch axis", "shape")
    target = [int(d) for d in given.reshape(-1)]
    if not node.attrs.get("allowzero"):
        target = [index.shape[k] if d == 0 else d for k, d in enumerate(target)]
    return index.reshape(target)


def _flatten(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    axis = int(node.attrs.get("axis", 1))
    if axis % index.ndim != 1:
        raise Stop(f"Flatten at axis {axis}", "Flatten at axis 1", "axis")
    return index.reshape(1, -1)


def _transpose(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    perm = tuple(node.attrs.get("perm", range(index.ndim)[::-1]))
    if perm[0] != 0:
        raise Stop("the batch axis is moved", "keep the batch first", "perm")
    return index.transpose(perm)


def _squeeze(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    axes = axes_of(node, xs)
    if axes is None:
        axes = tuple(k for k in range(1, index.ndim) if index.shape[k] == 1)
    if any(a % index.ndim == 0 for a in axes):
        raise Stop("the batch axis is squeezed", "keep the batch first", "axes")
    return index.squeeze(axes)


def _block(node: OnnxNode, index: Index) -> int:
    block = int(node.attrs["blocksize"])
    if index.ndim != 4 or block < 1:
        raise Stop(f"block size {block} on {batched(index.shape[1:])}", "an image (N, C, H, W)", "blocksize")
    return block


def _depth_to_space(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    n, (_, c, h, w) = _block(node, index), index.shape
    if node.attrs.get("mode", "DCR") == "DCR":
        parts = index.reshape(1, n, n, c // n**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = index.reshape(1, c // n**2, n, n, h, w).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(1, c // n**2, h * n, w * n)


def _space_to_depth(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    n, (_, c, h, w) = _block(node, index), index.shape
    parts = index.reshape(1, c, h // n, n, w // n, n)
    parts = (
        parts.transpose(0, 3, 5, 1, 2, 4)
        if node.attrs.get("mode", "DCR") == "DCR"
        else parts.transpose(0, 1, 3, 5, 2, 4)
    )
    return parts.reshape(1, c * n * n, h // n, w // n)


def _cast(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    """Between float types nothing changes that a code could show (float16 keeps 11 bits of 8)."""
    if int(node.attrs.get("to", 0)) not in _FLOATS:
        kind = TensorProto.DataType.Name(int(node.attrs.get("to", 0)))
        raise Stop(f"casts an activation to {kind}", "QuantizeLinear, or no Cast", "to")
    return real(args[0])


MOVEMENT: dict[str, Mover] = {
    "Reshape": _rearranged(_reshape), "Flatten": _rearranged(_flatten), "Transpose": _rearranged(_transpose),
    "Squeeze": _rearranged(_squeeze), "DepthToSpace": _rearranged(_depth_to_space),
    "SpaceToDepth": _rearranged(_space_to_depth),
    "Identity": _rearranged(lambda n, i, x: i), "Dropout": _rearranged(lambda n, i, x: i),
    "Unsqueeze": _rearranged(lambda n, i, x: np.expand_dims(i, axes_of(n, x) or ())),
    "Cast": _cast, **CUTTING, **RESIZING,
}  # fmt: skip
