"""Rows for zero-heavy weights on cores with the Armv7E-M DSP instructions: only what is not zero costs anything.

A row applies where its stream is smaller than the packed weights, and is chosen where it is cheaper by its own count.
Nothing in the graph says that weights are sparse: every weight format whose values have enough zeros is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, INT32_LIMIT, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape
from .snippets import channel_consts
from .sparseasm import STACK_ARGS, ConvTile, LinearTile, SparseTile, spread_rows, spread_value
from .sparsepack import encode, gap_widths, plain, smaller, sparse_consts
from .windows import WindowWriter


def _inside(shape: Shape) -> int:
    """Output pixels whose windows lie inside the input."""
    total = 1
    for size, out, k, step, pad, apart in zip(
        (shape.height, shape.width), (shape.out_height, shape.out_width), shape.kernel, shape.stride, shape.pads,
        shape.dilation, strict=False,
    ):  # fmt: skip
        starts = range(-pad, out * step - pad, step)
        total *= sum(0 <= start <= size - (k - 1) * apart - 1 for start in starts)
    return total


@dataclass(frozen=True, slots=True)
class SparseRow:
    """One row: P pixels (1 for linear layers) x 1 channel per tile, entries of one coding."""

    op: str
    format: WeightFormat
    pixels: int
    gap_bits: int

    def tile(self, node: Node) -> SparseTile:
        """The assembly function this node needs."""
        a, full, add = node.attrs, (-128, 127), has_residual(node)
        kind = LinearTile if self.op == "linear" else ConvTile
        bounded, add_bounded = (a["low"], a["high"]) != full, add and (a["add_low"], a["add_high"]) != full
        return kind(self.pixels, self.gap_bits, a["shift"], bounded, add, add_bounded)

    def scale(self, node: Node) -> int:
        """How many bits too large the sums are (see LinearTile)."""
        tile = self.tile(node)
        return tile.scale if isinstance(tile, LinearTile) else 0

    def _fits(self, node: Node) -> bool:
        """Whether the scaled sum stays inside int32."""
        sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
        bias = np.abs(channel_consts(node)["bias"].astype(np.int64))
        return int((sums * 128 + bias).max()) << self.scale(node) < INT32_LIMIT

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, and a stream smaller than the packed weights."""
        return plain(node, self.format) and smaller(node, self.gap_bits) and (not self.scale(node) or self._fits(node))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Entries and turns of every channel, what surrounds them, and gathering the windows."""
        shape, tile = Shape.of(graph, node), self.tile(node)
        counts = encode(node.values, self.gap_bits).counts
        turns = int((-(-counts // tile.unroll)).sum())
        empty = int((counts == 0).sum())
        per_tile = len(tile.step()) * int(counts.sum()) + 3.0 * turns + float(tile.around) * len(counts) - 7.0 * empty
        if self.op == "linear":
            return per_tile + 40.0
        gather = (2.6 * shape.row + 25.0 * shape.kernel[0] + 20.0) * shape.pixels
        border = 16.0 * shape.kernel[0] * shape.kernel[1] * (shape.pixels - _inside(shape))
        return -(-shape.pixels // self.pixels) * per_tile + gather + border + 40.0

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Interleaved windows of a tile; a linear layer reads its input in place."""
        return 0 if self.op == "linear" else 2 * self.pixels * Shape.of(graph, node).row

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """A tile's windows are copied before its outputs are written."""
        return self.op == "conv2d" and Shape.of(graph, node).shrinking

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Stream, words per channel, bias and multiplier."""
        return sparse_consts(node, self.gap_bits, self.scale(node))

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""
        return _Writer(self, graph, node).write()


class _Writer(WindowWriter):
    """Writes one function of a SparseRow."""

    def __init__(self, row: SparseRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row.pixels, graph, node, "uint8")
        self.row, self.tile = row, row.tile(node)
        self.source.const("N", "counts", "uint16")

    def write(self) -> Code:
        """The whole function."""
        start = f"t * {self.pixels} * out_channels"
        known = {
            "counts": "T.address_of(N[0])", "counts_end": "T.address_of(N[out_channels])", "stride": "out_channels",
            "valid": "valid", "residual": f"T.address_of(R[{start}])" if self.tile.residual else "T.address_of(N[0])",
        }  # fmt: skip
        linear = self.row.op == "linear"
        pointers = ("X[0]" if linear else "P[0]", "W[0]", "B[0]", f"Y[{start}]")
        arguments = [*(f"T.address_of({p})" for p in pointers), *self.stack_arguments(STACK_ARGS, known)]
        if not linear:
            return self.code(lambda: self.call(self.tile.function(), *arguments))
        return self.undivided(lambda: self.call(self.tile.function(), *arguments))

    def gather(self) -> None:
        """By one call where the window lies inside the input."""
        s = self.source
        if self.shape.dilation[1] > 1:
            super().gather()
            return
        s.integer("reach_y", self.shape.height - (self.shape.kernel[0] - 1) * self.shape.dilation[0] - 1)
        with s.block("if at[0] >= 0 and at[0] <= reach_y and at[1] >= 0 and at[1] <= reach:"):
            source = "T.address_of(X[(at[0] * width + at[1]) * channels])"
            self.call(spread_rows(self.pixels), source, "T.address_of(P[p * 2])", "run", "kh", "dy * width * channels")
        with s.block("else:"):
            super().gather()

    def move(self, source: str, to: str, count: str) -> None:
        """Widen and interleave."""
        place = f"T.address_of(P[p * 2 + ({to}) * {2 * self.pixels}])"
        self.call(spread_rows(self.pixels), f"T.address_of(X[{source}])", place, count, "1", "0")

    def pad(self, to: str) -> None:
        """The zero point."""
        place = f"T.address_of(P[p * 2 + ({to}) * {2 * self.pixels}])"
        self.call(spread_value(self.pixels), place, "channels", "in_zero")


def _register(row: SparseRow) -> None:
    short = row.format.short
    form = "sparse" if row.gap_bits == 8 else "sparsebyte"
    name = f"{row.op}_s8_{short}_{form}{row.pixels}x1__armv7em"
    parts = (row.applies, row.cost, row.workspace, row.pack, row.emit, row.in_place)
    KERNELS.add(name, Kernel(name, row.op, short, "armv7em", *parts))


for _format in FORMATS.values():
    for _gap in gap_widths(_format):
        _register(SparseRow("linear", _format, 1, _gap))
        _register(SparseRow("conv2d", _format, 4, _gap))
        _register(SparseRow("conv2d", _format, 8, _gap))
