"""What a layer's output shape must be, so that files need not say it; None where it is not worth a rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]


def predicted(kind: str, attrs: Mapping[str, Any], inputs: Sequence[Shape], kernel: Shape | None) -> Shape | None:
    """Shape of a layer from its inputs' shapes; the channels of conv2d and the width of linear layers are 0.

    Args:
        kind: layer kind.
        attrs: its attributes.
        inputs: shapes (C, H, W) or (F,) of what it reads.
        kernel: (kh, kw) of a conv2d layer.
    """
    if not inputs:
        return None
    first = inputs[0]
    if kind == "linear":
        return (0,)
    if kind == "flatten":
        return (math.prod(first),)
    if kind in ("conv2d", "max_pool2d", "avg_pool2d"):
        return _windows(kind, attrs, first, kernel)
    if kind == "concat":
        return (sum(s[0] for s in inputs), *first[1:])
    if kind == "slice":
        return tuple(
            len(range(*slice(a, b, c).indices(n)))
            for n, a, b, c in zip(first, attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
        )
    if kind == "pad":
        (top, left, bottom, right), (before, after) = attrs["pads"], attrs["channels"]
        return (first[0] + before + after, first[1] + top + bottom, first[2] + left + right)
    if kind == "resize":
        return (first[0], len(attrs["rows"]), len(attrs["cols"]))
    return first


def _windows(kind: str, attrs: Mapping[str, Any], first: Shape, kernel: Shape | None) -> Shape:
    size = kernel if kind == "conv2d" else attrs["kernel"]
    dilation = attrs.get("dilation", (1, 1))
    pads = attrs["pads"]
    rows, columns = (
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, before, after, d, k, s in zip(
            first[1:], pads[:2], pads[2:], dilation, size or (1, 1), attrs["stride"], strict=True
        )
    )
    return (0 if kind == "conv2d" else first[0], rows, columns)
