"""Rows of the operators that hold weights: convolutions, products, batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.onnxgraph.module import Part
from xdeploy.model.onnxgraph.rows import Call, Data, Refused, Shape, Step, attributes, operator
from xdeploy.model.onnxgraph.windows import explicit_pads, halves, padding, planar, spatial, two, windows


def _kernel(call: Call) -> Tensor:
    """The weight as (O, I, kh, kw), checked against the data's channels."""
    weight = call.weight(1)
    shape = call.data().shape
    spatial(call)
    if weight.ndim != len(shape) + 1 or 0 in weight.shape:
        raise Refused(f"its weight of shape {tuple(weight.shape)} does not fit data of {shape} per sample")
    return weight if len(shape) == 3 else weight.unsqueeze(2)


def _bias(call: Call, index: int, count: int) -> Tensor | None:
    bias = call.optional(index, "bias")
    if bias is not None and tuple(bias.shape) != (count,):
        raise Refused(f"its bias has shape {tuple(bias.shape)}; ({count},) fits its weight")
    return bias


def _tensors(weight: Tensor, bias: Tensor | None) -> dict[str, Any]:
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _get_bias(part: Any) -> Tensor | None:
    return getattr(part, "bias", None)


@operator("Conv")
def _conv(call: Call) -> Step:
    weight = _kernel(call)
    w = windows(call, tuple(weight.shape[2:]))
    groups = int(call.attr("group", 1))
    stride, dilation = w.stride, w.dilation
    inner = {} if w.even else {"pad": padding(w.widths)}
    pads = w.before if w.even else (0, 0)

    def run(part: Any, x: Tensor) -> Tensor:
        x = part.pad(x) if inner else x
        return F.conv2d(x, part.weight, _get_bias(part), stride, pads, dilation, groups)

    return call.step(planar(call, run), **_tensors(weight, _bias(call, 2, len(weight))), **inner)


@operator("ConvTranspose")
def _conv_transpose(call: Call) -> Step:
    weight, groups = _kernel(call), int(call.attr("group", 1))
    stride, dilation = two(call, "strides", 1), two(call, "dilations", 1)
    full = tuple(
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(spatial(call), stride, weight.shape[2:], dilation, strict=True)
    )
    before, after = _transposed_pads(call, full, stride)
    if before == after:
        plain, crop = before, None
    else:
        plain, crop = (0, 0), (-before[1], -after[1], -before[0], -after[0])

    def run(part: Any, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(x, part.weight, _get_bias(part), stride, plain, (0, 0), groups, dilation)
        return x if crop is None else part.crop(x)

    bias = _bias(call, 2, weight.shape[1] * groups)
    if crop is not None and min(crop) < 0 < max(crop) and bias is not None and bool(bias.any()):
        raise Refused("its output_padding adds rows that hold the bias alone", "pads without output_padding")
    inner = {} if crop is None else {"crop": _cropping(crop)}
    return call.step(planar(call, run), **_tensors(weight, bias), **inner)


def _transposed_pads(call: Call, full: Shape, stride: Shape) -> tuple[Shape, Shape]:
    """Rows to take away before and after; negative after: rows of output_padding beyond the products."""
    flat = len(call.data().shape) == 2
    extra = call.ints("output_padding") or (0,) * (1 if flat else 2)
    extra = (0, *extra) if flat else extra
    wanted = call.ints("output_shape")
    auto = call.attr("auto_pad", "NOTSET")
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(n * s for n, s in zip(spatial(call), stride, strict=True))[flat:]
    if wanted is None:
        before, after = explicit_pads(call, flat) if auto != "VALID" else ((0, 0), (0, 0))
        return before, tuple(a - e for a, e in zip(after, extra, strict=True))
    wanted = (1, *wanted[-1:]) if flat else wanted[-2:]
    total = tuple(f + e - w for f, e, w in zip(full, extra, wanted, strict=True))
    # here the standard gives the odd row to the end unless SAME_UPPER is asked for
    large, small = halves(total, "SAME_LOWER")
    before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    return before, tuple(a - e for a, e in zip(after, extra, strict=True))


def _cropping(widths: tuple[int, ...]) -> Part:
    """Cut rows and columns off, and pad with zeros where output_padding asks for more."""
    left, right, top, bottom = widths
    more = tuple(max(0, w) for w in widths)

    def run(part: Any, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = x[:, :, max(0, -top) : height + min(0, bottom), max(0, -left) : width + min(0, right)]
        return F.pad(x, more) if any(more) else x

    return Part(run)


@attributes("Gemm")
def _keeps_samples(call: Call) -> None:
    if call.attr("transA", 0):
        raise Refused("transA=1 mixes the samples of a batch", "transA=0", "transA")


@operator("Gemm")
def _gemm(call: Call) -> Step:
    weight = call.weight(1) * float(call.attr("alpha", 1.0))
    weight = weight if call.attr("transB", 0) else weight.T
    bias = call.optional(2, "bias")
    if bias is not None:
        if bias.ndim == 2 and bias.shape[0] != 1:
            raise Refused(f"its bias of shape {tuple(bias.shape)} differs from sample to sample", "a bias of (O,)")
        bias = (bias * float(call.attr("beta", 1.0))).expand(1, len(weight)).reshape(-1)
    if len(call.data().shape) != 1:
        raise Refused(f"reads {call.data().shape} per sample; (F,) is supported", "Flatten before it")
    return call.step(_linear, **_tensors(weight.contiguous(), bias))


@operator("MatMul")
def _matmul(call: Call) -> Step:
    if not isinstance(call.operands[0], Data):
        raise Refused("multiplies a constant by the data", "the data on the left, the constant on the right")
    if call.has(1) and isinstance(call.operands[1], Data):
        raise Refused("multiplies two tensors that are computed from the input (attention)", "constant weights")
    weight = call.weight(1)
    if weight.ndim != 2 or not call.data().shape:
        raise Refused(f"its constant has shape {tuple(weight.shape)}; (I, O) is supported")
    bias = call.optional(2, "bias")
    bias = None if bias is None else bias.reshape(-1)
    return call.step(_linear, **_tensors(weight.T.contiguous(), bias))


def _linear(part: Any, x: Tensor) -> Tensor:
    return F.linear(x, part.weight, _get_bias(part))


@attributes("BatchNormalization")
def _evaluates(call: Call) -> None:
    if call.attr("training_mode", 0):
        raise Refused("normalises by the batch (training_mode=1)", "export in evaluation mode", "training_mode")


@operator("BatchNormalization")
def _batch_norm(call: Call) -> Step:
    call.single_output()
    weight, bias, mean, var = (call.weight(k, what) for k, what in enumerate(("scale", "bias", "mean", "variance"), 1))
    eps = float(call.attr("epsilon", 1e-5))
    if not call.data().shape or any(tuple(t.shape) != call.data().shape[:1] for t in (weight, bias, mean, var)):
        raise Refused(f"its {len(weight)} channels do not fit data of {call.data().shape} per sample")
    if not np.isfinite(eps) or bool((var + eps <= 0).any()):
        raise Refused("its variance is not positive", attribute="epsilon")

    def run(part: Any, x: Tensor) -> Tensor:
        return F.batch_norm(x, part.mean, part.var, part.weight, part.bias, False, 0.0, eps)

    return call.step(run, weight=weight, bias=bias, mean=mean, var=var)
