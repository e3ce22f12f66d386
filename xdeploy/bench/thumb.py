"""Thumb-2 machine code by cost class: what a cycle table distinguishes, nothing more.

Encodings from the Armv7-M and Armv8-M Architecture Reference Manuals (Arm DDI 0403, DDI 0553), chapter "Thumb
instruction set encoding".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "alu", "multiply", "mac", "multiply_long", "mac_long", "divide", "load", "store", "load_double", "store_double",
    "load_multiple", "store_multiple", "branch", "vector", "vector_memory", "vector_gather",
    "other",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its class, the registers a multiple transfer moves, whether it jumps."""

    kind: Kind
    registers: int = 1
    jumps: bool = False


def decode(code: bytes) -> Iterator[Instruction]:
    """The instructions of a straight piece of Thumb code."""
    at = 0
    while at + 2 <= len(code):
        first = int.from_bytes(code[at : at + 2], "little")
        if first >> 11 in (0b11101, 0b11110, 0b11111):
            yield _wide(first, int.from_bytes(code[at + 2 : at + 4], "little"))
            at += 4
        else:
            yield _narrow(first)
            at += 2


def _narrow(h: int) -> Instruction:
    """A 16-bit encoding, by its upper bits."""
    top = h >> 12
    if h >> 6 == 0b0100001101:
        return Instruction("multiply")
    if h >> 8 == 0b01000111:
        return Instruction("branch", jumps=True)
    if h >> 11 == 0b01001:
        return Instruction("load")
    if top == 0b0101:
        return Instruction("store" if (h >> 9) & 7 < 3 else "load")
    if top in (0b0110, 0b0111, 0b1000, 0b1001):
        return Instruction("load" if h & 0x800 else "store")
    if top == 0b1011:
        return _narrow_misc(h)
    if top == 0b1100:
        return Instruction("load_multiple" if h & 0x800 else "store_multiple", (h & 0xFF).bit_count())
    if top == 0b1101 or h >> 11 == 0b11100:
        return Instruction("branch", jumps=True)
    return Instruction("alu")


def _narrow_misc(h: int) -> Instruction:
    if h & 0x0E00 == 0x0400:
        return Instruction("store_multiple", (h & 0x1FF).bit_count())
    if h & 0x0E00 == 0x0C00:
        return Instruction("load_multiple", (h & 0x1FF).bit_count(), jumps=bool(h & 0x100))
    if h & 0x0500 == 0x0100:  # CBZ, CBNZ
        return Instruction("branch", jumps=True)
    return Instruction("alu")


def _wide(h: int, low: int) -> Instruction:
    """A 32-bit encoding: first and second halfword."""
    if h >> 9 == 0b1110100:
        return _multiple(h, low)
    if h & 0xEC00 == 0xEC00:  # coprocessor space: floating point and Helium
        memory = h & 0xFE00 == 0xEC00 or h & 0xFE00 == 0xFC00
        gathers = h & 0xEFA0 == 0xEC80 and low & 0x0E00 == 0x0E00  # an address per element: base and vector of offsets
        gathers |= h & 0xFF00 == 0xFD00 and low & 0x1E00 == 0x1E00  # or a vector of addresses
        return Instruction("vector_gather" if gathers else "vector_memory" if memory else "vector")
    if h >> 11 == 0b11110:
        return _control(h, low) if low & 0x8000 else Instruction("alu")
    if h >> 9 == 0b1111100:
        loads = bool(h & 0x10)
        return Instruction("load" if loads else "store", jumps=loads and low >> 12 == 15 and h & 0x60 == 0x40)
    if h >> 7 == 0b111110110:
        return Instruction("multiply" if low >> 12 == 15 else "mac")
    if h >> 7 == 0b111110111:
        kinds: dict[int, Kind] = {0: "multiply_long", 1: "divide", 2: "multiply_long", 3: "divide"}
        return Instruction(kinds.get((h >> 4) & 7, "mac_long"))
    return Instruction("alu")


def _multiple(h: int, low: int) -> Instruction:
    if not h & 0x40:
        loads = bool(h & 0x10)
        return Instruction(
            "load_multiple" if loads else "store_multiple", low.bit_count(), jumps=loads and bool(low & 0x8000)
        )
    if h & 0xFFF0 == 0xE8D0 and low & 0xFFE0 == 0xF000:  # TBB, TBH
        return Instruction("branch", jumps=True)
    return Instruction("load_double" if h & 0x10 else "store_double", 2)


def _control(h: int, low: int) -> Instruction:
    """Branches, and what shares their space: low-overhead loops (start: alu, end: a jump), barriers."""
    if low & 0xD001 == 0xC001 and h & 0xFF80 == 0xF000:
        return Instruction("branch", jumps=True) if h & 0xF == 0xF else Instruction("alu")
    if low & 0x5000:
        return Instruction("branch", jumps=True)
    return Instruction("alu") if (h >> 7) & 7 == 7 else Instruction("branch", jumps=True)
