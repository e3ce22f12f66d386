"""Rows of the pools and reductions.

torch pads pools evenly and half a kernel at most. Uneven padding is done by padding more evenly, or by its ceil_mode,
and cutting off what is too much: both are plain operations that capture understands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.onnxgraph.module import Part
from xdeploy.model.onnxgraph.rows import Call, Refused, Shape, Step, attributes, operator
from xdeploy.model.onnxgraph.windows import Windows, planar, spatial, windows

_Pool = Callable[[Tensor, Shape, bool], Tensor]  # data, even padding, ceil_mode


def _outputs(size: Shape, w: Windows, ceil: bool) -> Shape:
    """Number of windows per axis; with ceil_mode, none begins in the padding after the data."""
    counts = []
    for n, k, s, d, p, q in zip(size, w.kernel, w.stride, w.dilation, w.before, w.after, strict=True):
        room = n + p + q - (d * (k - 1) + 1)
        if room < 0:
            raise Refused(f"its window of {k} does not fit {n} rows", attribute="kernel_shape")
        count = (-(-room // s) if ceil else room // s) + 1
        counts.append(count - 1 if ceil and (count - 1) * s >= n + p else count)
    return tuple(counts)


def _even(size: Shape, w: Windows, out: Shape) -> tuple[Shape, Shape] | None:
    """An even padding that gives all wanted windows (with ceil_mode), and how many to drop before them."""
    pads, drops = [], []
    for n, k, s, d, p, o in zip(size, w.kernel, w.stride, w.dilation, w.before, out, strict=True):
        for drop in range(k):
            pad = p + drop * s
            room = n + 2 * pad - (d * (k - 1) + 1)
            count = -(-room // s) + 1
            count -= (count - 1) * s >= n + pad
            if pad <= k // 2 and count >= drop + o:
                pads.append(pad)
                drops.append(drop)
                break
        else:
            return None
    return tuple(pads), tuple(drops)


def _pool(call: Call, w: Windows, out: Shape, pool: _Pool, fill: float) -> Step:
    size = spatial(call)
    plan = _even(size, w, out)
    if plan is None:
        widths = _enough(size, w, out)
        inner = Part(lambda part, x: F.pad(x, widths, value=fill))
        return call.step(planar(call, lambda part, x: pool(part.pad(x), (0, 0), False)), pad=inner)
    pads, drops = plan
    counts = _outputs(size, replace(w, before=pads, after=pads), False)
    ceil = any(c < d + o for c, d, o in zip(counts, drops, out, strict=True))
    have = _outputs(size, replace(w, before=pads, after=pads), ceil)
    whole = have == out and not any(drops)
    rows, cols = (slice(d, d + o) for d, o in zip(drops, out, strict=True))

    def run(part: Any, x: Tensor) -> Tensor:
        x = pool(x, pads, ceil)
        return x if whole else part.crop(x)

    parts = {} if whole else {"crop": Part(lambda part, x: x[:, :, rows, cols])}
    return call.step(planar(call, run), **parts)


def _enough(size: Shape, w: Windows, out: Shape) -> tuple[int, ...]:
    """Padding (left, right, top, bottom) that gives exactly the wanted windows."""
    after = [
        max(0, (o - 1) * s + d * (k - 1) + 1 - n - p)
        for n, k, s, d, p, o in zip(size, w.kernel, w.stride, w.dilation, w.before, out, strict=True)
    ]
    return replace(w, after=tuple(after)).widths


@attributes("MaxPool")
def _dense(call: Call) -> None:
    dilations = call.ints("dilations") or ()
    if any(d != 1 for d in dilations):
        call.remark(f"dilations={dilations} have no kernel", "dilations of 1", "dilations")


@operator("MaxPool")
def _max_pool(call: Call) -> Step:
    call.single_output()
    w = windows(call)
    out = _outputs(spatial(call), w, bool(call.attr("ceil_mode", 0)))

    def pool(x: Tensor, pads: Shape, ceil: bool) -> Tensor:
        return F.max_pool2d(x, w.kernel, w.stride, pads, w.dilation, ceil)

    return _pool(call, w, out, pool, float("-inf"))


@operator("AveragePool")
def _average_pool(call: Call) -> Step:
    w = windows(call)
    ceil, include = bool(call.attr("ceil_mode", 0)), bool(call.attr("count_include_pad", 0))
    out = _outputs(spatial(call), w, ceil)
    if w.dilation != (1, 1):
        return _dilated_average(call, w, out, include)
    padded = any(w.before) or any(w.after)
    if include and padded:
        return _counting(call, w, out)

    def pool(x: Tensor, pads: Shape, ceil: bool) -> Tensor:
        return F.avg_pool2d(x, w.kernel, w.stride, pads, ceil, count_include_pad=False)

    if _even(spatial(call), w, out) is None:
        return _wide_average(call, w, out)
    return _pool(call, w, out, pool, 0.0)


def _counting(call: Call, w: Windows, out: Shape) -> Step:
    """Padding counts, but not what ceil_mode adds to it."""
    inner = Part(lambda part, x: F.pad(x, w.widths))
    ceil = out != _outputs(spatial(call), w, False)
    if w.even and not ceil and all(p <= k // 2 for p, k in zip(w.before, w.kernel, strict=True)):
        return call.step(planar(call, lambda part, x: F.avg_pool2d(x, w.kernel, w.stride, w.before)))

    def run(part: Any, x: Tensor) -> Tensor:
        return F.avg_pool2d(part.pad(x), w.kernel, w.stride, (0, 0), ceil, count_include_pad=False)

    return call.step(planar(call, run), pad=inner)


def _wide_average(call: Call, w: Windows, out: Shape) -> Step:
    """Padding of more than half a kernel, which does not count: an average that does, corrected place by place."""
    widths = _enough(spatial(call), w, out)
    ones = F.pad(torch.ones((1, 1, *spatial(call))), widths)
    share = F.avg_pool2d(ones, w.kernel, w.stride)

    def run(part: Any, x: Tensor) -> Tensor:
        return torch.mul(F.avg_pool2d(part.pad(x), w.kernel, w.stride), part.constant)

    if bool((share == 0).any()):
        raise Refused("has windows that hold nothing but padding", "less padding", "pads")
    return call.step(planar(call, run), constant=1.0 / share, pad=Part(lambda part, x: F.pad(x, widths)))


def _dilated_average(call: Call, w: Windows, out: Shape, include: bool) -> Step:
    """A depthwise convolution with equal weights."""
    if (not include and (any(w.before) or any(w.after))) or out != _outputs(spatial(call), w, False):
        raise Refused(f"dilations={w.dilation} with padding that does not count", "dilations of 1", "dilations")
    channels = call.data().shape[0]
    weight = torch.full((channels, 1, *w.kernel), 1.0 / (w.kernel[0] * w.kernel[1]))

    def run(part: Any, x: Tensor) -> Tensor:
        return F.conv2d(part.pad(x), part.weight, None, w.stride, (0, 0), w.dilation, channels)

    return call.step(planar(call, run), weight=weight, pad=Part(lambda part, x: F.pad(x, w.widths)))


@operator("GlobalAveragePool")
def _global_average(call: Call) -> Step:
    spatial(call)
    return call.step(planar(call, lambda part, x: F.adaptive_avg_pool2d(x, (1, 1))))


@operator("GlobalMaxPool")
def _global_max(call: Call) -> Step:
    spatial(call)
    return call.step(planar(call, lambda part, x: F.adaptive_max_pool2d(x, (1, 1))))


# ------------------------------------------------------------------------------------------------- reductions
@operator("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(call: Call) -> Step:
    rank = len(call.data().shape) + 1
    axes = call.ints("axes", 1)
    if not axes and call.attr("noop_with_empty_axes", 0):
        return call.step(lambda part, x: x)
    axes = axes or tuple(range(rank))
    dims = sorted(call.axis(a, reason="reduces the batch axis") for a in axes)
    keep = bool(call.attr("keepdims", 1))
    function = _reductions(call.node.op, dims, [call.data().shape[d - 1] for d in dims])
    if rank == 3 and dims == [2]:  # (C, L) is an image of height 1
        return call.step(lambda part, x: _reshaped(function(x.unsqueeze(2), [2, 3], True), keep))
    return call.step(lambda part, x: function(x, dims, keep))


def _reshaped(x: Tensor, keep: bool) -> Tensor:
    return x.squeeze(2) if keep else x.flatten(1)


def _reductions(op: str, dims: list[int], sizes: list[int]) -> Callable[[Tensor, list[int], bool], Tensor]:
    count = 1
    for size in sizes:
        count *= size
    table: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
        "ReduceMean": lambda x, d, keep: x.mean(d, keep),
        "ReduceSum": lambda x, d, keep: x.mean(d, keep) * float(count),
        "ReduceMax": lambda x, d, keep: x.amax(d, keep),
        "ReduceMin": lambda x, d, keep: x.amin(d, keep),
    }
    return table[op]
