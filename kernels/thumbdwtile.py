"""The assembly functions of the depthwise rows for Armv7-M and Armv6-M."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .armasm import function
from .thumbm0 import bounds, halves, rounding, upper_word

# stack arguments of the tile function after table, column, weights, y in r0-r3
STACK_ARGS = ("bias_multiplier", "channels", "out_zero", "low", "high")
PUSHED = 9 * 4
REACH = 4095  # bytes an immediate offset reaches in Armv7-M
CHUNK = 3  # taps of a row whose weights are in registers at a time


def widest(width: int, most: int) -> int:
    """Pixels of a tile, 2 to `most`, that leave the fewest single ones of `width`; 1 for a width of 1."""
    return min(range(2, most + 1), key=lambda p: (width % p, -p)) if width > 1 else 1


@dataclass(frozen=True, slots=True)
class DepthwiseTile(ABC):
    """`pixels` neighbouring outputs, all channels. Locals: a word per row of the window, then y, then a pointer."""

    pixels: int
    kernel: tuple[int, int]
    step: int  # bytes from one column to the next: the channels
    dilation: int
    stride: int
    shift: int  # of the accumulator before the multiplication
    bounded: bool  # low..high is not the int8 range

    @property
    def _frame(self) -> int:
        return 4 * (self.kernel[0] + 2)

    @property
    def _y(self) -> str:
        return f"[sp, #{4 * self.kernel[0]}]"

    def _slot(self, name: str) -> str:
        return f"[sp, #{self._frame + PUSHED + 4 * STACK_ARGS.index(name)}]"

    @abstractmethod
    def reaches(self) -> bool:
        """Whether the instructions' offsets reach all columns."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The function body."""

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; parameters table, column, weights, y and STACK_ARGS."""
        return function(f"dw{self.pixels}x1", "ptr, i32, ptr, ptr, ptr, i32, i32, i32, i32", self.lines())


@dataclass(frozen=True, slots=True)
class Tile7(DepthwiseTile):
    """Armv7-M. r0-r4: sums, r5-r7: weights, r8: row, r9: weights' pointer, r10: channel, r11: table, r12: code."""

    def reaches(self) -> bool:
        """The last column is within an immediate offset."""
        return ((self.pixels - 1) * self.stride + (self.kernel[1] - 1) * self.dilation) * self.step <= REACH

    def _taps(self, first: int, count: int) -> list[str]:
        """Taps first.. of a row: their weights, then every column once."""
        lines = [f"ldrsh r{5 + i}, [r9], #2" for i in range(count)]
        columns: dict[int, list[tuple[int, int]]] = {}
        for p in range(self.pixels):
            for i in range(count):
                columns.setdefault(p * self.stride + (first + i) * self.dilation, []).append((p, i))
        for column, users in sorted(columns.items()):
            lines.append(f"ldrsb.w r12, [r8, #{column * self.step}]")
            lines += [f"mla r{p}, r12, r{5 + i}, r{p}" for p, i in users]
        return lines

    def _outputs(self) -> list[str]:
        lines = [f"ldr r12, {self._slot('out_zero')}", f"ldr r7, {self._y}"]
        if self.bounded:
            lines += [f"ldr lr, {self._slot('low')}", f"ldr r8, {self._slot('high')}"]
        for p in range(self.pixels):
            lines += [f"lsl r{p}, r{p}, #{self.shift}"] if self.shift else []
            lines += [f"smull r6, r{p}, r{p}, r5", "lsls r6, r6, #1", f"adc.w r{p}, r{p}, r12"]
            if self.bounded:
                lines += [f"cmp r{p}, lr", "it lt", f"movlt r{p}, lr", f"cmp r{p}, r8", "it gt", f"movgt r{p}, r8"]
            else:
                lines.append(f"ssat r{p}, #8, r{p}")
        return lines

    def _store(self) -> list[str]:
        """Pixels lie `step` bytes apart, with an immediate offset where it reaches."""
        lines = ["add.w r7, r7, r10"]
        for p in range(self.pixels):
            if p * self.step <= REACH:
                lines.append(f"strb.w r{p}, [r7, #{p * self.step}]")
            else:
                lines += [f"movw r6, #{p * self.step}", f"strb.w r{p}, [r7, r6]"]
        return lines

    def lines(self) -> list[str]:
        """The function body."""
        kh, kw = self.kernel
        head = ["push {r4-r11, lr}", f"sub sp, sp, #{self._frame}", "mov r9, r2", f"str r3, {self._y}"]
        for ky in range(kh):
            head += [f"ldr r4, [r0, #{4 * ky}]", "add r4, r4, r1", f"str r4, [sp, #{4 * ky}]"]
        head += [f"ldr r11, {self._slot('bias_multiplier')}", "movs r4, #0", "mov r10, r4"]
        body = ["2:", "ldr r0, [r11]", *(f"mov r{p}, r0" for p in range(1, self.pixels))]
        for ky in range(kh):
            body += [f"ldr r8, [sp, #{4 * ky}]", "add r8, r8, r10"]
            for first in range(0, kw, CHUNK):
                body += self._taps(first, min(CHUNK, kw - first))
        body += ["ldr r5, [r11, #4]", "add r11, r11, #8", *self._outputs(), *self._store()]
        body += ["add r10, r10, #1", f"ldr r5, {self._slot('channels')}", "cmp r10, r5", "blt.w 2b"]
        return [*head, *body, f"add sp, sp, #{self._frame}", "pop {r4-r11, pc}"]


@dataclass(frozen=True, slots=True)
class Tile6(DepthwiseTile):
    """Armv6-M. r0: row, r1-r3: bytes to the other pixels, r4: weights' pointer, r5: weight, r6: code, r7: 0.

    r8-r11: sums, r12: bytes from one tap to the next, lr: channel.
    """

    near: bool  # see thumbm0.upper_word

    def reaches(self) -> bool:
        """All offsets are in registers."""
        return True

    def _constant(self, register: str, value: int) -> list[str]:
        """Set a register to channels * value; r6 and `register` are low."""
        return [f"ldr {register}, {self._slot('channels')}", f"movs r6, #{value}", f"muls {register}, r6, {register}"]

    def _row(self, ky: int) -> list[str]:
        lines = [f"ldr r0, [sp, #{4 * ky}]", "add r0, lr"]
        for kx in range(self.kernel[1]):
            lines += ["ldrsh r5, [r4, r7]", "adds r4, #2"]
            for p in range(self.pixels):
                lines += [f"ldrsb r6, [r0, r{p or 7}]", "muls r6, r5, r6", f"add r{8 + p}, r6"]
            lines += ["add r0, r12"] if kx + 1 < self.kernel[1] else []
        return lines

    def _outputs(self) -> list[str]:
        table = self._slot("bias_multiplier")
        lines = [*rounding(self._slot("out_zero")), *halves("[r4, #4]", table)]
        lines += [f"ldr r7, {self._y}", "add r7, lr"]
        for p in range(self.pixels):
            lines += [f"mov r0, r{8 + p}", *upper_word(self.shift, self.near)]
            lines += bounds(self._slot("low"), self._slot("high"), not self.bounded)
            lines += [f"ldr r0, {self._slot('channels')}", "adds r7, r7, r0"] if p else []
            lines.append("strb r1, [r7]")
        return [*lines, f"ldr r4, {table}", "adds r4, #8", f"str r4, {table}"]

    def lines(self) -> list[str]:
        """The function body."""
        kh, pointer = self.kernel[0], f"[sp, #{4 * (self.kernel[0] + 1)}]"
        head = ["push {r4-r7, lr}", *(f"mov r{i}, r{i + 4}" for i in range(4, 8)), "push {r4-r7}"]
        head += [f"sub sp, #{self._frame}", f"str r3, {self._y}", f"str r2, {pointer}"]
        for ky in range(kh):
            head += [f"ldr r4, [r0, #{4 * ky}]", "adds r4, r4, r1", f"str r4, [sp, #{4 * ky}]"]
        head += [*self._constant("r5", self.dilation), "mov r12, r5", "movs r5, #0", "mov lr, r5"]
        body = ["2:", f"ldr r4, {self._slot('bias_multiplier')}", "ldr r4, [r4]"]
        body += [f"mov r{8 + p}, r4" for p in range(self.pixels)]
        for p in range(1, self.pixels):
            body += self._constant("r1", self.stride) if p == 1 else [f"adds r{p}, r{p - 1}, r1"]
        body += ["movs r7, #0", f"ldr r4, {pointer}"]
        for ky in range(kh):
            body += self._row(ky)
        body += [f"str r4, {pointer}", *self._outputs(), "mov r0, lr", "adds r0, #1", "mov lr, r0"]
        body += [f"ldr r1, {self._slot('channels')}", "cmp r0, r1", "bge 3f", "b 2b", "3:"]
        tail = [f"add sp, #{self._frame}", "pop {r4-r7}", *(f"mov r{i + 4}, r{i}" for i in range(4, 8))]
        return [*head, *body, *tail, "pop {r4-r7, pc}"]
