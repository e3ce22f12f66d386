"""Depthwise convolution for cores with the Armv7E-M DSP instructions: two pixels by four channels at a time.

A word of four channels is widened by two SXTB16; SMLABB and SMLATT multiply its halves with pairs of weights, which
every format is widened to once per call. All columns that the two windows share are loaded once.
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
from .armgather import copy_rows, fill_bytes
from .conv import Shape, is_depthwise
from .rolling import RollingRow, RollingWriter
from .snippets import channel_consts

CHANNELS = 4
PIXELS = 2
MOST_ROWS = 8  # of a window: their addresses are kept on the stack
REACH = 4095  # bytes an immediate offset reaches
TAP_REACH = 1020 // 8  # taps whose weights an LDRD reaches
# a channel's place among the four halves that two words of pairs hold: (0, 2), (1, 3)
ORDER = (0, 2, 1, 3)
# stack arguments of the tile function after table, column, weights, y in r0-r3
STACK_ARGS = ("bias_multiplier", "groups", "stride", "out_zero", "low", "high")
PUSHED = 9 * 4


@dataclass(frozen=True, slots=True)
class Tile:
    """One or two neighbouring pixels, all channels, four at a time."""

    pixels: int
    kernel: tuple[int, int]
    step: int  # bytes from one column to the next: the channels
    dilation: int
    stride: int
    shift: int  # of the accumulator before the multiplication
    bounded: bool  # low..high is not the int8 range

    @property
    def _frame(self) -> int:
        """Bytes of locals: row addresses, then y."""
        return 4 * (self.kernel[0] + 1)

    def _slot(self, name: str) -> str:
        return f"[sp, #{self._frame + PUSHED + 4 * STACK_ARGS.index(name)}]"

    def _columns(self) -> dict[int, list[tuple[int, int]]]:
        """Column -> which (pixel, tap) read it."""
        found: dict[int, list[tuple[int, int]]] = {}
        for p in range(self.pixels):
            for kx in range(self.kernel[1]):
                found.setdefault(p * self.stride + kx * self.dilation, []).append((p, kx))
        return dict(sorted(found.items()))

    def reach(self) -> int:
        """Bytes from the first to the last column read."""
        return max(self._columns()) * self.step + 4

    def _multiply(self, pixel: int, tap: int) -> list[str]:
        a = [f"r{4 * pixel + c}" for c in range(CHANNELS)]
        lines = [f"ldrd r10, r11, [lr, #{8 * tap}]"]
        for c, (x, w, op) in enumerate(
            (("r8", "r10", "smlabb"), ("r9", "r11", "smlabb"), ("r8", "r10", "smlatt"), ("r9", "r11", "smlatt"))
        ):
            lines.append(f"{op} {a[c]}, {x}, {w}, {a[c]}")
        return lines

    def _row(self, ky: int) -> list[str]:
        lines = [f"ldr r12, [sp, #{4 * ky}]"]
        for column, uses in self._columns().items():
            lines += [f"ldr r8, [r12, #{column * self.step}]", "sxtb16 r9, r8, ror #8", "sxtb16 r8, r8"]
            for p, kx in uses:
                lines += self._multiply(p, ky * self.kernel[1] + kx)
        return [*lines, "adds r12, r12, #4", f"str r12, [sp, #{4 * ky}]"]

    def _requantise(self) -> list[str]:
        sums = [f"r{i}" for i in range(CHANNELS * self.pixels)]
        lines = [f"lsl {a}, {a}, #{self.shift}" for a in sums] if self.shift else []
        lines += [f"ldr r8, {self._slot('bias_multiplier')}", "adds r8, r8, #16", "ldm r8!, {r9, r10, r11, r12}"]
        lines += [f"str r8, {self._slot('bias_multiplier')}", f"ldr r8, {self._slot('out_zero')}"]
        lines += [f"smmlar {a}, {a}, r{9 + i % CHANNELS}, r8" for i, a in enumerate(sums)]
        if not self.bounded:
            return lines + [f"ssat {a}, #8, {a}" for a in sums]
        lines += [f"ldr r9, {self._slot('low')}", f"ldr r10, {self._slot('high')}"]
        for a in sums:
            lines += [f"cmp {a}, r9", "it lt", f"movlt {a}, r9", f"cmp {a}, r10", "it gt", f"movgt {a}, r10"]
        return lines

    def _store(self) -> list[str]:
        """Four codes of a pixel as one word."""
        lines = []
        for p in range(self.pixels):
            first = f"r{4 * p}"
            lines += [f"bfi {first}, r{4 * p + c}, #{8 * c}, #8" for c in range(1, CHANNELS)]
        lines += [f"ldr r9, [sp, #{4 * self.kernel[0]}]", f"ldr r10, {self._slot('stride')}"]
        lines += ["str r4, [r9, r10]"] if self.pixels == 2 else []
        return [*lines, "str r0, [r9], #4", f"str r9, [sp, #{4 * self.kernel[0]}]"]

    def lines(self) -> list[str]:
        """The function body."""
        kh, kw = self.kernel
        head = ["push {r4-r11, lr}", f"sub sp, sp, #{self._frame}", "mov lr, r2", f"str r3, [sp, #{4 * kh}]"]
        for ky in range(kh):
            head += [f"ldr r4, [r0, #{4 * ky}]", "add r4, r4, r1", f"str r4, [sp, #{4 * ky}]"]
        body = ["2:", f"ldr r8, {self._slot('bias_multiplier')}", "ldm r8, {r0, r1, r2, r3}"]
        body += [f"mov r{4 + c}, r{c}" for c in range(CHANNELS)] if self.pixels == 2 else []
        for ky in range(kh):
            body += self._row(ky)
        body += [f"add lr, lr, #{8 * kh * kw}", *self._requantise(), *self._store()]
        tail = [f"ldr r8, {self._slot('groups')}", "subs r8, r8, #1", f"str r8, {self._slot('groups')}", "bne.w 2b"]
        return [*head, *body, *tail, f"add sp, sp, #{self._frame}", "pop {r4-r11, pc}"]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters table, column, weights, y and STACK_ARGS."""
        return function(f"dw{self.pixels}x4", "ptr, i32, ptr, ptr, ptr, i32, i32, i32, i32, i32", self.lines())


@dataclass(frozen=True, slots=True)
class SmladDepthwise(RollingRow):
    """The row of one weight format."""

    def tile(self, graph: LoweredGraph, node: Node, pixels: int) -> Tile:
        """The assembly function of `pixels` outputs."""
        shape, a = Shape.of(graph, node), node.attrs
        bounded = (a["low"], a["high"]) != (-128, 127)
        return Tile(pixels, shape.kernel, shape.channels, shape.dilation[1], shape.stride[1], a["shift"], bounded)

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise, this format, channels a multiple of 4, no residual, windows within the reach of offsets."""
        if node.format != self.format or not is_depthwise(graph, node) or has_residual(node):
            return False
        shape = Shape.of(graph, node)
        small = shape.kernel[0] <= MOST_ROWS and shape.kernel[0] * shape.kernel[1] <= TAP_REACH
        return shape.channels % CHANNELS == 0 and small and self.tile(graph, node, PIXELS).reach() <= REACH

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Multiply-accumulates, the output stage, and what every tile begins with."""
        shape = Shape.of(graph, node)
        copied = 1.2 * shape.height * shape.width * shape.channels if any(shape.pads) else 0.0
        return 2.1 * macs(graph, node) + 6.0 * graph.tensors[node.output].size + 40.0 * shape.pixels + copied

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights of one channel after the other in planar rows, (bias x 4, multiplier x 4) per group, codebook."""
        shape = Shape.of(graph, node)
        table = np.stack(list(channel_consts(node).values())).reshape(2, -1, CHANNELS).transpose(1, 0, 2)
        packed: dict[str, NDArray[Any]] = {"bias_multiplier": np.ascontiguousarray(table)}
        packed["weights"] = self.layout(shape).pack(self._ordered(node.consts["codes"].reshape(shape.channels, -1)))
        if self.format.codebook:
            packed["codebook"] = node.consts["codebook"]
        return packed

    def _ordered(self, codes: NDArray[Any]) -> NDArray[Any]:
        """(C, taps) -> one row in the order in which the tile reads: group, tap, halves."""
        groups = codes.reshape(-1, CHANNELS, codes.shape[1])[:, list(ORDER)]
        return np.ascontiguousarray(groups.transpose(0, 2, 1)).reshape(1, -1)

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Widen the weights, then roll over the rows."""
        return _Writer(self, graph, node).write()


class _Writer(RollingWriter):
    """Writes one function of a SmladDepthwise row."""

    def __init__(self, row: SmladDepthwise, graph: LoweredGraph, node: Node) -> None:
        layout, self.tiles = row.layout(Shape.of(graph, node)), {n: row.tile(graph, node, n) for n in (1, PIXELS)}
        super().__init__(graph, node, layout, PIXELS)
        self.source.integer("groups", self.shape.channels // CHANNELS)
        self.widen(row.weights_at(self.shape))

    def copy(self, source: str, to: str, count: str) -> None:
        """By words."""
        self.call(copy_rows(), f"T.address_of(X[{source}])", f"T.address_of(P[{to}])", count, "1", "0")

    def fill(self, to: str, count: str) -> None:
        """By bytes."""
        self.call(fill_bytes(), f"T.address_of(P[{to}])", count, "in_zero")

    def tile(self, pixels: int, column: str, to: str) -> None:
        """Call the assembly."""
        self.call_tile(self.tiles[pixels].function(), column, to, "groups", "channels", "out_zero", "low", "high")


for _format in FORMATS.values():
    SmladDepthwise(_format).register(f"{PIXELS}x{CHANNELS}", "armv7em")
