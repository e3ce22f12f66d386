"""Sliding windows of convolutions and pools: kernel, stride, dilation and padding of any rank-1 or rank-2 node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.onnxgraph.module import Part
from xdeploy.model.onnxgraph.rows import Call, Refused, Shape, attributes

_MOST = 2**16  # of a kernel, stride, dilation or padding


@dataclass(frozen=True, slots=True)
class Windows:
    """Per spatial axis, two of them always: a 1-D node works on height 1."""

    kernel: Shape
    stride: Shape
    dilation: Shape
    before: Shape
    after: Shape

    @property
    def even(self) -> bool:
        """Whether both sides are padded alike."""
        return self.before == self.after

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Padding as torch's F.pad wants it: left, right, top, bottom."""
        return (self.before[1], self.after[1], self.before[0], self.after[0])


@attributes("Conv", "ConvTranspose", "MaxPool", "AveragePool")
def _sound(call: Call) -> None:
    """What holds for any rank: a known auto_pad, and numbers within their ranges."""
    auto = call.attr("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID", "", "SAME_UPPER", "SAME_LOWER"):
        raise Refused(f"auto_pad={auto} is not supported", "NOTSET with explicit pads", "auto_pad")
    for name, low in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        values = call.ints(name) or ()
        if not all(low <= v <= _MOST for v in values):
            raise Refused(f"{name}={values} is not supported", f"values from {low}", name)


def spatial(call: Call) -> Shape:
    """The two spatial sizes of the data; of (C, L) data, (1, L)."""
    shape = call.data().shape
    if len(shape) not in (2, 3):
        raise Refused(f"works on {tuple(shape)} per sample; (C, H, W) and (C, L) are supported", "2-D or 1-D layers")
    return shape[1:] if len(shape) == 3 else (1, shape[1])


def windows(call: Call, kernel: Sequence[int] | None = None) -> Windows:
    """The windows of Conv and the pools, with auto_pad resolved for the data's size."""
    size, flat = spatial(call), len(call.data().shape) == 2
    kernel = _two(call, "kernel_shape", 1, flat) if kernel is None else tuple(kernel)
    stride, dilation = _two(call, "strides", 1, flat), _two(call, "dilations", 1, flat)
    auto = call.attr("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID", ""):
        before, after = explicit_pads(call, flat) if auto != "VALID" else ((0, 0), (0, 0))
        return Windows(kernel, stride, dilation, before, after)
    total = tuple(
        max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    )
    return Windows(kernel, stride, dilation, *halves(total, auto))


def halves(total: Sequence[int], auto: str) -> tuple[Shape, Shape]:
    """Padding shared out over both sides, the odd one at the end (SAME_UPPER) or the beginning (SAME_LOWER)."""
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise Refused(f"auto_pad={auto} is not supported", "NOTSET with explicit pads", "auto_pad")
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def explicit_pads(call: Call, flat: bool) -> tuple[Shape, Shape]:
    """The attribute `pads` as (top, left) and (bottom, right)."""
    pads = call.ints("pads") or (0,) * (2 if flat else 4)
    if len(pads) != (2 if flat else 4) or not all(0 <= p <= _MOST for p in pads):
        raise Refused(f"pads={pads} are not supported", "pads of 0 or more, two per spatial axis", "pads")
    return ((0, pads[0]), (0, pads[1])) if flat else (pads[:2], pads[2:])


def _two(call: Call, name: str, default: int, flat: bool) -> Shape:
    values = call.ints(name) or (default,) * (1 if flat else 2)
    if len(values) != (1 if flat else 2) or not all(0 < v <= _MOST for v in values):
        raise Refused(f"{name}={values} does not fit data of {tuple(call.data().shape)} per sample", attribute=name)
    return (1, values[0]) if flat else values


def two(call: Call, name: str, default: int) -> Shape:
    """A spatial attribute (strides, dilations, ...) for two axes."""
    return _two(call, name, default, len(call.data().shape) == 2)


def planar(call: Call, run: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """`run`, written for (N, C, H, W), for the data of this node: (N, C, L) passes through it with height 1."""
    if len(call.data().shape) == 3:
        return run
    return lambda part, x: run(part, x.unsqueeze(2)).squeeze(2)


def padding(widths: Sequence[int]) -> Part:
    """Zero padding, as a part of its own."""
    fixed = tuple(widths)
    return Part(lambda part, x: F.pad(x, fixed))
