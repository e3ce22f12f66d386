"""The Armv7-M tile: four pixels by two channels, two multiply-accumulates per instruction without DSP instructions.

A word of the window is x0 + x1 * 2^23. SMLAL multiplies it with a weight and adds the product to 64 bits, which so hold
the sums of both pixels: exact as long as the lower sum fits 23 bits. Decoded weights of all formats run through it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .armasm import function
from .thumbgather import LANE, WORD_PIXELS
from .thumbtile import TYPES, ThumbTile

UNROLL = 8  # k per turn of the multiply loop; the first turn is entered in the middle
GROUP = 4  # k whose codes, of two channels, end on a byte
SUM_LIMIT = (1 << LANE - 1) // 128 - 1  # of the magnitudes of a channel's weights


@dataclass(frozen=True, slots=True)
class LongTile(ThumbTile):
    """r0-r7: sums, r8: x, r9: weights, r10: codebook, r11 and lr: the weights of a step, r12: a word of the window."""

    @property
    def unroll(self) -> int:
        """K per turn of the multiply loop."""
        return UNROLL

    @property
    def name(self) -> str:
        """The function's name without its hash."""
        return "long4x2"

    def _acc(self, pixel: int, channel: int) -> str:
        return f"r{4 * (pixel // 2) + 2 * channel + pixel % 2}"

    def _decode(self, k: int) -> list[str]:
        """The weights of step k of a turn, of both channels, into r11 and lr."""
        if self.form == "wide":
            return ["ldrsb.w r11, [r9], #1", "ldrsb.w lr, [r9], #1"]
        place = k % GROUP * 2 * self.bits
        after = place + 2 * self.bits
        cut = "ubfx" if self.form == "lookup" else "sbfx"
        lines = [f"ldr.w lr, [r9], #{after // 8 - place // 8}"]
        lines += [f"{cut} r11, lr, #{place % 8}, #{self.bits}", f"{cut} lr, lr, #{place % 8 + self.bits}, #{self.bits}"]
        return lines + [f"ldrsb.w {r}, [r10, {r}]" for r in ("r11", "lr")] * (self.form == "lookup")

    def step(self, k: int) -> list[str]:
        """One k of all pixels and two channels; every instruction has four bytes."""
        lines = self._decode(k)
        for pair, load in ((1, "ldr.w r12, [r8, #4]"), (0, f"ldr.w r12, [r8], #{2 * WORD_PIXELS}")):
            lines.append(load)
            for c, weight in enumerate(("r11", "lr")):
                lines.append(f"smlal {self._acc(2 * pair, c)}, {self._acc(2 * pair + 1, c)}, r12, {weight}")
        return lines

    def entry(self, row: int) -> int:
        """Byte offset (and Thumb bit) of the step where the first turn begins."""
        return 1 + sum(4 * len(self.step(k)) for k in range(-row % UNROLL))

    def _sums(self) -> list[str]:
        """Part the accumulators and add the bias in r8 and r9; r12 is lost."""
        lines = []
        for p in range(0, self.pixels, 2):
            for c in (0, 1):
                low, high, bias = self._acc(p, c), self._acc(p + 1, c), f"r{8 + c}"
                # the upper sum is rounded to nearest: the lower one is signed
                lines += [f"lsl.w {high}, {high}, #{32 - LANE}", f"orr.w {high}, {high}, {low}, lsr #{LANE}"]
                lines += [f"lsls.w r12, {low}, #{33 - LANE}", f"adc.w {high}, {high}, {bias}"]
                lines += [f"sbfx {low}, {low}, #0, #{LANE}", f"add {low}, {low}, {bias}"]
        return lines

    def _requantise(self) -> list[str]:
        """Finish the sums, multiply, round, clamp."""
        lines = ["ldr r12, [sp, #8]", "ldm r12!, {r8, r9, r10, r11}", "str r12, [sp, #8]"]
        lines.append(f"ldr lr, {self._slot('out_zero')}")
        lines += self._sums()
        for p in range(self.pixels):
            for c in (0, 1):
                acc = self._acc(p, c)
                lines += [f"lsl {acc}, {acc}, #{self.shift}"] if self.shift else []
                lines += [f"smull r12, {acc}, {acc}, r{10 + c}", "lsls.w r12, r12, #1", f"adc.w {acc}, {acc}, lr"]
                lines += [] if self.bounded else [f"ssat {acc}, #8, {acc}"]
        if self.bounded:
            lines += [f"ldr r8, {self._slot('low')}", f"ldr r9, {self._slot('high')}"]
            for i in range(2 * WORD_PIXELS):
                lines += self._clamp(f"r{i}", "r8", "r9")
        return lines

    def _clamp(self, register: str, low: str, high: str) -> list[str]:
        return [
            f"cmp {register}, {low}", "it lt", f"movlt {register}, {low}",
            f"cmp {register}, {high}", "it gt", f"movgt {register}, {high}",
        ]  # fmt: skip

    def _add_residual(self) -> list[str]:
        """Acc = clamp((acc * a + r * b + const) >> shift); pixels after the last valid one are not read."""
        lines = [f"ldr r8, {self._slot('add_a')}", f"ldr r12, {self._slot('add_const')}"]
        lines += [f"mla r{i}, r{i}, r8, r12" for i in range(2 * WORD_PIXELS)]
        names = ("residual", "stride", "add_b", "add_shift")
        lines += [f"ldr r{8 + i}, {self._slot(name)}" for i, name in enumerate(names)]
        lines += [f"ldr lr, {self._slot('valid')}", "add r12, r8, #2", f"str r12, {self._slot('residual')}"]
        for p in range(self.pixels):
            for c in (0, 1):
                acc = self._acc(p, c)
                lines += [f"ldrsb r12, [r8, #{c}]", f"mla {acc}, r12, r10, {acc}", f"asr {acc}, {acc}, r11"]
                lines += [] if self.add_bounded else [f"ssat {acc}, #8, {acc}"]
            if p + 1 < self.pixels:
                lines += ["subs lr, lr, #1", "beq 6f", "add r8, r8, r9"]
        lines.append("6:")
        if self.add_bounded:
            lines += [f"ldr r8, {self._slot('add_low')}", f"ldr r12, {self._slot('add_high')}"]
            for i in range(2 * WORD_PIXELS):
                lines += self._clamp(f"r{i}", "r8", "r12")
        return lines

    def _store(self, channels: int) -> list[str]:
        """From r8 on, r9 bytes apart, r10 pixels."""
        lines = []
        for p in range(self.pixels):
            lines += [f"strb {self._acc(p, c)}, [r8, #{c}]" for c in range(channels)]
            if p + 1 < self.pixels:
                lines += ["subs r10, r10, #1", "beq 7f", "add r8, r8, r9"]
        return lines

    def lines(self) -> list[str]:
        """The function body."""
        entry = self._slot("entry")
        head = ["push {r0-r11, lr}", "adr.w r10, 1f", f"ldr r11, {entry}", "add r10, r10, r11", f"str r10, {entry}"]
        pair = ["2:", *(f"movs r{i}, #0" for i in range(2 * WORD_PIXELS)), "ldr r8, [sp, #0]", "ldr r9, [sp, #4]"]
        pair += [f"ldr r11, {entry}", f"ldr r10, {self._slot('table')}", "bx r11", ".p2align 2", "1:"]
        pair += [line for k in range(UNROLL) for line in self.step(k)]
        pair += [f"ldr r11, {self._slot('turns_end')}", "cmp r8, r11", "bne.w 1b", "str r9, [sp, #4]"]
        add = self._add_residual() if self.residual else []
        left = self._slot("channels")
        tail = ["ldr r8, [sp, #12]", f"ldr r9, {self._slot('stride')}", f"ldr r10, {self._slot('valid')}"]
        tail += [f"ldr r11, {left}", "add r12, r8, #2", "str r12, [sp, #12]", "subs r11, r11, #2", f"str r11, {left}"]
        tail += ["blt 5f", *self._store(2), "7:", f"ldr r11, {left}", "cmp r11, #0", "bgt.w 2b", "b 8f"]
        tail += ["5:", *self._store(1), "7:", "8:", "add sp, sp, #16", "pop {r4-r11, pc}"]
        return [*head, *pair, *self._requantise(), *add, *tail]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        return function(self.name, TYPES, self.lines())


@dataclass(frozen=True, slots=True)
class MlaTile(LongTile):
    """One product per MLA, from windows of bytes: more instructions, but fewer cycles where SMLAL takes over five."""

    @property
    def name(self) -> str:
        """The function's name without its hash."""
        return "mla4x2"

    def _acc(self, pixel: int, channel: int) -> str:
        return f"r{2 * pixel + channel}"

    def step(self, k: int) -> list[str]:
        """One k of all pixels and two channels; every instruction has four bytes."""
        lines = self._decode(k)
        for p in (1, 2, 3, 0):
            lines.append(f"ldrsb.w r12, [r8, #{p}]" if p else f"ldrsb.w r12, [r8], #{WORD_PIXELS}")
            lines += [f"mla {self._acc(p, c)}, r12, {w}, {self._acc(p, c)}" for c, w in enumerate(("r11", "lr"))]
        return lines

    def _sums(self) -> list[str]:
        return [f"add.w r{i}, r{i}, r{8 + i % 2}" for i in range(2 * WORD_PIXELS)]
