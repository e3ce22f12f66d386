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

from xdeploy.formats import FORMATS, INT32_LIMIT, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .armasm import STACK_ARGS, Tile
from .armdecode import CHANNELS, TABLED, Form, entries, interleave, table_bytes
from .armgather import clip_rows, copy_rows, spread, widen
from .conv import Shape
from .snippets import channel_consts
from .windows import WindowWriter

_STRIDE = "dy * width * channels"  # bytes from one row of a window to the next


def _quads(shape: Shape) -> int:
    return -(-shape.row // 4)


@dataclass(frozen=True, slots=True)
class SmladRow:
    """One row: P pixels x 2 channels per tile."""

    op: str
    format: WeightFormat
    form: Form
    pixels: int

    @property
    def scale(self) -> int:
        """How many bits too large the sums are (see armasm.Tile)."""
        return 8 - self.format.bits if self.form == "wide" else 0

    def _fits(self, node: Node) -> bool:
        """Whether the scaled sum stays inside int32."""
        sums = np.abs(node.values.astype(np.int64)).reshape(len(node.values), -1).sum(axis=1)
        bias = np.abs(channel_consts(node)["bias"].astype(np.int64))
        return int((sums * 128 + bias).max()) << self.scale < INT32_LIMIT

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups; residuals only with an even number of channels."""
        even = graph.tensors[node.output].shape[-1] % CHANNELS == 0
        plain = node.format == self.format and node.attrs.get("groups", 1) == 1
        return plain and (even or not has_residual(node)) and (not self.scale or self._fits(node))

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Multiply loop, output stage of every tile, and widening the windows."""
        shape = Shape.of(graph, node)
        step = len(self.tile(node).step(0)) / (8 * self.pixels)
        tiles = -(-shape.pixels // self.pixels) * -(-shape.out_channels // CHANNELS)
        per_tile = (
            4 * _quads(shape) * self.pixels * CHANNELS * step + 22 + (5 + 6 * has_residual(node)) * self.pixels * 2
        )
        table = 2.0 * table_bytes(self.form, self.format.bits)
        gather = (1.3 if shape.per_group % 4 == 0 else 4.0) * shape.row + 30 * shape.kernel[0]
        return tiles * per_tile + gather * shape.pixels + table

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Widened windows, one window of bytes where channels are no multiple of 4, and the codebook's table."""
        shape = Shape.of(graph, node)
        return self.table_at(shape) + table_bytes(self.form, self.format.bits)

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """A tile's windows are widened before its outputs are written."""
        return Shape.of(graph, node).shrinking

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
        table[:, : shape.out_channels] = consts["bias"] << self.scale, consts["multiplier"]
        packed: dict[str, NDArray[Any]] = {"weights": interleave(self.format, self.form, codes)}
        packed["bias_multiplier"] = np.ascontiguousarray(table.reshape(2, pairs, CHANNELS).transpose(1, 0, 2))
        if self.looked_up:
            packed["codebook"] = entries(self.format, node.consts.get("codebook"))
        return packed

    @property
    def looked_up(self) -> bool:
        """Whether codes are looked up, in a table of the workspace or in the codebook itself."""
        return self.form in TABLED or self.form == "lookup"

    def tile(self, node: Node) -> Tile:
        """The assembly function this node needs."""
        a, full = node.attrs, (-128, 127)
        add = has_residual(node)
        bounded = (a["low"], a["high"]) != full
        add_bounded = add and (a["add_low"], a["add_high"]) != full
        return Tile(self.pixels, self.format.bits, self.form, a["shift"], bounded, add, add_bounded)

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
        # rows of whole quads are widened where they lie
        self.quads = self.whole or (self.shape.kernel[1] * self.shape.channels % 4 == 0 and self.shape.dilation[1] == 1)
        for name, value in row.scalars(self.shape).items():
            self.source.integer(name, value)

    def write(self) -> Code:
        """The whole function."""
        s = self.source
        arguments = self._arguments()
        if self.row.looked_up:
            s.const("E", "codebook", "int8")
        if self.row.form in TABLED:
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
            "table": self._table_address(),
            "residual": f"T.address_of(R[{start}])" if self.tile.residual else "T.address_of(P[0])",
        }  # fmt: skip
        pointers = ("P[0]", "W[0]", "B[0]", f"Y[{start}]")
        return [*(f"T.address_of({p})" for p in pointers), *self.stack_arguments(STACK_ARGS, known)]

    def _table_address(self) -> str:
        if self.row.form == "lookup":
            return "T.address_of(E[0])"
        return "T.address_of(P[table_at])" if self.row.form in TABLED else "T.address_of(P[0])"

    def _table(self) -> None:
        """Pairs of entries for every pair of codes; where both channels' pairs are one index, two words for each."""
        s, both = self.source, self.row.form == "quads"
        s.view("S", "P", "int32")
        s.integer("table_at", self.row.table_at(self.shape))
        s.integer("entries", 2**self.row.format.bits)
        place = "T.shift_right(table_at, 2) + (i * entries + j)" + " * 2" * both
        low = 'T.bitwise_and(T.cast(E[j], "int32"), 65535)'
        high = 'T.shift_left(T.cast(E[i], "int32"), 16)'
        with s.block("for i in range(T.max(entries, 1)):"), s.block("for j in range(T.max(entries, 1)):"):
            s(f"S[{place}] = T.bitwise_or({low}, {high})")
        if both:
            self._double()

    def _double(self) -> None:
        """Every index's two words: its lower pair, then its upper pair, from the first entries on backwards."""
        s = self.source
        s.integer("pairs", 4**self.row.format.bits)
        first = "T.shift_right(table_at, 2)"
        with s.block("for k in range(T.max(pairs, 1)):"), s.block("for n in range(T.max(pairs, 1)):"):
            s("behind: T.let[T.int32] = pairs - 1 - k")
            s(f"S[{first} + (behind * pairs + n) * 2 + 1] = S[{first} + behind * 2]")
            s(f"S[{first} + (behind * pairs + n) * 2] = S[{first} + n * 2]")

    def _window(self) -> None:
        """A pointwise layer's windows are its pixels."""
        if not (self.shape.pointwise and self.whole):
            super()._window()
            return
        source = f"T.address_of(X[(t * {self.pixels} + p) * channels])"
        self.call(widen(self.pixels), source, "T.address_of(P[p * 8])", "quads", "1", "0")

    def gather(self) -> None:
        """By one call where the window lies inside the input."""
        s = self.source
        if self.shape.dilation[1] > 1:
            super().gather()
            return
        s.integer("reach_y", self.shape.height - (self.shape.kernel[0] - 1) * self.shape.dilation[0] - 1)
        inside = "at[0] >= 0 and at[0] <= reach_y and at[1] >= 0 and at[1] <= reach"
        source = "T.address_of(X[(at[0] * width + at[1]) * channels])"
        with s.block(f"if {inside}:"):
            if self.quads:
                self.call(widen(self.pixels), source, "T.address_of(P[p * 8])", "T.shift_right(run, 2)", "kh", _STRIDE)
            else:
                self.call(copy_rows(), source, "T.address_of(P[bytes_at])", "run", "kh", _STRIDE)
        with s.block("else:"):
            if self.whole:
                super().gather()
            else:
                s("lead: T.let[T.int32] = T.min(T.max(0 - at[1], 0) * channels, run)")
                s("count: T.let[T.int32] = T.min((width - at[1]) * channels, run) - lead")
                border = ("lead", "count", "at[0]", "dy", "height", "in_zero")
                self.call(clip_rows(), source, "T.address_of(P[bytes_at])", "run", "kh", _STRIDE, *border)
                if self.quads:
                    self._widen_bytes()

    def move(self, source: str, to: str, count: str) -> None:
        """Widen at once, or collect bytes where channels are no multiple of 4."""
        if self.whole:
            place = f"T.address_of(P[p * 8 + ({to}) * {2 * self.pixels}])"
            self.call(widen(self.pixels), f"T.address_of(X[{source}])", place, f"T.shift_right({count}, 2)", "1", "0")
        else:
            self.call(copy_rows(), f"T.address_of(X[{source}])", f"T.address_of(P[bytes_at + {to}])", count, "1", "0")

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
        if not self.quads:
            self._widen_bytes()

    def _widen_bytes(self) -> None:
        self.call(widen(self.pixels), "T.address_of(P[bytes_at])", "T.address_of(P[p * 8])", "quads", "1", "0")


def _register(op: str, name: str, form: Form, pixels: int) -> None:
    row = SmladRow(op, FORMATS[name], form, pixels)
    kernel = f"{op}_s8_{row.format.short}_{pixels}x{CHANNELS}__armv7em"
    KERNELS.add(
        kernel,
        Kernel(
            kernel, op, row.format.short, "armv7em", row.applies, row.cost, row.workspace, row.pack, row.emit,
            row.in_place,
        ),
    )  # fmt: skip


_FORMS: dict[str, Form] = {
    "int8": "wide", "int4": "wide", "int2": "wide", "int3": "pairs", "int5": "fields", "int6": "fields",
    "c1s8": "pairs", "c2s8": "pairs", "c3s8": "pairs", "c4s8": "pairs", "c5s8": "lookup", "c6s8": "lookup",
}  # fmt: skip
for _name, _form in _FORMS.items():
    _conv: Form = "quads" if _name in ("c1s8", "c2s8") else _form
    _register("conv2d", _name, _conv, 3 if _form == "wide" else 4)
    _register("linear", _name, _form, 1)
# a table of 2 kB saves a tenth of the instructions where there is RAM for it
_register("conv2d", "int2", "quads", 4)
