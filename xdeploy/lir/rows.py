"""Rows of an image: stacking them, cutting them out, and which rows of its input a row of an op's output reads.

`stack` puts tensors (H_i, W, C) below each other: (sum of H_i, W, C). With one input it is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xdeploy.formats import Int8
from xdeploy.lir.graph import LoweredGraph, Node

BAND = " [band "  # between the origin and the rest of the name of a node that works on a band of rows
_SAME = frozenset({"add", "rescale", "clamp", "lut", "softmax"})


def stack_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """(sum of H_i, W, C).

    Raises:
        ValueError: the parts differ in more than their rows.
    """
    if len({s[1:] for s in shapes}) != 1:
        raise ValueError(f"{node.name}: cannot stack parts of shapes {shapes}")
    return (sum(s[0] for s in shapes), *shapes[0][1:])


def run_stack(node: Node, xs: list[Int8]) -> Int8:
    """The parts (N, H_i, W, C) below each other."""
    return np.concatenate(xs, axis=1)


def row_cut(graph: LoweredGraph, node: Node) -> int | None:
    """Byte of the input where a slice of whole successive rows begins; None where the node is not such a slice."""
    if node.op != "slice":
        return None
    shape, a = graph.tensors[node.inputs[0]].shape, node.attrs
    cuts = zip(a["starts"], a["stops"], a["steps"], strict=True)
    spans = [slice(*cut).indices(n) for n, cut in zip(shape, cuts, strict=True)]
    whole = all(s == (0, n, 1) for s, n in zip(spans[1:], shape[1:], strict=True))
    return spans[0][0] * int(np.prod(shape[1:])) if whole and spans[0][2] == 1 else None


def origin(name: str) -> str:
    """The layer's name, of a node that works on one of its bands."""
    return name.partition(BAND)[0]


@dataclass(frozen=True, slots=True)
class RowWindow:
    """How output rows read input rows: output row o reads `span` rows from o * stride - top on, of `height` in all."""

    span: int
    stride: int
    top: int
    height: int

    def begin(self, row: int) -> int:
        """The first input row that output rows from `row` on read."""
        return min(max(row * self.stride - self.top, 0), self.height)

    def end(self, rows: int) -> int:
        """The input row after the last one that the first `rows` output rows read."""
        return min(max((rows - 1) * self.stride - self.top + self.span, 0), self.height) if rows else 0

    def pads(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of padding above and below the input rows that the output rows start..stop read."""
        below = (stop - 1) * self.stride - self.top + self.span
        return max(self.top - start * self.stride, 0), max(below - self.height, 0)


def row_window(graph: LoweredGraph, node: Node) -> RowWindow | None:
    """The window of an op that computes each output row from some successive input rows, else None."""
    shapes = [graph.tensors[t].shape for t in (*node.inputs, node.output)]
    if any(len(s) != 3 for s in shapes):
        return None
    height, a = shapes[0][0], node.attrs
    if node.op in _SAME or (node.op == "concat" and len({s[:2] for s in shapes}) == 1):
        return RowWindow(1, 1, 0, height)
    if node.op == "mul":
        return RowWindow(1, 1, 0, height) if shapes[0] == shapes[1] else None
    if node.op == "conv2d":
        window = RowWindow(
            (node.consts["codes"].shape[1] - 1) * a["dilation"][0] + 1, a["stride"][0], a["pads"][0], height
        )
    elif node.op in ("max_pool2d", "avg_pool2d"):
        window = RowWindow(a["kernel"][0], a["stride"][0], a["pads"][0], height)
    else:
        return None
    rows = range(shapes[-1][0])
    return window if all(window.begin(r) < window.end(r + 1) for r in rows) else None
