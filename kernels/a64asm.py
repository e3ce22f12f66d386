"""AArch64 functions for a linear layer, in assembly: every weight is read once, 64 bytes by one `ld1`.

LLVM forms no such loads with a step, and a layer that reads each weight once consists of little else. A block is 64
output channels with dot product, 16 without; it goes through all codes, `TURN` at a time, then through the rest. The
last 16 codes overlap those before, and meet zeros where they were multiplied already, so nothing is read behind the
input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

CHUNK = 16
_X, W, _PRODUCTS, _ZERO, _ACC = 0, 4, 12, 15, 16  # first vector registers; weights alternate between two sets of four
_LOADED = 4  # vectors of one ld1
# x, weights, bias, multipliers, y, blocks, end of the codes that the loop multiplies, zero point
PARAMETERS = "ptr, ptr, ptr, ptr, ptr, i32, ptr, i32"


def function(stem: str, types: str, lines: list[str]) -> tuple[str, str]:
    """LLVM IR that holds an assembly function with parameters of these types, and its name (cf. armasm.function)."""
    name = f"xd_{stem}_{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"
    head = [f".ifndef {name}", f".section .text.{name},\\22ax\\22,%progbits", ".p2align 4", f".weak {name}"]
    text = [*head, f".type {name},%function", f"{name}:", *lines, f".size {name}, .-{name}", ".endif", ".text"]
    assembly = "".join(f'module asm "{line}"\n' for line in text)
    return f"{assembly}declare i32 @{name}({types}) noduplicate nounwind\n", name


@dataclass(frozen=True, slots=True)
class Piece:
    """Sixteen codes from `start`, of which those from `new` on were not multiplied before; new is 0 or more."""

    start: int
    new: int


@dataclass(frozen=True, slots=True)
class Dense:
    """One layer's function. codes: at least 16. shift, low, high: as the node's.

    lowest: the zero point is -128 and so is `low`; saturating to uint8 is then the clamp, and less work.
    """

    dotprod: bool
    codes: int
    channels: int
    shift: int
    low: int
    high: int
    lowest: bool

    @property
    def block(self) -> int:
        """Output channels at a time."""
        return 64 if self.dotprod else 16

    @property
    def turn(self) -> int:
        """Codes of one turn."""
        sizes = (128, 64) if self.dotprod else (256, 128, 64)
        return next((n for n in sizes if n <= self.codes), sizes[-1])

    @property
    def looped(self) -> int:
        """Codes that the loop multiplies."""
        return self.codes // self.turn * self.turn

    @property
    def pieces(self) -> list[Piece]:
        """What follows the loop, from its end."""
        left = self.codes % self.turn
        whole = [Piece(start, 0) for start in range(0, left - CHUNK + 1, CHUNK)]
        return whole + ([Piece(left - CHUNK, CHUNK - left % CHUNK)] if left % CHUNK else [])

    def first(self, piece: Piece) -> int:
        """The first of its codes that is multiplied: of four with dot product, of eight without."""
        unit = 4 if self.dotprod else 8
        return piece.new // unit * unit

    def count(self) -> int:
        """Instructions of one call."""
        whole, rest = divmod(self.channels, self.block)
        total = 20
        for wanted, times in ((self.block, whole), (rest, 1)):
            if wanted and times:
                wide = -(-wanted // 4) * 4
                turns = self.looped // self.turn
                total += times * (len(self._block(wide, wanted, "2")) + max(turns - 1, 0) * (len(self._turn(wide)) + 2))
        return total

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; PARAMETERS."""
        saved = [f"d{n}, d{n + 1}, [sp, #{16 * i}]" for i, n in enumerate(range(8, 16, 2))]
        whole, rest = divmod(self.channels, self.block)
        zero = f"movi v{_ZERO}.16b, #128" if self.lowest else f"dup v{_ZERO}.8h, w7"
        lines = ["sub sp, sp, #64", *(f"stp {pair}" for pair in saved), zero, "mov x9, x0"]
        if whole:
            lines += ["1:", *self._block(self.block, self.block, "2"), "subs w5, w5, #1", "b.ne 1b"]
        if rest:
            lines += self._block(-(-rest // 4) * 4, rest, "3")
        lines += [*(f"ldp {pair}" for pair in saved), "add sp, sp, #64", "ret"]
        return function("dense", PARAMETERS, lines)

    # ------------------------------------------------------------------------------------------------- the parts
    def _block(self, channels: int, stored: int, label: str) -> list[str]:
        """All codes for some channels, a multiple of four, `stored` of which exist."""
        vectors = channels // 4 if self.dotprod else channels
        lines = ["mov x0, x9", *load(_ACC, vectors, "x2")]
        if self.looped:
            lines += [f"{label}:", *self._turn(channels)]
        if self.looped > self.turn:
            lines += ["cmp x0, x6", f"b.ne {label}b"]
        lines += self._rest(channels)
        if not self.dotprod:
            lines += _totals(channels)
        return lines + self._outputs(channels // 4, stored)

    def _turn(self, channels: int) -> list[str]:
        part = [*load(_X, 4, "x0"), *self._products(channels, [(_X + i, 0) for i in range(4)])]
        return part * (self.turn // 64)

    def _rest(self, channels: int) -> list[str]:
        lines = []
        for i in range(0, len(self.pieces), 4):
            some = self.pieces[i : i + 4]
            if len(some) == 4 and not some[3].new:
                lines += load(_X, 4, "x0")
            else:
                lines += [f"ldur q{_X + j}, [x0, #{p.start - i * CHUNK}]" for j, p in enumerate(some)]
            lines += self._products(channels, [(_X + j, self.first(p)) for j, p in enumerate(some)])
        return lines

    def _products(self, channels: int, vectors: list[tuple[int, int]]) -> list[str]:
        """The products of codes (register, first code) with all channels, weights loaded four vectors at a time."""
        todo: list[list[str]] = []
        if self.dotprod:
            for x, first in vectors:
                for lane in range(first // 4, 4):
                    todo += [[f"sdot v{_ACC + q}.4s, {{w}}.16b, v{x}.4b[{lane}]"] for q in range(channels // 4)]
        else:
            for c in range(channels):
                for i, (x, first) in enumerate(vectors):
                    p = f"v{_PRODUCTS + (c + i) % 3}"
                    both = [f"smull {p}.8h, {{w}}.8b, v{x}.8b", f"smlal2 {p}.8h, {{w}}.16b, v{x}.16b"]
                    one = [f"smull2 {p}.8h, {{w}}.16b, v{x}.16b"]
                    todo.append([*(one if first else both), f"sadalp v{_ACC + c}.4s, {p}.8h"])
        return list(fed(todo))

    def _outputs(self, quads: int, stored: int) -> list[str]:
        """Requantise; `stored` codes are written."""
        lines = []
        for first in range(0, quads, 4):
            n = min(4, quads - first)
            a = [f"v{_ACC + first + i}" for i in range(n)]
            lines += load(_X, n, "x3")
            lines += scaled(a, _X, self.shift)
            lines += narrowed(a, _ZERO, self.lowest)
            lines += bounded(a[0], self.low, self.high, _X)
            lines += _store(a[0], min(CHUNK, stored - first * 4))
        return lines


def scaled(a: list[str], multipliers: int, shift: int) -> list[str]:
    """Sums times their multipliers, which stand in the vectors from number `multipliers` on."""
    lines = [f"shl {v}.4s, {v}.4s, #{shift}" for v in a if shift]
    return lines + [f"sqrdmulh {v}.4s, {v}.4s, v{multipliers + i}.4s" for i, v in enumerate(a)]


def _halves(a: list[str]) -> list[str]:
    """Up to four vectors of int32 to int16, saturated: into a[0] and a[2]."""
    lines = []
    for i in range(0, len(a), 2):
        lines.append(f"sqxtn {a[i]}.4h, {a[i]}.4s")
        lines += [f"sqxtn2 {a[i]}.8h, {v}.4s" for v in a[i + 1 : i + 2]]
    return lines


def narrowed(a: list[str], zero: int, lowest: bool) -> list[str]:
    """Up to four vectors of scaled sums to codes in a[0]; vector `zero` is the zero point as int16, or 128 as bytes."""
    lines = _halves(a)
    lines += [f"sqadd {v}.8h, {v}.8h, v{zero}.8h" for v in a[::2] if not lowest]
    narrow = "sqxtun" if lowest else "sqxtn"
    lines += [f"{narrow} {a[0]}.8b, {a[0]}.8h", *(f"{narrow}2 {a[0]}.16b, {v}.8h" for v in a[2:3])]
    return lines + [f"eor {a[0]}.16b, {a[0]}.16b, v{zero}.16b"] * lowest


def bounded(value: str, low: int, high: int, spare: int) -> list[str]:
    """Codes within the bounds that saturation does not give."""
    lines = []
    for bound, full, name in ((low, -128, "smax"), (high, 127, "smin")):
        if bound != full:
            lines += [f"movi v{spare}.16b, #{bound & 255}", f"{name} {value}.16b, {value}.16b, v{spare}.16b"]
    return lines


def load(first: int, count: int, pointer: str, step: bool = True) -> list[str]:
    """Consecutive vectors, four at a time; the pointer steps on, or not, for up to four."""
    lines = []
    for start in range(0, count, _LOADED):
        n = min(_LOADED, count - start)
        names = ", ".join(f"v{first + start + i}.16b" for i in range(n))
        lines.append(f"ld1 {{{names}}}, [{pointer}]" + (f", #{n * CHUNK}" if step else ""))
    return lines


def fed(todo: list[list[str]], pointer: str = "x1", at: int = W) -> Iterator[str]:
    """Each group of lines with its vector of weights {w}; the next four are loaded before the last four are used.

    They stand in the eight registers from number `at` on.
    """
    sets = [todo[i : i + _LOADED] for i in range(0, len(todo), _LOADED)]
    loads = [load(at + i % 2 * _LOADED, len(some), pointer) for i, some in enumerate(sets)]
    yield from loads[0]
    for i, some in enumerate(sets):
        yield from loads[i + 1] if i + 1 < len(sets) else []
        for j, lines in enumerate(some):
            yield from (line.replace("{w}", f"v{at + i % 2 * _LOADED + j}") for line in lines)


def _totals(channels: int) -> list[str]:
    """Pairwise additions of four accumulators each, into the first ones."""
    lines, a = [], _ACC
    for i in range(0, channels, 4):
        lines += [f"addp v{a + i + k}.4s, v{a + i + k}.4s, v{a + i + k + 1}.4s" for k in (0, 2)]
        lines.append(f"addp v{a + i // 4}.4s, v{a + i}.4s, v{a + i + 2}.4s")
    return lines


def _store(value: str, codes: int) -> list[str]:
    """Write the first codes of a vector; the pointer steps on."""
    if codes == CHUNK:
        return [f"str q{value[1:]}, [x4], #16"]
    lines, at = [], 0
    for size, name in ((8, "d"), (4, "s"), (2, "h"), (1, "b")):
        if codes - at >= size:
            lines.append(f"st1 {{{value}.{name}}}[{at // size}], [x4], #{size}")
            at += size
    return lines
