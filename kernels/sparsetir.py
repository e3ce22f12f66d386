"""Generic rows for zero-heavy weights, for every target: only what is not zero is stored and multiplied.

A tile is a few output pixels; their windows are gathered so that the codes of one k lie side by side, and every entry
of a channel's stream (see sparsepack, two bytes per entry) is multiplied with all of them. A linear layer reads its
input in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .conv import Shape
from .snippets import OutputStage
from .sparsepack import encode, plain, smaller, sparse_consts
from .windows import WindowWriter

GAP_BITS = 8
# instructions per entry, per output channel of a tile, per gathered code. Eight registers hold neither four sums nor
# their addresses; where dense rows have vectors, their own count is far above what they take, and so must be this one
COSTS = {
    ("linear", "thumb2"): (6.0, 24.0, 0.0), ("conv2d", "thumb2"): (17.0, 62.0, 5.0),
    ("linear", "armv6m"): (8.5, 75.0, 0.0), ("conv2d", "armv6m"): (40.0, 200.0, 6.0),
    ("linear", "vector"): (48.0, 400.0, 0.0), ("conv2d", "vector"): (18.0, 62.0, 8.0),
}  # fmt: skip


def _kind(target: Target) -> str:
    if target.kind != "firmware":
        return "vector"
    return "armv6m" if target.isa == "armv6m" else "thumb2"


@dataclass(frozen=True, slots=True)
class StreamRow:
    """One row: P pixels (1 for linear layers) x 1 channel per tile."""

    op: str
    format: WeightFormat
    pixels: int

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, and a stream smaller than the packed weights."""
        return plain(node, self.format) and smaller(node, GAP_BITS)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Entries, output stages, windows."""
        shape = Shape.of(graph, node)
        entries = 2.0 * float(encode(node.values, GAP_BITS).counts.sum())
        entry, output, gather = COSTS[self.op, _kind(target)]
        tiles = -(-shape.pixels // self.pixels)
        taps = shape.kernel[0] * shape.kernel[1]
        windows = shape.pixels * (gather * shape.row + 16.0 * taps) if self.op == "conv2d" else 0.0
        return tiles * (entries * entry + shape.out_channels * output) + windows + 40.0

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows of a tile."""
        return 0 if self.op == "linear" else self.pixels * Shape.of(graph, node).row

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Stream, words per channel, bias and multiplier."""
        return sparse_consts(node, GAP_BITS)

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """The tile loops around gathering, entries and output stage."""
        return _Writer(self, graph, node).write()


class _Writer(WindowWriter):
    """Writes one function of a StreamRow."""

    def __init__(self, row: StreamRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row.pixels, graph, node, "uint8")
        s, self.linear = self.source, row.op == "linear"
        s.const("N", "counts", "uint16")
        s.view("V", "W", "int8")
        s.local("acc", row.pixels)
        s.local("from_", 2)  # position in the stream, and k
        self.stage = OutputStage(s, node)

    def write(self) -> Code:
        """The whole function."""
        s = self.source
        if not self.linear:
            return self.code(self._channels)
        with s.block("for t in range(T.max(tiles, 1)):"):
            s("valid: T.let[T.int32] = tile")
            self._channels()
        return s.code()

    def _channels(self) -> None:
        s, pixels, x = self.source, self.pixels, "X" if self.linear else "P"
        s("from_[0] = 0")
        with s.block("for o in range(T.max(out_channels, 1)):"):
            s(*(f"acc[{p}] = B[o * 2]" for p in range(pixels)), "from_[1] = 0")
            with s.block('for j in range(T.cast(N[o], "int32") * 2):'):
                s('from_[1] = from_[1] + T.cast(W[from_[0]], "int32")')
                s('w: T.let[T.int32] = T.cast(V[from_[0] + 1], "int32")', "from_[0] = from_[0] + 2")
                for p in range(pixels):
                    at = f"from_[1] * {pixels} + {p}" if pixels > 1 else "from_[1]"
                    s(f'acc[{p}] = acc[{p}] + T.cast({x}[{at}], "int32") * w')
            for p in range(pixels):
                with s.block(f"if valid > {p}:") if p else s.block("if True:"):
                    self.stage(s, f"acc[{p}]", "B[o * 2 + 1]", f"(t * tile + {p}) * out_channels + o")

    def move(self, source: str, to: str, count: str) -> None:
        """Interleave with the other pixels' windows."""
        with self.source.block(f"for c in range(T.max({count}, 1)):"):
            self.source(f"P[({to} + c) * {self.pixels} + p] = X[{source} + c]")

    def pad(self, to: str) -> None:
        """The zero point."""
        with self.source.block("for c in range(T.max(channels, 1)):"):
            self.source(f'P[({to} + c) * {self.pixels} + p] = T.cast(in_zero, "int8")')


def _register(row: StreamRow) -> None:
    short = row.format.short
    name = f"{row.op}_s8_{short}_sparse{row.pixels}x1__tir"
    parts = (row.applies, row.cost, row.workspace, row.pack, row.emit)
    KERNELS.add(name, Kernel(name, row.op, short, "tir", *parts))


for _format in FORMATS.values():
    _register(StreamRow("linear", _format, 1))
    _register(StreamRow("conv2d", _format, 4))
