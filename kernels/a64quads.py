"""Dense layers of Armv8.0 with many channels: codes are repeated as they are loaded, four channels to an accumulator.

So no lanes are left to be summed up at the end, and a block is 64 channels instead of 16.
"""

from __future__ import annotations

import numpy as np

from xdeploy.formats import Int8

from .a64asm import fed, load
from .a64dense import ACC, PRODUCTS, Dense, Sums, X

UNIT = 8  # codes of one load
_MOST = 16  # units in a turn


class Quads(Dense):
    """Armv8.0: a vector of weights is four codes of four channels, which share an accumulator.

    Codes are loaded two by two, each pair repeated in a whole vector: a half of it meets two codes of four channels.
    A turn has 128 codes where there are as many, also for 128 alone: then layers of many sizes share the function.
    """

    block = 64

    @property
    def looped(self) -> int:
        """The end: what is left over comes first."""
        return self.codes

    def opening(self) -> list[str]:
        """The step over what is left over."""
        left = self.codes % UNIT
        return [f"mov x10, #{left}"] if left else []

    def _turns(self) -> tuple[int, int]:
        """Of the loop, and units of eight codes in each."""
        units = self.codes // UNIT
        turns = -(-units // _MOST)
        return turns, units // turns

    def sums(self, channels: int) -> Sums:
        """What does not fill eight codes, what does not fill a turn, and the loop."""
        left, quads, (turns, each) = self.codes % UNIT, channels // 4, self._turns()
        first = _unit(left, quads) if left else []
        rest = (self.codes // UNIT - turns * each) * _unit(UNIT, quads)
        turn = list(fed(each * _unit(UNIT, quads)))
        before = load(ACC, quads, "x2") + (list(fed(first + rest)) if first or rest else [])
        loop = turns > 1 or each == _MOST
        return Sums(before, turn, turns, []) if loop else Sums(before + turn, [], 0, [])

    def pack(self, codes: Int8) -> Int8:
        """Codes two by two of four channels, and the next two; zeros for what is read with those left over."""
        left = codes.shape[1] % UNIT
        first = np.zeros((len(codes), -(-left // 4) * 4), np.int8)
        first[:, :left] = codes[:, :left]
        return by_fours(np.concatenate([first, codes[:, left:]], axis=1))


def by_fours(codes: Int8) -> Int8:
    """(channels, codes), in fours, as vectors of four codes of four channels: two by two."""
    cut = codes.reshape(len(codes) // 4, 4, -1, 2, 2)
    return np.ascontiguousarray(cut.transpose(2, 0, 3, 1, 4)).reshape(-1)


def _unit(codes: int, quads: int) -> list[list[str]]:
    """Up to eight codes with all channels: a group for each vector of weights."""
    pairs = -(-codes // 2)
    todo = products(pairs, quads, ACC)
    todo[0].insert(0, repeated(pairs, "x0", f"#{UNIT}" if codes == UNIT else "x10"))
    return todo


def repeated(pairs: int, pointer: str, step: str) -> str:
    """Load up to four pairs of codes, each into a whole vector."""
    names = ", ".join(f"v{X + i}.8h" for i in range(pairs))
    return f"ld{pairs}r {{{names}}}, [{pointer}], {step}"


def products(pairs: int, quads: int, first: int) -> list[list[str]]:
    """Those of pairs of codes with vectors of weights {w}, of four codes of four channels: two fit into int16.

    first: accumulator of the first quad of channels.
    """
    todo = []
    for x in range(0, pairs, 2):
        for q in range(quads):
            p = f"v{PRODUCTS + q % 3}"
            lines = [f"smull {p}.8h, {{w}}.8b, v{X + x}.8b"]
            lines += [f"smlal2 {p}.8h, {{w}}.16b, v{X + x + 1}.16b"] * (x + 1 < pairs)
            todo.append([*lines, f"sadalp v{first + q}.4s, {p}.8h"])
    return todo
