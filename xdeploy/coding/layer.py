"""One layer's codes in the shortest mode: constant, static (all codes alike, or a table) or adaptive contexts."""

from __future__ import annotations

import numpy as np

from xdeploy.coding.mixing import Mixer
from xdeploy.coding.numbers import Numbers
from xdeploy.coding.stream import Encoder, damaged
from xdeploy.coding.weights import Adaptive, distances, new_mixer
from xdeploy.formats import Int8, Int64

_TOTAL = 1 << 14  # what the counts of a static table are scaled to


class Codes:
    """Codes the layers of one file in order; what adaptive layers learn is used by the next ones of their size.

    Args:
        numbers: of the file; its coder takes the codes too.
    """

    def __init__(self, numbers: Numbers) -> None:
        self.numbers, self.coder = numbers, numbers.coder
        self.mixers: dict[int, Mixer] = {}
        self.modes: list[str] = []  # how each layer was coded

    def run(self, given: Int8 | None, shape: tuple[int, ...]) -> Int8:
        """Codes int8 of `shape` (O, I, kh, kw) or (O, I); None: decode them."""
        centre = None if given is None else _commonest(given)
        away = None if given is None or centre is None else distances(given, centre)
        n = self.numbers
        centre = n.sint("centre", centre)
        low = -n.uint("low", None if away is None else -int(away.min(initial=0)))
        high = n.uint("high", None if away is None else int(away.max(initial=0)))
        if centre + low < -128 or centre + high > 127:
            raise damaged("a code is no int8")
        full = (shape[0], shape[1], int(np.prod(shape[2:], dtype=np.int64)))
        if low == high == 0:
            self.modes.append("constant")
            return np.full(shape, centre, np.int8)
        found = self._choose(away, shape, full, low, high)
        if found.min() < low or found.max() > high:
            raise damaged("a code is out of its layer's range")
        return (found + centre).astype(np.int8).reshape(shape)

    def _choose(self, away: Int64 | None, shape: tuple[int, ...], full: tuple[int, ...], low: int, high: int) -> Int64:
        key = max(-low, high).bit_length()
        before = self.mixers.get(key) or new_mixer()
        if isinstance(self.coder, Encoder) and away is not None:
            is_static = self._static_wins(self.coder, before, away, shape, low, high)
        else:
            is_static = self.numbers.flag("static", None)
        self.modes.append("static" if is_static else "adaptive")
        if is_static:
            return self._static(away, full, low, high)
        if away is not None:
            return away  # coded while it was compared
        self.mixers[key] = before
        return Adaptive(self.coder, before, shape, low, high).run(None)

    def _static_wins(
        self, coder: Encoder, before: Mixer, away: Int64, shape: tuple[int, ...], low: int, high: int
    ) -> bool:
        """Code both ways and keep the shorter one's claim: adaptive codes stay written, static ones do not."""
        mark, seen = coder.mark(), self.numbers.snapshot()
        self.numbers.flag("static", True)
        self._static(away, away.shape, low, high)
        static = coder.length
        coder.rewind(mark)
        self.numbers.restore(seen)
        trial = before.copy()
        self.numbers.flag("static", False)
        Adaptive(coder, trial, shape, low, high).run(away)
        if static < coder.length:
            coder.rewind(mark)
            self.numbers.restore(seen)
            self.numbers.flag("static", True)
            return True
        self.mixers[max(-low, high).bit_length()] = trial
        return False

    def _static(self, away: Int64 | None, full: tuple[int, ...], low: int, high: int) -> Int64:
        """A table of counts, scaled, then all codes by it."""
        size = high - low + 1
        symbols = None if away is None else (away - low).reshape(-1)
        counts = None if symbols is None else _scaled(np.bincount(symbols, minlength=size))
        if self.numbers.flag("flat", None if counts is None else _flat_is_shorter(counts)):
            level = np.ones(size, np.int64)
            return (self.coder.table(level, int(np.prod(full, dtype=np.int64)), symbols) + low).reshape(full)
        told = [self.numbers.uint("count", None if counts is None else int(counts[k])) for k in range(size)]
        table = np.array(told, np.int64)
        if not 0 < table.sum() <= 2 * _TOTAL:
            raise damaged("a table of counts is out of range")
        used = np.flatnonzero(table)
        rank = None if symbols is None else np.searchsorted(used, symbols)
        if len(used) == 1:
            return np.full(full, used[0] + low)
        found = self.coder.table(table[used], int(np.prod(full, dtype=np.int64)), rank)
        return (used[found] + low).reshape(full)


def _commonest(codes: Int8) -> int:
    """The code most found (of equals the one nearest to 0); 0 without codes."""
    seen = np.bincount(codes.reshape(-1).astype(np.int64) + 128, minlength=256)
    best = np.flatnonzero(seen == seen.max()) - 128
    return int(best[np.abs(best).argmin()]) if codes.size else 0


def _flat_is_shorter(counts: Int64) -> bool:
    """Whether all codes alike cost less than a table (some bits for each count) and codes by it."""
    used = counts[counts > 0]
    table = (2.0 * np.log2(counts + 1.0) + 1.0).sum()
    return bool(counts.sum() * np.log2(len(counts)) <= table - (used * np.log2(used / used.sum())).sum())


def _scaled(seen: Int64) -> Int64:
    """Counts as smaller ones in proportion; what was seen keeps at least 1."""
    total = max(int(seen.sum()), 1)
    if total <= _TOTAL:
        return seen.astype(np.int64)
    return np.where(seen > 0, np.maximum((seen * _TOTAL + total // 2) // total, 1), 0).astype(np.int64)
