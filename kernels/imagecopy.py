"""An image copied into the workspace with its padding around it, by whole vectors.

As int8, widened to int16, or as uint8: then every code is 128 more, which flips its highest bit.

Every window is then a few contiguous runs that need no tests, and reading a little behind a run is allowed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from xdeploy.lir.graph import LoweredGraph, Node

from .conv import Shape
from .product import CHUNK
from .snippets import Source
from .vectors import as_type, ramp

SLACK = 2 * CHUNK  # codes behind the image that may be read and written
_STORES = 4  # of one turn: LLVM would call memcpy for less
_VECTOR = {"int8": CHUNK, "int16": CHUNK, "uint8": 4 * CHUNK}  # codes that are copied at a time


def row_codes(shape: Shape, copied: bool) -> int:
    """Codes from a row of the image to the next."""
    return (shape.width + (shape.pads[1] + shape.pads[3]) * copied) * shape.channels


def image_codes(shape: Shape) -> int:
    """Codes of the padded copy; padding is written from a row's end to the next one's beginning, also at the end."""
    rows = shape.height + shape.pads[0] + shape.pads[2]
    return rows * row_codes(shape, True) + shape.pads[1] * shape.channels + SLACK


def copy_cost(shape: Shape) -> float:
    """Instructions of copying and padding."""
    return image_codes(shape) * 2 / CHUNK * 0.9 + shape.height * 14 + 20


class Copying(ABC):
    """What rows have in common that copy the image where its layout asks for it."""

    __slots__ = ()

    @property
    def wide(self) -> bool:
        """Whether the copy is int16."""
        return False

    @abstractmethod
    def copied(self, shape: Shape) -> bool:
        """Whether the image is copied."""

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image."""
        shape = Shape.of(graph, node)
        return image_codes(shape) * (1 + self.wide) if self.copied(shape) else 0

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """Where the input is copied first, its memory is free."""
        fits = graph.tensors[node.output].size <= graph.tensors[node.inputs[0]].size
        return fits and self.copied(Shape.of(graph, node))


class WideCopying(Copying):
    """Rows that read int16, and so always copy."""

    __slots__ = ()

    @property
    def wide(self) -> bool:
        """The copy is int16."""
        return True

    def copied(self, shape: Shape) -> bool:
        """Always."""
        return True


def opened(node: Node, copied: bool, dtype: str = "int8", weights: str = "int8") -> Source:
    """A function with input X, weights W, bias B, multipliers M and output Y; with a copy also P and in_zero."""
    s = Source()
    s.input(0, "X")
    s.const("W", "weights", weights)
    s.const("B", "bias", "int32")
    s.const("M", "multiplier", "int32")
    s.output("Y")
    if copied:
        s.workspace("P", dtype)
        s.integer("in_zero", node.attrs["in_zero"])
    return s


def copy_image(s: Source, shape: Shape, dtype: str = "int8") -> None:
    """Write the padded copy of X to P; in_zero is a scalar."""
    top, left, bottom, _ = shape.pads
    c, row, wide = shape.channels, shape.width * shape.channels, row_codes(shape, True)
    first = top * wide + left * c
    _fill(s, "0", first, dtype)
    s.integer("image_rows", shape.height)
    with s.block("for y in range(T.max(image_rows, 1)):"):
        _move(s, f"{first} + y * {wide}", f"y * {row}", row, dtype)
        _fill(s, f"{first} + y * {wide} + {row}", wide - row, dtype)
    _fill(s, f"{first} + {shape.height * wide}", bottom * wide - left * c, dtype)


def _fill(s: Source, to: str, count: int, dtype: str) -> None:
    """Padding, rounded up to 16 codes: what follows is written later."""
    zero = f'T.cast(in_zero{" + 128" * (dtype == "uint8")}, "{dtype}")'
    vector = _VECTOR[dtype]
    step = _STORES * vector
    whole = count // step if count >= 2 * step else 0
    if whole:
        with s.block(f"for i in range({whole}):"):
            for k in range(0, step, vector):
                s(f"P[{ramp(f'{to} + i * {step} + {k}', vector)}] = T.broadcast({zero}, {vector})")
    at = whole * step
    while at < count:
        lanes = vector if count - at >= vector else CHUNK
        s(f"P[{ramp(f'{to} + {at}', lanes)}] = T.broadcast({zero}, {lanes})")
        at += lanes


def _move(s: Source, to: str, source: str, count: int, dtype: str) -> None:
    """Copy exactly `count` codes: the last vector overlaps the one before it."""

    def copy(offset: str, size: int) -> None:
        index = [ramp(f"{where} + {offset}", size) if size > 1 else f"{where} + {offset}" for where in (to, source)]
        s(f"P[{index[0]}] = {_as(dtype, f'X[{index[1]}]', size)}")

    vector = _VECTOR[dtype]
    step = _STORES * vector
    whole = count // step if count >= 2 * step else 0
    if whole:
        with s.block(f"for i in range({whole}):"):
            for k in range(0, step, vector):
                copy(f"i * {step} + {k}", vector)
    at, size = whole * step, vector
    while at < count:
        if count - at < size and count >= size:
            at = count - size
        elif count - at < size:
            size //= 2
            continue
        copy(str(at), size)
        at += size


def _as(dtype: str, codes: str, lanes: int) -> str:
    """int8 codes as the copy holds them."""
    if dtype == "int8":
        return codes
    wide = dtype + (f"x{lanes}" if lanes > 1 else "")
    if dtype == "int16":
        return f'T.cast({codes}, "{wide}")'
    top = f"T.broadcast(T.uint8(128), {lanes})" if lanes > 1 else "T.uint8(128)"
    return f"T.bitwise_xor({as_type(wide, codes)}, {top})"
