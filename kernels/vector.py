"""Convolution and linear rows for 128-bit NEON (AArch64 without dot product) and AVX2: explicit vectors over k.

Windows are copied into the workspace, padded to a multiple of 16 codes (the padding meets zero weights, or code 0 of a
codebook against zero activations). A tile is a few pixels by four channels; every (pixel, channel) pair has its own
vector of partial sums, reduced at the end. Weights of 4 bits, with or without a codebook, become table indices: one
byte shuffle decodes 16 of them, shared by all pixels of the tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape
from .snippets import channel_consts
from .windows import WindowWriter

CHUNK, CHANNELS = 16, 4
_INT4 = np.array([*range(8), *range(-8, 0)], np.int8)  # two's complement as a table


@dataclass(frozen=True, slots=True)
class Isa:
    """What differs between the vector instruction sets. Expressions take and give TVMScript."""

    name: str
    pixels: int  # of a conv2d tile
    lanes: int  # of one accumulator
    per_mac: float  # instructions per 16 multiply-accumulates, loads apart

    def product(self, x: str, w: str) -> str:
        """Vector of `lanes` int32 to add: products of 16 int8 pairs, already summed in part."""
        if self.name == "x86":
            wide = [f'T.cast({v}, "int16x16")' for v in (x, w)]
            return f'T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", {", ".join(wide)})'
        halves = [
            f'T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull.v8i16", {_half(w, h)}, {_half(x, h)})'
            for h in (0, 1)
        ]  # |w| <= 127, so that two products fit into int16
        total = " + ".join(halves)
        return f'T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", {total})'

    def lookup(self, table: str, index: str) -> str:
        """int8x16 of table[index] for 16 indices below 16."""
        if self.name == "x86":
            return f'T.call_llvm_pure_intrin("int8x16", "llvm.x86.ssse3.pshuf.b.128", {table}, {index})'
        return f'T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl1.v16i8", {table}, {index})'

    def reduce(self, sums: list[str]) -> str:
        """int32x4 of the totals of four accumulators."""
        if self.name == "x86":

            def add(a: str, b: str) -> str:
                return f'T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.phadd.d", {a}, {b})'

            pairs = add(add(sums[0], sums[1]), add(sums[2], sums[3]))
            return f"T.Shuffle([{pairs}], [0, 1, 2, 3]) + T.Shuffle([{pairs}], [4, 5, 6, 7])"

        def pairwise(a: str, b: str) -> str:
            return f'T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", {a}, {b})'

        return pairwise(pairwise(sums[0], sums[1]), pairwise(sums[2], sums[3]))

    def scale(self, value: str, half_multiplier: str) -> str:
        """(value * m + 2^31) >> 32 on int32x4, given m / 2."""
        if self.name == "x86":
            product = f'T.cast({value}, "int64x4") * T.cast({half_multiplier}, "int64x4")'
            rounded = f"{product} + T.broadcast(T.int64(1073741824), 4)"
            return f'T.cast(T.shift_right({rounded}, T.broadcast(T.int64(31), 4)), "int32x4")'
        arguments = f"{value}, {half_multiplier}"
        return f'T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sqrdmulh.v4i32", {arguments})'


def _half(value: str, half: int) -> str:
    return f"T.Shuffle([{value}], {list(range(8 * half, 8 * half + 8))})"


def _ramp(start: str, lanes: int) -> str:
    return f"T.ramp({start}, 1, {lanes})"


def _row(shape: Shape) -> int:
    return -(-shape.row // CHUNK) * CHUNK


def blocks_of(fmt: WeightFormat, codes: Int8) -> NDArray[Any]:
    """Codes (O, K) as (blocks of 4 channels, chunks, 4, bytes); 4-bit codes j and j + 8 of a chunk share byte j."""
    blocks, chunks = -(-len(codes) // CHANNELS), -(-codes.shape[1] // CHUNK)
    padded = np.zeros((blocks * CHANNELS, chunks * CHUNK), np.int8)
    padded[: len(codes), : codes.shape[1]] = codes
    cut = np.ascontiguousarray(padded.reshape(blocks, CHANNELS, chunks, CHUNK).transpose(0, 2, 1, 3))
    if fmt.bits == 8:
        return cut
    low, high = cut[..., :8].astype(np.uint8) & 15, cut[..., 8:].astype(np.uint8) & 15
    return np.ascontiguousarray(low | high << 4)


@dataclass(frozen=True, slots=True)
class VectorRow:
    """One row: an instruction set, a weight format of 8 or 4 bits, P pixels x 4 channels."""

    op: str
    isa: Isa
    format: WeightFormat
    pixels: int

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, no weight of -128."""
        plain = node.format == self.format and node.attrs.get("groups", 1) == 1
        return plain and int(node.values.min(initial=0)) > -128

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Chunks of the tiles, their reduction and output stage, and gathering."""
        shape = Shape.of(graph, node)
        decode = 1.0 if self.format.bits == 8 else 5.0
        chunk = self.pixels + CHANNELS * (decode + self.isa.per_mac * self.pixels)
        tiles = -(-shape.pixels // self.pixels) * -(-shape.out_channels // CHANNELS)
        gather = shape.pixels * (20 + 30 * shape.kernel[0] + shape.row / 8)
        output = (16.0 + 8.0 * has_residual(node)) * self.pixels
        return tiles * (chunk * _row(shape) / CHUNK + output + 10) + gather

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows of a tile."""
        return self.pixels * _row(Shape.of(graph, node))

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights in blocks, (bias x 4, multiplier/2 x 4) per block, the table of the 16 values."""
        shape, consts = Shape.of(graph, node), channel_consts(node)
        codes = node.consts["codes"].reshape(shape.out_channels, shape.row)
        packed = {"weights": blocks_of(self.format, codes)}
        table = np.zeros((2, len(packed["weights"]) * CHANNELS), np.int32)
        table[:, : shape.out_channels] = consts["bias"], consts["multiplier"] >> 1
        packed["bias_multiplier"] = np.ascontiguousarray(table.reshape(2, -1, CHANNELS).transpose(1, 0, 2))
        if self.format.bits == 4:
            packed["table"] = _INT4.copy()
            if self.format.codebook:
                packed["table"][:] = 0
                packed["table"][: len(node.consts["codebook"])] = node.consts["codebook"]
        return packed

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather a tile's windows, multiply, reduce, write."""
        return _Writer(self, graph, node).write()


class _Writer(WindowWriter):
    """Writes one function of a VectorRow."""

    def __init__(self, row: VectorRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row.pixels, graph, node, "int8" if row.format.bits == 8 else "uint8")
        self.row, self.isa = row, row.isa
        s = self.source
        if row.format.bits == 4:
            s.const("E", "table", "int8")
        s.integer("row", _row(self.shape))
        s.integer("chunks", _row(self.shape) // CHUNK)
        s.integer("blocks", -(-self.shape.out_channels // CHANNELS))
        s.integer("out_zero", node.attrs["out_zero"])
        if has_residual(node):
            for name in ("add_a", "add_b", "add_const"):
                s.integer(name, node.attrs[name])
        s.local("acc", row.pixels * CHANNELS * row.isa.lanes)

    def write(self) -> Code:
        """The whole function."""
        return self.code(self._tile)

    def move(self, source: str, to: str, count: str) -> None:
        """Copy bytes."""
        with self.source.block(f"for c in range(T.max({count}, 1)):"):
            self.source(f"P[p * row + {to} + c] = X[{source} + c]")

    def pad(self, to: str) -> None:
        """The zero point."""
        with self.source.block("for c in range(T.max(channels, 1)):"):
            self.source(f'P[p * row + {to} + c] = T.cast(in_zero, "int8")')

    def finish(self) -> None:
        """Zeros behind the window, where a codebook may not hold the value 0."""
        if self.row.format.codebook and self.shape.row % CHUNK:
            with self.source.block("for c in range(row - kh * run):"):
                self.source("P[p * row + kh * run + c] = T.int8(0)")

    def _acc(self, pixel: int, channel: int) -> str:
        return f"acc[{_ramp(str((pixel * CHANNELS + channel) * self.isa.lanes), self.isa.lanes)}]"

    def _tile(self) -> None:
        s = self.source
        with s.block("for ob in range(T.max(blocks, 1)):"):
            for p in range(self.pixels):
                for c in range(CHANNELS):
                    s(f"{self._acc(p, c)} = T.broadcast(0, {self.isa.lanes})")
            with s.block("for j in range(T.max(chunks, 1)):"):
                for p in range(self.pixels):
                    s(f"x{p} = P[{_ramp(f'{p} * row + j * {CHUNK}', CHUNK)}]")
                for c in range(CHANNELS):
                    self._weights(c)
                    for p in range(self.pixels):
                        s(f"{self._acc(p, c)} = {self._acc(p, c)} + {self.isa.product(f'x{p}', f'w{c}')}")
            for p in range(self.pixels):
                self._output(p)

    def _weights(self, c: int) -> None:
        """Bind w<c> to the 16 weights of channel c."""
        s = self.source
        if self.row.format.bits == 8:
            s(f"w{c} = W[{_ramp(f'((ob * chunks + j) * {CHANNELS} + {c}) * {CHUNK}', CHUNK)}]")
            return
        s(f"b{c} = W[{_ramp(f'((ob * chunks + j) * {CHANNELS} + {c}) * {CHUNK // 2}', CHUNK // 2)}]")
        low, high = (
            f"T.bitwise_and(b{c}, T.broadcast(T.uint8(15), 8))",
            f"T.shift_right(b{c}, T.broadcast(T.uint8(4), 8))",
        )
        index = f'T.reinterpret("int8x16", T.Shuffle([{low}, {high}], {list(range(CHUNK))}))'
        table = f"E[{_ramp('0', CHUNK)}]"
        s(f"w{c} = {self.isa.lookup(table, index)}")

    def _clamped(self, value: str, low: int, high: int) -> str:
        return f"T.max(T.min({value}, T.broadcast({high}, 4)), T.broadcast({low}, 4))"

    def _output(self, p: int) -> None:
        s, a = self.source, self.node.attrs
        s(f"s{p} = {self.isa.reduce([self._acc(p, c) for c in range(CHANNELS)])} + B[{_ramp('ob * 8', 4)}]")
        shifted = f"T.shift_left(s{p}, T.broadcast({a['shift']}, 4))" if a["shift"] else f"s{p}"
        multiplier = f"B[{_ramp('ob * 8 + 4', CHANNELS)}]"
        code = f"{self.isa.scale(shifted, multiplier)} + T.broadcast(out_zero, 4)"
        s(f"y{p} = {self._clamped(code, a['low'], a['high'])}")
        at = f"(t * {self.pixels} + {p}) * out_channels + ob * {CHANNELS}"
        with s.block(f"if {p} < valid:"):
            if self.shape.out_channels % CHANNELS == 0:
                self._store(f"y{p}", _ramp(at, CHANNELS), CHANNELS)
                return
            for c in range(CHANNELS):  # the last block is not full
                with s.block(f"if ob * {CHANNELS} + {c} < out_channels:"):
                    self._store(f"T.Shuffle([y{p}], [{c}])", f"{at} + {c}", 1)

    def _store(self, code: str, at: str, lanes: int) -> None:
        s, a = self.source, self.node.attrs
        suffix = f"x{lanes}" if lanes > 1 else ""

        def every(value: Any) -> str:
            return f"T.broadcast({value}, {lanes})" if lanes > 1 else str(value)

        if has_residual(self.node):
            other = f'T.cast(R[{at}], "int32{suffix}") * {every("add_b")}'
            total = f"{code} * {every('add_a')} + {other} + {every('add_const')}"
            total = f"T.shift_right({total}, {every(a['add_shift'])})"
            code = f"T.max(T.min({total}, {every(a['add_high'])}), {every(a['add_low'])})"
        s(f'Y[{at}] = T.cast({code}, "int8{suffix}")')


_NEON = Isa("neon", 4, 4, 3.0)
_AVX2 = Isa("x86", 2, 8, 2.0)


def _register(op: str, isa: Isa, name: str, pixels: int) -> None:
    row = VectorRow(op, isa, FORMATS[name], pixels)
    kernel = f"{op}_s8_{row.format.short}_{pixels}x{CHANNELS}__{isa.name}"
    KERNELS.add(
        kernel,
        Kernel(kernel, op, row.format.short, isa.name, row.applies, row.cost, row.workspace, row.pack, row.emit),
    )


for _isa in (_NEON, _AVX2):
    for _name in ("int8", "int4", "c4s8"):
        if (_isa, _name) != (_AVX2, "int8"):  # the direct row is faster there
            _register("conv2d", _isa, _name, _isa.pixels)
            _register("linear", _isa, _name, 1)
