"""AArch64 functions for a linear layer, in assembly: every weight is read once, 64 bytes by one `ld1`.

A block of output channels goes through all codes by a loop and what stands before or behind it, is requantised and
stored. Nothing is read behind the input: codes that are left over at one end are read together with some of the others,
for which there are zeros among the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from xdeploy.formats import Int8, Int32

from .a64asm import LOADED, Outputs, W, bounded, entered, function, left, load, narrowed, offset, scaled, store

X, PRODUCTS, _ZERO, ACC = 0, 12, 15, 16  # first vector registers
# x, weights, bias, multipliers, y, blocks, end of the codes that the loop multiplies, zero point
PARAMETERS = "ptr, ptr, ptr, ptr, ptr, i32, ptr, i32"
_CALL = 3  # instructions of the function around it


@dataclass(frozen=True, slots=True)
class Sums:
    """How a block comes to its sums. turns: of the loop, 0 where there is none, which is written out in the others."""

    before: list[str]
    turn: list[str]
    turns: int
    behind: list[str]

    def count(self) -> int:
        """Instructions."""
        return len(self.before) + len(self.behind) + self.turns * (len(self.turn) + 2)


@dataclass(frozen=True, slots=True)
class Dense(ABC):
    """One layer's function. codes: at least 16."""

    codes: int
    channels: int
    after: Outputs

    block: ClassVar[int]  # output channels at a time

    @property
    @abstractmethod
    def looped(self) -> int:
        """Where the codes end that the loop multiplies."""

    @abstractmethod
    def sums(self, channels: int) -> Sums:
        """All codes for some channels, a multiple of four, from the bias to sums in vectors of four."""

    @abstractmethod
    def pack(self, codes: Int8) -> Int8:
        """The weights (channels, codes) of a block as they are read."""

    def start(self, bias: Int32) -> Int32:
        """Where accumulators begin: a sum in each lane."""
        return bias

    def opening(self) -> list[str]:
        """What all blocks need."""
        return []

    # ------------------------------------------------------------------------------------------------ the function
    def count(self) -> int:
        """Instructions of one call."""
        whole, rest = divmod(self.channels, self.block)
        total = _CALL + len(self._opening()) + len(left())
        for stored, times, loop in ((self.block, whole, 2), (rest, 1, 0)):
            if stored and times:
                some = self.sums(_quads(stored) * 4).count() + len(self._outputs(stored))
                total += times * (1 + some + loop)
        return total

    def function(self) -> tuple[str, str]:
        """LLVM IR and name; PARAMETERS."""
        whole, rest = divmod(self.channels, self.block)
        lines = self._opening()
        if whole:
            lines += ["1:", *self._block(self.block, "2"), "subs w5, w5, #1", "b.ne 1b"]
        if rest:
            lines += self._block(rest, "3")
        return function("dense", PARAMETERS, lines + left())

    def _opening(self) -> list[str]:
        return [*entered(), offset(_ZERO, self.after.lowest, "w7"), "mov x9, x0", *self.opening()]

    def _block(self, stored: int, label: str) -> list[str]:
        """All codes for some channels, `stored` of which exist."""
        sums = self.sums(_quads(stored) * 4)
        loop = [f"{label}:", *sums.turn, "cmp x0, x6", f"b.ne {label}b"] if sums.turns else []
        return ["mov x0, x9", *sums.before, *loop, *sums.behind, *self._outputs(stored)]

    def _outputs(self, stored: int) -> list[str]:
        """Requantise; `stored` codes are written."""
        lines, quads, after = [], _quads(stored), self.after
        for i, first in enumerate(range(0, quads, LOADED)):
            n, into = min(LOADED, quads - first), f"v{W + i}"
            a = [f"v{ACC + first + k}" for k in range(n)]
            lines += load(X, n, "x3")
            lines += scaled(a, X, after.shift)
            lines += narrowed(a, _ZERO, after.lowest, after.small, into)
            lines += bounded(into, after.low, after.high, X)
        return lines + store(W, stored)


def _quads(channels: int) -> int:
    return -(-channels // 4)
