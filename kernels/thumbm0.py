"""The Armv6-M tile: three pixels by two channels with the few instructions that a Cortex-M0 has.

Loads with an immediate offset have no sign, so activations lie in the window with 128 added and uniform weights in
flash with half their range added; what that adds to a sum is taken off beforehand: 128 * sum(w) in the bias and
offset * sum(x) per pixel. Sums live in the high registers, which ADD reaches.

There is no long multiplication: a product's upper word is put together from four products of halves.
"""

from __future__ import annotations

from dataclasses import dataclass

from .armasm import function
from .thumbtile import TYPES, ThumbTile

UNROLL = 10  # k per turn of the multiply loop; the first turn is entered in the middle
_ACCUMULATORS = (("r8", "r9", "r10"), ("r11", "r12", "lr"))  # by channel, then pixel


def is_near(bound: int, multiplier: int) -> bool:
    """Whether sums of at most `bound` (shifted) and multipliers of at most `multiplier` need no fourth addition."""
    middle = ((bound >> 16) + 1) * 0xFFFF
    return middle + ((multiplier >> 16) + 1) * 0xFFFF + (1 << 23) + (1 << 15) < 1 << 31


def rounding(zero: str) -> list[str]:
    """R6 = zero * 2^16 + 2^15, from the stack slot of the zero point; r7 is lost."""
    return ["movs r6, #1", "lsls r6, r6, #15", f"ldr r7, {zero}", "lsls r7, r7, #16", "adds r6, r6, r7"]


def halves(place: str, pointer: str) -> list[str]:
    """Upper and lower half of the multiplier at `place` into r4 and r5; r4 is set from the slot `pointer` first."""
    return [f"ldr r4, {pointer}", f"ldr r4, {place}", "uxth r5, r4", "lsrs r4, r4, #16"]


def upper_word(shift: int, near: bool) -> list[str]:
    """R1 = zero + (((r0 << shift) * m + 2^31) >> 32), with `halves` and `rounding`; r0, r2, r3 are lost.

    With a * 2^16 + b = r0 << shift and m = m1 * 2^16 + m0 (b, m0 unsigned) this is
    a * m1 + ((a * m0 + b * m1 + (b * m0 >> 16) + r6) >> 16): the lowest half cannot matter. Unless the sum in brackets
    is known to fit (`near`), its upper and lower halves are added apart.
    """
    lines = [f"lsls r0, r0, #{shift}"] * (shift > 0)
    lines += ["asrs r1, r0, #16", "uxth r0, r0", "movs r2, r1", "muls r2, r5, r2", "muls r1, r4, r1"]
    lines += ["movs r3, r0", "muls r3, r4, r3", "muls r0, r5, r0", "lsrs r0, r0, #16", "adds r3, r3, r0"]
    if near:
        return [*lines, "adds r2, r2, r3", "adds r2, r2, r6", "asrs r2, r2, #16", "adds r1, r1, r2"]
    # b * m1 + (b * m0 >> 16) < 2^31 and a * m0 + r6 may be large, but not their lower halves
    lines += ["asrs r0, r6, #16", "adds r1, r1, r0", "asrs r0, r2, #16", "adds r1, r1, r0", "uxth r2, r2"]
    lines += ["adds r3, r3, r2", "uxth r0, r6", "adds r3, r3, r0", "lsrs r3, r3, #16"]
    return [*lines, "adds r1, r1, r3"]


def bounds(low: str, high: str, full: bool) -> list[str]:
    """Clamp r1 to int8, or to what two stack slots say; r0 is lost."""
    if full:
        return ["sxtb r0, r1", "cmp r0, r1", "beq 4f", "asrs r1, r1, #31", "movs r0, #127", "eors r1, r0", "4:"]
    lines = [f"ldr r0, {low}", "cmp r1, r0", "bge 4f", "mov r1, r0", "4:"]
    return [*lines, f"ldr r0, {high}", "cmp r1, r0", "ble 4f", "mov r1, r0", "4:"]


@dataclass(frozen=True, slots=True)
class NarrowTile(ThumbTile):
    """All output channels of up to three pixels; `form` is "lookup" (codebook), else codes have an offset."""

    near: bool  # see upper_word

    @property
    def unroll(self) -> int:
        """K per turn of the multiply loop."""
        return UNROLL

    @property
    def name(self) -> str:
        """The function's name without its hash."""
        return f"narrow{self.pixels}x2"

    def _weight(self, k: int, channel: int) -> list[str]:
        """The weight of step k of a turn into r3; r6 points to the turn's first byte."""
        byte, bit = divmod((2 * k + channel) * self.bits, 8)
        lines = [f"ldrb r3, [r6, #{byte}]"]
        above = 8 - bit - self.bits
        if above:
            lines += [f"lsls r3, r3, #{24 + above}", f"lsrs r3, r3, #{32 - self.bits}"]
        elif bit:
            lines += [f"lsrs r3, r3, #{bit}"]
        return lines + ["ldrsb r3, [r7, r3]"] * (self.form == "lookup")

    def step(self, k: int) -> list[str]:
        """One k of all pixels and two channels; every instruction has two bytes."""
        lines = [f"ldrb r{p}, [r5, #{self.pixels * k + p}]" for p in range(self.pixels)] + self._weight(k, 0)
        for p in range(self.pixels - 1):
            lines += [f"movs r4, r{p}", "muls r4, r3, r4", f"add {_ACCUMULATORS[0][p]}, r4"]
        last = self.pixels - 1
        lines += [f"muls r3, r{last}, r3", f"add {_ACCUMULATORS[0][last]}, r3", *self._weight(k, 1)]
        for p in range(self.pixels):
            lines += [f"muls r{p}, r3, r{p}", f"add {_ACCUMULATORS[1][p]}, r{p}"]
        return lines

    def entry(self, row: int) -> int:
        """Byte offset (and Thumb bit) of the step where the first turn begins."""
        return 1 + sum(2 * len(self.step(k)) for k in range(-row % self.unroll))

    def _begin(self) -> list[str]:
        """The first values of the sums, pointers, and the jump into the first turn."""
        offset = 0 if self.form == "lookup" else self.bits - 1
        lines = ["2:", "ldr r7, [sp, #8]", "ldm r7!, {r0, r1}"]
        sums = ", ".join(f"r{2 + p}" for p in range(self.pixels))  # one word per pixel, and no more stand there
        lines += [f"ldr r7, {self._slot('sums')}", f"ldm r7!, {{{sums}}}"] if offset else []
        for p in range(self.pixels):
            lines += [f"lsls r{2 + p}, r{2 + p}, #{offset}"] if offset else []
            for c in (0, 1):
                lines += [f"subs r5, r{c}, r{2 + p}"] if offset else []
                lines += [f"mov {_ACCUMULATORS[c][p]}, {'r5' if offset else f'r{c}'}"]
        lines += ["ldr r5, [sp, #0]", "ldr r6, [sp, #4]", f"ldr r7, {self._slot('skip_w')}", "subs r6, r6, r7"]
        lines += [f"ldr r7, {self._slot('table' if self.form == 'lookup' else 'turns_end')}"]
        return [*lines, f"ldr r4, {self._slot('entry')}", "bx r4"]

    def _multiply(self) -> list[str]:
        lines = [".p2align 2", "1:", *(line for k in range(UNROLL) for line in self.step(k))]
        lines += [f"adds r5, r5, #{self.pixels * UNROLL}", f"adds r6, r6, #{UNROLL * 2 * self.bits // 8}"]
        end = ["cmp r5, r7"] if self.form != "lookup" else [f"ldr r3, {self._slot('turns_end')}", "cmp r5, r3"]
        return [*lines, *end, "beq 3f", "b 1b", "3:", "str r6, [sp, #4]"]

    def _sum(self, pixel: int, channel: int) -> list[str]:
        """A sum into r0."""
        return [f"mov r0, {_ACCUMULATORS[channel][pixel]}"]

    def _output(self, pixel: int, channel: int) -> list[str]:
        lines = [*self._sum(pixel, channel), *upper_word(self.shift, self.near)]
        lines += bounds(self._slot("low"), self._slot("high"), not self.bounded)
        lines += ["movs r3, #0"] if not pixel else [f"ldr r3, {self._slot('stride')}"]
        lines += [f"movs r0, #{pixel}", "muls r3, r0, r3"] if pixel > 2 else ["lsls r3, r3, #1"] if pixel == 2 else []
        lines += ["adds r3, #1"] if channel else []
        if self.residual:
            lines += [f"ldr r0, {self._slot('add_a')}", "muls r1, r0, r1", f"ldr r0, {self._slot('add_const')}"]
            lines += ["adds r1, r1, r0", f"ldr r0, {self._slot('residual')}", "ldrsb r0, [r0, r3]"]
            lines += [f"ldr r2, {self._slot('add_b')}", "muls r0, r2, r0", "adds r1, r1, r0"]
            lines += [f"ldr r0, {self._slot('add_shift')}", "asrs r1, r0"]
            lines += bounds(self._slot("add_low"), self._slot("add_high"), not self.add_bounded)
        return [*lines, "ldr r2, [sp, #12]", "strb r1, [r2, r3]"]

    def _outputs(self) -> list[str]:
        lines = rounding(self._slot("out_zero"))
        for c in (0, 1):
            if c:
                lines += [f"ldr r0, {self._slot('channels')}", "cmp r0, #1", "bgt 5f", "b 6f", "5:"]
            lines += halves(f"[r4, #{8 + 4 * c}]", "[sp, #8]")
            for p in range(self.pixels):
                if p:
                    lines += [f"ldr r0, {self._slot('valid')}", f"cmp r0, #{p}", "bgt 5f", "b 6f", "5:"]
                lines += self._output(p, c)
            lines.append("6:")
        return lines

    def lines(self) -> list[str]:
        """The function body."""
        saved = [f"mov r{i}, r{i + 4}" for i in range(4, 8)]
        head = ["push {r4-r7, lr}", *saved, "push {r4-r7}", "push {r0-r3}", "adr r4, 1f"]
        head += [f"ldr r5, {self._slot('entry')}", "adds r4, r4, r5", f"str r4, {self._slot('entry')}"]
        head += [f"ldr r4, {self._slot('skip_x')}", "subs r0, r0, r4", "str r0, [sp, #0]"]
        tail = []
        for slot, step in (("[sp, #8]", 16), ("[sp, #12]", 2), (self._slot("residual"), 2)):
            tail += [f"ldr r0, {slot}", f"adds r0, #{step}", f"str r0, {slot}"]
        tail += [f"ldr r0, {self._slot('channels')}", "subs r0, #2", f"str r0, {self._slot('channels')}", "ble 8f"]
        # BL is the jump that reaches far enough; lr is saved
        tail += ["bl 2b", "8:", "add sp, #16", "pop {r4-r7}", *(f"mov r{i + 4}, r{i}" for i in range(4, 8))]
        return [*head, *self._begin(), *self._multiply(), *self._outputs(), *tail, "pop {r4-r7, pc}"]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        return function(self.name, TYPES, self.lines())
