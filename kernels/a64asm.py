"""Pieces of AArch64 functions in assembly: loads of up to 64 bytes with a step, and what follows the sums.

LLVM forms no such loads, and a layer that reads each weight once consists of little else.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from xdeploy.lir.graph import Node

from .outstage import fits_int16
from .snippets import Source

CHUNK, W = 16, 4  # codes of a vector; first register of weights, which alternate between two sets of four
LOADED = 4  # vectors of one ld1
_SAVED = ("v8.1d, v9.1d, v10.1d, v11.1d", "v12.1d, v13.1d, v14.1d, v15.1d")  # for the caller


@dataclass(frozen=True, slots=True)
class Outputs:
    """What becomes of sums. shift, low, high: as the node's.

    lowest: the zero point is -128 and so is `low`; saturating to uint8 is then the clamp, and less work.
    small: scaled sums are proven to fit into int16.
    """

    shift: int
    low: int
    high: int
    lowest: bool
    small: bool

    @staticmethod
    def of(node: Node) -> Outputs:
        """Those of a node."""
        shift, low, high, zero = (int(node.attrs[k]) for k in ("shift", "low", "high", "out_zero"))
        return Outputs(shift, low, high, low == zero == -128, fits_int16(node))


def called() -> Source:
    """The function that calls: codes X, weights W, bias B, multipliers M, outputs Y."""
    s = Source()
    s.input(0, "X")
    for name, key, dtype in (("W", "weights", "int8"), ("B", "bias", "int32"), ("M", "multiplier", "int32")):
        s.const(name, key, dtype)
    s.output("Y")
    return s


def function(stem: str, types: str, lines: list[str]) -> tuple[str, str]:
    """LLVM IR that holds an assembly function with parameters of these types, and its name (cf. armasm.function)."""
    name = f"xd_{stem}_{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}"
    head = [f".ifndef {name}", f".section .text.{name},\\22ax\\22,%progbits", ".p2align 4", f".weak {name}"]
    text = [*head, f".type {name},%function", f"{name}:", *lines, f".size {name}, .-{name}", ".endif", ".text"]
    assembly = "".join(f'module asm "{line}"\n' for line in text)
    return f"{assembly}declare i32 @{name}({types}) noduplicate nounwind\n", name


def entered() -> list[str]:
    """Save what belongs to the caller; x10 is used."""
    first, second = _SAVED
    return ["sub sp, sp, #64", "mov x10, sp", f"st1 {{{first}}}, [x10], #32", f"st1 {{{second}}}, [x10]"]


def left() -> list[str]:
    """Give it back, and return."""
    return [*(f"ld1 {{{names}}}, [sp], #32" for names in _SAVED), "ret"]


def offset(vector: int, lowest: bool, register: str) -> str:
    """Vector `zero` of `narrowed`; the register holds the zero point."""
    return f"movi v{vector}.16b, #128" if lowest else f"dup v{vector}.8h, {register}"


def more(register: str, bytes_: int, base: str = "") -> list[str]:
    """Address register = base + bytes; base is the register itself if it is not told."""
    lines, base = [], base or register
    name, size = ("sub", -bytes_) if bytes_ < 0 else ("add", bytes_)
    for part, shift in ((size & 0xFFF, ""), (size >> 12, ", lsl #12")):
        if part:
            lines.append(f"{name} {register}, {base}, #{part}{shift}")
            base = register
    return lines


def scaled(a: list[str], multipliers: int, shift: int) -> list[str]:
    """Sums times their multipliers, which stand in the vectors from number `multipliers` on."""
    lines = [f"shl {v}.4s, {v}.4s, #{shift}" for v in a if shift]
    return lines + [f"sqrdmulh {v}.4s, {v}.4s, v{multipliers + i}.4s" for i, v in enumerate(a)]


def _halves(a: list[str], small: bool) -> list[str]:
    """Up to four vectors of int32 to int16, saturated if they are not `small`: into a[0] and a[2]."""
    lines = []
    for one, two in itertools.zip_longest(a[::2], a[1::2]):
        if small and two:
            lines.append(f"uzp1 {one}.8h, {one}.8h, {two}.8h")
        else:
            lines += [f"sqxtn {one}.4h, {one}.4s", *([f"sqxtn2 {one}.8h, {two}.4s"] if two else [])]
    return lines


def narrowed(a: list[str], zero: int, lowest: bool, small: bool = False, into: str = "") -> list[str]:
    """Up to four vectors of scaled sums to codes in `into`, or a[0].

    Vector `zero` is the zero point as int16, or 128 as bytes. small: it is proven that scaled sums fit into int16.
    """
    into = into or a[0]
    lines = _halves(a, small)
    lines += [f"sqadd {v}.8h, {v}.8h, v{zero}.8h" for v in a[::2] if not lowest]
    narrow = "sqxtun" if lowest else "sqxtn"
    lines += [f"{narrow} {into}.8b, {a[0]}.8h", *(f"{narrow}2 {into}.16b, {v}.8h" for v in a[2:3])]
    return lines + [f"eor {into}.16b, {into}.16b, v{zero}.16b"] * lowest


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
    for start in range(0, count, LOADED):
        n = min(LOADED, count - start)
        names = ", ".join(f"v{first + start + i}.16b" for i in range(n))
        lines.append(f"ld1 {{{names}}}, [{pointer}]" + (f", #{n * CHUNK}" if step else ""))
    return lines


def fed(todo: list[list[str]], pointer: str = "x1", at: int = W) -> Iterator[str]:
    """Each group of lines with its vector of weights {w}; the next four are loaded before the last four are used.

    They stand in the eight registers from number `at` on.
    """
    sets = [todo[i : i + LOADED] for i in range(0, len(todo), LOADED)]
    loads = [load(at + i % 2 * LOADED, len(some), pointer) for i, some in enumerate(sets)]
    yield from loads[0]
    for i, some in enumerate(sets):
        yield from loads[i + 1] if i + 1 < len(sets) else []
        for j, lines in enumerate(some):
            yield from (line.replace("{w}", f"v{at + i % 2 * LOADED + j}") for line in lines)


def store(first: int, codes: int) -> list[str]:
    """Write so many codes, which begin in vector number `first`; the pointer steps on."""
    whole, left = divmod(codes, CHUNK)
    lines, last, at = [], f"v{first + whole}", 0
    if whole:
        names = ", ".join(f"v{first + i}.16b" for i in range(whole))
        lines.append(f"st1 {{{names}}}, [x4], #{whole * CHUNK}")
    for size, name in ((8, "d"), (4, "s"), (2, "h"), (1, "b")):
        if left - at >= size:
            lines.append(f"st1 {{{last}.{name}}}[{at // size}], [x4], #{size}")
            at += size
    return lines
