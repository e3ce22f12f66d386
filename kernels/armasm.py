"""Thumb-2 functions with the DSP extension behind the armv7em rows: multiply one tile, store it.

They are whole functions in assembly, called by TIR: the multiply loop needs all fourteen registers, so a
compiler around it would only spill. Their names hold a hash of their text; equal functions of a program are one.

Activations of P pixels stand interleaved by quads of k: per quad and pixel four int16 in the order 0, 2, 1, 3, which is
what SXTB16 makes of four bytes. SMLAD multiplies such a pair with a pair of weights and adds both products.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from .armdecode import Form, half

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


@dataclass(frozen=True, slots=True)
class Tile:
    """P pixels x all output channels, two at a time; `bits` of a weight, decoded in one of the forms of armdecode.

    Uniform weights of 4 and 2 bits are used as their top bits in a byte, 2^(8-bits) times too large: the bias comes
    scaled alike and the sum is shifted back, exactly.
    """

    pixels: int
    bits: int
    form: Form
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
            for second, a in enumerate((a0, a1)):
                lines += [f"smlad {self._acc(p, c)}, {a}, {b[2 * second + c]}, {self._acc(p, c)}" for c in (0, 1)]
        return lines

    def _step_decoded(self) -> list[str]:
        """The same, half a quad after the other, with weights that are looked up or cut out."""
        x, w, table = self._free[:3]
        a, b = "r11", ("r12", "lr")
        lines = []
        for second in (False, True):
            lines += half(self.form, self.bits, second, w, table, b, a)
            for p in [*range(1, self.pixels), 0]:
                last = second and not p
                at = f"[{x}], #{8 * self.pixels}" if last else f"[{x}, #{8 * p + (0 if second else 4)}]"
                lines.append(f"ldr.w {a}, {at}")
                lines += [f"smlad {self._acc(p, c)}, {a}, {b[c]}, {self._acc(p, c)}" for c in (0, 1)]
        return lines

    def step(self, quad: int) -> list[str]:
        """Four k of all pixels and two channels; every instruction has four bytes."""
        return self._step(quad % 2) if self.form == "wide" else self._step_decoded()

    def _turn(self) -> list[str]:
        return [line for quad in range(UNROLL) for line in self.step(quad)]

    def entry(self, quads: int) -> int:
        """Byte offset (and Thumb bit) of the step where the first turn begins, so that the turns sum up to `quads`."""
        skipped = range(-quads % UNROLL)
        return 1 + sum(4 * len(self.step(quad)) for quad in skipped)

    # ---------------------------------------------------------------------------------------- output stage
    def _clamp(self, register: str, low: str, high: str) -> list[str]:
        return [
            f"cmp {register}, {low}", "it lt", f"movlt {register}, {low}",
            f"cmp {register}, {high}", "it gt", f"movgt {register}, {high}",
        ]  # fmt: skip

    def _requantise(self) -> list[str]:
        bm, m0, m1, zero = self._free[:4]
        back = 8 - self.bits if self.form == "wide" else 0
        lines = [f"ldr {bm}, [sp, #8]", f"ldrd {m0}, {m1}, [{bm}, #-8]", f"ldr {zero}, {self._slot('out_zero')}"]
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

    # three pixels: the last ones of a tile may not exist; their distance is 0 and the first pixel is stored last
    def _distances(self) -> list[str]:
        """Replace (stride, valid) by the distances of the second and the third pixel from the first."""
        second, valid, third = self._free[:3]
        lines = [f"ldrd {second}, {valid}, {self._slot('stride')}", f"cmp {valid}, #3", "ite ge"]
        lines += [f"lslge {third}, {second}, #1", f"movlt {third}, #0", f"cmp {valid}, #2", "it lt"]
        return [*lines, f"movlt {second}, #0", f"strd {second}, {third}, {self._slot('stride')}"]

    def _add_three(self) -> list[str]:
        """As _add_residual."""
        r, second, third, b, shift, t = self._free[:6]
        lines = [f"ldr {r}, {self._slot('add_a')}", f"ldr {t}, {self._slot('add_const')}"]
        lines += [f"mla r{i}, r{i}, {r}, {t}" for i in range(self.accumulators)]
        lines += [f"ldr {x}, {self._slot(n)}" for x, n in ((r, "residual"), (b, "add_b"), (shift, "add_shift"))]
        lines.append(f"ldrd {second}, {third}, {self._slot('stride')}")
        for c in (0, 1):
            for p, at in enumerate((f"[{r}]", f"[{r}, {second}]", f"[{r}, {third}]")):
                acc = self._acc(p, c)
                lines += [f"ldrsb {t}, {at}", f"mla {acc}, {t}, {b}, {acc}", f"asr {acc}, {acc}, {shift}"]
                lines += [] if self.add_bounded else [f"ssat {acc}, #8, {acc}"]
            lines.append(f"add {r}, {r}, #1")
        lines.append(f"str {r}, {self._slot('residual')}")
        if self.add_bounded:
            lines += [f"ldr {r}, {self._slot('add_low')}", f"ldr {t}, {self._slot('add_high')}"]
            for i in range(self.accumulators):
                lines += self._clamp(f"r{i}", r, t)
        return lines

    def _store_three(self) -> list[str]:
        """Store two channels of three pixels as half words, or the last one, and go on."""
        y, second, third, left = self._free[:4]
        lines = [f"ldr {left}, {self._slot('channels')}", f"subs {left}, {left}, #2"]
        lines += [f"str {left}, {self._slot('channels')}", f"ldr {y}, [sp, #12]"]
        lines += [f"ldrd {second}, {third}, {self._slot('stride')}", "blt 5f"]
        lines += [f"bfi {self._acc(p, 0)}, {self._acc(p, 1)}, #8, #8" for p in range(3)]
        lines += [f"strh {self._acc(2, 0)}, [{y}, {third}]", f"strh {self._acc(1, 0)}, [{y}, {second}]"]
        lines += [f"strh {self._acc(0, 0)}, [{y}], #2", f"str {y}, [sp, #12]", "bgt.w 2b", "b 8f"]
        lines += ["5:", f"strb {self._acc(2, 0)}, [{y}, {third}]", f"strb {self._acc(1, 0)}, [{y}, {second}]"]
        return [*lines, f"strb {self._acc(0, 0)}, [{y}]", "8:"]

    def _store_few(self) -> list[str]:
        """The same for other numbers of pixels, by bytes."""
        y, stride, valid, left, after = self._free[:5]
        lines = [f"ldr {y}, [sp, #12]", f"ldr {stride}, {self._slot('stride')}", f"ldr {valid}, {self._slot('valid')}"]
        lines += [f"ldr {left}, {self._slot('channels')}", f"add {after}, {y}, #2", f"str {after}, [sp, #12]"]
        lines += [f"subs {left}, {left}, #2", f"str {left}, {self._slot('channels')}", "blt 5f", *self._store(2), "7:"]
        lines += [f"ldr {left}, {self._slot('channels')}", f"cmp {left}, #0", "bgt.w 2b", "b 8f"]
        return [*lines, "5:", *self._store(1), "7:", "8:"]

    def lines(self) -> list[str]:
        """The function body."""
        (x, w), (t0, t1), three = self._free[:2], self._free[2:4], self.pixels == 3
        head = ["push {r0-r11, lr}", f"adr.w {t0}, 1f", f"ldr {t1}, {self._slot('entry')}", f"add {t0}, {t0}, {t1}"]
        head += [f"str {t0}, {self._slot('entry')}", *(self._distances() if three else [])]
        pair = ["2:", f"ldr {t0}, [sp, #8]", f"ldrd r0, r1, [{t0}], #16", f"str {t0}, [sp, #8]"]
        pair += [f"mov {self._acc(p, c)}, r{c}" for p in range(1, self.pixels) for c in (0, 1)]
        pair.append(f"ldrd {x}, {w}, [sp]")
        if self.form not in ("wide", "fields"):
            pair.append(f"ldr {t0}, {self._slot('table')}")
        pair += [f"ldr.w pc, {self._slot('entry')}", ".p2align 2", "1:", *self._turn()]
        end = t0 if self.form == "wide" else "r11"
        pair += [f"ldr {end}, {self._slot('turns_end')}", f"cmp {x}, {end}", "bne.w 1b", f"str {w}, [sp, #4]"]
        add = (self._add_three() if three else self._add_residual()) if self.residual else []
        store = self._store_three() if three else self._store_few()
        return [*head, *pair, *self._requantise(), *add, *store, "add sp, sp, #16", "pop {r4-r11, pc}"]

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters x, w, bm, y and STACK_ARGS."""
        types = ["ptr" if name in _POINTERS else "i32" for name in STACK_ARGS]
        return function(f"tile{self.pixels}x2", ", ".join(["ptr"] * 4 + types), self.lines())
