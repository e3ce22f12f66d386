"""Mutants made of bytes: flips, cuts, insertions, copies within and between files, and edits of length fields."""

from __future__ import annotations

import random
from collections.abc import Callable

EDGES = (0, 1, 0x7F, 0x80, 0xFF)


def flip(r: random.Random, data: bytearray, other: bytes) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def edge(r: random.Random, data: bytearray, other: bytes) -> None:
    data[r.randrange(len(data))] = r.choice(EDGES)


def noise(r: random.Random, data: bytearray, other: bytes) -> None:
    at = r.randrange(len(data))
    data[at : at + 8] = r.randbytes(min(8, len(data) - at))


def cut(r: random.Random, data: bytearray, other: bytes) -> None:
    at = r.randrange(len(data))
    del data[at : at + r.choice((1, 2, 4, 16, 100, len(data)))]


def insert(r: random.Random, data: bytearray, other: bytes) -> None:
    at = r.randrange(len(data) + 1)
    data[at:at] = r.randbytes(r.choice((1, 1, 2, 8, 200)))


def repeat(r: random.Random, data: bytearray, other: bytes) -> None:
    at, to = r.randrange(len(data)), r.randrange(len(data) + 1)
    data[to:to] = data[at : at + r.choice((4, 16, 64, 500))]


def splice(r: random.Random, data: bytearray, other: bytes) -> None:
    at, start = r.randrange(len(data)), r.randrange(len(other))
    data[at:] = other[start:]


def length(r: random.Random, data: bytearray, other: bytes) -> None:
    """Change the number behind something that looks like the tag of a length-delimited field."""
    tags = [i for i in range(len(data) - 1) if data[i] & 7 == 2 and data[i] < 0x80]
    if tags:
        at = r.choice(tags) + 1
        value = r.choice((data[at] + 1, data[at] - 1, 0, 127)) & 127
        data[at : at + 1] = r.choice((bytes([value]), b"\xff\xff\xff\x7f", b"\x80\x00", b"\xff" * 9 + b"\x01"))


CHANGES: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    flip, flip, flip, edge, noise, cut, insert, repeat, splice, length, length,
)  # fmt: skip


def mutant(seed: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The mutant of that number, and what was done to which file."""
    r = random.Random(seed)
    name, other = r.choice(sorted(files)), r.choice(sorted(files))
    data, applied = bytearray(files[name]), []
    for change in r.choices(CHANGES, k=r.choice((1, 1, 1, 2, 4))):
        if data:
            change(r, data, files[other])
            applied.append(change.__name__)
    return f"{name}: {', '.join(applied)}", bytes(data)
