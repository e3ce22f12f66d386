"""Geometry of window operators (convolution, pooling) in 1-D and 2-D; signals are images of height 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from xdeploy.lir.ops import window_shape
from xdeploy.lower.values import Stop
from xdeploy.lower.views import batched
from xdeploy.onnxfile import OnnxNode

Pair = tuple[int, int]
WORK_LIMIT = 2**28  # taps of a window over its image, per channel


@dataclass(frozen=True, slots=True)
class Window:
    """A 2-D window; pads are (top, left, bottom, right)."""

    kernel: Pair
    stride: Pair
    pads: tuple[int, int, int, int]
    dilation: Pair

    @property
    def moving(self) -> dict[str, object]:
        """Attributes of a pooling node."""
        return {"kernel": self.kernel, "stride": self.stride, "pads": self.pads}

    def output(self, channels: int, size: Pair) -> tuple[int, int, int]:
        """Shape (C, H, W) of the result on an image of that size.

        Raises:
            Stop: the window does not fit.
        """
        rows, cols = window_shape(size, self.kernel, self.stride, self.pads, self.dilation)
        if min(rows, cols) < 1:
            raise Stop(f"its window {self.kernel} is larger than the image {size} with its pads", "a smaller window")
        if rows * cols * self.kernel[0] * self.kernel[1] > WORK_LIMIT:
            raise Stop(f"its window {self.kernel} is read at {rows}x{cols} places", "a smaller window, or strides")
        return channels, rows, cols


def whole(size: Pair) -> Window:
    """The window of global pooling."""
    return Window(size, (1, 1), (0, 0, 0, 0), (1, 1))


def window(node: OnnxNode, kernel: tuple[int, ...], size: Pair, partial: bool = False) -> Window:
    """The window of a node with that kernel (1-D or 2-D) on an image of that size (1, L for a signal).

    `partial`: with ceil_mode the last window may reach beyond the image; pads at the end make room for it.

    Raises:
        Stop: attributes of another rank or sign, an unknown auto_pad, partial windows where they are not allowed.
    """
    stride, dilation = _each(node, "strides", kernel), _each(node, "dilations", kernel)
    if len(kernel) == 1:
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
    if len(kernel) != 2 or min(*kernel, *stride, *dilation) < 1:
        raise Stop(f"kernel {kernel}, strides {stride}, dilations {dilation}", "positive values of one or two axes")
    spans = (dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1)
    pads = _pads(node, spans, (stride[0], stride[1]), size)
    if node.attrs.get("ceil_mode"):
        more = [_beyond(size[k], pads[k], pads[k + 2], spans[k], stride[k]) for k in range(2)]
        if any(more) and not partial:
            raise Stop("ceil_mode adds a partial window", "pads that make the windows fit", "ceil_mode")
        pads = (pads[0], pads[1], pads[2] + more[0], pads[3] + more[1])
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]), pads, (dilation[0], dilation[1]))


def _each(node: OnnxNode, name: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
    values = tuple(int(v) for v in node.attrs.get(name, (1,) * len(kernel)))
    if len(values) != len(kernel):
        raise Stop(f"{len(values)} {name} for a window of rank {len(kernel)}", "one per axis", name)
    return values


def _beyond(size: int, before: int, after: int, span: int, stride: int) -> int:
    """Further padding at the end for the partial window that ceil_mode adds, if it starts inside."""
    room = size + before + after - span
    count = -(-room // stride)
    if count * stride >= size + before:  # it would start in the padding
        return 0
    return max(0, count * stride - room)


def _pads(node: OnnxNode, spans: Pair, stride: Pair, size: Pair) -> tuple[int, int, int, int]:
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        given = tuple(int(v) for v in node.attrs.get("pads", (0, 0, 0, 0)))
        given = (0, given[0], 0, given[1]) if len(given) == 2 else given
        if len(given) != 4 or min(given) < 0:
            raise Stop(f"pads {given}", "pads of at least 0 on one or two axes", "pads")
        return given[0], given[1], given[2], given[3]
    if mode == "VALID":
        return 0, 0, 0, 0
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Stop(f"auto_pad {mode!r}", "explicit pads", "auto_pad")
    totals = [max(0, (math.ceil(n / s) - 1) * s + span - n) for n, s, span in zip(size, stride, spans, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    first, last = (small, large) if mode == "SAME_UPPER" else (large, small)
    return first[0], first[1], last[0], last[1]


def image_size(shape: tuple[int, ...]) -> tuple[int, Pair]:
    """(C, (H, W)) of an image's sample shape.

    Raises:
        Stop: not an image.
    """
    if len(shape) != 3:
        raise Stop(f"wants an image (N, C, H, W), got {batched(shape)}", "2-D operators on images")
    return shape[0], (shape[1], shape[2])
