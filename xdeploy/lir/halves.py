"""A node as two of the same kind: the upper and the lower rows of its output, each from the input rows that it reads.

The bands of a tensor are contiguous, so each is the tensor itself from some byte on. Nothing is copied, and the weights
are the same arrays. The two may be computed at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.lir.rows import BAND, RowWindow, row_window


@dataclass(frozen=True, slots=True)
class Half:
    """A node on one band of rows.

    graph: the whole graph, with the tensors of the band. parts: tensor of the band -> the tensor that it is a part of,
    and the byte of that where it begins.
    """

    graph: LoweredGraph
    node: Node
    parts: Mapping[str, tuple[str, int]]


def halves(graph: LoweredGraph, node: Node, align: int) -> tuple[Half, Half] | None:
    """The node as two, cut nearest to the middle of its output.

    Args:
        graph: a verified graph.
        node: one of its nodes.
        align: bytes; every band begins at a multiple of it in its tensor.

    Returns:
        The upper and the lower half; None where the node is no convolution, is a band of a streamed layer already, or
        has no row where it can be cut.
    """
    window = row_window(graph, node) if node.op == "conv2d" and BAND not in node.name else None
    if window is None:
        return None
    whole, output = graph.tensors[node.inputs[0]], graph.tensors[node.output]
    height = output.shape[0]
    fitting = [
        row for row in range(1, height)
        if row * (output.size // height) % align == 0
        and window.begin(row) * (whole.size // whole.shape[0]) % align == 0
    ]  # fmt: skip
    if not fitting:
        return None
    cut = min(fitting, key=lambda row: (abs(2 * row - height), row))
    return _half(graph, node, window, 1, 0, cut), _half(graph, node, window, 2, cut, height)


def _half(graph: LoweredGraph, node: Node, window: RowWindow, number: int, start: int, stop: int) -> Half:
    """The output rows start..stop."""
    label = f"{BAND}{number} of 2"
    spans = {f"{node.name}{label}, input 0]": (node.inputs[0], window.begin(start), window.end(stop))}
    for i, tensor in enumerate(node.inputs[1:], 1):
        spans[f"{node.name}{label}, input {i}]"] = (tensor, start, stop)
    inputs, output = tuple(spans), f"{node.output}{label}]"
    spans[output] = (node.output, start, stop)
    tensors, parts = dict(graph.tensors), dict[str, tuple[str, int]]()
    for name, (tensor, first, last) in spans.items():
        whole = graph.tensors[tensor]
        tensors[name] = Tensor((last - first, *whole.shape[1:]), whole.q)
        parts[name] = (tensor, first * (whole.size // whole.shape[0]))
    above, below = window.pads(start, stop)
    pads = (above, node.attrs["pads"][1], below, node.attrs["pads"][3])
    own = replace(node, name=f"{node.name}{label}]", inputs=inputs, output=output, attrs={**node.attrs, "pads": pads})
    return Half(replace(graph, tensors=tensors), own, parts)
