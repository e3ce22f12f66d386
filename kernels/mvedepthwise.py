"""Depthwise convolution for cores with Helium (Cortex-M55): eight channels at a time, in lanes of 16 bits.

A product of two int8 fits 16 bits, and so does the sum of those taps whose weights' magnitudes add up to at most 255 in
every channel; such groups of taps are summed there before they are widened and added to the int32 sums. Even channels
lie in one register of sums, odd ones in another, which is the order in which the output stage narrows them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual, macs
from xdeploy.target import Target

from .armasm import function
from .conv import Shape, is_depthwise
from .mve_block import fill_run, move_run
from .rolling import RollingRow, RollingWriter
from .snippets import channel_consts
from .weights import RowLayout

CHANNELS = 8
POINTERS = 6  # low registers that hold addresses of taps; two more hold a passing address and the output's
REACH = 4095  # bytes an immediate addition reaches
LANE_LIMIT = 255  # magnitudes of weights that may meet in one 16-bit sum: 128 * 255 < 2^15
# stack arguments of the tile function after table, column, weights, y in r0-r3
STACK_ARGS = ("bias_multiplier", "channels", "out_zero", "low", "high")
PUSHED = 9 * 4 + 8 * 8


def tap_groups(values: NDArray[Any]) -> tuple[int, ...]:
    """Sizes of the runs of taps that fit one 16-bit sum; `values` is (channels, taps)."""
    sizes, sums = [0], np.zeros(len(values), np.int64)
    for tap in np.abs(values.astype(np.int64)).T:
        if sizes[-1] and int((sums + tap).max()) > LANE_LIMIT:
            sizes.append(0)
            sums = np.zeros(len(values), np.int64)
        sizes[-1] += 1
        sums = sums + tap
    return tuple(sizes)


@dataclass(frozen=True, slots=True)
class Tile:
    """One pixel, all channels, eight at a time."""

    kernel: tuple[int, int]
    step: int  # bytes from one column of taps to the next
    groups: tuple[int, ...]  # of taps
    shift: int  # of the accumulator before the multiplication

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    def _places(self) -> dict[tuple[int, int], str]:
        """Taps (ky, kx) whose address has a register of its own: the first of every row, then others."""
        kh, kw = self.kernel
        taps = [(ky, 0) for ky in range(kh)] + [(ky, kx) for kx in range(1, kw) for ky in range(kh)]
        return {tap: f"r{i}" for i, tap in enumerate(taps[:POINTERS])}

    def _load(self, q: str, ky: int, kx: int) -> list[str]:
        places = self._places()
        if kx and (ky, kx) not in places:
            base = f"add.w r6, {places[ky, 0]}, #{kx * self.step}"
            return [base, f"vldrb.s16 {q}, [r6]"]
        return [f"vldrb.s16 {q}, [{places[ky, kx]}], #{CHANNELS}"]

    def _taps(self) -> list[tuple[int, int]]:
        """All taps in the order of their weights; a row's pointer moves on with its first tap, which comes last."""
        kh, kw = self.kernel
        return [(ky, kx) for ky in range(kh) for kx in [*range(1, kw), 0]]

    def _sums(self) -> list[str]:
        lines, at = [], 0
        taps = self._taps()
        for size in self.groups:
            for i in range(size):
                q = "q4" if i else "q2"
                lines += [*self._load(q, *taps[at + i]), "vldrh.u16 q3, [r8], #16", f"vmul.i16 {q}, {q}, q3"]
                lines += ["vadd.i16 q2, q2, q4"] if i else []
            lines += ["vmovlb.s16 q3, q2", "vmovlt.s16 q4, q2", "vadd.i32 q0, q0, q3", "vadd.i32 q1, q1, q4"]
            at += size
        return lines

    def lines(self) -> list[str]:
        """The function body."""
        head = ["vpush {d8-d15}", "push {r4-r11, lr}"]
        head += ["mov r8, r2", "mov r7, r3", "mov r9, r0", "mov r11, r1"]
        for (ky, kx), register in self._places().items():
            head += [f"ldr {register}, [r9, #{4 * ky}]", f"add {register}, {register}, r11"]
            head += [f"add.w {register}, {register}, #{kx * self.step}"] if kx else []
        for name, q in (("low", "q6"), ("high", "q7")):
            head += [f"ldr r10, {self._slot(name)}", f"vdup.16 {q}, r10"]
        head += [f"ldr r9, {self._slot('bias_multiplier')}", f"ldr r10, {self._slot('out_zero')}"]
        head += [f"ldr r11, {self._slot('channels')}", "dlstp.16 lr, r11"]
        body = ["1:", "vldrw.u32 q0, [r9], #16", "vldrw.u32 q1, [r9], #16", *self._sums()]
        body += [f"vshl.i32 {q}, {q}, #{self.shift}" for q in ("q0", "q1") if self.shift]
        body += ["vldrw.u32 q2, [r9], #16", "vldrw.u32 q3, [r9], #16", "vrmulh.s32 q0, q0, q2", "vrmulh.s32 q1, q1, q3"]
        body += ["vadd.i32 q0, q0, r10", "vadd.i32 q1, q1, r10", "vqmovnb.s32 q0, q0", "vqmovnt.s32 q0, q1"]
        body += ["vmax.s16 q0, q0, q6", "vmin.s16 q0, q0, q7", f"vstrb.16 q0, [r7], #{CHANNELS}", "letp lr, 1b"]
        return [*head, *body, "pop {r4-r11, lr}", "vpop {d8-d15}", "bx lr"]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters table, column, weights, y and STACK_ARGS."""
        return function("mvedw", "ptr, i32, ptr, ptr, ptr, i32, i32, i32, i32", self.lines())


@dataclass(frozen=True, slots=True)
class MveDepthwise(RollingRow):
    """The row of one weight format."""

    def tile(self, graph: LoweredGraph, node: Node) -> Tile:
        """The assembly function of one pixel."""
        shape = Shape.of(graph, node)
        values = self._ordered(shape, node.values)
        step = shape.dilation[1] * shape.channels
        return Tile(shape.kernel, step, tap_groups(values), node.attrs["shift"])

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise, this format, an even number of channels, no residual, a window of at most six rows."""
        if node.format != self.format or not is_depthwise(graph, node) or has_residual(node):
            return False
        shape = Shape.of(graph, node)
        near = (shape.kernel[1] - 1) * shape.dilation[1] * shape.channels <= REACH
        return shape.channels % 2 == 0 and shape.kernel[0] <= POINTERS and near

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """About one instruction per multiply-accumulate, and what every pixel begins with."""
        shape = Shape.of(graph, node)
        tile = self.tile(graph, node)
        blocks = -(-shape.channels // CHANNELS)
        copied = 0.3 * shape.height * shape.width * shape.channels if any(shape.pads) else 0.0
        return (
            shape.pixels * (60.0 + blocks * (len(tile.lines()) - 40)) + copied + 1.5 * macs(graph, node) / shape.pixels
        )

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights by block, tap, channel; per block (bias, multiplier) of even, then of odd channels; codebook."""
        shape = Shape.of(graph, node)
        padded = np.zeros((2, -(-shape.channels // CHANNELS) * CHANNELS), np.int32)
        padded[:, : shape.channels] = list(channel_consts(node).values())
        table = padded.reshape(2, -1, CHANNELS // 2, 2).transpose(1, 0, 3, 2)
        codes = self._ordered(shape, node.consts["codes"])
        blocks = np.zeros((padded.shape[1], codes.shape[1]), codes.dtype)
        blocks[: shape.channels] = codes
        rows = np.ascontiguousarray(blocks.reshape(-1, CHANNELS, codes.shape[1]).transpose(0, 2, 1)).reshape(1, -1)
        packed = {"bias_multiplier": np.ascontiguousarray(table), "weights": self.layout(shape).pack(rows)}
        if self.format.codebook:
            packed["codebook"] = node.consts["codebook"]
        return packed

    def _ordered(self, shape: Shape, values: NDArray[Any]) -> NDArray[Any]:
        """(C, taps) in the order in which the tile reads."""
        kh, kw = shape.kernel
        order = [ky * kw + kx for ky in range(kh) for kx in [*range(1, kw), 0]]
        return values.reshape(shape.channels, -1)[:, order]

    def layout(self, shape: Shape) -> RowLayout:
        """One row of all weights, channels filled up to whole blocks."""
        channels = -(-shape.channels // CHANNELS) * CHANNELS
        return RowLayout(self.format, channels * shape.kernel[0] * shape.kernel[1])

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Widen the weights, then roll over the rows."""
        return _Writer(self, graph, node).write()


class _Writer(RollingWriter):
    """Writes one function of a MveDepthwise row."""

    def __init__(self, row: MveDepthwise, graph: LoweredGraph, node: Node) -> None:
        layout, self._tile = row.layout(Shape.of(graph, node)), row.tile(graph, node)
        super().__init__(graph, node, layout, 1)
        self.widen(row.weights_at(self.shape))

    def copy(self, source: str, to: str, count: str) -> None:
        """By vectors."""
        self.call(move_run(), f"T.address_of(X[{source}])", f"T.address_of(P[{to}])", count)

    def fill(self, to: str, count: str) -> None:
        """By vectors."""
        self.call(fill_run(), f"T.address_of(P[{to}])", count, "in_zero")

    def tile(self, pixels: int, column: str, to: str) -> None:
        """Call the assembly."""
        self.call_tile(self._tile.function(), column, to, "channels", "out_zero", "low", "high")


for _format in FORMATS.values():
    MveDepthwise(_format).register(f"1x{CHANNELS}", "mve")
