"""How a file lays its input out, told from the graph.

It is the layout in which the first spatial operator sees images as the network has them, (C, H, W), after all the
transposing and reshaping that a converter put before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xdeploy.errors import UnsupportedError
from xdeploy.model.onnxgraph.folding import fold
from xdeploy.model.onnxgraph.module import nothing
from xdeploy.model.onnxgraph.rows import Array, Known, Refused, Shape
from xdeploy.onnxfile import OnnxNode, Port

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_SAME = ("Cast", "Add", "Sub", "Mul", "Div", "Pad", "BatchNormalization", "Dropout", "Clip", "Relu")
_SPATIAL = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize")


@dataclass(frozen=True, slots=True)
class Layout:
    """The network's input shape and what turns a batch of it into the file's input."""

    shape: Shape
    entry: Callable[[Tensor], Tensor]
    numpy: Callable[[Array], Array]  # the same for arrays


def input_layout(port: Port, nodes: Sequence[OnnxNode], constants: Mapping[str, Array], opset: int) -> Layout:
    """The layout of the file's input.

    Raises:
        UnsupportedError: more than three axes beside the batch.
    """
    shape = port.shape[1:]
    if len(shape) > 3:
        raise UnsupportedError(
            f"input {port.name!r} has {len(shape)} axes beside the batch; (C, H, W), (C, L) or (F,) are supported",
            hint="volumes and sequences of images have no integer kernels",
        )
    plain, *others = _candidates(shape)
    seen = _first_spatial(port, nodes, constants, opset)
    if seen is None:
        return plain
    fitting = [c for c in (plain, *others, *_unfolded(shape, seen.shape)) if _shows(c, seen)]
    return fitting[0] if fitting else plain


def _shows(candidate: Layout, seen: Array) -> bool:
    """Whether the network's own elements arrive in order: `seen` holds indices into the file's input, per sample."""
    own = candidate.numpy(np.arange(int(np.prod(candidate.shape))).reshape(1, *candidate.shape)).reshape(-1)
    wanted = (seen.shape[0], 1, seen.shape[1]) if seen.ndim == 2 else seen.shape
    return candidate.shape == wanted and bool((own[seen.reshape(-1)] == np.arange(seen.size)).all())


def _candidates(shape: Shape) -> list[Layout]:
    if len(shape) == 3:
        a, b, c = shape
        return [Layout(shape, nothing, lambda x: x), _channels_last((c, a, b))]
    if len(shape) == 2:
        a, b = shape
        return [
            Layout((a, 1, b), lambda x: x.squeeze(2), lambda x: x.squeeze(2)),
            Layout((b, 1, a), lambda x: x.squeeze(2).permute(0, 2, 1), lambda x: x.squeeze(2).transpose(0, 2, 1)),
            Layout((1, a, b), lambda x: x.squeeze(1), lambda x: x.squeeze(1)),
        ]
    return [Layout(shape, nothing, lambda x: x)]


def _channels_last(shape: Shape) -> Layout:
    """(C, H, W) for a file that reads (H, W, C); with one channel the same elements in the same order."""
    _, height, width = shape
    if shape[0] == 1:
        return Layout(
            shape,
            lambda x: x.reshape(x.shape[0], height, width, 1),
            lambda x: x.reshape(len(x), height, width, 1),
        )
    return Layout(shape, lambda x: x.permute(0, 2, 3, 1), lambda x: x.transpose(0, 2, 3, 1))


def _unfolded(shape: Shape, image: Shape) -> Iterable[Layout]:
    """Images that the file takes as rows of (F,)."""
    if len(shape) != 1:
        return
    full = (image[0], 1, image[1]) if len(image) == 2 else image
    last = _channels_last(full)
    yield Layout(full, lambda x: x.flatten(1), lambda x: x.reshape(len(x), -1))
    yield Layout(full, lambda x: last.entry(x).flatten(1), lambda x: last.numpy(x).reshape(len(x), -1))


def _first_spatial(port: Port, nodes: Sequence[OnnxNode], constants: Mapping[str, Array], opset: int) -> Array | None:
    """Indices into the input, per sample, as the first spatial operator sees them; None if it sees something else."""
    batch = port.shape[0] if port.shape[0] > 0 else 1
    size = int(np.prod(port.shape[1:]))
    seen: dict[str, Array] = {port.name: np.arange(batch * size).reshape(batch, *port.shape[1:])}
    known: dict[str, Array] = dict(constants)
    for node in nodes:
        read = [i for i in node.inputs if i in seen]
        if read and node.op in _SPATIAL:
            first = seen[read[0]][0]
            return first if first.size == size and first.ndim in (2, 3) else None
        if read and node.op in _SAME:
            seen[node.outputs[0]] = seen[read[0]]
        elif all(i in seen or i in known or not i for i in node.inputs) and (not read or node.op in (*_MOVES, "Shape")):
            result = _computed(node, opset, [known.get(i, seen.get(i)) for i in node.inputs])
            table = seen if read and node.op in _MOVES else known
            table.update(zip(node.outputs, result, strict=False))
    return None


def _computed(node: OnnxNode, opset: int, operands: Sequence[Array | None]) -> list[Array]:
    try:
        return [k.first for k in fold(node, opset, [None if a is None else Known.constant(a) for a in operands])]
    except Refused:
        return []
