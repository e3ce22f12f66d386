"""Helium (Cortex-M55) int8 convolution and linear rows: one inline-assembly block computes 2 pixels x 4 channels.

The windows of two output pixels are gathered into the workspace in interleaved chunks of 16 codes, padded to a multiple
of 16 (the padding meets zero weights). The block runs VMLAVA over the chunks with the eight accumulators in the even
core registers, as VMLAVA demands, then adds the bias, requantises by VRMULH (the one rounding rule is exactly that
instruction), adds the residual if there is one, and stores four codes per pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xdeploy.kernels.conv import Shape, is_depthwise
from xdeploy.kernels.snippets import Source, channel_consts

from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual, macs
from xdeploy.target import Target

INT8_LOW, INT8_HIGH = -128, 127
CHUNK, CHANNELS = 16, 4
UNROLL = 4  # chunks per turn of the loop in the block
STRAIGHT = 9  # up to this many chunks the block has no loop
# byte offsets behind the gathered windows, where the block finds what is the same for all tiles
ZERO, ADD_A, ADD_B, ADD_CONST = 0, 4, 8, 12


@dataclass(frozen=True, slots=True)
class Block:
    """The assembly of one output tile of `pixels` (1 or 2) x 4 channels.

    x advances by `step` bytes per chunk; after the last one it points at the scalars (`ZERO`, ...).
    """

    pixels: int
    step: int
    chunks: int
    row: int  # bytes from a pixel's output to the next one's
    node: Node

    def _acc(self, p: int, c: int) -> str:
        return f"${p * CHANNELS + c}"

    @property
    def _count(self) -> int:
        return self.pixels * CHANNELS

    def _register(self, name: str) -> str:
        return f"${self._count + ('x', 'w', 'y', 'r', 'k', 'bm').index(name)}"

    def _chunk(self) -> list[str]:
        """Multiply-accumulate one chunk: 16 codes of each pixel with 16 weights of each channel."""
        x, w = self._register("x"), self._register("w")
        lines = [f"vldrb.u8 q{p}, [{x}, #{p * CHUNK}]" for p in range(1, self.pixels)]
        lines.append(f"vldrb.u8 q0, [{x}], #{self.step}")
        for c in range(CHANNELS):
            q = f"q{self.pixels + c % 2}"
            lines.append(f"vldrb.u8 {q}, [{w}], #{CHUNK}")
            lines += [f"vmlava.s8 {self._acc(p, c)}, q{p}, {q}" for p in range(self.pixels)]
        return lines

    def _sums(self) -> list[str]:
        k = self._register("k")
        lines = [f"mov {self._acc(p, c)}, #0" for p in range(self.pixels) for c in range(CHANNELS)]
        if self.chunks <= STRAIGHT:
            return lines + self.chunks * self._chunk()
        turns, rest = divmod(self.chunks, UNROLL)
        lines += [*(rest * self._chunk()), f"movw {k}, #{turns}", "1:"]
        return [*lines, *(UNROLL * self._chunk()), f"subs {k}, #1", "bne 1b"]

    def _each(self, template: str) -> list[str]:
        return [template.format(q=f"q{p}") for p in range(self.pixels)]

    def _scalar(self, offset: int) -> str:
        return f"ldr {self._register('k')}, [{self._register('x')}, #{offset}]"

    def _clamp(self, low: int, high: int, forced: bool) -> list[str]:
        """Clamp the int32 lanes; saturating narrowing does the int8 range by itself unless `forced`."""
        k, lines = self._register("k"), []
        for bound, default, op in ((low, INT8_LOW, "vmax"), (high, INT8_HIGH, "vmin")):
            if forced or bound != default:
                move = f"mvn {k}, #{-bound - 1}" if bound < 0 else f"mov {k}, #{bound}"
                lines += [move, f"vdup.32 q5, {k}", *self._each(op + ".s32 {q}, {q}, q5")]
        return lines

    def _requantise(self) -> list[str]:
        bm, a, k = self._register("bm"), self.node.attrs, self._register("k")
        lines = [f"vldrw.s32 q2, [{bm}]", f"vldrw.s32 q3, [{bm}, #16]", self._scalar(ZERO)]
        for p in range(self.pixels):
            lines.append(f"vmov q{p}[2], q{p}[0], {self._acc(p, 0)}, {self._acc(p, 2)}")
            lines.append(f"vmov q{p}[3], q{p}[1], {self._acc(p, 1)}, {self._acc(p, 3)}")
        lines += self._each("vadd.i32 {q}, {q}, q2")
        if a["shift"]:
            lines += self._each(f"vshl.i32 {{q}}, {{q}}, #{a['shift']}")
        lines += [*self._each("vrmulh.s32 {q}, {q}, q3"), *self._each(f"vadd.i32 {{q}}, {{q}}, {k}")]
        return lines + self._clamp(a["low"], a["high"], forced=has_residual(self.node))

    def _residual(self) -> list[str]:
        a, r, k = self.node.attrs, self._register("r"), self._register("k")
        lines = [self._scalar(ADD_A), *self._each(f"vmul.i32 {{q}}, {{q}}, {k}"), self._scalar(ADD_B)]
        for p in range(self.pixels):
            lines += [f"add {r}, {r}, #{self.row}"] if p else []
            lines += [f"vldrb.s32 q4, [{r}]", f"vmla.i32 q{p}, q4, {k}"]
        lines += [self._scalar(ADD_CONST), *self._each(f"vadd.i32 {{q}}, {{q}}, {k}")]
        lines += self._each(f"vshr.s32 {{q}}, {{q}}, #{a['add_shift']}")
        return lines + self._clamp(a["add_low"], a["add_high"], forced=False)

    def _store(self) -> list[str]:
        y = self._register("y")
        lines = [*self._each("vqmovnb.s32 {q}, {q}"), *self._each("vqmovnb.s16 {q}, {q}"), f"vstrb.32 q0, [{y}]"]
        return lines + ([f"add {y}, {y}, #{self.row}", f"vstrb.32 q1, [{y}]"] if self.pixels == 2 else [])

    def _text(self) -> str:
        lines = [*self._sums(), *self._requantise(), *(self._residual() if has_residual(self.node) else [])]
        return "\\0A".join([*lines, *self._store()])

    @property
    def name(self) -> str:
        """Name of the function around the block: equal blocks of a module are one."""
        return f"mve_tile_{hashlib.sha256(self._text().encode()).hexdigest()[:16]}"

    def llvm_ir(self) -> str:
        """A function `i32 name(ptr x, ptr w, ptr bm, ptr y, ptr r)` around the block, to be inlined."""
        n = self._count
        # VMLAVA adds into even registers only; narrow vector loads and stores take addresses from r0..r7 only
        outputs = ["=&^Te"] * n + ["=&^To", "=&^To", "=&l", "=&l", "=&^To"]
        tied = [str(n + i) for i in range(4)]  # x, w, y and r come in where they go out
        clobbers = [f"~{{q{i}}}" for i in range(6)] + ["~{cc}", "~{memory}"]
        constraints = ",".join([*outputs, "^To", *tied, *clobbers])
        result = "{" + ",".join(["i32"] * (n + 5)) + "}"
        casts = "".join(f" %{v}i = ptrtoint ptr %{v} to i32\n" for v in ("x", "w", "bm", "y", "r"))
        values = "i32 %bmi, i32 %xi, i32 %wi, i32 %yi, i32 %ri"
        call = f' %v = call {result} asm sideeffect "{self._text()}", "{constraints}"({values}) #9\n'
        head = f"define linkonce_odr i32 @{self.name}(ptr %x, ptr %w, ptr %bm, ptr %y, ptr %r) alwaysinline"
        return f"{head} {{\n{casts}{call} ret i32 0\n}}\n"


def _chunks(shape: Shape) -> int:
    return -(-shape.row // CHUNK)


def applies(graph: LoweredGraph, node: Node, target: Target) -> bool:
    """int8 weights, no groups; a residual only where the channels fill whole blocks."""
    shape = Shape.of(graph, node)
    plain = node.format == FORMATS["int8"] and shape.groups == 1 and not is_depthwise(graph, node)
    return plain and shape.out_channels < 4096 and (not has_residual(node) or shape.out_channels % CHANNELS == 0)


def cost(graph: LoweredGraph, node: Node, target: Target) -> float:
    """14 instructions per 128 multiply-accumulates, 45 per tile, and the gathering."""
    shape = Shape.of(graph, node)
    tiles = -(-shape.pixels // 2) * -(-shape.out_channels // CHANNELS)
    gather = shape.pixels * shape.row * (0.3 if shape.per_group % CHUNK == 0 else 6.0)
    return 14 / 128 * macs(graph, node) * CHUNK * _chunks(shape) / shape.row + 45.0 * tiles + gather


def workspace(graph: LoweredGraph, node: Node) -> int:
    """The interleaved windows, four scalars, and the output of a last block that is not full."""
    shape = Shape.of(graph, node)
    wide = min(2, shape.pixels)
    return wide * CHUNK * _chunks(shape) + 16 + (shape.out_channels + CHANNELS if shape.out_channels % CHANNELS else 0)


def pack(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    """Weights (blocks, chunks, 4, 16) and (bias x 4, multiplier x 4) per block, both padded with zeros."""
    shape = Shape.of(graph, node)
    blocks, chunks = -(-shape.out_channels // CHANNELS), _chunks(shape)
    weights = np.zeros((blocks * CHANNELS, chunks * CHUNK), np.int8)
    weights[: shape.out_channels, : shape.row] = node.consts["codes"].reshape(shape.out_channels, -1)
    table = np.zeros((2, blocks * CHANNELS), np.int32)
    table[:, : shape.out_channels] = list(channel_consts(node).values())
    return {
        "weights": np.ascontiguousarray(weights.reshape(blocks, CHANNELS, chunks, CHUNK).transpose(0, 2, 1, 3)),
        "bias_multiplier": np.ascontiguousarray(table.reshape(2, blocks, CHANNELS).transpose(1, 0, 2)),
    }


def emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Gather two windows, run the block over all channels, and so on."""
    return _Writer(graph, node).code()


class _Writer:
    """Writes one function."""

    def __init__(self, graph: LoweredGraph, node: Node) -> None:
        self.node, self.shape = node, Shape.of(graph, node)
        self.chunks, self.wide = _chunks(self.shape), min(2, self.shape.pixels)
        self.blocks, self.rest = divmod(self.shape.out_channels, CHANNELS)
        self.source = s = Source()
        s.input(0, "X")
        s.const("W", "weights", "int8")
        s.const("B", "bias_multiplier", "int32")
        if has_residual(node):
            s.input(1, "R")
        s.output("Y")
        s.workspace("P", "int8")
        s.view("S", "P", "int32")
        s.integer("in_zero", node.attrs["in_zero"])
        s.local("at", 2)
        for name, value in zip(("kh", "kw"), self.shape.kernel, strict=True):
            s.integer(name, value)

    def code(self) -> Code:
        s, shape = self.source, self.shape
        self._scalars()
        s(f"at[0] = {-shape.pads[0]}", f"at[1] = {-shape.pads[1]}")
        tiles, rest = divmod(shape.pixels, self.wide)
        with s.block(f"for t in range({tiles}):"):
            self._tile(self.wide, f"t * {self.wide * shape.out_channels}")
        if rest:
            self._tile(rest, f"{tiles * self.wide * shape.out_channels}")
        blocks = dict.fromkeys(self._block(pixels).llvm_ir() for pixels in (self.wide, rest) if pixels)
        return s.code("".join(blocks) + "attributes #9 = { noduplicate nounwind }\n")

    def _block(self, pixels: int) -> Block:
        return Block(pixels, self.wide * CHUNK, self.chunks, self.shape.out_channels, self.node)

    def _scalars(self) -> None:
        a, first = self.node.attrs, self.wide * CHUNK * self.chunks // 4
        values = {ZERO: ("out_zero", a["out_zero"])}
        if has_residual(self.node):
            values |= {o: (k, a[k]) for o, k in ((ADD_A, "add_a"), (ADD_B, "add_b"), (ADD_CONST, "add_const"))}
        for offset, (name, value) in values.items():
            self.source(f"S[{first + offset // 4}] = {self.source.integer(name, value)}")

    def _tile(self, pixels: int, at: str) -> None:
        s = self.source
        name = self._block(pixels).name
        for p in range(pixels):
            self._gather(p)
        residual = f"T.address_of(R[{at} + ob * {CHANNELS}])" if has_residual(self.node) else "T.address_of(P[0])"
        size = self.chunks * CHANNELS * CHUNK

        def call(block: str, y: str) -> str:
            weights = f"T.address_of(W[{block} * {size}]), T.address_of(B[{block} * 8])"
            pointers = f"T.address_of(P[0]), {weights}, {y}, {residual}"
            return f'T.evaluate(T.call_extern("int32", "{name}", {pointers}))'

        if self.blocks:
            with s.block(f"for ob in range({self.blocks}):"):
                s(call("ob", f"T.address_of(Y[{at} + ob * {CHANNELS}])"))
        if self.rest:
            spill, row = self.wide * CHUNK * self.chunks + 16, self.shape.out_channels
            s(call(str(self.blocks), f"T.address_of(P[{spill}])"))
            for p in range(pixels):
                for c in range(self.rest):
                    s(f"Y[{at} + {p * row + self.blocks * CHANNELS + c}] = P[{spill + p * row + c}]")

    def _gather(self, p: int) -> None:
        """Copy the window of the next pixel into lane p of the chunks and move on to the pixel after it."""
        s, shape = self.source, self.shape
        width = shape.kernel[1]
        with s.block("for ky in range(kh):"):
            s(f"iy: T.let[T.int32] = at[0] + ky * {shape.dilation[0]}")
            run = f"iy >= 0 and iy < {shape.height} and at[1] >= 0 and at[1] < {shape.width - width + 1}"
            if shape.dilation[1] == 1 and shape.width >= width:
                with s.block(f"if {run}:"):
                    self._copy(p, "0", width * shape.channels, "at[1]")
                with s.block("else:"):
                    self._taps(p)
            else:
                self._taps(p)
        s(f"at[1] = at[1] + {shape.stride[1]}")
        with s.block(f"if at[1] == {shape.out_width * shape.stride[1] - shape.pads[1]}:"):
            s(f"at[1] = {-shape.pads[1]}", f"at[0] = at[0] + {shape.stride[0]}")

    def _taps(self, p: int) -> None:
        """One row of a window that leaves the input: tap by tap."""
        s, shape = self.source, self.shape
        with s.block("for kx in range(kw):"):
            s(f"ix: T.let[T.int32] = at[1] + kx * {shape.dilation[1]}")
            with s.block(f"if iy >= 0 and iy < {shape.height} and ix >= 0 and ix < {shape.width}:"):
                self._copy(p, f"kx * {shape.channels}", shape.channels, "ix")
            with s.block("else:"):
                self._copy(p, f"kx * {shape.channels}", shape.channels, None)

    def _copy(self, p: int, tap: str, count: int, column: str | None) -> None:
        """`count` codes from input column `column` of row iy (None: padding) to position `tap` of window row ky."""
        s, shape = self.source, self.shape
        first = f"(iy * {shape.width} + {column}) * {shape.channels}"
        start = f"ky * {shape.kernel[1] * shape.channels} + {tap}"
        if shape.channels % CHUNK == 0:
            value = (
                'T.broadcast(T.cast(in_zero, "int8"), 16)' if column is None else f"X[T.ramp({first} + c * 16, 1, 16)]"
            )
            with s.block(f"for c in range({count // CHUNK}):"):
                s(f"P[T.ramp(({start}) * {self.wide} + c * {self.wide * CHUNK} + {p * CHUNK}, 1, 16)] = {value}")
            return
        with s.block(f"for c in range({count}):"):
            s(f"k: T.let[T.int32] = {start} + c")
            to = f"T.shift_right(k, 4) * {self.wide * CHUNK} + T.bitwise_and(k, 15) + {p * CHUNK}"
            s(f"P[{to}] = " + ('T.cast(in_zero, "int8")' if column is None else f"X[{first} + c]"))


for _op in ("conv2d", "linear"):
    _name = f"{_op}_s8_s8_2x4__mve"
    KERNELS.add(_name, Kernel(_name, _op, "s8", "mve", applies, cost, workspace, pack, emit))
