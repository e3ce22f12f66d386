"""Resize, Upsample, Gather, Expand, Tile: constant source indices along axes, so codes are only moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.cutting import take
from xdeploy.lower.operands import Mover, activation, number, sample_axis
from xdeploy.lower.values import Codes, Real, Stop, Value, arranged
from xdeploy.lower.views import batched
from xdeploy.onnxfile import ACTIVATION_LIMIT, OnnxNode

_OPSET_HALF_PIXEL = 11  # Resize-10 is Upsample: asymmetric, rounded down


# ------------------------------------------------------------------------------------------------- resize
def _resize(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x, a = activation(args[0]), node.attrs
    if a.get("mode", "nearest") != "nearest":
        raise Stop(
            f"interpolates ({a['mode']})", "mode nearest, or a ConvTranspose with the weights of the mode", "mode"
        )
    scales, sizes, axes = _wanted(b, node, args, x.index.shape)
    sources = {}
    for axis, scale, size in zip(axes, scales, sizes, strict=True):
        length = (1, *x.index.shape)[axis]
        out = math.floor(np.float32(length) * np.float32(scale)) if size is None else size
        ratio = float(np.float32(scale)) if size is None else out / length
        if out == length and ratio == 1.0:
            continue
        k = sample_axis(axis, x.index.ndim, "resizes")
        if not 0 < out <= ACTIVATION_LIMIT:
            raise Stop(f"resizes an axis of {length} to {out}", "a size of at least 1", "scales")
        sources[k] = _nearest(b, node, length, out, ratio)
    return take(b, node, x, sources)


def _wanted(
    b: Builder, node: OnnxNode, args: Arguments, shape: tuple[int, ...]
) -> tuple[list[Any], list[Any], list[int]]:
    """Scales or sizes (the other are None) for ONNX axes."""
    a, rank = node.attrs, len(shape)
    old = node.op == "Upsample" or b.opset < _OPSET_HALF_PIXEL
    scales = number(args[1]) if old and len(args) > 1 else number(args[2]) if len(args) > 2 else a.get("scales")
    sizes = number(args[3]) if not old and len(args) > 3 else None
    sized = sizes is not None and np.size(sizes) > 0
    axes = [int(k) % (rank + 1) for k in a.get("axes", range(rank + 1))]
    values = np.asarray(sizes if sized else scales if scales is not None else ()).reshape(-1)
    if values.size != len(axes):
        raise Stop("scales or sizes must be constants, one per axis", "constant scales", "sizes" if sized else "scales")
    policy = a.get("keep_aspect_ratio_policy", "stretch")
    if sized and policy != "stretch":  # one scale for all axes
        whole = [((1, *shape)[k]) for k in axes]
        ratios = [v / n for v, n in zip(values, whole, strict=True)]
        scale = min(ratios) if policy == "not_larger" else max(ratios)
        values = np.array([math.floor(n * scale + 0.5) for n in whole])
    nothing = [None] * len(axes)
    return (nothing, [int(v) for v in values], axes) if sized else ([float(v) for v in values], nothing, axes)


def _nearest(b: Builder, node: OnnxNode, length: int, out: int, scale: float) -> tuple[int, ...]:
    """The source index of every output index, as the coordinate transformation and rounding of the node want it."""
    a, old = node.attrs, node.op == "Upsample" or b.opset < _OPSET_HALF_PIXEL
    mode = "asymmetric" if old else a.get("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else a.get("nearest_mode", "round_prefer_floor")
    at = np.arange(out, dtype=np.float32)
    ratio = np.float32(scale)
    if mode == "asymmetric":
        where = at / ratio
    elif mode == "align_corners":
        where = at * np.float32(length - 1) / np.float32(out - 1) if out > 1 else np.zeros(1, np.float32)
    elif mode in ("half_pixel", "pytorch_half_pixel"):
        where = (at + np.float32(0.5)) / ratio - np.float32(0.5)
        where = np.zeros(1, np.float32) if mode == "pytorch_half_pixel" and out == 1 else where
    elif mode == "half_pixel_symmetric":
        adjustment = np.float32(out) / (ratio * np.float32(length))
        centre = np.float32(length) / 2
        where = centre * (1 - adjustment) + (at + np.float32(0.5)) / ratio - np.float32(0.5)
    else:
        raise Stop(f"coordinates {mode!r}", "asymmetric or half_pixel", "coordinate_transformation_mode")
    whole = {
        "round_prefer_floor": np.ceil(where - np.float32(0.5)), "round_prefer_ceil": np.floor(where + np.float32(0.5)),
        "floor": np.floor(where), "ceil": np.ceil(where),
    }.get(rounding)  # fmt: skip
    if whole is None:
        raise Stop(f"rounding {rounding!r}", "floor", "nearest_mode")
    return tuple(int(i) for i in np.clip(whole, 0, length - 1))


# ------------------------------------------------------------------------------------- gather and broadcast
def _gather(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x, given = activation(args[0]), number(args[1])
    if given is None:
        raise Stop("its indices are not constants", "constant indices", "indices")
    k = sample_axis(int(node.attrs.get("axis", 0)), x.index.ndim, "gathers along")
    size, indices = x.index.shape[k], np.asarray(given)
    if indices.dtype.kind not in "iu" or indices.size == 0 or indices.min() < -size or indices.max() >= size:
        raise Stop(f"indices outside an axis of {size}", f"integers in {-size}..{size - 1}", "indices")
    result = take(b, node, x, {k: tuple(int(i) % size for i in indices.reshape(-1))})
    shape = x.index.shape
    return arranged(result, result.index.reshape(*shape[:k], *indices.shape, *shape[k + 1 :]))


def expanded(b: Builder, node: OnnxNode, x: Codes | Real, shape: tuple[int, ...]) -> Codes | Real:
    """The tensor with its axes of one element repeated so that it has `shape` (per sample, of the same rank).

    Raises:
        Stop: another axis would have to change.
    """
    if len(shape) != x.index.ndim or any(n not in (1, m) for n, m in zip(x.index.shape, shape, strict=True)):
        raise Stop(f"stretches {batched(x.index.shape)} to {batched(shape)}", "operands of one rank")
    pairs = enumerate(zip(x.index.shape, shape, strict=True))
    return take(b, node, x, {k: (0,) * m for k, (n, m) in pairs if n != m})


def _expand(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x, given = activation(args[0]), number(args[1])
    if given is None:
        raise Stop("the new shape is not a constant", "a fixed shape", "shape")
    rank, wanted = x.index.ndim + 1, [int(d) for d in np.asarray(given).reshape(-1)]
    wanted = [1] * (rank - len(wanted)) + wanted
    if len(wanted) != rank or wanted[0] != 1:
        raise Stop(f"a new batch or rank: {wanted}", "a shape (1, ...) of the same rank", "shape")
    if math.prod(max(1, d) for d in wanted) > ACTIVATION_LIMIT:
        raise Stop(f"shape {wanted} is too large")
    return expanded(b, node, x, tuple(n if d == 1 else d for n, d in zip(x.index.shape, wanted[1:], strict=True)))


def _tile(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x, given = activation(args[0]), number(args[1])
    repeats = [] if given is None else [int(r) for r in np.asarray(given).reshape(-1)]
    if len(repeats) != x.index.ndim + 1 or repeats[0] != 1 or min(repeats) < 1:
        raise Stop(f"repeats {repeats or 'that are no constants'}", "one constant per axis, 1 for the batch", "repeats")
    if math.prod(repeats) * x.index.size > ACTIVATION_LIMIT:
        raise Stop(f"repeats {repeats} make it too large")
    pairs = enumerate(zip(x.index.shape, repeats[1:], strict=True))
    return take(b, node, x, {k: tuple(range(n)) * r for k, (n, r) in pairs if r > 1})


RESIZING: dict[str, Mover] = {
    "Resize": _resize, "Upsample": _resize, "Gather": _gather, "Expand": _expand, "Tile": _tile,
}  # fmt: skip
