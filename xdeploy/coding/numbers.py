"""Single numbers and the per-channel parameters: exact, with the bits that are always alike told once.

Lengths of numbers are coded adaptively, their digits plainly: digits of scales and biases look like noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.coding.stream import ONE, Coder, damaged
from xdeploy.formats import Int8, Int32, Int64

Float32 = NDArray[np.float32]
_MANTISSA = 23  # bits of a float32 behind the leading one
_ADAPT = 30  # observations after which old ones fade


class Numbers:
    """Codes scalars and small arrays; what is given is returned, None is decoded."""

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self._seen: dict[tuple[str, int], list[int]] = {}

    def snapshot(self) -> dict[tuple[str, int], list[int]]:
        """What was learnt so far, for `restore`."""
        return {k: list(v) for k, v in self._seen.items()}

    def restore(self, seen: dict[tuple[str, int], list[int]]) -> None:
        """Go back to a snapshot."""
        self._seen = {k: list(v) for k, v in seen.items()}

    def flag(self, tag: str, given: bool | None, place: int = 0) -> bool:
        """Yes or no; `tag` and `place` name what it is about."""
        counts = self._seen.setdefault((tag, place), [1, 2])
        p = np.array([(counts[0] << 16) // counts[1]], np.int64)
        bit = int(self.coder.bits(p, None if given is None else np.array([given]))[0])
        counts[0] += 2 * bit
        counts[1] += 2
        if counts[1] > 2 * _ADAPT:
            counts[:] = [(counts[0] + 1) // 2, (counts[1] + 1) // 2 + 1]
        return bool(bit)

    def plain(self, values: NDArray[Any] | None, widths: Int64) -> Int64:
        """Values 0 <= v < 2^width, each in its own number of bits."""
        top = int(widths.max(initial=0))
        places = np.arange(top - 1, -1, -1)
        used = places[None, :] < widths[:, None]
        p = np.full(int(used.sum()), ONE // 2, np.int64)
        given = None if values is None else ((values.astype(np.int64)[:, None] >> places) & 1)[used]
        bits = np.zeros(used.shape, np.int64)
        bits[used] = self.coder.bits(p, given)
        result: Int64 = (bits << places[None, :]).sum(axis=1)
        return result

    def uint(self, tag: str, given: int | None, most: int = 32) -> int:
        """An integer >= 0 whose successor has at most `most` + 1 bits: Elias gamma, its length adaptive."""
        length = None if given is None else (given + 1).bit_length() - 1
        k = 0
        while k < most and self.flag(tag, None if length is None else k < length, k):
            k += 1
        low = self.plain(None if given is None else np.array([given + 1 - (1 << k)]), np.array([k]))
        return (1 << k) - 1 + int(low[0])

    def sint(self, tag: str, given: int | None) -> int:
        """Any integer, by zigzag."""
        found = self.uint(tag, None if given is None else 2 * given if given >= 0 else -2 * given - 1)
        return -(found + 1) // 2 if found % 2 else found // 2

    # ------------------------------------------------------------------------------------------- arrays
    def scales(self, given: Float32 | None, n: int) -> Float32:
        """N positive float32: equal ones once, digits that are 0 in all of them not at all."""
        words = None if given is None else np.ascontiguousarray(given, np.float32).view(np.uint32).astype(np.int64)
        distinct, index = (None, None) if words is None else np.unique(words, return_inverse=True)
        few = None if distinct is None else len(distinct) <= max(1, n // 2)
        if not self.flag("few scales", few):
            return _floats(self._words(words, n))
        count = self.uint("scales", None if distinct is None else len(distinct) - 1) + 1
        if count > n:
            raise damaged(f"{count} different scales for {n} channels")
        table = self._words(distinct, count)
        if count == 1:
            return _floats(np.repeat(table, n))
        return _floats(table[self.coder.table(np.ones(count, np.int64), n, index)])

    def _words(self, given: Int64 | None, n: int) -> Int64:
        """Bit patterns of n positive float32: exponents below the largest, digits above the common zeros."""
        cut = self.uint("digits", None if given is None else _common_zeros(given & (2**_MANTISSA - 1), _MANTISSA))
        top = self.uint("exponent", None if given is None else int(given.max() >> _MANTISSA))
        if cut > _MANTISSA or top > 254:
            raise damaged("a scale is no float32")
        below = np.array([
            self.uint("below", None if given is None else top - int(given[k] >> _MANTISSA)) for k in range(n)
        ], np.int64)  # fmt: skip
        digits = None if given is None else (given & (2**_MANTISSA - 1)) >> cut
        found = self.plain(digits, np.full(n, _MANTISSA - cut))
        if (below > top).any():
            raise damaged("a scale is no float32")
        return ((top - below) << _MANTISSA) | (found << cut)

    def biases(self, given: Int32 | None, n: int) -> Int32:
        """N int32: common powers of two once, lengths against the longest, then digits."""
        wide = None if given is None else np.asarray(given, np.int64)
        cut = self.uint("bias cut", None if wide is None else _common_zeros(np.abs(wide), 31))
        size = None if wide is None else np.abs(wide) >> cut
        lengths = None if size is None else [int(x).bit_length() for x in size]
        top = self.uint("bias top", None if lengths is None else max(lengths, default=0))
        if cut > 31 or top + cut > 32:
            raise damaged("a bias is no int32")
        found = np.zeros(n, np.int64)
        negative = np.zeros(n, bool)
        for k in range(n):
            found[k] = top - self.uint("bias length", None if lengths is None else top - lengths[k])
            if found[k] > 0:
                negative[k] = self.flag("bias sign", None if wide is None else bool(wide[k] < 0))
        if (found < 0).any():
            raise damaged("a bias is no int32")
        rest = np.maximum(found - 1, 0)
        low = self.plain(None if size is None else size & ((1 << rest) - 1), rest)
        magnitude = np.where(found > 0, (1 << rest) + low, 0) << cut
        value = np.where(negative, -magnitude, magnitude)
        if (np.abs(value * 2 + 1) > 2**32).any():
            raise damaged("a bias is no int32")
        return value.astype(np.int32)

    def codebook(self, given: Int8 | None, n: int) -> Int8:
        """N int8 entries: steps where they ascend, else as they are."""
        steps = None if given is None else np.diff(given.astype(np.int64))
        if not self.flag("ascending", None if steps is None else bool((steps > 0).all())):
            raw = self.plain(None if given is None else given.astype(np.int64) + 128, np.full(n, 8))
            return (raw - 128).astype(np.int8)
        first = self.uint("entry", None if given is None else int(given[0]) + 128)
        rest = [self.uint("step", None if steps is None else int(steps[k]) - 1) + 1 for k in range(n - 1)]
        book = np.cumsum(np.array([first - 128, *rest], np.int64))
        if book[-1] > 127:
            raise damaged("a codebook entry is no int8")
        return book.astype(np.int8)

    def real(self, tag: str, given: float | None) -> float:
        """A finite positive number, as float32 where that is exact."""
        short = None if given is None else float(np.float32(given)) == given
        if self.flag(f"{tag} short", short):
            word = None if given is None else np.array([given], np.float32).view(np.uint32)
            found = self.plain(word, np.array([32])).astype(np.uint32)
            return float(found.view(np.float32)[0])
        words = None if given is None else np.array([given], "<f8").view("<u4")
        halves = self.plain(words, np.array([32, 32])).astype("<u4")
        return float(halves.view("<f8")[0])


def _common_zeros(values: Int64, most: int) -> int:
    """Number of low bits that are 0 in all values."""
    joined = int(np.bitwise_or.reduce(values.astype(np.int64), initial=0))
    return most if joined == 0 else min(most, (joined & -joined).bit_length() - 1)


def _floats(words: Int64) -> Float32:
    values = words.astype(np.uint32).view(np.float32)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise damaged("a scale is not finite and positive")
    return values
