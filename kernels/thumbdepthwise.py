"""Depthwise convolution for cores without DSP instructions: a few neighbouring pixels, one channel after the other.

Armv7-M keeps the weights of one row of a window in registers and loads every column that the pixels share once.
Armv6-M loads a code for every product, which so may be overwritten; the pixels' distances stand in registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual, macs
from xdeploy.target import Target

from .armgather import copy_rows, fill_bytes
from .conv import Shape, is_depthwise
from .rolling import RollingRow, RollingWriter
from .snippets import channel_consts
from .thumbdwtile import Tile6, Tile7, widest
from .thumbgather import copy_run, fill_run
from .thumbm0 import is_near

Isa = Literal["armv7m", "armv6m"]
MOST_TAPS = 36  # of a window: they are written out
MOST_ROWS = 8  # of a window: their addresses are kept on the stack


@dataclass(frozen=True, slots=True)
class ThumbDepthwise(RollingRow):
    """The row of one weight format and instruction set."""

    isa: Isa

    def pixels(self, shape: Shape) -> int:
        """Pixels of a tile: as many as leave the fewest over."""
        return widest(shape.out_width, 5 if self.isa == "armv7m" else 4)

    def tile(self, graph: LoweredGraph, node: Node, pixels: int) -> Tile7 | Tile6:
        """The assembly function of `pixels` outputs."""
        shape, a = Shape.of(graph, node), node.attrs
        bounded = (a["low"], a["high"]) != (-128, 127)
        facts = (pixels, shape.kernel, shape.channels, shape.dilation[1], shape.stride[1], a["shift"], bounded)
        if self.isa == "armv7m":
            return Tile7(*facts)
        sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
        bound = int((sums * 255 + np.abs(node.consts["bias"].astype(np.int64))).max()) << a["shift"]
        return Tile6(*facts, near=is_near(bound, int(node.consts["multiplier"].max())))

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise, this format, no residual, small windows."""
        if node.format != self.format or not is_depthwise(graph, node) or has_residual(node):
            return False
        shape = Shape.of(graph, node)
        small = shape.kernel[0] <= MOST_ROWS and shape.kernel[0] * shape.kernel[1] <= MOST_TAPS
        return small and self.tile(graph, node, self.pixels(shape)).reaches()

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Multiply-accumulates, the output stage, and copying the input."""
        shape, outputs = Shape.of(graph, node), graph.tensors[node.output].size
        copied = 2.2 * shape.height * shape.width * shape.channels if any(shape.pads) else 0.0
        single = shape.out_width % self.pixels(shape) / shape.out_width
        per_mac, per_output = (1.7 + 1.0 * single, 8.0) if self.isa == "armv7m" else (3.9 + 3.0 * single, 32.0)
        return per_mac * macs(graph, node) + (per_output + 12.0 * single) * outputs + 50.0 * shape.pixels + copied

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights of one channel after the other in one planar row, (bias, multiplier) per channel, codebook."""
        shape = Shape.of(graph, node)
        table = np.stack(list(channel_consts(node).values()), axis=1)
        packed: dict[str, NDArray[Any]] = {"bias_multiplier": np.ascontiguousarray(table)}
        packed["weights"] = self.layout(shape).pack(node.consts["codes"].reshape(1, -1))
        if self.format.codebook:
            packed["codebook"] = node.consts["codebook"]
        return packed

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Widen the weights, then roll over the rows."""
        return _Writer(self, graph, node).write()


class _Writer(RollingWriter):
    """Writes one function of a ThumbDepthwise row."""

    def __init__(self, row: ThumbDepthwise, graph: LoweredGraph, node: Node) -> None:
        shape = Shape.of(graph, node)
        pixels = row.pixels(shape)
        self.plain, self.tiles = row.isa == "armv6m", {n: row.tile(graph, node, n) for n in (1, pixels)}
        super().__init__(graph, node, row.layout(shape), pixels)
        self.widen(row.weights_at(shape))

    def copy(self, source: str, to: str, count: str) -> None:
        """By words where they are aligned, or may be unaligned."""
        function, more = (copy_run(), ()) if self.plain else (copy_rows(), ("1", "0"))
        self.call(function, f"T.address_of(X[{source}])", f"T.address_of(P[{to}])", count, *more)

    def fill(self, to: str, count: str) -> None:
        """By bytes."""
        self.call(fill_run() if self.plain else fill_bytes(), f"T.address_of(P[{to}])", count, "in_zero")

    def tile(self, pixels: int, column: str, to: str) -> None:
        """Call the assembly."""
        self.call_tile(self.tiles[pixels].function(), column, to, "channels", "out_zero", "low", "high")


for _format in FORMATS.values():
    ThumbDepthwise(_format, "armv7m").register("5x1", "armv7m")
    ThumbDepthwise(_format, "armv6m").register("4x1", "armv6m")
