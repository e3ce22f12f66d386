"""One handler per ATen operation: what a node of the exported graph becomes.

The graph is functional (no in-place operations), so `+=` and `relu_` arrive as `add` and `relu`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import fx

from xdeploy.model.views import Shape, size_of
from xdeploy.model.walk import Refused, Value, Walk

Handler = Callable[[Walk, fx.Node, dict[str, Any]], Value | tuple[Value, ...]]
H = TypeVar("H", bound=Handler)
HANDLERS: dict[str, Handler] = {}

SUPPORTED = (
    "Conv1d, Conv2d and their transposed forms (grouped, depthwise, dilated), Linear, BatchNorm, ReLU, ReLU6, clamp, "
    "sigmoid, tanh, hardsigmoid, hardswish, SiLU, GELU, LeakyReLU, PReLU, ELU, softplus, add, sub, mul, scaling and "
    "shifting by constants, max, average and adaptive pooling, mean, sum and max over axes, nearest upsampling, "
    "flatten, reshape, permute, pixel and channel shuffle, cat, stack, split, slices, indexing by constants, padding, "
    "Dropout, Identity, Softmax"
)
_NORM = "train with BatchNorm: in evaluation mode it folds into the weights"
_SOFTMAX = "leave it out, or use softmax: the predicted class is the same"
_DROPOUT = "pass training=self.training to F.dropout, or use nn.Dropout"
_STATISTICS = "call model.eval() before torch.export, and keep track_running_stats=True"
_NEAREST = "mode='nearest'"
_FIXED = "multiply with a constant tensor (nn.Linear, nn.Conv2d)"
HINTS = {
    "log_softmax": _SOFTMAX, "_log_softmax": _SOFTMAX,
    "native_dropout": _DROPOUT, "dropout": _DROPOUT,
    "batch_norm": _STATISTICS, "_native_batch_norm_legit": _STATISTICS,
    "conv3d": "use Conv2d", "conv_transpose3d": "use ConvTranspose2d", "avg_pool3d": "use AvgPool2d",
    "max_pool3d": "use MaxPool2d",
    "layer_norm": _NORM, "native_layer_norm": _NORM, "group_norm": _NORM, "native_group_norm": _NORM,
    "instance_norm": _NORM, "rms_norm": _NORM, "linalg_vector_norm": _NORM, "var": _NORM, "std": _NORM,
    "upsample_bilinear2d": _NEAREST, "upsample_bicubic2d": _NEAREST, "upsample_linear1d": _NEAREST,
    "_upsample_bilinear2d_aa": _NEAREST,
    "bmm": _FIXED, "baddbmm": _FIXED, "einsum": "write it as nn.Linear or nn.Conv2d",
    "scaled_dot_product_attention": "a network of convolutions; attention has no integer form here",
    "lstm": "a temporal convolution (Conv1d)", "gru": "a temporal convolution (Conv1d)",
    "exp": "sigmoid, ELU or softplus", "erf": "GELU", "log": "softplus", "sqrt": "ReLU", "rsqrt": _NORM,
    "sin": "tanh", "cos": "tanh", "pow": "x * x",
    "maximum": "cat and max pooling, or a + relu(b - a)", "minimum": "a - relu(a - b)",
    "argmax": "leave it out: the device returns the scores", "topk": "leave it out: the device returns the scores",
    "sort": "leave it out: the device returns the scores", "embedding": "a Linear layer on one-hot inputs",
}  # fmt: skip


def handle(walk: Walk, node: fx.Node) -> None:
    """Convert one node; an obstacle is noted in the walk, never raised."""
    try:
        if node.target is operator.getitem:
            walk.values[node] = _getitem(walk, node)
            return
        handler = HANDLERS.get(str(node.target))
        if handler is None:
            short = str(node.target).removeprefix("aten.").split(".")[0]
            raise Refused("not supported", HINTS.get(short))
        if not isinstance(node.meta.get("val"), list | tuple):
            walk.shape_of(node)
        made = handler(walk, node, arguments(node))
        # handlers may answer in another shape of the same size, (C, 1, L) for (C, L)
        walk.values[node] = made if isinstance(made, tuple) else made.reshaped(_expected(walk, node))
    except Refused as refused:
        walk.refuse(node, refused)


def _expected(walk: Walk, node: fx.Node) -> Shape:
    """Per-sample shape of a node, or of its first result."""
    val = node.meta["val"]
    return tuple(int(d) for d in val[0].shape[1:]) if isinstance(val, list | tuple) else walk.shape_of(node)


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of a node by the names of the operation's schema, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((a.name for a in schema), node.args, strict=False))
    return {a.name: a.default_value for a in schema if a.has_default_value()} | given | dict(node.kwargs)


def register(*names: str) -> Callable[[H], H]:
    """Decorator that enters a handler for ATen operations, given as `name.overload`."""

    def enter(handler: H) -> H:
        HANDLERS.update(dict.fromkeys([n if n.startswith("xdeploy.") else f"aten.{n}" for n in names], handler))
        return handler

    return enter


def pair(value: Any, axes: int = 2, unit: int = 1) -> tuple[int, int]:
    """An int, [a] or [a, b] as (a, b); with one spatial axis as (unit, a)."""
    values = [value] if isinstance(value, int) else list(value)
    if max(axes, len(values)) > 2:
        raise Refused(f"works on {max(axes, len(values))} spatial axes; 1 and 2 are supported", HINTS["conv3d"])
    return (unit, int(values[-1])) if axes == 1 else (int(values[0]), int(values[-1]))


def _getitem(walk: Walk, node: fx.Node) -> Value:
    source, index = node.args
    assert isinstance(source, fx.Node)
    found = walk.values.get(source)
    if isinstance(found, Value) and index == 0:
        return found
    if isinstance(found, tuple) and isinstance(index, int) and index < len(found):
        return found[index]
    raise Refused("this second result is not supported", node=source)


# ------------------------------------------------------------------------------------- convolution and linear
@register("conv2d.default", "conv1d.default")
def _conv2d(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    top, left = pair(a["padding"], spatial_axes(node), unit=0)
    return _conv(walk, node, a, (top, left, top, left))


@register("conv2d.padding", "conv1d.padding")
def _conv2d_named_padding(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["padding"] != "same":
        return _conv(walk, node, a, (0, 0, 0, 0))
    weight = walk.constant(a["weight"], "weight")
    assert weight is not None
    kernel = pair(weight.shape[2:], spatial_axes(node))
    total = [d * (k - 1) for d, k in zip(pair(a["dilation"], spatial_axes(node)), kernel, strict=True)]
    before = [t // 2 for t in total]
    return _conv(walk, node, a, (*before, *(t - b for t, b in zip(total, before, strict=True))))


def spatial_axes(node: fx.Node) -> int:
    """Number of spatial axes of a convolution or pooling, told by the rank of its result."""
    val = node.meta["val"]
    return len((val[0] if isinstance(val, list | tuple) else val).shape) - 2


def _conv(walk: Walk, node: fx.Node, a: dict[str, Any], pads: Shape) -> Value:
    name, shape = walk.image(a["input"])
    weight, bias = walk.constant(a["weight"], "weight"), walk.constant(a["bias"], "bias")
    assert weight is not None
    axes = spatial_axes(node)
    attrs = {
        "stride": pair(a["stride"], axes), "pads": tuple(int(p) for p in pads), "dilation": pair(a["dilation"], axes),
        "groups": int(a["groups"]),
    }  # fmt: skip
    weight = weight if axes == 2 else weight[:, :, None]
    return walk.emit(node, "conv2d", (name,), conv_shape(shape, weight, attrs), attrs, (weight, bias))


def conv_shape(shape: Shape, weight: NDArray[Any], attrs: Mapping[str, Any]) -> Shape:
    """Output shape of a convolution over (C, H, W)."""
    top, left, bottom, right = attrs["pads"]
    sizes = (shape[1] + top + bottom, shape[2] + left + right)
    rows = zip(sizes, weight.shape[2:], attrs["stride"], attrs["dilation"], strict=True)
    return (len(weight), *((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in rows))


@register("linear.default")
def _linear(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return _dense(walk, node, a["input"], walk.constant(a["weight"], "weight"), a["bias"])


@register("addmm.default")
def _addmm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise Refused(f"beta={a['beta']}, alpha={a['alpha']} are not supported; both must be 1")
    weight = walk.constant(a["mat2"], "weight")
    assert weight is not None
    return _dense(walk, node, a["mat1"], weight.T, a["self"])


@register("mm.default", "matmul.default")
def _matmul(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    left, right = node.args[:2]
    if isinstance(left, fx.Node) and walk.is_constant(left):
        raise Refused("a product with the constant on the left is not supported", "write it as nn.Linear")
    weight = walk.constant(right, "right operand")
    assert weight is not None
    if weight.ndim != 2:
        raise Refused(f"a product with a constant of shape {weight.shape} is not supported", "write it as nn.Linear")
    return _dense(walk, node, left, weight.T, None)


def _dense(walk: Walk, node: fx.Node, x: Any, weight: Any, bias: Any) -> Value:
    """A product over the last axis: a linear layer on (F,), a 1x1 convolution where there are other axes."""
    value, offset = walk.value(x), walk.constant(bias, "bias")
    if offset is not None:
        offset = np.broadcast_to(offset.reshape(-1), (len(weight),))
    shape, last = value.shape, len(value.shape) - 1
    if size_of(shape) != shape[last]:
        how = walk.arrangement([value], (last,), image=True)
        name, image = walk.arranged(value, how)
        attrs = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
        out = (len(weight), *image[1:])
        made = walk.emit(node, "conv2d", (name,), out, attrs, (weight[:, :, None, None], offset))
        return walk.restored(made, how, (*shape[:last], len(weight)))
    if not value.view.is_flat:
        # the columns are permuted instead of the data
        columns = np.empty_like(weight)
        columns[:, value.view.index()] = weight
        weight, value = columns, walk.seen(value.layer, value.node)
    name = walk.settle(value.reshaped((weight.shape[1],)), (weight.shape[1],))
    return walk.emit(node, "linear", (name,), (len(weight),), {}, (weight, offset))


@register("_native_batch_norm_legit_no_training.default", "batch_norm.default")
def _batch_norm(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a.get("training", False):
        raise Refused("batch statistics (training mode) are not supported", HINTS["batch_norm"])
    mean, var = walk.constant(a["running_mean"], "mean"), walk.constant(a["running_var"], "variance")
    weight, bias = walk.constant(a["weight"], "weight"), walk.constant(a["bias"], "bias")
    if mean is None or var is None:
        raise Refused("it has no running statistics", HINTS["batch_norm"])
    gain = (1.0 if weight is None else weight) / np.sqrt(var + a["eps"])
    shift = (0.0 if bias is None else bias) - mean * gain
    value = walk.value(a["input"])
    how = walk.arrangement([value], (0,))
    name, _ = walk.arranged(value, how)
    return walk.restored(walk.affine(node, name, gain, shift), how, value.shape)


# -------------------------------------------------------------------------------------------- no layer of their own
@register(
    "clone.default", "detach.default", "alias.default", "contiguous.default", "lift_fresh_copy.default",
    "_to_copy.default", "to.dtype", "lift_fresh.default",
)  # fmt: skip
def _same(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    return walk.value(node.args[0])


@register("dropout.default", "feature_dropout.default", "alpha_dropout.default")
def _dropout(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    if a["train"]:
        raise Refused("dropout in training mode is not supported", HINTS["dropout"])
    return walk.value(a["input"])


@register("xdeploy.fallback.default")
def _fallback(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """A part that stays in float, as an ONNX model; front ends enter it where the recipe allows it by name."""
    tensor, model, ops = (*a.values(),)[:3]
    value = walk.value(tensor)
    if len(value.shape) not in (1, 3):
        raise Refused(f"reads {value.shape} per sample; a part in float works on (C, H, W) or (F,)")
    name, out = walk.settle(value, value.shape), walk.shape_of(node)
    if len(out) not in (1, 3):
        raise Refused(f"gives {out} per sample; a part in float works on (C, H, W) or (F,)")
    return walk.emit(node, "fallback", (name,), out, {"onnx": str(model), "ops": tuple(str(ops).split(","))})
