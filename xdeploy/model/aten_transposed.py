"""Transposed convolution as what the network has: one convolution, a rearrangement (depth to space), a slice.

Output o of one axis collects w[t] * x[i] with o = i * stride + t * dilation. Written o = q * stride + r, phase r is an
ordinary convolution over q with the taps t whose t * dilation leaves the remainder r; all phases together are one
convolution with stride^2 times the channels, whose channels are then dealt out over the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from xdeploy.model.aten import HANDLERS, conv_shape, pair, register
from xdeploy.model.views import Shape
from xdeploy.model.walk import Float64, Refused, Value, Walk


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: `taps[r][j]` is the tap that element j of phase r's kernel takes, -1 for none."""

    stride: int
    dilation: int  # of the convolution that is left
    taps: tuple[tuple[int, ...], ...]
    pads: tuple[int, int]
    start: int  # first output to keep after the phases are dealt out


def axis(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
    """Plan one axis of `size` inputs and `out` outputs."""
    if stride == 1:
        taps: tuple[tuple[int, ...], ...] = (tuple(range(kernel - 1, -1, -1)),)
        reach = dilation * (kernel - 1)
    else:
        reach = dilation * (kernel - 1) // stride
        where = {divmod(t * dilation, stride)[::-1]: t for t in range(kernel)}  # (phase, steps back) -> tap
        taps = tuple(tuple(where.get((r, reach - j), -1) for j in range(reach + 1)) for r in range(stride))
    # phases q in [first, last) hold the outputs from `padding` on
    first = min(padding // stride, reach)
    last = -(-(padding + out) // stride)
    before = reach - first
    after = max(0, last - first + reach - size - before)
    return Axis(stride, dilation if stride == 1 else 1, taps, (before, after), padding - first * stride)


@register("conv_transpose1d.default", "conv_transpose2d.input")
def _conv_transpose(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    name, shape = walk.image(a["input"])
    weight, bias = walk.constant(a["weight"], "weight"), walk.constant(a["bias"], "bias")
    assert weight is not None
    rank = weight.ndim - 2
    weight = weight if rank == 2 else weight[:, :, None]
    out = walk.shape_of(node)
    sizes = (out[0], *pair(out[1:], rank))
    columns = (
        shape[1:], sizes[1:], weight.shape[2:], pair(a["stride"], rank), pair(a["padding"], rank, unit=0),
        pair(a["dilation"], rank),
    )  # fmt: skip
    rows, cols = (axis(*(int(c[i]) for c in columns)) for i in (0, 1))
    groups = int(a["groups"])
    phases = rows.stride * cols.stride
    attrs = {
        "stride": (1, 1), "pads": (rows.pads[0], cols.pads[0], rows.pads[1], cols.pads[1]),
        "dilation": (rows.dilation, cols.dilation), "groups": groups,
    }  # fmt: skip
    plain = phase_weights(weight, groups, rows, cols)
    biases = None if bias is None else np.repeat(bias, phases)
    made = walk.emit(node, "conv2d", (name,), conv_shape(shape, plain, attrs), attrs, (plain, biases))
    return _cut(walk, node, _dealt(walk, node, made, sizes[0], rows, cols), (0, rows.start, cols.start), sizes)


def phase_weights(weight: Float64, groups: int, rows: Axis, cols: Axis) -> Float64:
    """Weights (I, O / groups, kh, kw) of the transposed convolution as (O * phases, I / groups, h, w)."""
    inputs, per = weight.shape[:2]
    grouped = weight.reshape(groups, inputs // groups, per, *weight.shape[2:])
    padded = np.pad(grouped, [(0, 0)] * 3 + [(0, 1)] * 2)  # tap -1 reads the zeros at the end
    taken = padded[..., np.array(rows.taps)[:, :, None, None], np.array(cols.taps)[None, None]]
    # groups, in, out, phase row, row, phase column, column
    ordered = taken.transpose(0, 2, 3, 5, 1, 4, 6)
    return ordered.reshape(groups * per * len(rows.taps) * len(cols.taps), inputs // groups, *ordered.shape[5:])


def _dealt(walk: Walk, node: fx.Node, made: Value, channels: int, rows: Axis, cols: Axis) -> Value:
    """Depth to space: the phases in the channels become pixels."""
    if rows.stride == cols.stride == 1:
        return made
    _, height, width = made.shape
    split = made.reshaped((channels, rows.stride, cols.stride, height, width))
    return walk.permuted(split, (0, 3, 1, 4, 2)).reshaped((channels, height * rows.stride, width * cols.stride))


def _cut(walk: Walk, node: fx.Node, value: Value, starts: Shape, sizes: Shape) -> Value:
    if value.shape == sizes:
        return value
    name = walk.settle(value, value.shape)
    stops = tuple(s + n for s, n in zip(starts, sizes, strict=True))
    return walk.emit(node, "slice", (name,), sizes, {"starts": starts, "stops": stops, "steps": (1, 1, 1)})


@register("convolution.default")
def _convolution(walk: Walk, node: fx.Node, a: dict[str, Any]) -> Value:
    """The common form of all convolutions, in graphs that were decomposed further."""
    if len(a["stride"]) > 2:
        raise Refused(f"works on {len(a['stride'])} spatial axes; 1 and 2 are supported", "use Conv2d")
    if a["transposed"]:
        return _conv_transpose(walk, node, a)
    made = HANDLERS["aten.conv2d.default"](walk, node, a)
    assert isinstance(made, Value)
    return made
