"""Thumb-2 functions of the Winograd row F(2x2, 3x3): transform of a 4x4 patch, products, inverse transform, output.

Three tiles of 2x2 outputs go through all output channels, two at a time. The scratch begins with the sums of one pair
of channels, (16 places, 3 tiles, 2 channels) int32; behind them stand the transformed patches, per quad of input
channels (16 places, 3 tiles, 4) int16 in the order 0, 2, 1, 3, which is what SXTB16 makes of four bytes. So both are
walked through by the same steps of 24 bytes, and one pointer counts them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .armasm import function

TILES, PLACES, UNROLL = 3, 16, 8
STEP = 8 * TILES  # bytes from one place to the next, of sums and of transformed quads
SUMS = QUAD = STEP * PLACES  # bytes of all sums; bytes of one transformed quad
# stack arguments after scratch, weights, bias_multiplier, y in r0-r3
STACK_ARGS = (
    "tiles", "tiles_end", "residual", "entry", "span", "channels", "out_zero", "low", "high",
    "add_a", "add_b", "add_const", "add_shift", "add_low", "add_high",
)  # fmt: skip
_POINTERS = ("tiles", "tiles_end", "residual")
# locals: address of the sums being written, span, end of the sums, then what was pushed: r0-r3
_AT, _SPAN, _END, _SUMS, _W, _BM, _Y = (f"[sp, #{4 * i}]" for i in range(7))
_LOCALS = 12
_PUSHED = 13 * 4


def transform() -> tuple[str, str]:
    """(patch, to, column, row, quads): B^T d B of a 4x4 patch whose columns and rows lie so many bytes apart.

    The first differences are horizontal, row after row, so that eight values are alive at most.
    """
    lines = ["push {r4-r11, lr}", "mov r9, r0", "mov r12, r1", "mov r10, r2", "mov r11, r3", "1:"]
    for half in (0, 1):
        free = [f"r{i}" for i in range(9)]
        third = _row(free, 2, half, lines)
        first = _row(free, 0, half, lines)
        for j in range(4):
            lines += [f"ssub16 {first[j]}, {first[j]}, {third[j]}", _put(first[j], 0, j, half)]
        free += first
        second = _row(free, 1, half, lines)
        for j in range(4):
            lines += [f"sadd16 {free[0]}, {second[j]}, {third[j]}", _put(free[0], 1, j, half)]
            lines += [f"ssub16 {free[0]}, {third[j]}, {second[j]}", _put(free[0], 2, j, half)]
        free += third
        fourth = _row(free, 3, half, lines)
        for j in range(4):
            lines += [f"ssub16 {fourth[j]}, {second[j]}, {fourth[j]}", _put(fourth[j], 3, j, half)]
    lines += ["ldr lr, [sp, #36]", "add r9, r9, #4", f"add r12, r12, #{QUAD}", "subs lr, lr, #1", "str lr, [sp, #36]"]
    return function("winoin", "ptr, ptr, i32, i32, i32", [*lines, "bne.w 1b", "pop {r4-r11, pc}"])


def _put(register: str, i: int, j: int, half: int) -> str:
    return f"str {register}, [r12, #{STEP * (4 * i + j) + 4 * half}]"


def _row(free: list[str], row: int, half: int, lines: list[str]) -> list[str]:
    """Append the loading of a row and its horizontal differences; takes five registers and gives one back."""
    (a, b, c, d), spare = free[:4], free[4]
    del free[:5]
    start = {0: [], 1: ["add lr, r9, r11"], 2: ["add lr, r9, r11, lsl #1"], 3: ["add lr, lr, r11, lsl #1"]}[row]
    at = "lr" if start else "r9"
    lines += [*start, f"add {spare}, {at}, r10", f"ldr {a}, [{at}]", f"ldr {b}, [{at}, r10]"]
    lines += [f"ldr {c}, [{at}, r10, lsl #1]", f"ldr {d}, [{spare}, r10, lsl #1]"]
    lines += [f"sxtb16 {x}, {x}" + ", ror #8" * half for x in (a, b, c, d)]
    lines += [f"ssub16 {d}, {b}, {d}", f"ssub16 {a}, {a}, {c}", f"sadd16 {spare}, {b}, {c}", f"ssub16 {c}, {c}, {b}"]
    free.append(b)
    return [a, spare, c, d]


@dataclass(frozen=True, slots=True)
class Product:
    """Sums, inverse transform and output stage of three tiles, all output channels."""

    shift: int  # of the accumulator before the multiplication
    bounded: bool  # low..high is not the int8 range
    residual: bool
    add_bounded: bool

    def _slot(self, name: str) -> str:
        return f"[sp, #{_LOCALS + _PUSHED + 4 * STACK_ARGS.index(name)}]"

    def _quad(self, op: str) -> list[str]:
        """Four input channels of three tiles and two output channels; every instruction has four bytes."""
        lines = ["ldrd r10, r11, [r7, #8]", "ldrd r8, r9, [r7], #16"]
        for p in [*range(1, TILES), 0]:
            lines.append(f"ldrd r12, lr, [r6, #{8 * p}]" if p else f"ldrd r12, lr, [r6], #{QUAD}")
            for second, a in enumerate(("r12", "lr")):
                for c in (0, 1):
                    acc, w = f"r{2 * p + c}", f"r{8 + 2 * c + second}"
                    fresh = op == "smuad" and not second
                    lines.append(f"smuad {acc}, {a}, {w}" if fresh else f"smlad {acc}, {a}, {w}, {acc}")
        return lines

    def entry(self, quads: int) -> int:
        """Byte offset (and Thumb bit) where the turns begin after the first quad: the last turn must end them."""
        skipped = UNROLL if quads == 1 else (1 - quads) % UNROLL
        return 1 + 4 * len(self._quad("smlad")) * skipped

    def _sums(self) -> list[str]:
        """All sums of two channels, place after place."""
        lines = [f"ldr r12, {_SUMS}", f"str r12, {_AT}", f"ldr r7, {_W}", "3:", f"add.w r6, r12, #{SUMS}"]
        lines += [*self._quad("smuad"), f"ldr.w pc, {self._slot('entry')}", ".p2align 2"]
        lines += ["1:", *UNROLL * self._quad("smlad"), f"ldrd r12, lr, {_AT}", "add lr, lr, r12", "cmp r6, lr"]
        lines += ["bne.w 1b", "stm r12!, {r0-r5}", f"str r12, {_AT}", f"ldr lr, {_END}", "cmp r12, lr", "bne.w 3b"]
        return [*lines, f"str r7, {_W}"]

    def _inverse(self) -> list[str]:
        """A^T M A of one channel and tile, the bias four times in one of the sums that all outputs contain."""

        def load(row: int, to: tuple[str, ...]) -> list[str]:
            return [f"ldr {r}, [r8, #{STEP * (4 * row + j)}]" for j, r in enumerate(to)]

        fresh = ("r4", "r5", "r6", "r7")
        lines = [*load(1, fresh), "add r5, r5, r9", "add r0, r4, r5", "add r0, r0, r6", "sub r1, r5, r6"]
        lines += ["sub r1, r1, r7", *load(2, fresh), "add r2, r4, r5", "add r2, r2, r6", "sub r3, r5, r6"]
        lines += ["sub r3, r3, r7", "sub r4, r0, r2", "add r0, r0, r2", "sub r2, r1, r3", "add r1, r1, r3"]
        rest = ("r3", "r5", "r6", "r7")
        lines += [*load(0, rest), "add r0, r0, r3", "add r0, r0, r5", "add r0, r0, r6", "add r1, r1, r5"]
        lines += ["sub r1, r1, r6", "sub r1, r1, r7", *load(3, rest), "sub r4, r4, r3", "sub r4, r4, r5"]
        return [*lines, "sub r4, r4, r6", "sub r2, r2, r5", "add r2, r2, r6", "add r2, r2, r7"]

    def _clamp(self, low: str, high: str, bounded: bool) -> Iterator[str]:
        for r in _OUTPUTS:
            if bounded:
                yield from (f"cmp {r}, {low}", "it lt", f"movlt {r}, {low}")
                yield from (f"cmp {r}, {high}", "it gt", f"movgt {r}, {high}")
            else:
                yield f"ssat {r}, #8, {r}"

    def _requantise(self) -> list[str]:
        """Divide the four sums by four, exactly, and multiply."""
        lines = [f"asr {r}, {r}, #{2 - self.shift}" for r in _OUTPUTS if self.shift < 2]
        lines += [f"lsl {r}, {r}, #{self.shift - 2}" for r in _OUTPUTS if self.shift > 2]
        lines += [f"smmlar {r}, {r}, r10, r11" for r in _OUTPUTS]
        lines += [f"ldr r5, {self._slot('low')}", f"ldr r6, {self._slot('high')}"] if self.bounded else []
        return [*lines, *self._clamp("r5", "r6", self.bounded)]

    def _add_residual(self) -> list[str]:
        """Acc = clamp((acc * a + r * b + const) >> shift), r at the places of the outputs, moved."""
        lines = [f"ldr r3, {self._slot('add_a')}", f"ldr r7, {self._slot('add_const')}"]
        lines += [f"mla {r}, {r}, r3, r7" for r in _OUTPUTS]
        lines += [*self._place(), f"ldr r7, {self._slot('residual')}", "add r7, r7, r12"]
        lines += [f"ldr r3, {self._slot('add_b')}", f"ldr r10, {self._slot('add_shift')}"]
        for n, (r, at) in enumerate(zip(_OUTPUTS, 2 * ("[r7]", "[r7, r5]"), strict=True)):
            lines += ["add r7, r7, r6"] if n == 2 else []
            lines += [f"ldrsb r9, {at}", f"mla {r}, r9, r3, {r}", f"asr {r}, {r}, r10"]
        lines += [f"ldr r3, {self._slot('add_low')}", f"ldr r7, {self._slot('add_high')}"] if self.add_bounded else []
        return [*lines, *self._clamp("r3", "r7", self.add_bounded)]

    def _place(self) -> list[str]:
        """Bytes to the next column and row of outputs (0 where there is none), and the first output's address."""
        return ["ldm lr!, {r5, r6, r12}", f"ldr r7, {_Y}", "add r12, r12, r7"]

    def _constants(self) -> list[str]:
        return [f"ldr r9, {_BM}", "ldrd r9, r10, [r9]", f"ldr r11, {self._slot('out_zero')}"]

    def _outputs(self) -> list[str]:
        """One channel of all tiles; an output outside is stored first to the place of one inside."""
        lines = ["5:", f"ldr r8, {_SUMS}", f"ldr r0, {self._slot('channels')}", "tst r0, #1", "it ne"]
        lines += ["addne r8, r8, #4", f"ldr lr, {self._slot('tiles')}", *([] if self.residual else self._constants())]
        lines += ["4:", *(self._constants() if self.residual else []), *self._inverse(), *self._requantise()]
        lines += self._add_residual() if self.residual else self._place()
        lines += ["add r7, r12, r6", "strb r2, [r7, r5]", "strb r4, [r7]", "strb r1, [r12, r5]", "strb r0, [r12]"]
        lines += ["adds r8, r8, #8", f"ldr r7, {self._slot('tiles_end')}", "cmp lr, r7", "bne.w 4b"]
        for slot, step in ((_BM, 8), (_Y, 1)):
            lines += [f"ldr r0, {slot}", f"adds r0, r0, #{step}", f"str r0, {slot}"]
        lines += [f"ldr r0, {self._slot('channels')}", "subs r0, r0, #1", f"str r0, {self._slot('channels')}"]
        return [*lines, "beq 6f", "tst r0, #1", "bne.w 5b", "b.w 2b"]

    def lines(self) -> list[str]:
        """The function body."""
        head = ["push {r0-r11, lr}", f"sub sp, sp, #{_LOCALS}", f"ldr r4, {self._slot('span')}", f"str r4, {_SPAN}"]
        head += [f"add r4, r0, #{SUMS}", f"str r4, {_END}", "adr.w r4, 1f", f"ldr r5, {self._slot('entry')}"]
        head += ["add r4, r4, r5", f"str r4, {self._slot('entry')}"]
        if self.residual:  # as a distance from the output
            head += [f"ldr r4, {self._slot('residual')}", "sub r4, r4, r3", f"str r4, {self._slot('residual')}"]
        head.append("2:")
        tail = ["6:", f"add sp, sp, #{_LOCALS + 16}", "pop {r4-r11, pc}"]
        return [*head, *self._sums(), *self._outputs(), *tail]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters scratch, weights, bias_multiplier, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function("winograd", ", ".join(["ptr"] * 4 + types), self.lines())


_OUTPUTS = ("r0", "r1", "r4", "r2")  # above left, above right, below left, below right
