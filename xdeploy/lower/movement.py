"""ONNX operators that arrange, cut or join tensors. Most of them only rearrange the index and move no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from xdeploy.lower.builder import Builder, image_index
from xdeploy.lower.constants import Arguments, axes_of
from xdeploy.lower.emit import place_concat, place_max_pool, place_pad, place_slice
from xdeploy.lower.values import Codes, Index, Pending, QConstant, Real, Stop, Value, arranged
from xdeploy.onnxfile import ACTIVATION_LIMIT, Constant, OnnxNode

_PLACE: dict[str, Callable[[Builder, Pending, Codes], str]] = {
    "max_pool2d": place_max_pool, "slice": place_slice, "pad": place_pad,
}  # fmt: skip


def activation(value: Value | None) -> Codes | Real:
    """The operand as an activation.

    Raises:
        Stop: it is a constant or missing.
    """
    if isinstance(value, Codes | Real):
        return value
    raise Stop("wants an activation, got a constant" if value is not None else "an operand is missing")


@lru_cache(maxsize=8)
def plain(shape: tuple[int, ...]) -> Index:
    """Index of a fresh tensor of that ONNX shape: channels last for images, as it is otherwise. Read only."""
    size = int(np.prod([float(d) for d in shape]))
    if size > ACTIVATION_LIMIT:
        raise Stop(f"an activation of shape {shape} is too large")
    index = image_index(shape) if len(shape) == 3 else np.arange(size, dtype=np.int64).reshape(shape)
    index.setflags(write=False)
    return index


def select(
    b: Builder, node: OnnxNode, x: Codes | Real, op: str, attrs: dict[str, Any], shape: tuple[int, ...]
) -> Value:
    """max_pool2d, slice or pad: at once on codes, as a pending operation on floats."""
    index = plain(shape)
    if isinstance(x, Codes):
        pending = Pending(op, node.origin, (), attrs)
        return replace(x, tensor=_PLACE[op](b, pending, x), index=index)
    return Real(Pending(op, node.origin, (x,), attrs), index)


# --------------------------------------------------------------------------------------------- arrangement
def _rearranged(move: Callable[[OnnxNode, Index, list[Any]], Index]) -> Callable[[Builder, OnnxNode, Arguments], Value]:
    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        constants = [a.array if isinstance(a, Constant) else None for a in args]
        first = args[0]
        try:
            if isinstance(first, QConstant):
                return _constant_moved(node, first, move, constants)
            x = activation(first)
            index = move(node, x.index[None], constants)
        except (ValueError, IndexError, TypeError) as error:
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
        raise Stop("the new shape is not a constant", "a fixed shape with a free batch axis")
    target = [int(d) for d in given.reshape(-1)]
    if not node.attrs.get("allowzero"):
        target = [index.shape[k] if d == 0 else d for k, d in enumerate(target)]
    return index.reshape(target)


def _flatten(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    axis = int(node.attrs.get("axis", 1))
    if axis % index.ndim != 1:
        raise Stop(f"Flatten at axis {axis}", "Flatten at axis 1")
    return index.reshape(1, -1)


def _transpose(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    perm = tuple(node.attrs.get("perm", range(index.ndim)[::-1]))
    if perm[0] != 0:
        raise Stop("the batch axis is moved", "keep the batch first")
    return index.transpose(perm)


def _squeeze(node: OnnxNode, index: Index, xs: list[Any]) -> Index:
    axes = axes_of(node, xs)
    if axes is None:
        axes = tuple(k for k in range(1, index.ndim) if index.shape[k] == 1)
    if any(a % index.ndim == 0 for a in axes):
        raise Stop("the batch axis is squeezed", "keep the batch first")
    return index.squeeze(axes)


# ------------------------------------------------------------------------------------------- cut and join
def _slice(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    xs = [a.array if isinstance(a, Constant) else None for a in args]
    read = [
        np.asarray(xs[k] if len(xs) > k and xs[k] is not None else node.attrs.get(name, ())).reshape(-1)
        for k, name in ((1, "starts"), (2, "ends"), (4, "steps"))
    ]
    starts, ends, steps = ([int(v) for v in part] for part in read)
    axes, shape = axes_of(node, xs, 3), x.index.shape
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = steps or [1] * len(starts)
    if not starts or not len(starts) == len(ends) == len(axes) == len(steps):
        raise Stop("starts, ends, axes and steps must be constants of one length")
    cuts = [(0, n, 1) for n in shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        k = axis % (len(shape) + 1) - 1
        if k < 0 or step < 1:
            raise Stop(
                "only sample axes can be sliced, with steps of at least 1", "forward slices without the batch axis"
            )
        cuts[k] = slice(start, end, step).indices(shape[k])
    sizes = tuple(len(range(*c)) for c in cuts)
    if 0 in sizes:
        raise Stop(f"the slice of shape {shape} is empty")
    attrs = dict(zip(("starts", "stops", "steps"), (tuple(part) for part in zip(*cuts, strict=True)), strict=True))
    return select(b, node, x, "slice", attrs, sizes)


def _pad(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    xs = [a.array if isinstance(a, Constant) else None for a in args]
    if node.attrs.get("mode", "constant") != "constant":
        raise Stop(f"padding mode {node.attrs['mode']!r}", "padding with a constant")
    given = xs[1] if len(xs) > 1 else node.attrs.get("pads")
    axes, rank = axes_of(node, xs, 3) if len(xs) > 3 else None, x.index.ndim
    if given is None or rank != 3:
        raise Stop("pads must be a constant and the tensor an image")
    flat, axes = [int(v) for v in np.asarray(given).reshape(-1)], axes or tuple(range(4))
    if len(flat) != 2 * len(axes):
        raise Stop(f"{len(flat)} pads for {len(axes)} axes")
    widths = [(0, 0)] * 4
    for k, axis in enumerate(axes):
        widths[axis % 4] = (flat[k], flat[k + len(axes)])
    if widths[0] != (0, 0) or min(min(w) for w in widths) < 0:
        raise Stop("negative pads, or pads of the batch axis", "Slice for cropping")
    channels, (top, bottom), (left, right) = widths[1:]
    attrs = {"pads": (top, left, bottom, right), "channels": channels, "value": _pad_value(node, x, xs)}
    shape = tuple(n + sum(w) for n, w in zip(x.index.shape, widths[1:], strict=True))
    return select(b, node, x, "pad", attrs, shape)


def _pad_value(node: OnnxNode, x: Codes | Real, xs: list[Any]) -> int | None:
    """The pad's code; None stands for real zero."""
    given = xs[2] if len(xs) > 2 else None
    value = (
        float(np.asarray(given).reshape(-1)[0])
        if given is not None and np.size(given)
        else node.attrs.get("value", 0.0)
    )
    if isinstance(x, Codes):
        return int(value) - 128 * x.unsigned
    if value != 0.0:
        raise Stop(f"padding with {value:g}", "padding with zero")
    return None


def _concat(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    parts = [activation(a) for a in args]
    shapes, rank = [p.index.shape for p in parts], parts[0].index.ndim
    axis = int(node.attrs["axis"]) % (rank + 1)
    if axis != 1 or rank not in (1, 3) or any(s[1:] != shapes[0][1:] for s in shapes):
        raise Stop(f"joins shapes {shapes} along axis {axis}", "Concat along channels (axis 1)")
    total = (sum(s[0] for s in shapes), *shapes[0][1:])
    index = plain(total)
    if rank == 1:  # stored as the parts are stored, one after the other
        starts = np.cumsum([0, *(s[0] for s in shapes[:-1])])
        index = np.concatenate([p.index + s for p, s in zip(parts, starts, strict=True)])
    codes = [p for p in parts if isinstance(p, Codes)]
    if not codes:
        reals = tuple(p for p in parts if isinstance(p, Real))
        return Real(Pending("concat", node.origin, reals), index)
    if len(codes) < len(parts) or any((c.q, c.unsigned) != (codes[0].q, codes[0].unsigned) for c in codes):
        raise Stop("joins codes of different scales", "DequantizeLinear before, QuantizeLinear after it")
    tensor = place_concat(b, Pending("concat", node.origin, ()), codes, codes[0].q)
    return replace(codes[0], tensor=tensor, index=index)


MOVEMENT: dict[str, Callable[[Builder, OnnxNode, Arguments], Value]] = {
    "Reshape": _rearranged(_reshape), "Flatten": _rearranged(_flatten), "Transpose": _rearranged(_transpose),
    "Squeeze": _rearranged(_squeeze),
    "Identity": _rearranged(lambda n, i, x: i), "Dropout": _rearranged(lambda n, i, x: i),
    "Unsqueeze": _rearranged(lambda n, i, x: np.expand_dims(i, axes_of(n, x) or ())),
    "Slice": _slice, "Pad": _pad, "Concat": _concat,
}  # fmt: skip
