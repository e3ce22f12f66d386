"""AArch64: an image copied into the workspace with its padding around it, by whole vectors.

Every window is then a few contiguous runs that need no tests, and reading a little behind a run is allowed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from xdeploy.lir.graph import LoweredGraph, Node

from .a64 import CHUNK, ramp
from .conv import Shape
from .snippets import Source

SLACK = 2 * CHUNK  # bytes behind the image that may be read and written
_STEP = 4 * CHUNK  # bytes of one turn: several stores, or LLVM would call memcpy


def row_bytes(shape: Shape, copied: bool) -> int:
    """Bytes from a row of the image to the next."""
    return (shape.width + (shape.pads[1] + shape.pads[3]) * copied) * shape.channels


def image_bytes(shape: Shape) -> int:
    """Bytes of the padded copy; padding is written from a row's end to the next one's beginning, also at the end."""
    rows = shape.height + shape.pads[0] + shape.pads[2]
    return rows * row_bytes(shape, True) + shape.pads[1] * shape.channels + SLACK


def copy_cost(shape: Shape) -> float:
    """Instructions of copying and padding."""
    return image_bytes(shape) * 2 / CHUNK * 0.9 + shape.height * 14 + 20


class Copying(ABC):
    """What rows have in common that copy the image where its layout asks for it."""

    __slots__ = ()

    @abstractmethod
    def copied(self, shape: Shape) -> bool:
        """Whether the image is copied."""

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image."""
        shape = Shape.of(graph, node)
        return image_bytes(shape) if self.copied(shape) else 0

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """Where the input is copied first, its memory is free."""
        fits = graph.tensors[node.output].size <= graph.tensors[node.inputs[0]].size
        return fits and self.copied(Shape.of(graph, node))


def opened(node: Node, copied: bool) -> Source:
    """A function with input X, weights W, bias B, multipliers M and output Y; with a copy also P and in_zero."""
    s = Source()
    s.input(0, "X")
    s.const("W", "weights", "int8")
    s.const("B", "bias", "int32")
    s.const("M", "multiplier", "int32")
    s.output("Y")
    if copied:
        s.workspace("P", "int8")
        s.integer("in_zero", node.attrs["in_zero"])
    return s


def copy_image(s: Source, shape: Shape) -> None:
    """Write the padded copy of X to P; in_zero is a scalar."""
    top, left, bottom, _ = shape.pads
    c, row, wide = shape.channels, shape.width * shape.channels, row_bytes(shape, True)
    first = top * wide + left * c
    _fill(s, "0", first)
    s.integer("image_rows", shape.height)
    with s.block("for y in range(T.max(image_rows, 1)):"):
        _move(s, f"{first} + y * {wide}", f"y * {row}", row)
        _fill(s, f"{first} + y * {wide} + {row}", wide - row)
    _fill(s, f"{first} + {shape.height * wide}", bottom * wide - left * c)


def _fill(s: Source, to: str, count: int) -> None:
    """Padding, rounded up to vectors: what follows is written later."""
    zero = f'T.broadcast(T.cast(in_zero, "int8"), {CHUNK})'
    whole = count // _STEP if count >= 2 * _STEP else 0
    if whole:
        with s.block(f"for i in range({whole}):"):
            for k in range(0, _STEP, CHUNK):
                s(f"P[{ramp(f'{to} + i * {_STEP} + {k}', CHUNK)}] = {zero}")
    for k in range(whole * _STEP, count, CHUNK):
        s(f"P[{ramp(f'{to} + {k}', CHUNK)}] = {zero}")


def _move(s: Source, to: str, source: str, count: int) -> None:
    """Copy exactly `count` bytes: the last vector overlaps the one before it."""
    whole = count // _STEP if count >= 2 * _STEP else 0
    if whole:
        with s.block(f"for i in range({whole}):"):
            for k in range(0, _STEP, CHUNK):
                s(f"P[{ramp(f'{to} + i * {_STEP} + {k}', CHUNK)}] = X[{ramp(f'{source} + i * {_STEP} + {k}', CHUNK)}]")
    at, size = whole * _STEP, CHUNK
    while at < count:
        if count - at < size and count >= size:
            at = count - size
        elif count - at < size:
            size //= 2
            continue
        index = [ramp(f"{where} + {at}", size) if size > 1 else f"{where} + {at}" for where in (to, source)]
        s(f"P[{index[0]}] = X[{index[1]}]")
        at += size
