"""Thumb-2 functions with the DSP extension behind the armv7em rows: widen activations, multiply one tile, store it.

They are whole functions in assembly, called by TIR: the multiply loop needs all fourteen registers, so a
compiler around it would only spill. Their names hold a hash of their text; equal functions of a program are one.

Activations of P pixels stand interleaved by quads of k: per quad and pixel four int16 in the order 0, 2, 1, 3, which is
what SXTB16 makes of four bytes. SMLAD multiplies such a pair with a pair of weights and adds both products.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

UNROLL = 8  # quads per turn of the multiply loop; the first turn is entered in the middle
PUSHED = 13 * 4  # r0-r11 and lr; stack arguments follow

# stack arguments of the tile function after x, w, bm, y in r0-r3, in order
STACK_ARGS = (
    "turns_end", "entry", "channels", "stride", "valid", "out_zero", "low", "high",
    "table", "residual", "add_a", "add_b", "add_const", "add_shift", "add_low", "add_high",
)  # fmt: skip


_POINTERS = ("turns_end", "table", "residual")


def function(stem: str, types: str, lines: list[str]) -> tuple[str, str]:
    """LLVM IR that holds an assembly function with parameters of these types, and its name.

    Module-level assembly, because TVM inlines every imported LLVM function. The guard lets several kernels of one
    module bring the same function along. `noduplicate` keeps LLVM from unrolling the loops around the calls.
    """
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    name = f"xd_{stem}_{digest}"
    head = [
        f".ifndef {name}",
        f'.section .text.{name},"ax",%progbits',
        ".syntax unified",
        ".p2align 2",
        f".weak {name}",
    ]
    head += [f".type {name},%function", ".code 16", ".thumb_func", f"{name}:"]
    text = [*head, *lines, f".size {name}, .-{name}", ".endif", ".text"]
    escaped = (line.replace('"', "\\22") for line in text)
    assembly = "".join(f'module asm "{line}"\n' for line in escaped)
    return f"{assembly}declare i32 @{name}({types}) noduplicate nounwind\n", name


def widen(pixels: int) -> tuple[str, str]:
    """(source, to, quads): int8 -> int16 quads, `pixels` * 8 bytes apart; the source may be unaligned."""
    one = ["ldr r12, [r0], #4", "sxtb16 r3, r12", "sxtb16 r12, r12, ror #8", f"strd r3, r12, [r1], #{8 * pixels}"]
    lines = ["1:", "subs r2, r2, #4", "blt 2f", *one * 4, "b 1b", "2:", "adds r2, r2, #4", "beq 4f", "3:", *one]
    return function("widen", "ptr, ptr, i32", [*lines, "subs r2, r2, #1", "bne 3b", "4:", "bx lr"])


def spread(pixels: int) -> tuple[str, str]:
    """(to, quads, pair): fill quads with one pair of int16, for padding."""
    lines = ["1:", f"strd r2, r2, [r0], #{8 * pixels}", "subs r1, r1, #1", "bne 1b", "bx lr"]
    return function("spread", "ptr, i32, i32", lines)


def copy() -> tuple[str, str]:
    """(source, to, bytes): copy a short run, unaligned."""
    words = ["1:", "subs r2, r2, #4", "blt 2f", "ldr r3, [r0], #4", "str r3, [r1], #4", "b 1b"]
    rest = ["2:", "adds r2, r2, #4", "beq 4f", "3:", "ldrb r3, [r0], #1", "strb r3, [r1], #1", "subs r2, r2, #1"]
    return function("copy", "ptr, ptr, i32", [*words, *rest, "bne 3b", "4:", "bx lr"])


@dataclass(frozen=True, slots=True)
class Tile:
    """P pixels x all output channels, two at a time; `bits` of a weight, with or without a codebook table.

    Uniform weights of 4 and 2 bits are used as their top bits in a byte, 2^(8-bits) times too large: the bias comes
    scaled alike and the sum is shifted back, exactly.
    """

    pixels: int
    bits: int
    codebook: bool
    shift: int  # of the accumulator before the multiplication
    bounded: bool  # low..high is not the int8 range
    residual: bool
    add_bounded: bool

    @property
    def accumulators(self) -> int:
        """Registers r0, r1, ... that hold sums."""
        return 2 * self.pixels

    def _acc(self, pixel: int, channel: int) -> str:
        return f"r{2 * pixel + channel}"

    @property
    def _free(self) -> list[str]:
        """Registers beside the accumulators: 8 for three pixels, 6 for four."""
        return [f"r{i}" for i in range(self.accumulators, 13)] + ["lr"]

    def _slot(self, name: str) -> str:
        return f"[sp, #{PUSHED + 4 * STACK_ARGS.index(name)}]"

    # ------------------------------------------------------------------------------------------ multiply
    def _weights(self, quad: int) -> list[str]:
        """Load and widen the weights of one quad and two channels into b0-b3 (uniform formats)."""
        w, (b0, b1, b2, b3) = self._free[1], self._free[2:6]
        if self.bits == 8:
            load = [f"ldrd {b0}, {b2}, [{w}], #8"]
        else:
            mask = {4: "#0xF0F0F0F0", 2: "#0xC0C0C0C0"}[self.bits]
            load = [f"ldr.w {b0}, [{w}], #4"]
            if self.bits == 2:  # one word holds two quads: the pointer moves on after the second
                load = [f"ldr.w {b0}, [{w}]"] if quad == 0 else [f"ldr.w {b0}, [{w}], #4", f"lsl.w {b0}, {b0}, #4"]
            load += [f"lsl.w {b2}, {b0}, #{self.bits}", f"and {b0}, {b0}, {mask}", f"and {b2}, {b2}, {mask}"]
        halves = [
            f"sxtb16 {b1}, {b0}, ror #8",
            f"sxtb16 {b0}, {b0}",
            f"sxtb16 {b3}, {b2}, ror #8",
            f"sxtb16 {b2}, {b2}",
        ]
        return load + halves

    def _step(self, quad: int) -> list[str]:
        """Four k of all pixels and two channels, uniform weights."""
        x, b, (a0, a1) = self._free[0], self._free[2:6], ("r12", "lr")
        lines = self._weights(quad)
        for p in [*range(1, self.pixels), 0]:
            lines.append(f"ldrd {a0}, {a1}, [{x}, #{8 * p}]" if p else f"ldrd {a0}, {a1}, [{x}], #{8 * self.pixels}")
            for half, a in enumerate((a0, a1)):
                lines += [f"smlad {self._acc(p, c)}, {a}, {b[2 * half + c]}, {self._acc(p, c)}" for c in (0, 1)]
        return lines

    def _step_codebook(self) -> list[str]:
        """The same with a byte per pair of codes, looked up in a table of pairs of entries."""
        x, w, table = self._free[:3]
        a, b = "r11", ("r12", "lr")
        lines = []
        for offset in (4, 0):
            lines += [f"ldrb.w {r}, [{w}], #1" for r in b]
            lines += [f"ldr.w {r}, [{table}, {r}, lsl #2]" for r in b]
            for p in [*range(1, self.pixels), 0]:
                last = not p and not offset
                lines.append(
                    f"ldr.w {a}, [{x}], #{8 * self.pixels}" if last else f"ldr.w {a}, [{x}, #{8 * p + offset}]"
                )
                lines += [f"smlad {self._acc(p, c)}, {a}, {b[c]}, {self._acc(p, c)}" for c in (0, 1)]
        return lines

    def _turn(self) -> list[str]:
        return [
            line
            for quad in range(UNROLL)
            for line in (self._step_codebook() if self.codebook else self._step(quad % 2))
        ]

    def entry(self, quads: int) -> int:
        """Byte offset (and Thumb bit) of the step where the first turn begins, so that the turns sum up to `quads`."""
        skipped = range(-quads % UNROLL)
        steps = (self._step_codebook() if self.codebook else self._step(quad % 2) for quad in skipped)
        return 1 + sum(4 * len(step) for step in steps)  # every instruction of a step has 4 bytes

    # ---------------------------------------------------------------------------------------- output stage
    def _clamp(self, register: str, low: str, high: str) -> list[str]:
        return [
            f"cmp {register}, {low}", "it lt", f"movlt {register}, {low}",
            f"cmp {register}, {high}", "it gt", f"movgt {register}, {high}",
        ]  # fmt: skip

    def _requantise(self) -> list[str]:
        bm, m0, m1, zero = self._free[:4]
        back = 0 if self.codebook else 8 - self.bits
        lines = [f"ldr {bm}, [sp, #8]", f"ldrd {m0}, {m1}, [{bm}, #8]", f"add {bm}, {bm}, #16", f"str {bm}, [sp, #8]"]
        lines.append(f"ldr {zero}, {self._slot('out_zero')}")
        if self.bounded:
            lines += [f"ldr {self._free[0]}, {self._slot('low')}", f"ldr {self._free[4]}, {self._slot('high')}"]
        for p in range(self.pixels):
            for c, m in enumerate((m0, m1)):
                acc = self._acc(p, c)
                lines += [f"asr {acc}, {acc}, #{back - self.shift}"] if back > self.shift else []
                lines += [f"lsl {acc}, {acc}, #{self.shift - back}"] if back < self.shift else []
                lines.append(f"smmlar {acc}, {acc}, {m}, {zero}")
                lines += self._clamp(acc, self._free[0], self._free[4]) if self.bounded else [f"ssat {acc}, #8, {acc}"]
        return lines

    def _add_residual(self) -> list[str]:
        """Acc = clamp((acc * a + r * b + const) >> shift); pixels after the last valid one are not read."""
        r, stride, b, shift, t, valid = self._free[:6]
        lines = [f"ldr {r}, {self._slot('add_a')}", f"ldr {t}, {self._slot('add_const')}"]
        lines += [f"mla r{i}, r{i}, {r}, {t}" for i in range(self.accumulators)]
        names = ("residual", "stride", "add_b", "add_shift")
        lines += [f"ldr {x}, {self._slot(n)}" for x, n in zip((r, stride, b, shift), names, strict=True)]
        lines += [f"ldr {valid}, {self._slot('valid')}", f"add {t}, {r}, #2", f"str {t}, {self._slot('residual')}"]
        for p in range(self.pixels):
            for c in (0, 1):
                acc = self._acc(p, c)
                lines += [f"ldrsb {t}, [{r}, #{c}]", f"mla {acc}, {t}, {b}, {acc}", f"asr {acc}, {acc}, {shift}"]
                lines += [] if self.add_bounded else [f"ssat {acc}, #8, {acc}"]
            if p + 1 < self.pixels:
                lines += [f"subs {valid}, {valid}, #1", "beq 6f", f"add {r}, {r}, {stride}"]
        lines.append("6:")
        if self.add_bounded:
            lines += [f"ldr {r}, {self._slot('add_low')}", f"ldr {t}, {self._slot('add_high')}"]
            for i in range(self.accumulators):
                lines += self._clamp(f"r{i}", r, t)
        return lines

    def _store(self, channels: int) -> list[str]:
        y, stride, valid = self._free[:3]
        lines = []
        for p in range(self.pixels):
            lines += [f"strb {self._acc(p, c)}, [{y}, #{c}]" for c in range(channels)]
            if p + 1 < self.pixels:
                lines += [f"subs {valid}, {valid}, #1", "beq 7f", f"add {y}, {y}, {stride}"]
        return lines

    def lines(self) -> list[str]:
        """The function body."""
        x, w = self._free[:2]
        t0, t1 = self._free[2:4]
        y, stride, valid, left, first = self._free[:5]
        head = ["push {r0-r11, lr}", f"adr.w {t0}, 1f", f"ldr {t1}, {self._slot('entry')}", f"add {t0}, {t0}, {t1}"]
        head += [f"str {t0}, {self._slot('entry')}"]
        pair = ["2:", f"ldr {t0}, [sp, #8]", "ldrd r0, r1, [" + t0 + "]"]
        pair += [f"mov {self._acc(p, c)}, r{c}" for p in range(1, self.pixels) for c in (0, 1)]
        pair += [f"ldr {x}, [sp, #0]", f"ldr {w}, [sp, #4]", f"ldr {t1}, {self._slot('entry')}"]
        if self.codebook:
            pair.append(f"ldr {t0}, {self._slot('table')}")
        pair += [f"bx {t1}", ".p2align 2", "1:", *self._turn()]
        end = "r11" if self.codebook else t0
        pair += [f"ldr {end}, {self._slot('turns_end')}", f"cmp {x}, {end}", "bne.w 1b", f"str {w}, [sp, #4]"]
        tail = [f"ldr {y}, [sp, #12]", f"ldr {stride}, {self._slot('stride')}", f"ldr {valid}, {self._slot('valid')}"]
        tail += [f"ldr {left}, {self._slot('channels')}", f"add {first}, {y}, #2", f"str {first}, [sp, #12]"]
        tail += [f"subs {left}, {left}, #2", f"str {left}, {self._slot('channels')}", "blt 5f", *self._store(2), "7:"]
        tail += [f"ldr {left}, {self._slot('channels')}", f"cmp {left}, #0", "bgt.w 2b", "b 8f"]
        tail += ["5:", *self._store(1), "7:", "8:", "add sp, sp, #16", "pop {r4-r11, pc}"]
        add = self._add_residual() if self.residual else []
        return [*head, *pair, *self._requantise(), *add, *tail]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function(f"tile{self.pixels}x2", ", ".join(["ptr"] * 4 + types), self.lines())
