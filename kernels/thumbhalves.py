"""The Armv6-M tile for small weights: four pixels by two channels, two products per multiplication.

A word of the window is x0 + x1 * 2^16, and so are its sums with weights as long as the lower one fits 16 bits: after
every turn of the multiply loop they are parted and added to sums of 32 bits in the workspace. The fewer values a
weight can take, the longer a turn may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from .thumbgather import WORD_PIXELS
from .thumbm0 import NarrowTile

TURNS = (32, 16, 8)  # lengths of a turn


def turn_for(largest: int) -> int:
    """The longest turn for weights of at most this magnitude, 0 for none."""
    return next((turn for turn in TURNS if turn * 128 * largest < 1 << 15), 0)


@dataclass(frozen=True, slots=True)
class HalvesTile(NarrowTile):
    """r8-r11: sums of two pixels each, by channel, then pair of pixels. The stack slot `sums`: eight words of sums."""

    turn: int

    @property
    def unroll(self) -> int:
        """K per turn of the multiply loop."""
        return self.turn

    @property
    def name(self) -> str:
        """The function's name without its hash."""
        return f"halves{self.pixels}x2"

    def _weight(self, k: int, channel: int) -> list[str]:
        """The signed weight of step k of a turn into r3."""
        if self.form == "lookup":
            return NarrowTile._weight(self, k, channel)
        byte, bit = divmod((2 * k + channel) * self.bits, 8)
        return [f"ldrb r3, [r6, #{byte}]", f"lsls r3, r3, #{32 - bit - self.bits}", f"asrs r3, r3, #{32 - self.bits}"]

    def step(self, k: int) -> list[str]:
        """One k of all pixels and two channels; every instruction has two bytes."""
        lines = ["ldm r5!, {r0, r1}", *self._weight(k, 0), "movs r4, r0", "muls r4, r3, r4", "add r8, r4"]
        lines += ["muls r3, r1, r3", "add r9, r3", *self._weight(k, 1)]
        return [*lines, "muls r0, r3, r0", "add r10, r0", "muls r1, r3, r1", "add r11, r1"]

    def _begin(self) -> list[str]:
        """Every sum begins with its channel's bias."""
        lines = ["2:", "ldr r3, [sp, #8]", "ldr r0, [r3]", "ldr r2, [r3, #4]", "movs r1, r0", "movs r3, r2"]
        lines += [f"ldr r4, {self._slot('sums')}", "stm r4!, {r0, r1}", "stm r4!, {r0, r1}"]
        lines += ["stm r4!, {r2, r3}", "stm r4!, {r2, r3}", "movs r0, #0", *(f"mov r{i}, r0" for i in range(8, 12))]
        lines += ["ldr r5, [sp, #0]", "ldr r6, [sp, #4]", f"ldr r7, {self._slot('skip_w')}", "subs r6, r6, r7"]
        lines += [f"ldr r7, {self._slot('table')}"] * (self.form == "lookup")
        return [*lines, f"ldr r4, {self._slot('entry')}", "bx r4"]

    def _multiply(self) -> list[str]:
        lines = [".p2align 2", "1:", *(line for k in range(self.turn) for line in self.step(k))]
        lines += [f"adds r6, r6, #{self.turn * 2 * self.bits // 8}", f"ldr r4, {self._slot('sums')}", "movs r1, #0"]
        for register in range(8, 12):
            lines += [f"mov r0, r{register}", f"mov r{register}, r1", "sxth r2, r0", "subs r0, r0, r2"]
            lines += ["asrs r0, r0, #16", "ldr r3, [r4]", "adds r2, r2, r3", "ldr r3, [r4, #4]", "adds r3, r3, r0"]
            lines.append("stm r4!, {r2, r3}")
        return [*lines, f"ldr r3, {self._slot('turns_end')}", "cmp r5, r3", "beq 3f", "b 1b", "3:", "str r6, [sp, #4]"]

    def _sum(self, pixel: int, channel: int) -> list[str]:
        return [f"ldr r0, {self._slot('sums')}", f"ldr r0, [r0, #{4 * (WORD_PIXELS * channel + pixel)}]"]
