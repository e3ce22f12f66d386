"""Depthwise convolutions over a rolling buffer of padded input rows, for rows whose tiles are assembly functions.

Every input row is copied into the workspace once, between borders of the zero point; the rows of a window lie in a
ring, and an output row hands their addresses to the tile function. So the inner loop has no conditions, and the output
may overwrite the input: a row is copied before the first output row that could destroy it is written. Without padding
the windows are read where they lie. Weights of every format are widened to int16 once per call. Geometry is passed as
scalars, so that the layers of a network share one function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from xdeploy.formats import WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .armasm import function
from .conv import Shape
from .snippets import Source
from .weights import RowLayout


def ring_rows(shape: Shape) -> int:
    """Input rows that one window spans, which the ring holds."""
    return (shape.kernel[0] - 1) * shape.dilation[0] + 1


def padded_width(shape: Shape) -> int:
    """Columns of a row in the ring."""
    return shape.width + shape.pads[1] + shape.pads[3]


def ring_bytes(shape: Shape) -> int:
    """Bytes of the ring, a multiple of 16; 0 where nothing is padded."""
    return -(-ring_rows(shape) * padded_width(shape) * shape.channels // 16) * 16 if any(shape.pads) else 0


def table_bytes(shape: Shape) -> int:
    """Bytes of the table of row addresses, a multiple of 16."""
    return -(-4 * shape.kernel[0] // 16) * 16


def overwrites(graph: LoweredGraph, node: Node) -> bool:
    """Whether the output may overwrite the input: both have one shape, and the input is read from the ring."""
    shape = Shape.of(graph, node)
    same = graph.tensors[node.inputs[0]].shape == graph.tensors[node.output].shape
    return same and any(shape.pads) and shape.stride == (1, 1)


def set_row() -> tuple[str, str]:
    """(table, index, row): enter the address of a row."""
    return function("setrow", "ptr, i32, ptr", ["lsls r1, r1, #2", "str r2, [r0, r1]", "bx lr"])


@dataclass(frozen=True, slots=True)
class RollingRow(ABC):
    """A depthwise row of one weight format over the rolling buffer, with its weights widened behind ring and table."""

    format: WeightFormat

    @abstractmethod
    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Which nodes it can run."""

    @abstractmethod
    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Estimated instructions."""

    @abstractmethod
    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Constants in read order."""

    @abstractmethod
    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Widen the weights, then roll over the rows."""

    def layout(self, shape: Shape) -> RowLayout:
        """One row of all weights."""
        return RowLayout(self.format, shape.channels * shape.kernel[0] * shape.kernel[1])

    def weights_at(self, shape: Shape) -> int:
        """Byte of the workspace where the widened weights begin."""
        return ring_bytes(shape) + table_bytes(shape)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The ring, the row addresses, the weights as int16."""
        shape = Shape.of(graph, node)
        return self.weights_at(shape) + 2 * self.layout(shape).row

    def register(self, tile: str, isa: str) -> None:
        """Enter the kernel of this row."""
        name = f"conv2d_s8_{self.format.short}_dw{tile}__{isa}"
        parts = (self.applies, self.cost, self.workspace, self.pack, self.emit, overwrites)
        KERNELS.add(name, Kernel(name, "conv2d", self.format.short, isa, *parts, notes="depthwise"))


class RollingWriter(ABC):
    """Writes the loop over output rows; what a run of codes is moved with and what a tile does differ."""

    def __init__(self, graph: LoweredGraph, node: Node, layout: RowLayout, pixels: int) -> None:
        self.node, self.shape, self.layout, self.pixels = node, Shape.of(graph, node), layout, pixels
        self.copied = any(self.shape.pads)
        self.source = s = Source()
        s.input(0, "X")
        s.const("W", "weights", layout.dtype)
        s.const("B", "bias_multiplier", "int32")
        s.output("Y")
        s.workspace("P", "int8")
        s.local("at", 1)
        for name, value in self._scalars().items():
            s.integer(name, value)
        self.call = s.call

    def _scalars(self) -> dict[str, int]:
        shape = self.shape
        return {
            "out_height": shape.out_height, "out_width": shape.out_width, "kh": shape.kernel[0],
            "sy": shape.stride[0], "dy": shape.dilation[0], "channels": shape.channels,
            "step": shape.stride[1] * shape.channels, "row": shape.width * shape.channels,
            "height": shape.height, "top": shape.pads[0], "left": shape.pads[1] * shape.channels,
            "right": shape.pads[3] * shape.channels, "wide": padded_width(shape) * shape.channels,
            "ring": ring_rows(shape), "table_at": ring_bytes(shape), "in_zero": self.node.attrs["in_zero"],
            "full": shape.out_width // self.pixels, "tile_pixels": self.pixels,
            **{k: self.node.attrs[k] for k in ("out_zero", "low", "high")},
        }  # fmt: skip

    @abstractmethod
    def copy(self, source: str, to: str, count: str) -> None:
        """Move `count` codes from position `source` of X to position `to` of P."""

    @abstractmethod
    def fill(self, to: str, count: str) -> None:
        """Write `count` zero points to position `to` of P."""

    @abstractmethod
    def tile(self, pixels: int, column: str, to: str) -> None:
        """Compute all channels of `pixels` outputs from byte `column` of the rows on, to position `to` of Y."""

    def call_tile(self, function: tuple[str, str], column: str, to: str, *args: str) -> None:
        """Call a tile function: rows, byte `column` in them, widened weights, position `to` of Y, biases, `args`."""
        pointers = ("T.address_of(P[table_at])", column, "T.address_of(P[weights_at])", f"T.address_of(Y[{to}])")
        self.call(function, *pointers, "T.address_of(B[0])", *args)

    def widen(self, at: int) -> None:
        """Write all weights as int16 to byte `at` of the workspace, in the order in which they are packed."""
        s, layout = self.source, self.layout
        if layout.format.codebook:
            s.const("E", "codebook", "int8")
        s.view("V", "P", "int16")
        s.integer("weights_at", at)
        s.integer("segment", layout.segment)
        s.integer("weights", layout.row)
        with s.block("for j in range(T.max(segment, 1)):"):
            for i in range(layout.planes):
                s(f"b{i} = W[{i} * segment + j]")
            for f in range(layout.fields):
                place = f"{f} * segment + j"
                store = f'V[T.shift_right(weights_at, 1) + {place}] = T.cast({layout.value(f, "", "E")}, "int16")'
                if layout.padded > layout.row:
                    with s.block(f"if {place} < weights:"):
                        s(store)
                else:
                    s(store)

    def write(self) -> Code:
        """The loops over output rows, and over tiles of one."""
        s = self.source
        if self.copied:
            self._borders()
            s("at[0] = 0")
        with s.block("for oy in range(T.max(out_height, 1)):"):
            if self.copied:
                self._rows()
            with s.block("for ky in range(T.max(kh, 1)):"):
                row = "oy * sy + ky * dy"
                source = f"P[T.truncmod({row}, ring) * wide]" if self.copied else f"X[({row}) * row]"
                self.call(set_row(), "T.address_of(P[table_at])", "ky", f"T.address_of({source})")
            if self.shape.out_width >= self.pixels:
                with s.block("for ox in range(T.max(full, 1)):"):
                    column = f"ox * {self.pixels}"
                    self.tile(self.pixels, f"{column} * step", f"(oy * out_width + {column}) * channels")
            if self.shape.out_width % self.pixels:
                self._rest()
        return s.code()

    def _rest(self) -> None:
        """Pixels after the last full tile, one by one."""
        with self.source.block("for rest in range(T.max(out_width - full * tile_pixels, 1)):"):
            column = "(full * tile_pixels + rest)"
            self.tile(1, f"{column} * step", f"(oy * out_width + {column}) * channels")

    def _borders(self) -> None:
        """The borders left and right of every row of the ring never change."""
        s = self.source
        with s.block("for r in range(T.max(ring, 1)):"):
            if self.shape.pads[1]:
                self.fill("r * wide", "left")
            if self.shape.pads[3]:
                self.fill("r * wide + left + row", "right")

    def _rows(self) -> None:
        """Bring the rows of the window that are not in the ring yet; at[0] is the first of them."""
        s = self.source
        with s.block("for r in range(T.max(ring, 1)):"):
            s("padded: T.let[T.int32] = oy * sy + r")
            with s.block("if padded >= at[0]:"):
                s("iy: T.let[T.int32] = padded - top")
                s("to: T.let[T.int32] = T.truncmod(padded, ring) * wide + left")
                with s.block("if iy >= 0 and iy < height:"):
                    self.copy("iy * row", "to", "row")
                with s.block("else:"):
                    self.fill("to", "row")
        s("at[0] = oy * sy + ring")
