"""Dense layers of AArch64 that read codes in vectors of 16: dot product, and Armv8.0 for few channels."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xdeploy.formats import Int8, Int32

from .a64asm import CHUNK, fed, load
from .a64dense import ACC, PRODUCTS, Dense, Sums, X


@dataclass(frozen=True, slots=True)
class Piece:
    """Sixteen codes from `start`, of which those from `new` on were not multiplied before; new is 0 or more."""

    start: int
    new: int


class Chunks(Dense):
    """Codes in vectors of 16, four by a load; the last 16 overlap those before."""

    unit: ClassVar[int]  # codes that are left out of a piece together
    sizes: ClassVar[tuple[int, ...]]  # codes that a turn may have, falling

    @property
    def each(self) -> int:
        """Codes of one turn."""
        return next((n for n in self.sizes if n <= self.codes), self.sizes[-1])

    @property
    def looped(self) -> int:
        """Where whole turns end."""
        return self.codes // self.each * self.each

    @property
    def pieces(self) -> list[Piece]:
        """What follows the loop, from its end."""
        left = self.codes % self.each
        whole = [Piece(start, 0) for start in range(0, left - CHUNK + 1, CHUNK)]
        return whole + ([Piece(left - CHUNK, CHUNK - left % CHUNK)] if left % CHUNK else [])

    def first(self, piece: Piece) -> int:
        """The first of its codes that is multiplied."""
        return piece.new // self.unit * self.unit

    def sums(self, channels: int) -> Sums:
        """One turn stands without a loop."""
        turns = self.looped // self.each
        before, behind = load(ACC, self.accumulators(channels), "x2"), self._rest(channels) + self.totals(channels)
        turn = self._turn(channels) if turns else []
        return Sums(before, turn, turns, behind) if turns > 1 else Sums(before + turn, [], 0, behind)

    def pack(self, codes: Int8) -> Int8:
        """By 64 codes, then what follows the loop."""
        end = self.looped
        parts = [self.read(codes[:, i : i + 64]) for i in range(0, end, 64)]
        pieces = []
        for piece in self.pieces:
            some = codes[:, end + piece.start : end + piece.start + CHUNK].copy()
            some[:, : piece.new] = 0
            pieces.append(self.needed(some, piece))
        parts += [self.read(np.concatenate(pieces[i : i + 4], axis=1)) for i in range(0, len(pieces), 4)]
        return np.concatenate(parts)

    @abstractmethod
    def accumulators(self, channels: int) -> int:
        """Vectors of them."""

    @abstractmethod
    def products(self, channels: int, vectors: list[tuple[int, int]]) -> list[list[str]]:
        """The products of codes (register, first code) with all channels, a group for each vector of weights."""

    @abstractmethod
    def totals(self, channels: int) -> list[str]:
        """From accumulators to sums."""

    @abstractmethod
    def read(self, codes: Int8) -> Int8:
        """Some codes as their products read them."""

    @abstractmethod
    def needed(self, codes: Int8, piece: Piece) -> Int8:
        """What is read of a piece."""

    def _turn(self, channels: int) -> list[str]:
        part = [*load(X, 4, "x0"), *fed(self.products(channels, [(X + i, 0) for i in range(4)]))]
        return part * (self.each // 64)

    def _rest(self, channels: int) -> list[str]:
        lines = []
        for i in range(0, len(self.pieces), 4):
            some = self.pieces[i : i + 4]
            if len(some) == 4 and not some[3].new:
                lines += load(X, 4, "x0")
            else:
                lines += [f"ldur q{X + j}, [x0, #{p.start - i * CHUNK}]" for j, p in enumerate(some)]
            lines += fed(self.products(channels, [(X + j, self.first(p)) for j, p in enumerate(some)]))
        return lines


class DotProducts(Chunks):
    """`sdot` by element: a vector of weights is four channels by four codes."""

    block, unit, sizes = 64, 4, (128, 64)

    def accumulators(self, channels: int) -> int:
        """One for four channels."""
        return channels // 4

    def products(self, channels: int, vectors: list[tuple[int, int]]) -> list[list[str]]:
        """Four codes after the other."""
        return [
            [f"sdot v{ACC + q}.4s, {{w}}.16b, v{x}.4b[{lane}]"]
            for x, first in vectors
            for lane in range(first // 4, 4)
            for q in range(channels // 4)
        ]

    def totals(self, channels: int) -> list[str]:
        """Accumulators are sums."""
        return []

    def read(self, codes: Int8) -> Int8:
        """By four codes of four channels."""
        cut = codes.reshape(len(codes) // 4, 4, -1, 4)
        return np.ascontiguousarray(cut.transpose(2, 0, 1, 3)).reshape(-1)

    def needed(self, codes: Int8, piece: Piece) -> Int8:
        """From the first one that is multiplied."""
        return codes[:, self.first(piece) :]


class Rows(Chunks):
    """Armv8.0: a vector of weights is 16 codes of a channel, which has an accumulator of its own; few channels."""

    block, unit, sizes = 16, 8, (256, 128, 64)

    def accumulators(self, channels: int) -> int:
        """One for each channel."""
        return channels

    def start(self, bias: Int32) -> Int32:
        """The sum is spread over four lanes."""
        lanes = np.zeros((len(bias), 4), np.int32)
        lanes[:, 0] = bias
        return lanes.reshape(-1)

    def products(self, channels: int, vectors: list[tuple[int, int]]) -> list[list[str]]:
        """Channel after channel; two products fit into int16, as |w| is at most 127."""
        todo = []
        for c in range(channels):
            for i, (x, first) in enumerate(vectors):
                p = f"v{PRODUCTS + (c + i) % 3}"
                both = [f"smull {p}.8h, {{w}}.8b, v{x}.8b", f"smlal2 {p}.8h, {{w}}.16b, v{x}.16b"]
                one = [f"smull2 {p}.8h, {{w}}.16b, v{x}.16b"]
                todo.append([*(one if first else both), f"sadalp v{ACC + c}.4s, {p}.8h"])
        return todo

    def totals(self, channels: int) -> list[str]:
        """Pairwise additions of four accumulators each, into the first ones."""
        lines = []
        for i in range(ACC, ACC + channels, 4):
            lines += [f"addp v{i + k}.4s, v{i + k}.4s, v{i + k + 1}.4s" for k in (0, 2)]
            lines.append(f"addp v{ACC + (i - ACC) // 4}.4s, v{i}.4s, v{i + 2}.4s")
        return lines

    def read(self, codes: Int8) -> Int8:
        """Channel after channel."""
        return np.ascontiguousarray(codes).reshape(-1)

    def needed(self, codes: Int8, piece: Piece) -> Int8:
        """All of it."""
        return codes
