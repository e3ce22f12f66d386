"""ConvTranspose as a convolution with one output channel per phase, depth to space, and a cut.

Output t of a stride s takes the kernel's taps j with j = t mod s (after zeros stand for dilation): with t = q*s + p it
is sum over m of x[q - m] * w[p + m*s], a convolution over q with ceil(k / s) taps for each phase p. No new rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Float64
from xdeploy.lower.builder import Builder
from xdeploy.lower.cutting import cut
from xdeploy.lower.values import Codes, Pending, QConstant, Real, Stop
from xdeploy.lower.views import plain
from xdeploy.lower.windows import image_size
from xdeploy.onnxfile import ACTIVATION_LIMIT, OnnxNode


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: output = rows [skip, skip + size) of the phases side by side; taps and pads of the convolution."""

    stride: int
    taps: int
    before: int
    after: int
    skip: int
    size: int


def transposed_conv(
    b: Builder, node: OnnxNode, x: Real, weight: QConstant, bias: Float64 | QConstant | None
) -> Codes | Real:
    """ConvTranspose of an image (C, H, W) with weights (C, O/groups, kh, kw), or (C, O/groups, k) as height 1.

    Raises:
        Stop: attributes that do not fit, or weight scales along the input channels.
    """
    if weight.codes.ndim == 3:
        weight = replace(weight, codes=weight.codes[:, :, None, :])
    channels, size = image_size(x.index.shape)
    groups = int(node.attrs.get("group", 1))
    if groups < 1 or weight.codes.shape[0] != channels or channels % groups:
        raise Stop(f"a weight {weight.codes.shape} in {groups} groups on {channels} channels", attribute="group")
    weight = _dilated(weight, _pair(node, "dilations", 1))
    axes = _axes(node, weight.codes.shape[2:], size)
    (down, right), out = axes, weight.codes.shape[1] * groups
    phases = down.stride * right.stride
    rows, cols = (n + a.before + a.after - a.taps + 1 for n, a in zip(size, axes, strict=True))
    if float(out) * phases * rows * cols > ACTIVATION_LIMIT:
        raise Stop(f"its phases ({out} x {phases} channels of {rows} x {cols}) are too large", "a smaller stride")
    attrs = {
        "stride": (1, 1), "dilation": (1, 1), "groups": groups,
        "pads": (down.before, right.before, down.after, right.after),
    }  # fmt: skip
    kernel = _phase_weight(weight, groups, axes)
    conv = Pending("conv2d", node.origin, (x,), attrs, kernel, _phase_bias(bias, out, phases))
    parts = plain((out * phases, rows, cols)).reshape(out, down.stride, right.stride, rows, cols)
    spread = parts.transpose(0, 3, 1, 4, 2).reshape(out, rows * down.stride, cols * right.stride)
    cuts = [(0, out, 1), *((a.skip, a.skip + a.size, 1) for a in axes)]
    whole = spread.shape == tuple(stop for _, stop, _ in cuts) and not any(start for start, _, _ in cuts)
    return Real(conv, spread) if whole else cut(b, node, Real(conv, spread), cuts)


def _pair(node: OnnxNode, name: str, default: int) -> tuple[int, int]:
    values = tuple(int(v) for v in node.attrs.get(name, (default, default)))
    values = (1 if default else 0, *values) if len(values) == 1 else values
    if len(values) != 2 or min(values) < default:
        raise Stop(f"{name} {values}", f"values of at least {default} on one or two axes", name)
    return values[0], values[1]


def _axes(node: OnnxNode, spans: tuple[int, ...], size: tuple[int, int]) -> tuple[_Axis, _Axis]:
    strides, extra = _pair(node, "strides", 1), _pair(node, "output_padding", 0)
    given = tuple(int(v) for v in node.attrs.get("pads", (0, 0, 0, 0)))
    given = (0, given[0], 0, given[1]) if len(given) == 2 else given
    shape = tuple(int(v) for v in node.attrs.get("output_shape", ()))[-2:]
    shape = (1, *shape) if len(shape) == 1 else shape
    mode = node.attrs.get("auto_pad", "NOTSET")
    if len(given) != 4 or min(given) < 0 or mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise Stop(f"pads {given}, auto_pad {mode!r}", "explicit pads of at least 0", "pads")
    found = []
    for k in range(2):
        full = strides[k] * (size[k] - 1) + spans[k] + extra[k]
        first, out = (given[k], full - given[k] - given[k + 2]) if mode == "NOTSET" else (0, full)
        if shape or mode.startswith("SAME"):
            out = shape[k] if shape else size[k] * strides[k]
            total = max(0, full - out)
            first = total // 2 if mode == "SAME_UPPER" else total - total // 2
        if not 0 < out <= ACTIVATION_LIMIT:
            raise Stop(f"an output of {out} along axis {k + 2}", "a larger output_shape or smaller pads", "pads")
        found.append(_axis(strides[k], spans[k], size[k], first, out))
    return found[0], found[1]


def _axis(stride: int, span: int, size: int, first: int, out: int) -> _Axis:
    taps = -(-span // stride)
    skipped = min(first // stride, taps - 1)  # groups of `stride` outputs that the pads cut away
    needed = -(-(first - skipped * stride + out) // stride)
    before = taps - 1 - skipped
    after = max(0, needed - (size + before - taps + 1))
    return _Axis(stride, taps, before, after, first - skipped * stride, out)


def _dilated(weight: QConstant, dilation: tuple[int, int]) -> QConstant:
    """Zeros between the taps."""
    if dilation == (1, 1):
        return weight
    codes = weight.codes
    kh, kw = ((n - 1) * d + 1 for n, d in zip(codes.shape[2:], dilation, strict=True))
    wide = np.full((*codes.shape[:2], kh, kw), _zero(weight), np.int64)
    wide[:, :, :: dilation[0], :: dilation[1]] = codes
    return replace(weight, codes=wide)


def _zero(weight: QConstant) -> int:
    """The code of a weight of zero."""
    if weight.book is None:
        return 0
    found = np.flatnonzero(weight.book == 0)
    if not found.size:
        raise Stop("its codebook has no zero to fill the phases of the stride with", "a codebook that holds 0")
    return int(found[0])


def _phase_weight(weight: QConstant, groups: int, axes: tuple[_Axis, _Axis]) -> QConstant:
    """Weights (O * phases, C/groups, taps, taps) of the convolution, with a scale per output channel or one."""
    channels, per, kh, kw = weight.codes.shape
    (down, right), phases = axes, axes[0].stride * axes[1].stride
    spread: NDArray[np.int64] = np.full(
        (channels, per, down.taps * down.stride, right.taps * right.stride), _zero(weight), np.int64
    )
    spread[:, :, :kh, :kw] = weight.codes
    # (group, C/g, O/g, taps, phase, taps, phase) with the taps turned round
    cut_up = spread.reshape(groups, channels // groups, per, down.taps, down.stride, right.taps, right.stride)
    kernel = cut_up[:, :, :, ::-1, :, ::-1].transpose(0, 2, 4, 6, 1, 3, 5)
    codes = np.ascontiguousarray(kernel).reshape(groups * per * phases, channels // groups, down.taps, right.taps)
    scale = weight.scale.reshape(-1) if weight.scale.size > 1 else weight.scale.reshape(())
    if scale.ndim and weight.axis == 1:
        scale = np.tile(np.repeat(scale, phases), groups)
    elif scale.ndim and weight.axis == 0 and per == 1 and groups == channels:
        scale = np.repeat(scale, phases)
    elif scale.ndim:
        raise Stop("weight scales along the input channels", "one scale, or one per output channel (axis 1)", "axis")
    return replace(weight, codes=codes, scale=scale, axis=0)


def _phase_bias(bias: Float64 | QConstant | None, out: int, phases: int) -> Float64 | None:
    if bias is None:
        return None
    values = (bias.real if isinstance(bias, QConstant) else bias).reshape(-1)
    if values.size not in (1, out):
        raise Stop(f"a bias of {values.size} values for {out} channels", "a bias per channel")
    return np.repeat(np.broadcast_to(values, (out,)), phases)
