"""Thumb-2 functions behind the sparse armv7em rows: streams of (gap, value) entries (see sparsepack), output stage.

Both functions run all output channels of a tile. What is read per entry is shared by the pixels of the tile: they
stand interleaved as int16, the P codes of one k side by side, and one register walks from entry to entry. A linear
layer has one pixel; its codes are read as they lie in the input, and two entries go into one SMLAD.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .armasm import function
from .sparsepack import entries_per_word

PUSHED = 13 * 4  # r0-r11 and lr; stack arguments follow
STACK_ARGS = (
    "counts", "counts_end", "end", "stride", "valid", "out_zero", "low", "high",
    "residual", "add_a", "add_b", "add_const", "add_shift", "add_low", "add_high",
)  # fmt: skip
_POINTERS = ("counts", "counts_end", "residual")


def spread_rows(pixels: int) -> tuple[str, str]:
    """(source, to, run, rows, stride): int8 -> int16, 2 * `pixels` bytes apart, of rows `stride` bytes apart."""
    one = ["ldrsb.w r12, [r5], #1", f"strh.w r12, [r1], #{2 * pixels}"]
    lines = ["push {r4-r6, lr}", "ldr r4, [sp, #16]", "1:", "mov r5, r0", "mov r6, r2"]
    lines += ["2:", "subs r6, r6, #4", "blt 3f", *one * 4, "b 2b", "3:", "adds r6, r6, #4", "beq 5f"]
    lines += ["4:", *one, "subs r6, r6, #1", "bne 4b", "5:", "add r0, r0, r4", "subs r3, r3, #1", "bne 1b"]
    return function("spreadrows", "ptr, ptr, i32, i32, i32", [*lines, "pop {r4-r6, pc}"])


def spread_value(pixels: int) -> tuple[str, str]:
    """(to, count, value): as spread_rows, one value `count` times, for padding."""
    lines = ["1:", f"strh.w r2, [r0], #{2 * pixels}", "subs r1, r1, #1", "bne 1b", "bx lr"]
    return function("spreadvalue", "ptr, i32, i32", lines)


@dataclass(frozen=True, slots=True)
class SparseTile(ABC):
    """P pixels x all output channels, one channel after the other."""

    pixels: int
    gap_bits: int
    shift: int  # of the accumulator before the multiplication, to the left
    bounded: bool  # low..high is not the int8 range
    residual: bool
    add_bounded: bool

    @property
    @abstractmethod
    def unroll(self) -> int:
        """Words per turn of the multiply loop (a power of 2); the first turn is entered in the middle."""

    @abstractmethod
    def step(self) -> list[str]:
        """The entries of one word; every instruction has four bytes."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The function body."""

    @property
    def around(self) -> int:
        """Instructions per channel beside turns: of a whole tile, as those after label 5 store the last one."""
        lines = self.lines()
        whole = lines[: lines.index("5:")] if "5:" in lines else lines
        real = sum(not line.endswith(":") and not line.startswith(".") for line in whole)
        return real - self.unroll * len(self.step()) - 6  # in the turns, or once per call

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    def _clamp(self, register: str, low: str, high: str) -> list[str]:
        return [
            f"cmp {register}, {low}", "it lt", f"movlt {register}, {low}",
            f"cmp {register}, {high}", "it gt", f"movgt {register}, {high}",
        ]  # fmt: skip

    def _enter(self, units: str, t: str, base: str) -> list[str]:
        """Jump to where the first turn begins, so that the turns sum up to `units` words."""
        lines = [f"rsb {units}, {units}, #0", f"and {units}, {units}, #{self.unroll - 1}"]
        lines += [f"mov {t}, #{4 * len(self.step())}", f"mla {units}, {units}, {t}, {base}"]
        return [*lines, f"bx {units}", ".p2align 2"]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function(f"sparse{self.pixels}x1", ", ".join(["ptr"] * 4 + types), self.lines())


@dataclass(frozen=True, slots=True)
class LinearTile(SparseTile):
    """One pixel, whose codes are bytes. One-byte entries are summed with their values 2^gap_bits times too large."""

    @property
    def scale(self) -> int:
        """How many bits too large the sums are."""
        return 0 if self.gap_bits == 8 else self.gap_bits

    @property
    def unroll(self) -> int:
        """See SparseTile."""
        return 8 if self.gap_bits == 8 else 4

    def step(self) -> list[str]:
        """See SparseTile: 4 instructions per entry, or 4.25."""
        if self.gap_bits == 8:
            lines = ["ldr.w r8, [r1], #4", "uxtab r4, r4, r8", "ldrsb.w r5, [r4]", "uxtab r4, r4, r8, ror #16"]
            lines += ["ldrsb.w r6, [r4]", "sxtb16 r8, r8, ror #8", "pkhbt r5, r5, r6, lsl #16"]
            return [*lines, "smlad r0, r5, r8, r0"]
        mask = f"#0x{2**self.gap_bits - 1:02x}" + f"{2**self.gap_bits - 1:02x}" * 3
        lines = ["ldr.w r8, [r1], #4", f"bic r12, r8, {mask}", f"and r8, r8, {mask}"]
        for i, r in enumerate(("r5", "r6", "r7", "lr")):
            lines += [f"uxtab r4, r4, r8{f', ror #{8 * i}' if i else ''}", f"ldrsb.w {r}, [r4]"]
        lines += ["sxtb16 r8, r12", "sxtb16 r12, r12, ror #8"]
        lines += ["pkhbt r5, r5, r7, lsl #16", "pkhbt r6, r6, lr, lsl #16"]
        return [*lines, "smlad r0, r5, r8, r0", "smlad r0, r6, r12, r0"]

    def lines(self) -> list[str]:
        """See SparseTile. r1 stream, r2 bias and multiplier, r3 output, r9 end of the row, r10 counts, r11 turn."""
        head = ["push {r0-r11, lr}", "adr.w r11, 1f", "add.w r11, r11, #1", f"ldr r10, {self._slot('counts')}"]
        row = ["2:", "ldrh r5, [r10], #2", "ldr r4, [sp, #0]", "ldr r0, [r2], #8", "cmp r5, #0", "beq.w 3f"]
        row += ["add r9, r1, r5, lsl #2", *self._enter("r5", "r6", "r11")]
        row += ["1:", *self.unroll * self.step(), "cmp r1, r9", "bne.w 1b", "3:", *self._requantise()]
        row += self._add_residual() if self.residual else []
        row += ["strb r0, [r3], #1", f"ldr r5, {self._slot('counts_end')}", "cmp r10, r5", "bne.w 2b"]
        return [*head, *row, "add sp, sp, #16", "pop {r4-r11, pc}"]

    def _requantise(self) -> list[str]:
        back = self.scale - self.shift
        lines = [f"asr r0, r0, #{back}"] if back > 0 else [f"lsl r0, r0, #{-back}"] if back < 0 else []
        lines += ["ldr r5, [r2, #-4]", f"ldr r6, {self._slot('out_zero')}", "smmlar r0, r0, r5, r6"]
        return lines + self._limit(self.bounded, "low", "high")

    def _limit(self, bounded: bool, low: str, high: str) -> list[str]:
        if not bounded:
            return ["ssat r0, #8, r0"]
        return [f"ldr r5, {self._slot(low)}", f"ldr r6, {self._slot(high)}", *self._clamp("r0", "r5", "r6")]

    def _add_residual(self) -> list[str]:
        names = (("r5", "add_a"), ("r6", "add_const"), ("r7", "residual"), ("r8", "add_b"), ("r9", "add_shift"))
        lines = [f"ldr {r}, {self._slot(name)}" for r, name in names]
        lines += ["mla r0, r0, r5, r6", "ldrsb r5, [r7], #1", f"str r7, {self._slot('residual')}"]
        lines += ["mla r0, r5, r8, r0", "asr r0, r0, r9"]
        return lines + self._limit(self.add_bounded, "add_low", "add_high")


@dataclass(frozen=True, slots=True)
class ConvTile(SparseTile):
    """4 or 8 pixels. Registers: sums r0.., then x, w, the word, a value, and a pair of loaded codes."""

    @property
    def _free(self) -> list[str]:
        return ([f"r{i}" for i in range(self.pixels, 13)] + ["lr"])[:6]

    @property
    def unroll(self) -> int:
        """See SparseTile."""
        return 4 if self.gap_bits == 8 else 2

    def _entry(self, gap: list[str], half: str) -> list[str]:
        """One entry: its gap comes into `a` by the lines `gap`, its value stands in a half of `v`."""
        x, _, _, v, a, b = self._free
        lines = [*gap, f"add.w {x}, {x}, {a}, lsl #{self.pixels.bit_length()}"]
        for p in range(0, self.pixels, 4):
            lines.append(f"ldrd {a}, {b}, [{x}, #{2 * p}]")
            for i, (from_, side) in enumerate(((a, "b"), (a, "t"), (b, "b"), (b, "t"))):
                lines.append(f"smla{side}{half} r{p + i}, {from_}, {v}, r{p + i}")
        return lines

    def step(self) -> list[str]:
        """See SparseTile."""
        _, w, word, v, a, _ = self._free
        lines = [f"ldr.w {word}, [{w}], #4"]
        if self.gap_bits == 8:
            lines.append(f"sxtb16 {v}, {word}, ror #8")
            lines += self._entry([f"uxtb.w {a}, {word}"], "b")
            return lines + self._entry([f"uxtb.w {a}, {word}, ror #16"], "t")
        for i in range(entries_per_word(self.gap_bits)):
            at = 8 * i + self.gap_bits
            value = f"sbfx {v}, {word}, #{at}, #{8 - self.gap_bits}"
            lines += self._entry([f"ubfx {a}, {word}, #{8 * i}, #{self.gap_bits}", value], "b")
        return lines

    def lines(self) -> list[str]:
        """See SparseTile."""
        x, w, word, v, a, b = self._free
        sums = range(1, self.pixels)
        head = ["push {r0-r11, lr}"]
        row = ["2:", f"ldr {word}, {self._slot('counts')}", f"ldr {a}, [sp, #8]", f"ldr {w}, [sp, #4]"]
        row += [f"ldrh {v}, [{word}], #2", f"ldr r0, [{a}]", f"str {word}, {self._slot('counts')}"]
        row += [f"mov r{p}, r0" for p in sums]
        row += [f"ldr {x}, [sp, #0]", f"cmp {v}, #0", "beq.w 3f"]
        row += [f"add {a}, {w}, {v}, lsl #2", f"str {a}, {self._slot('end')}", f"adr.w {b}, 1f", f"add {b}, {b}, #1"]
        row += [*self._enter(v, a, b), "1:", *self.unroll * self.step(), f"ldr {a}, {self._slot('end')}"]
        row += [f"cmp {w}, {a}", "bne.w 1b", f"str {w}, [sp, #4]", "3:", *self._requantise()]
        row += self._add_residual() if self.residual else []
        return [*head, *row, *self._store()]

    def _requantise(self) -> list[str]:
        bm, m, zero, low, high, _ = self._free
        lines = [f"ldr {bm}, [sp, #8]", f"ldr {zero}, {self._slot('out_zero')}", f"ldr {m}, [{bm}, #4]"]
        lines += [f"add {bm}, {bm}, #8", f"str {bm}, [sp, #8]"]
        if self.bounded:
            lines += [f"ldr {low}, {self._slot('low')}", f"ldr {high}, {self._slot('high')}"]
        for p in range(self.pixels):
            lines += [f"lsl r{p}, r{p}, #{self.shift}"] if self.shift else []
            lines.append(f"smmlar r{p}, r{p}, {m}, {zero}")
            lines += self._clamp(f"r{p}", low, high) if self.bounded else [f"ssat r{p}, #8, r{p}"]
        return lines

    def _add_residual(self) -> list[str]:
        """Acc = clamp((acc * a + r * b + const) >> shift); pixels after the last valid one are not read."""
        r, stride, b, shift, t, valid = self._free
        lines = [f"ldr {r}, {self._slot('add_a')}", f"ldr {t}, {self._slot('add_const')}"]
        lines += [f"mla r{p}, r{p}, {r}, {t}" for p in range(self.pixels)]
        names = ("residual", "stride", "add_b", "add_shift", "valid")
        lines += [f"ldr {x}, {self._slot(n)}" for x, n in zip((r, stride, b, shift, valid), names, strict=True)]
        lines += [f"add {t}, {r}, #1", f"str {t}, {self._slot('residual')}"]
        for p in range(self.pixels):
            lines += [f"ldrsb {t}, [{r}]", f"mla r{p}, {t}, {b}, r{p}", f"asr r{p}, r{p}, {shift}"]
            lines += [] if self.add_bounded else [f"ssat r{p}, #8, r{p}"]
            if p + 1 < self.pixels:
                lines += [f"subs {valid}, {valid}, #1", "beq.w 6f", f"add {r}, {r}, {stride}"]
        lines.append("6:")
        if self.add_bounded:
            lines += [f"ldr {r}, {self._slot('add_low')}", f"ldr {t}, {self._slot('add_high')}"]
            for p in range(self.pixels):
                lines += self._clamp(f"r{p}", r, t)
        return lines

    def _store(self) -> list[str]:
        """A whole tile without asking for every pixel, then the loop over channels, then a tile that ends early."""
        y, stride, valid, next_, a, b = self._free
        lines = [f"ldr {y}, [sp, #12]", f"ldr {stride}, {self._slot('stride')}", f"ldr {valid}, {self._slot('valid')}"]
        lines += [f"add {next_}, {y}, #1", f"str {next_}, [sp, #12]", f"cmp {valid}, #{self.pixels}", "bne.w 5f"]
        for p in range(0, self.pixels, 2):
            lines += [f"strb r{p}, [{y}]", f"strb r{p + 1}, [{y}, {stride}]"]
            lines += [f"add {y}, {y}, {stride}, lsl #1"] if p + 2 < self.pixels else []
        lines += ["7:", f"ldr {a}, {self._slot('counts')}", f"ldr {b}, {self._slot('counts_end')}"]
        lines += [f"cmp {a}, {b}", "bne.w 2b", "add sp, sp, #16", "pop {r4-r11, pc}", "5:"]
        for p in range(self.pixels - 1):
            lines += [f"strb r{p}, [{y}]", f"subs {valid}, {valid}, #1", "beq.w 7b", f"add {y}, {y}, {stride}"]
        return [*lines, "b.w 7b"]
