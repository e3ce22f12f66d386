"""Helium rows (Cortex-M55): int8 convolution and linear layers by VMLAVA, 16 multiply-accumulates per instruction.

The windows of two output pixels are copied into the workspace, padded to a multiple of 16 codes (the padding meets zero
weights). One assembly function multiplies them with all output channels, four at a time: eight accumulators in the
even core registers, which is all VMLAVA can add into, then bias, VRMULH (the one rounding rule is exactly that
instruction), residual and a predicated store. Geometry is passed as scalars: all layers share the functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .armasm import function
from .conv import Shape
from .snippets import channel_consts
from .windows import WindowWriter

CHUNK, CHANNELS, UNROLL = 16, 4, 4
PUSHED = 13 * 4  # r0-r11 and lr; stack arguments follow
STACK_ARGS = (
    "turns_end", "entry", "next_pixel", "channels", "row", "out_zero", "low", "high",
    "residual", "next_residual", "add_a", "add_b", "add_const", "add_low", "add_high",
)  # fmt: skip
_POINTERS = ("turns_end", "next_pixel", "residual", "next_residual")
# odd core registers; loads that widen need one of r0-r7
_Y, _Y2, _X, _W, _END, _X2 = "r1", "r3", "r5", "r7", "r9", "r11"
_EVEN = ("r0", "r2", "r4", "r6", "r8", "r10", "r12", "lr")


def move_run() -> tuple[str, str]:
    """(source, to, bytes): copy a run of at least one byte."""
    lines = ["push {r4, lr}", "dlstp.8 lr, r2", "1:", "vldrb.u8 q0, [r0], #16", "vstrb.8 q0, [r1], #16", "letp lr, 1b"]
    return function("move", "ptr, ptr, i32", [*lines, "pop {r4, pc}"])


def fill_run() -> tuple[str, str]:
    """(to, bytes, value): fill a run of at least one byte."""
    lines = ["push {r4, lr}", "vdup.8 q0, r2", "dlstp.8 lr, r1", "1:", "vstrb.8 q0, [r0], #16", "letp lr, 1b"]
    return function("fill", "ptr, i32, i32", [*lines, "pop {r4, pc}"])


@dataclass(frozen=True, slots=True)
class Tile:
    """1 or 2 pixels x all output channels, four at a time."""

    pixels: int
    shift: int
    bounded: bool
    residual: bool
    add_shift: int
    add_bounded: bool

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    def _acc(self, pixel: int, channel: int) -> str:
        return _EVEN[CHANNELS * pixel + channel]

    def _each(self, template: str) -> list[str]:
        return [template.format(q=f"q{p}") for p in range(self.pixels)]

    def _chunk(self) -> list[str]:
        """16 codes of each pixel times 16 weights of each channel."""
        lines = [f"vldrb.u8 q{p}, [{x}], #16" for p, x in zip(range(self.pixels), (_X, _X2), strict=False)]
        for c in range(CHANNELS):
            lines.append(f"vldrb.u8 q{2 + c % 2}, [{_W}], #16")
            lines += [f"vmlava.s8 {self._acc(p, c)}, q{p}, q{2 + c % 2}" for p in range(self.pixels)]
        return lines

    def entry(self, chunks: int) -> int:
        """Byte offset (and Thumb bit) of the chunk where the first turn begins."""
        return 1 + 4 * len(self._chunk()) * (-chunks % UNROLL)

    def _clamp(self, low: str, high: str) -> list[str]:
        lines = []
        for name, op in ((low, "vmax"), (high, "vmin")):
            lines += [f"ldr r0, {self._slot(name)}", "vdup.32 q2, r0", *self._each(op + ".s32 {q}, {q}, q2")]
        return lines

    def _requantise(self) -> list[str]:
        lines = []
        for p in range(self.pixels):
            a = [self._acc(p, c) for c in range(CHANNELS)]
            lines += [f"vmov q{p}[2], q{p}[0], {a[0]}, {a[2]}", f"vmov q{p}[3], q{p}[1], {a[1]}, {a[3]}"]
        lines += ["ldr r0, [sp, #8]", "vldrw.s32 q2, [r0, #16]", "add r0, r0, #32", "str r0, [sp, #8]"]
        lines += self._each(f"vshl.i32 {{q}}, {{q}}, #{self.shift}") if self.shift else []
        lines += [*self._each("vrmulh.s32 {q}, {q}, q2"), f"ldr r0, {self._slot('out_zero')}"]
        lines += self._each("vadd.i32 {q}, {q}, r0")
        return lines + (self._clamp("low", "high") if self.bounded or self.residual else [])

    def _add_residual(self) -> list[str]:
        pointers = (("r0", "residual"), ("r2", "next_residual"))[: self.pixels]
        lines = [f"ldr {r}, {self._slot(name)}" for r, name in pointers]
        lines += [f"ldr r6, {self._slot('channels')}", "vctp.32 r6", "vpst" + "t" * (self.pixels - 1)]
        lines += [f"vldrbt.s32 q{2 + p}, [{r}], #4" for p, (r, _) in enumerate(pointers)]
        lines += [f"str {r}, {self._slot(name)}" for r, name in pointers]
        lines += [f"ldr {r}, {self._slot(n)}" for r, n in (("r0", "add_a"), ("r2", "add_b"), ("r4", "add_const"))]
        lines += self._each("vmul.i32 {q}, {q}, r0")
        lines += [f"vmla.s32 q{p}, q{2 + p}, r2" for p in range(self.pixels)]
        lines += [*self._each("vadd.i32 {q}, {q}, r4"), *self._each(f"vshr.s32 {{q}}, {{q}}, #{self.add_shift}")]
        return lines + (self._clamp("add_low", "add_high") if self.add_bounded else [])

    def _store(self) -> list[str]:
        """The other pixel first: where there is none, it is stored to the place of this one."""
        lines = [*self._each("vqmovnb.s32 {q}, {q}"), *self._each("vqmovnb.s16 {q}, {q}")]
        lines += [f"ldr r6, {self._slot('channels')}", "vctp.32 r6", "vpst" + "t" * (self.pixels - 1)]
        return lines + [f"vstrbt.32 q{p}, [{(_Y, _Y2)[p]}], #4" for p in reversed(range(self.pixels))]

    def lines(self) -> list[str]:
        """The function body."""
        head = ["push {r0-r11, lr}", "adr.w r12, 1f", f"ldr r4, {self._slot('entry')}", "add r12, r12, r4"]
        head += [f"str r12, {self._slot('entry')}", f"mov {_W}, r1", f"mov {_Y}, r3"]
        head += [f"ldr {_Y2}, {self._slot('next_pixel')}", f"ldr {_END}, {self._slot('turns_end')}"]
        block = ["2:", f"ldr {_X}, [sp, #8]", f"ldrd r0, r2, [{_X}]", f"ldrd r4, r6, [{_X}, #8]"]
        block += [f"mov {self._acc(p, c)}, {self._acc(0, c)}" for p in range(1, self.pixels) for c in range(CHANNELS)]
        block += [f"ldr {_X}, [sp, #0]", f"ldr {_X2}, {self._slot('entry')}"]
        if self.pixels == 2:  # the address to jump to needs a register of its own until the jump
            block += [f"push {{{_X2}}}", f"ldr {_X2}, [sp, #{PUSHED + 4 + 4 * STACK_ARGS.index('row')}]"]
            block += [f"add {_X2}, {_X}, {_X2}", "pop {pc}"]
        else:
            block.append(f"bx {_X2}")
        turn = [".p2align 2", "1:", *UNROLL * self._chunk(), f"cmp {_X}, {_END}", "bne.w 1b"]
        tail = [*self._requantise(), *(self._add_residual() if self.residual else []), *self._store()]
        tail += [
            "subs r6, r6, #4",
            f"str r6, {self._slot('channels')}",
            "bgt.w 2b",
            "add sp, sp, #16",
            "pop {r4-r11, pc}",
        ]
        return [*head, *block, *turn, *tail]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function(f"mve{self.pixels}x4", ", ".join(["ptr"] * 4 + types), self.lines())


def _row(shape: Shape) -> int:
    """Bytes of one window, padded to whole chunks."""
    return -(-shape.row // CHUNK) * CHUNK


@dataclass(frozen=True, slots=True)
class MveRow:
    """One row: 1 or 2 pixels x 4 channels per tile."""

    op: str
    pixels: int

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """int8 weights, no groups."""
        return node.format == FORMATS["int8"] and node.attrs.get("groups", 1) == 1

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Chunks, 32 instructions around them per tile, and gathering."""
        shape = Shape.of(graph, node)
        chunk = self.pixels + CHANNELS * (1 + self.pixels)
        tiles = -(-shape.pixels // self.pixels) * -(-shape.out_channels // CHANNELS)
        extra = 30.0 if has_residual(node) else 0.0
        gather = shape.pixels * (30 + shape.kernel[0] * (25 + shape.kernel[1] * shape.channels * 3 / CHUNK))
        return tiles * (chunk * _row(shape) / CHUNK + 36 + extra) + gather

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows."""
        return self.pixels * _row(Shape.of(graph, node))

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights (blocks, chunks, 4, 16) and (bias x 4, multiplier x 4) per block, both padded with zeros."""
        shape = Shape.of(graph, node)
        blocks, chunks = -(-shape.out_channels // CHANNELS), _row(shape) // CHUNK
        weights = np.zeros((blocks * CHANNELS, chunks * CHUNK), np.int8)
        weights[: shape.out_channels, : shape.row] = node.consts["codes"].reshape(shape.out_channels, -1)
        table = np.zeros((2, blocks * CHANNELS), np.int32)
        table[:, : shape.out_channels] = list(channel_consts(node).values())
        return {
            "weights": np.ascontiguousarray(weights.reshape(blocks, CHANNELS, chunks, CHUNK).transpose(0, 2, 1, 3)),
            "bias_multiplier": np.ascontiguousarray(table.reshape(2, blocks, CHANNELS).transpose(1, 0, 2)),
        }

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Gather the windows of a tile, call the assembly, and so on."""
        return _Writer(self, graph, node).write()


class _Writer(WindowWriter):
    """Writes one function of an MveRow."""

    def __init__(self, row: MveRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row.pixels, graph, node, "int8")
        a, full = node.attrs, (-128, 127)
        add = has_residual(node)
        add_bounded = add and (a["add_low"], a["add_high"]) != full
        bounded = (a["low"], a["high"]) != full
        self.tile = Tile(row.pixels, a["shift"], bounded, add, a["add_shift"] if add else 0, add_bounded)
        self.source.integer("row", _row(self.shape))

    def write(self) -> Code:
        """The whole function."""
        start = f"t * {self.pixels} * out_channels"
        second = f"{start} + (valid - 1) * out_channels"
        known = {
            "turns_end": "T.address_of(P[row])", "row": "row", "channels": "out_channels",
            "entry": self.source.integer("entry", self.tile.entry(_row(self.shape) // CHUNK)),
            "next_pixel": f"T.address_of(Y[{second}])",
            "residual": f"T.address_of(R[{start}])" if self.tile.residual else "T.address_of(P[0])",
            "next_residual": f"T.address_of(R[{second}])" if self.tile.residual else "T.address_of(P[0])",
        }  # fmt: skip
        pointers = ("P[0]", "W[0]", "B[0]", f"Y[{start}]")
        arguments = [*(f"T.address_of({p})" for p in pointers), *self.stack_arguments(STACK_ARGS, known)]
        return self.code(lambda: self.call(self.tile.function(), *arguments))

    def move(self, source: str, to: str, count: str) -> None:
        """Copy bytes."""
        self.call(move_run(), f"T.address_of(X[{source}])", f"T.address_of(P[p * row + {to}])", count)

    def pad(self, to: str) -> None:
        """The zero point."""
        self.call(fill_run(), f"T.address_of(P[p * row + {to}])", "channels", "in_zero")


def _register(op: str, pixels: int) -> None:
    row, name = MveRow(op, pixels), f"{op}_s8_s8_{pixels}x{CHANNELS}__mve"
    KERNELS.add(name, Kernel(name, op, "s8", "mve", row.applies, row.cost, row.workspace, row.pack, row.emit))


_register("conv2d", 2)
_register("linear", 1)
