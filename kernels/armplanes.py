"""Depthwise 3x3 convolution of stride 1 for cores with the Armv7E-M DSP instructions: two rows of outputs at a time.

Four channels go over the whole image before the next four begin, so the buffer is small: two pairs of input rows,
every word a column's codes of both rows as int16. An output needs SMLAD with one pair and SMLAxy with the other; the
output below it needs the same two words, with the weights shifted by a row. The six words of weights of a channel stay
in registers for a row of outputs, and every pair of rows is widened once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .armasm import function
from .conv import Shape, is_depthwise
from .rolling import overwrites, padded_width
from .snippets import Source, channel_consts
from .weights import RowLayout

CHANNELS, TAPS = 4, 9
COLUMN = 4 * CHANNELS  # bytes of a column in a pair of rows
DECODED, RECORD = 80, 32  # bytes of the workspace: weights as int16, then per channel pairs, bias, multiplier
RING = DECODED + CHANNELS * RECORD
# stack arguments after x, y, scratch, bias_multiplier in r0-r3
STACK_ARGS = (
    "weights", "height", "width", "row", "channels", "iy", "left", "out_height", "out_row", "out_columns", "wide",
    "in_zero", "out_zero", "low", "high",
)  # fmt: skip
# locals: the bias twice, step and end of the columns, multiplier, four zero points, both pairs of rows, the channel and
# its record, whether there is a pair of rows already
_SUM, _STEP, _END, _MULTIPLIER, _ZEROS, _UPPER, _LOWER, _CHANNEL, _FIRST = 0, 8, 12, 16, 20, 24, 28, 32, 40
_LOCALS = 44
_X, _Y, _SCRATCH, _BM = (f"[sp, #{_LOCALS + 4 * i}]" for i in range(4))


@dataclass(frozen=True, slots=True)
class Plane:
    """The assembly function of four channels."""

    wide: bool  # weights are bytes, not int16
    shift: int  # of the accumulator before the multiplication
    bounded: bool  # low..high is not the int8 range

    def _slot(self, name: str) -> str:
        return f"[sp, #{_LOCALS + 52 + 4 * STACK_ARGS.index(name)}]"

    def _prepare(self) -> list[str]:
        """Pairs of weights, rows 0 and 1, then 1 and 2; the padding's columns; where both pairs of rows lie."""
        load, size = ("ldrsb", 1) if self.wide else ("ldrsh", 2)
        lines = [f"add r1, r2, #{DECODED}", f"add r12, r1, #{CHANNELS * RECORD}", "mov lr, r3"]
        lines += [f"ldr r0, {self._slot('weights')}", "1:"]
        lines += [f"{load} r{2 + i}, [r0, #{size * i}]" for i in range(TAPS)]
        lines += [f"pkhbt r{i}, r{i}, r{i + 3}, lsl #16" for i in range(2, 8)]
        lines += ["ldrd r8, r9, [lr], #8", "stm r1!, {r2-r9}", f"adds r0, r0, #{TAPS * size}", "cmp r1, r12", "bne 1b"]
        lines += [f"ldr r3, {self._slot('in_zero')}", "pkhbt r4, r3, r3, lsl #16", "uxtb r3, r3"]
        lines += ["orr r3, r3, r3, lsl #8", "orr r3, r3, r3, lsl #16", f"str r3, [sp, #{_ZEROS}]"]
        lines += [f"ldr r5, {self._slot('wide')}", f"str r1, [sp, #{_LOWER}]", "add r0, r1, r5, lsl #4"]
        lines += [f"str r0, [sp, #{_UPPER}]", "lsl r5, r5, #2"]
        lines += ["2:", "strd r4, r4, [r1], #8", "subs r5, r5, #1", "bne 2b", f"str r5, [sp, #{_FIRST}]"]
        return [*lines, f"ldr r0, {self._slot('channels')}", f"str r0, [sp, #{_STEP}]"]

    def _rows(self) -> list[str]:
        """Widen input rows iy and iy + 1 into the lower pair; a row outside is the zero point."""
        lines = [f"ldr r6, {self._slot('iy')}", f"ldr r7, {self._slot('height')}"]
        lines += [f"ldr r8, {self._slot('row')}", f"ldr r9, {_X}"]
        for at, step in (("r0", "r1"), ("r2", "r3")):
            lines += ["cmp r6, r7", "itete lo", f"mlalo {at}, r6, r8, r9", f"addhs {at}, sp, #{_ZEROS}"]
            lines += [f"ldrlo {step}, {self._slot('channels')}", f"movhs {step}, #0", "adds r6, r6, #1"]
        lines += [f"str r6, {self._slot('iy')}", f"ldr r4, [sp, #{_LOWER}]", f"ldr r5, {self._slot('left')}"]
        lines += ["add r4, r4, r5, lsl #4", f"ldr r5, {self._slot('width')}"]
        lines += ["4:", "ldr r6, [r0]", "add r0, r0, r1", "ldr r7, [r2]", "add r2, r2, r3", "sxtb16 r8, r6"]
        lines += ["sxtb16 r6, r6, ror #8", "sxtb16 r9, r7", "sxtb16 r7, r7, ror #8"]
        lines += ["pkhbt r10, r8, r9, lsl #16", "pkhbt r11, r6, r7, lsl #16", "pkhtb r12, r9, r8, asr #16"]
        return [*lines, "pkhtb lr, r7, r6, asr #16", "stm r4!, {r10, r11, r12, lr}", "subs r5, r5, #1", "bne 4b"]

    def _column(self) -> list[str]:
        """One output and the one below it."""
        lines = ["6:", f"ldrd r6, r7, [sp, #{_SUM}]"]
        for k, at in enumerate(("], #16", "]", ", #16]")):
            lines += [f"ldr r8, [r9{at}", f"smlad r6, r8, r{k}, r6", f"smlatb r7, r8, r{k}, r7"]
            lines += [f"ldr r8, [r10{at}", f"smlabt r6, r8, r{3 + k}, r6", f"smlad r7, r8, r{3 + k}, r7"]
        lines += [f"lsl {a}, {a}, #{self.shift}" for a in ("r6", "r7") if self.shift]
        lines += [f"ldr r8, [sp, #{_MULTIPLIER}]", *(f"smmlar {a}, {a}, r8, r12" for a in ("r6", "r7"))]
        if self.bounded:
            for name, less in (("low", "lt"), ("high", "gt")):
                lines.append(f"ldr r8, {self._slot(name)}")
                for a in ("r6", "r7"):
                    lines += [f"cmp {a}, r8", f"it {less}", f"mov{less} {a}, r8"]
        else:
            lines += ["ssat r6, #8, r6", "ssat r7, #8, r7"]
        lines += ["strb r7, [r11, lr]", "strb r6, [r11]", f"ldrd r6, r7, [sp, #{_STEP}]", "add r11, r11, r6"]
        return [*lines, "cmp r9, r7", "bne 6b"]

    def _outputs(self) -> list[str]:
        """A row of outputs and the one below it, channel after channel; without one below, it is stored over."""
        lines = [f"ldr r5, {self._slot('out_height')}", f"ldr lr, {self._slot('out_row')}", "cmp r5, #1"]
        lines += ["it eq", "moveq lr, #0", f"ldr r12, {self._slot('out_zero')}", "movs r6, #0"]
        lines += [f"ldr r8, {_SCRATCH}", f"add r8, r8, #{DECODED}", f"strd r6, r8, [sp, #{_CHANNEL}]"]
        lines += ["5:", f"ldrd r6, r8, [sp, #{_CHANNEL}]", f"ldrd r9, r10, [sp, #{_UPPER}]", f"ldr r11, {_Y}"]
        lines += ["add r9, r9, r6, lsl #2", "add r10, r10, r6, lsl #2", "add r11, r11, r6", "adds r6, r6, #1"]
        lines += [f"str r6, [sp, #{_CHANNEL}]", f"ldr r6, {self._slot('out_columns')}", "add r6, r6, r9"]
        lines += [f"str r6, [sp, #{_END}]", "ldm r8!, {r0-r7}", f"str r8, [sp, #{_CHANNEL + 4}]"]
        lines += [f"strd r6, r6, [sp, #{_SUM}]", f"str r7, [sp, #{_MULTIPLIER}]", *self._column()]
        return [*lines, f"ldr r6, [sp, #{_CHANNEL}]", f"cmp r6, #{CHANNELS}", "bne.w 5b"]

    def lines(self) -> list[str]:
        """The function body."""
        head = ["push {r0-r11, lr}", f"sub sp, sp, #{_LOCALS}", *self._prepare()]
        rows = ["3:", f"ldrd r0, r1, [sp, #{_UPPER}]", f"strd r1, r0, [sp, #{_UPPER}]", *self._rows()]
        rows += [f"ldr r0, [sp, #{_FIRST}]", "cmp r0, #0", "it eq", "moveq r0, #1", f"str r0, [sp, #{_FIRST}]"]
        tail = [f"ldr r0, {_Y}", f"ldr r1, {self._slot('out_row')}", "add r0, r0, r1, lsl #1", f"str r0, {_Y}"]
        tail += [f"ldr r0, {self._slot('out_height')}", "subs r0, r0, #2", f"str r0, {self._slot('out_height')}"]
        tail += ["bgt.w 3b", f"add sp, sp, #{_LOCALS + 16}", "pop {r4-r11, pc}"]
        return [*head, *rows, "beq.w 3b", *self._outputs(), *tail]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, y, scratch, bias_multiplier and STACK_ARGS."""
        types = ["ptr"] * 5 + ["i32"] * (len(STACK_ARGS) - 1)
        return function("dwplane", ", ".join(types), self.lines())


@dataclass(frozen=True, slots=True)
class PlaneDepthwise:
    """The row of one weight format."""

    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise 3x3 of stride 1, this format, no dilation, channels a multiple of 4, no residual."""
        if node.format != self.format or not is_depthwise(graph, node) or has_residual(node):
            return False
        shape = Shape.of(graph, node)
        plain = (shape.kernel, shape.stride, shape.dilation) == ((3, 3), (1, 1), (1, 1))
        return plain and shape.channels % CHANNELS == 0

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Pairs of rows: widening them, channels, and 15 instructions per output."""
        shape = Shape.of(graph, node)
        bounds = 0 if (node.attrs["low"], node.attrs["high"]) == (-128, 127) else 6
        pairs = -(-shape.out_height // 2)
        pair = 15.0 * shape.width + 45 + CHANNELS * ((30 + bounds) * shape.out_width + 19)
        decode = 0 if self.format.bits == 8 else 12 * CHANNELS * TAPS
        begin = 160 + 7 * padded_width(shape) + 15 * shape.width + 40 + decode
        return shape.channels // CHANNELS * (pairs * pair + begin)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Weights and two pairs of rows."""
        return RING + 2 * COLUMN * padded_width(Shape.of(graph, node))

    def in_place(self, graph: LoweredGraph, node: Node) -> bool:
        """Four channels are for themselves, and rows are widened before they are overwritten."""
        return overwrites(graph, node)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights of four channels as a planar row each, (bias, multiplier) per channel, codebook."""
        codes = node.consts["codes"].reshape(-1, CHANNELS * TAPS)
        packed = {"weights": self.layout.pack(codes)}
        packed["bias_multiplier"] = np.stack(list(channel_consts(node).values()), axis=1)
        if self.format.codebook:
            packed["codebook"] = node.consts["codebook"]
        return packed

    @property
    def layout(self) -> RowLayout:
        """The weights of four channels."""
        return RowLayout(self.format, CHANNELS * TAPS)

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Decode the weights of four channels, run them, and so on."""
        shape, a, s = Shape.of(graph, node), node.attrs, Source()
        wide = self.format.bits == 8
        s.input(0, "X")
        s.const("W", "weights", self.layout.dtype)
        s.const("B", "bias_multiplier", "int32")
        s.output("Y")
        s.workspace("P", "int8")
        s.integer("groups", shape.channels // CHANNELS)
        values = [s.integer(name, value) for name, value in _scalars(shape, a).items()]
        text, name = Plane(wide, a["shift"], (a["low"], a["high"]) != (-128, 127)).function()
        if self.format.codebook:
            s.const("E", "codebook", "int8")
        with s.block("for g in range(T.max(groups, 1)):"):
            if not wide:
                self._decode(s)
            weights = f"W[g * {CHANNELS * TAPS}]" if wide else "P[0]"
            places = (f"X[g * {CHANNELS}]", f"Y[g * {CHANNELS}]", "P[0]", f"B[g * {2 * CHANNELS}]", weights)
            pointers = [f"T.address_of({place})" for place in places]
            s(f'T.evaluate(T.call_extern("int32", "{name}", {", ".join([*pointers, *values])}))')
        return s.code(text)

    def _decode(self, s: Source) -> None:
        """Write the group's weights as int16 to the beginning of the workspace."""
        layout = self.layout
        s.view("V", "P", "int16")
        s.integer("segment", layout.segment)
        with s.block("for j in range(T.max(segment, 1)):"):
            for i in range(layout.planes):
                s(f"b{i} = W[g * {layout.row_bytes} + {i} * segment + j]")
            for f in range(layout.fields):
                s(f'V[{f} * segment + j] = T.cast({layout.value(f, "", "E")}, "int16")')


def _scalars(shape: Shape, attrs: Mapping[str, Any]) -> dict[str, int]:
    """Arguments of the assembly after the weights, in order."""
    known = {
        "height": shape.height, "width": shape.width, "row": shape.width * shape.channels, "channels": shape.channels,
        "iy": -shape.pads[0], "left": shape.pads[1], "out_height": shape.out_height,
        "out_row": shape.out_width * shape.channels, "out_columns": shape.out_width * COLUMN,
        "wide": padded_width(shape),
    }  # fmt: skip
    return {name: known[name] if name in known else attrs[name] for name in STACK_ARGS[1:]}


for _name, _format in FORMATS.items():
    _row, _kernel = PlaneDepthwise(_format), f"conv2d_s8_{_format.short}_dw2x1__armv7em"
    KERNELS.add(
        _kernel,
        Kernel(
            _kernel, "conv2d", _format.short, "armv7em", _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
            _row.in_place, notes="depthwise",
        ),
    )  # fmt: skip
