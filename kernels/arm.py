"""Convolution and linear rows for cores with the Armv7E-M DSP instructions (Cortex-M4, M7, M33, M55).

The windows of a few output pixels are widened to int16 into the workspace, then one assembly function multiplies them
with all output channels by SMLAD (see armasm). All geometry is passed as scalars, so that every layer of a network runs
through the same two or three functions: code size is paid once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, INT32_LIMIT, Int8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .armasm import STACK_ARGS, Tile, copy, spread, widen
from .conv import Shape
from .snippets import channel_consts
from .windows import WindowWriter

CHANNELS = 2


def _quads(shape: Shape) -> int:
    return -(-shape.row // 4)


def _scale(fmt: WeightFormat) -> int:
    """How many bits too large the sums are (see armasm.Tile)."""
    return 0 if fmt.codebook else 8 - fmt.bits


def _fits(node: Node) -> bool:
    """Whether the scaled sum stays inside int32."""
    sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
    bias = np.abs(channel_consts(node)["bias"].astype(np.int64))
    return int((sums * 128 + bias).max()) << _scale(node.format or FORMATS["int8"]) < INT32_LIMIT


def interleave(fmt: WeightFormat, codes: Int8) -> NDArray[Any]:
    """Codes (O, K) in the order the tile reads them: pairs of channels, quads of k, halves (0, 2) and (1, 3)."""
    channels, row = codes.shape
    quads = -(-row // 4)
    front = quads % 2 if fmt.bits == 2 else 0  # two quads share a word, and the last one must end it
    padded = np.zeros((-(-channels // CHANNELS) * CHANNELS, 4 * (quads + front)), np.int64)
    padded[:channels, 4 * front : 4 * front + row] = codes
    # pair, quad, half, first or second of the half, channel
    order = padded.reshape(-1, CHANNELS, quads + front, 2, 2).transpose(0, 2, 4, 3, 1)
    if fmt.codebook:  # a byte holds both codes of a half; the second half is read first
        return np.ascontiguousarray((order[:, :, ::-1, 0] | order[:, :, ::-1, 1] << 4).astype(np.uint8))
    if fmt.bits == 8:
        return np.ascontiguousarray(order.astype(np.int8))
    fields = (order & (2**fmt.bits - 1)).reshape(len(order), -1, 8 // fmt.bits, 2, CHANNELS)
    shifts = np.arange(8 - fmt.bits, -1, -fmt.bits).reshape(-1, 1, 1)
    return np.ascontiguousarray((fields << shifts).sum(axis=2).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class SmladRow:
    """One row: P pixels x 2 channels per tile."""

    op: str
    format: WeightFormat
    pixels: int

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups; residuals only with an even number of channels."""
        even = graph.tensors[node.output].shape[-1] % CHANNELS == 0
        plain = node.format == self.format and node.attrs.get("groups", 1) == 1
        return plain and (even or not has_residual(node)) and (self.format.bits == 8 or _fits(node))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Multiply loop, output stage of every tile, and widening the windows."""
        shape = Shape.of(graph, node)
        step = {1: 10 / 8, 3: 20 / 24, 4: 1.0}[self.pixels] + (0.0 if self.format.bits == 8 else 0.1)
        tiles = -(-shape.pixels // self.pixels) * -(-shape.out_channels // CHANNELS)
        per_tile = (
            4 * _quads(shape) * self.pixels * CHANNELS * step + 22 + (5 + 6 * has_residual(node)) * self.pixels * 2
        )
        table = 2000.0 if self.format.codebook else 0.0
        gather = (1.3 if shape.per_group % 4 == 0 else 4.0) * shape.row + 30 * shape.kernel[0]
        return tiles * per_tile + gather * shape.pixels + table

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Widened windows, one window of bytes where channels are no multiple of 4, and the codebook's table."""
        shape = Shape.of(graph, node)
        return self.table_at(shape) + (1024 if self.format.codebook else 0)

    def _bytes_at(self, shape: Shape) -> int:
        return self.pixels * 8 * _quads(shape)

    def table_at(self, shape: Shape) -> int:
        """Byte of the workspace where the codebook's table of pairs begins."""
        return self._bytes_at(shape) + (4 * _quads(shape) if shape.channels % 4 else 0)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Interleaved weights, (bias, bias, multiplier, multiplier) per pair of channels, codebook."""
        shape, consts = Shape.of(graph, node), channel_consts(node)
        codes = node.consts["codes"].reshape(shape.out_channels, shape.row)
        pairs = -(-shape.out_channels // CHANNELS)
        table = np.zeros((2, pairs * CHANNELS), np.int32)
        table[:, : shape.out_channels] = consts["bias"] << _scale(self.format), consts["multiplier"]
        packed = {"weights": interleave(self.format, codes)}
        packed["bias_multiplier"] = np.ascontiguousarray(table.reshape(2, pairs, CHANNELS).transpose(1, 0, 2))
        if self.format.codebook:
            book = np.zeros(16, np.int8)
            book[: len(node.consts["codebook"])] = node.consts["codebook"]
            packed["codebook"] = book
        return packed

    def tile(self, node: Node) -> Tile:
        """The assembly function this node needs."""
        a, full = node.attrs, (-128, 127)
        add = has_residual(node)
        bounded = (a["low"], a["high"]) != full
        add_bounded = add and (a["add_low"], a["add_high"]) != full
        return Tile(self.pixels, self.format.bits, self.format.codebook, a["shift"], bounded, add, add_bounded)

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, call the assembly, and so on."""
        return _Writer(self, graph, node).write()

    def scalars(self, shape: Shape) -> dict[str, int]:
        """What the function is called with beside the window geometry."""
        return {"quads": _quads(shape), "bytes_at": self._bytes_at(shape)}


class _Writer(WindowWriter):
    """Writes one function of a SmladRow."""

    def __init__(self, row: SmladRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row.pixels, graph, node, "int8" if row.format.bits == 8 else "uint8")
        self.row, self.whole, self.tile = row, self.shape.channels % 4 == 0, row.tile(node)
        for name, value in row.scalars(self.shape).items():
            self.source.integer(name, value)

    def write(self) -> Code:
        """The whole function."""
        s = self.source
        arguments = self._arguments()
        if self.row.format.codebook:
            self._table()
        if not self.whole:  # codes after the window meet code 0 of a codebook, which need not be the value 0
            with s.block("for i in range(4):"):
                s("P[bytes_at + quads * 4 - 4 + i] = T.int8(0)")
        return self.code(lambda: self.call(self.tile.function(), *arguments))

    def _arguments(self) -> list[str]:
        start = f"t * {self.pixels} * out_channels"
        known = {
            "turns_end": f"T.address_of(P[quads * {8 * self.pixels}])",
            "entry": self.source.integer("entry", self.tile.entry(_quads(self.shape))),
            "channels": "out_channels", "stride": "out_channels", "valid": "valid",
            "table": "T.address_of(P[table_at])" if self.row.format.codebook else "T.address_of(P[0])",
            "residual": f"T.address_of(R[{start}])" if self.tile.residual else "T.address_of(P[0])",
        }  # fmt: skip
        pointers = ("P[0]", "W[0]", "B[0]", f"Y[{start}]")
        return [*(f"T.address_of({p})" for p in pointers), *self.stack_arguments(STACK_ARGS, known)]

    def _table(self) -> None:
        """Pairs of codebook entries for every byte of two codes."""
        s = self.source
        s.const("E", "codebook", "int8")
        s.view("S", "P", "int32")
        s.integer("table_at", self.row.table_at(self.shape))
        s.integer("entries", 16)
        with s.block("for i in range(T.max(entries, 1)):"), s.block("for j in range(T.max(entries, 1)):"):
            low = 'T.bitwise_and(T.cast(E[j], "int32"), 65535)'
            high = 'T.shift_left(T.cast(E[i], "int32"), 16)'
            s(f"S[T.shift_right(table_at, 2) + i * 16 + j] = T.bitwise_or({low}, {high})")

    def move(self, source: str, to: str, count: str) -> None:
        """Widen at once, or collect bytes where channels are no multiple of 4."""
        if self.whole:
            place = f"T.address_of(P[p * 8 + ({to}) * {2 * self.pixels}])"
            self.call(widen(self.pixels), f"T.address_of(X[{source}])", place, f"T.shift_right({count}, 2)")
        else:
            self.call(copy(), f"T.address_of(X[{source}])", f"T.address_of(P[bytes_at + {to}])", count)

    def pad(self, to: str) -> None:
        """The zero point, as pairs of int16 or as bytes."""
        if self.whole:
            pair = "T.bitwise_or(T.bitwise_and(in_zero, 65535), T.shift_left(in_zero, 16))"
            place = f"T.address_of(P[p * 8 + ({to}) * {2 * self.pixels}])"
            self.call(spread(self.pixels), place, "T.shift_right(channels, 2)", pair)
            return
        with self.source.block("for c in range(T.max(channels, 1)):"):
            self.source(f'P[bytes_at + {to} + c] = T.cast(in_zero, "int8")')

    def finish(self) -> None:
        """Widen the collected bytes."""
        if not self.whole:
            self.call(widen(self.pixels), "T.address_of(P[bytes_at])", "T.address_of(P[p * 8])", "quads")


def _register(op: str, name: str, pixels: int) -> None:
    row = SmladRow(op, FORMATS[name], pixels)
    kernel = f"{op}_s8_{row.format.short}_{pixels}x{CHANNELS}__armv7em"
    KERNELS.add(
        kernel,
        Kernel(kernel, op, row.format.short, "armv7em", row.applies, row.cost, row.workspace, row.pack, row.emit),
    )


for _name in ("int8", "int4", "int2", "c4s8"):
    _register("conv2d", _name, 4 if FORMATS[_name].codebook else 3)
    _register("linear", _name, 1)
