"""Pooling in 1-D and 2-D, reductions, softmax."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments
from xdeploy.lower.dialect import EXACT
from xdeploy.lower.operands import Mover, activation, number, real, sample_axis, select
from xdeploy.lower.values import Codes, Index, Pending, Real, Stop, Value, arranged
from xdeploy.lower.views import as_image, batched, laid, plain
from xdeploy.lower.windows import Window, image_size, whole, window
from xdeploy.onnxfile import OnnxNode

_OPSET_SOFTMAX = 13  # before it, Softmax ran over all axes from `axis` on


def _kernel(node: OnnxNode) -> tuple[int, ...]:
    return tuple(int(k) for k in node.attrs["kernel_shape"])


def _like(y: Codes | Real, x: Codes | Real) -> Codes | Real:
    """The pooled image with the rank of what was pooled."""
    return y if x.index.ndim == 3 else arranged(y, y.index[:, 0, :])


def _pool(b: Builder, node: OnnxNode, x: Codes | Real, op: str, shape: Window) -> Codes | Real:
    image = as_image(x)
    if shape.dilation != (1, 1):
        raise Stop(f"pools with dilations {shape.dilation}", "dilations of 1", "dilations")
    return _like(select(b, node, image, op, dict(shape.moving), shape.output(*image_size(image.index.shape))), x)


def _max_pool(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Stop("its indices are asked for", "MaxPool with one output", "Indices")
    size = image_size(as_image(x).index.shape)[1]
    return _pool(b, node, x, "max_pool2d", window(node, _kernel(node), size, partial=True))


def _global_max(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = activation(args[0])
    return _pool(b, node, x, "max_pool2d", whole(image_size(as_image(x).index.shape)[1]))


def _avg_pool(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    image = as_image(x)
    assert isinstance(image, Real)
    size, include = image_size(image.index.shape)[1], bool(node.attrs.get("count_include_pad", 0))
    shape = window(node, _kernel(node), size, partial=not include)
    if shape.dilation != (1, 1):
        raise Stop(f"pools with dilations {shape.dilation}", "dilations of 1", "dilations")
    return _like(_average(node, image, shape, include), x)


def _average(node: OnnxNode, x: Real, shape: Window, include_pad: bool) -> Real:
    attrs = {**shape.moving, "include_pad": include_pad, "exact": bool(node.attrs.get(EXACT, 0))}
    return Real(Pending("avg_pool2d", node.origin, (x,), attrs), plain(shape.output(*image_size(x.index.shape))))


def _global_avg(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    image = as_image(x)
    assert isinstance(image, Real)
    return _like(_average(node, image, whole(image_size(image.index.shape)[1]), False), x)


# ---------------------------------------------------------------------------------------------- reductions
def _axes(node: OnnxNode, args: Arguments, rank: int) -> tuple[int, ...]:
    """Sample axes to reduce, sorted; () for none."""
    given = number(args[1]) if len(args) > 1 and args[1] is not None else node.attrs.get("axes")
    if len(args) > 1 and args[1] is not None and given is None:
        raise Stop("its axes are not constants", "constant axes", "axes")
    if given is None or np.size(given) == 0:
        if node.attrs.get("noop_with_empty_axes"):
            return ()
        raise Stop("reduces all axes, the batch too", "the sample's axes by number", "axes")
    return tuple(sorted({sample_axis(int(a), rank, "reduces") for a in np.asarray(given).reshape(-1)}))


def _reduction(run: Callable[[Builder, OnnxNode, Real, Window], Codes | Real]) -> Mover:
    """Over any axes of the sample: they become the window of a pooling over everything."""

    def handler(b: Builder, node: OnnxNode, args: Arguments) -> Value:
        x = real(args[0])
        axes = _axes(node, args, x.index.ndim)
        if not axes:
            return x
        kept = tuple(k for k in range(x.index.ndim) if k not in axes)
        shape = tuple(1 if k in axes else n for k, n in enumerate(x.index.shape))
        if not node.attrs.get("keepdims", 1):
            shape = tuple(x.index.shape[k] for k in kept)
        if not shape:
            raise Stop(f"reduces {batched(x.index.shape)} to one number per sample without an axis", "keepdims = 1")
        image = _reduced_image(x, kept, axes)
        pooled = run(b, node, replace(x, index=image), whole((image.shape[1], image.shape[2])))
        return arranged(pooled, pooled.index.reshape(shape))

    return handler


def _reduced_image(x: Real, kept: tuple[int, ...], axes: tuple[int, ...]) -> Index:
    """The operand as (K, R, 1) or (K, H, W): all kept axes, then those to reduce."""
    turned = x.index.transpose(*kept, *axes)
    sizes = [x.index.shape[k] for k in axes]
    rows, cols = (sizes[0], sizes[1]) if len(sizes) == 2 else (int(np.prod(sizes)), 1)
    return turned.reshape(-1, rows, cols)


def _mean(b: Builder, node: OnnxNode, x: Real, shape: Window) -> Real:
    return _average(node, x, shape, False)


def _sum(b: Builder, node: OnnxNode, x: Real, shape: Window) -> Real:
    mean = _average(node, x, shape, False)
    assert isinstance(mean.source, Pending)
    count = float(shape.kernel[0] * shape.kernel[1])
    return replace(mean, source=replace(mean.source, attrs={**mean.source.attrs, "gain": count}))


def _most(b: Builder, node: OnnxNode, x: Real, shape: Window) -> Codes | Real:
    return _pool(b, node, x, "max_pool2d", shape)


def _least(b: Builder, node: OnnxNode, x: Real, shape: Window) -> Codes | Real:
    return _pool(b, node, x, "min_pool2d", shape)


# ------------------------------------------------------------------------------------------------- softmax
def _softmax(b: Builder, node: OnnxNode, args: Arguments) -> Value:
    x = real(args[0])
    index, rank = x.index, x.index.ndim
    old = b.opset < _OPSET_SOFTMAX
    axis = sample_axis(int(node.attrs.get("axis", 1 if old else -1)), rank, "softmax over")
    if old and axis < rank - 1:  # all axes from there on count as one
        flat = index.reshape(*index.shape[:axis], -1)
        y = _softmax_last(node, replace(x, index=flat), axis)
        return replace(y, index=y.index.reshape(index.shape))
    return _softmax_last(node, x, axis)


def _softmax_last(node: OnnxNode, x: Real, axis: int) -> Real:
    """The axis moved to the end, as the integer softmax wants it."""
    order = (*(k for k in range(x.index.ndim) if k != axis), axis)
    turned = replace(x, index=x.index.transpose(order))
    return Real(Pending("softmax", node.origin, (turned,)), laid(x.index.shape, order))


POOLING: dict[str, Mover] = {
    "MaxPool": _max_pool, "GlobalMaxPool": _global_max, "AveragePool": _avg_pool, "GlobalAveragePool": _global_avg,
    "ReduceMean": _reduction(_mean), "ReduceSum": _reduction(_sum), "ReduceMax": _reduction(_most),
    "ReduceMin": _reduction(_least), "Softmax": _softmax,
}  # fmt: skip
