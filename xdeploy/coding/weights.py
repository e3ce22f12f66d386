"""The codes of one layer: a constant, a static table, or adaptive contexts, whichever is shortest.

Every code is taken as its distance v from the layer's commonest one (zero, as a rule): is it that one? the sign? how
far? The adaptive mode codes blocks of one tap of a few output channels (rows) after another. What is known then: the
same row's taps so far, what the rows before had in this column (input channel and tap) and in this input channel, the
neighbours in the same kernel. Pruned filters, dead inputs and empty taps cost next to nothing that way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.coding.mixing import Mixer
from xdeploy.coding.stream import Bits, Coder
from xdeploy.formats import Int8, Int64

BLOCKS = ((1 << 17, 128), (1 << 19, 256), (1 << 62, 512))  # codes of a layer up to which so many are coded at once
INPUTS = 6  # contexts of a decision
# nodes: 0 zero?, 1 sign, 2..9 further than 1, 2, 4, 8, ...?, then bits within a power of two, by the bits above
_UNARY, _TREE, NODES = 2, 12, 12 + 8 * 8
KINDS = 5  # zero?, sign, first step, further steps, bits
_LEVELS = 12  # of a quantised mean
_WIDE = _LEVELS * _LEVELS * 16  # contexts of the first question in one lasting set
_SPAN = 2 * _LEVELS * _LEVELS + 32  # of any other one
_SET = _WIDE + NODES * _SPAN


def new_mixer() -> Mixer:
    """What the layers of one kind of codes learn together."""
    return Mixer(NODES, 3 * _SET, KINDS, INPUTS)


def level(total: Int64, count: Int64) -> Int64:
    """A mean magnitude total / count as one of _LEVELS steps, roughly by its logarithm; 0: nothing but zeros."""
    ratio = (total * 64 + (count >> 1)) // np.maximum(count, 1)
    return np.asarray(_STEPS[np.minimum(ratio, len(_STEPS) - 1)])


_EDGES = np.array([1, 4, 10, 20, 36, 60, 100, 200, 500, 1400, 3600])
_STEPS = np.searchsorted(_EDGES, np.arange(4000), side="right").astype(np.int64)


class Adaptive:
    """Codes one layer's distances with a Mixer.

    Args:
        coder: encoder or decoder.
        mixer: learnt so far; learns on.
        shape: (O, I, kh, kw) or (O, I).
        low: smallest distance (<= 0).
        high: largest distance (>= 0).
    """

    def __init__(self, coder: Coder, mixer: Mixer, shape: tuple[int, ...], low: int, high: int) -> None:
        self.coder, self.mixer = coder, mixer
        self.rows, self.width = shape[0], shape[1]
        self.kernel = shape[3] if len(shape) == 4 else 1
        self.taps = shape[2] * shape[3] if len(shape) == 4 else 1
        self.low, self.high = low, high

    def run(self, given: Int64 | None) -> Int64:
        """Code all distances, (O, I, T) given or None; returns them."""
        columns = self.taps * self.width
        self.block = next(b for most, b in BLOCKS if self.rows * columns <= most)
        # seen so far, (count, sum of magnitudes) by column and input channel; by row in _band
        self.first = self.mixer.begin(3 * (self.block + columns + self.width) + 4 * self.taps)
        self.seen_column = np.zeros((2, self.taps, self.width), np.int64)
        self.seen_channel = np.zeros((2, self.width), np.int64)
        result = np.zeros((self.rows, self.width, self.taps), np.int64)
        chunk = min(self.width, self.block if self.taps == 1 else 2 * self.block)
        height = max(1, self.block // chunk)
        for top in range(0, self.rows, height):
            rows = slice(top, min(top + height, self.rows))
            self._band(result, rows, chunk, given)
        return result

    def _band(self, result: Int64, rows: slice, chunk: int, given: Int64 | None) -> None:
        count = rows.stop - rows.start
        self.mixer.n[self.first : self.first + 3 * self.block] = 0
        self.mixer.n1[self.first : self.first + 3 * self.block] = 0
        self.seen_row = np.zeros((2, count), np.int64)
        for tap in range(self.taps):
            for left in range(0, self.width, chunk):
                columns = np.arange(left, min(left + chunk, self.width))
                block = None if given is None else given[rows, columns[0] : columns[-1] + 1, tap]
                done = self._block(result[rows], tap, columns, block)
                result[rows, columns[0] : columns[-1] + 1, tap] = done
                size = np.abs(done)
                self.seen_row += np.stack([np.full(count, len(columns)), size.sum(axis=1)])
                self.seen_column[:, tap, columns] += np.stack([np.full(len(columns), count), size.sum(axis=0)])
                self.seen_channel[:, columns] += np.stack([np.full(len(columns), count), size.sum(axis=0)])

    def _block(self, band: Int64, tap: int, columns: Int64, given: Int64 | None) -> Int64:
        """Code distances (rows, columns) of one tap."""
        shape = (len(band), len(columns))
        flat = None if given is None else given.reshape(-1)
        row = np.repeat(np.arange(shape[0]), shape[1])
        column = np.tile(columns, shape[0])
        facts = self._facts(band, tap, row, column)
        some = self._zero(facts, tap, row, column, flat)
        where = np.flatnonzero(some)
        value = np.zeros(len(row), np.int64)
        if where.size:
            known = None if flat is None else flat[where]
            negative = self._sign(facts, tap, row, column, where, known)
            size = self._size(facts, where, negative, None if known is None else np.abs(known))
            value[where] = np.where(negative, -size, size)
        return value.reshape(shape)

    def _facts(self, band: Int64, tap: int, row: Int64, column: Int64) -> dict[str, Int64]:
        """Levels of the means around each symbol, and the codes beside it in its kernel."""
        none = np.zeros(len(row), np.int64)
        left = band[row, column, tap - 1] if tap % self.kernel else none
        above = band[row, column, tap - self.kernel] if tap >= self.kernel else none
        n = np.full(len(row), tap, np.int64)
        kernel = np.abs(band[:, :, :tap]).sum(axis=2)[row, column] if tap else none
        return {
            "row": level(self.seen_row[1], self.seen_row[0])[row],
            "column": level(*self.seen_column[::-1, tap][:, column]),
            "channel": level(*self.seen_channel[::-1][:, column]),
            "kernel": level(kernel, n),
            "beside": 4 * np.minimum(np.abs(left), 3) + np.minimum(np.abs(above), 3),
            "signs": 3 * (np.sign(left) + 1) + np.sign(above) + 1,
        }

    def _own(self, which: int, tap: int, row: Int64, column: Int64) -> tuple[Int64, ...]:
        """Numbers of the layer's own contexts of question `which` (0..2): row, column, channel, tap."""
        columns = self.taps * self.width
        at = self.first + which * self.block
        start = self.first + 3 * self.block + which * (columns + self.width)
        end = self.first + 3 * (self.block + columns + self.width)
        return (at + row, start + tap * self.width + column, start + columns + column, end + 4 * tap + which + 0 * row)

    @staticmethod
    def _lasting(part: int, node: Int64 | int, context: Int64) -> Int64:
        """Number of context 0.._SPAN - 1 of a node in one of three sets; the first question has its own."""
        return np.asarray(NODES + part * _SET + _WIDE + node * _SPAN + context)

    def _zero(self, f: dict[str, Int64], tap: int, row: Int64, column: Int64, flat: Int64 | None) -> Bits:
        own_row, own_column, own_channel, own_tap = self._own(0, tap, row, column)
        contexts = np.stack([
            own_row, own_column, own_channel, own_tap,
            NODES + (f["row"] * _LEVELS + f["channel"]) * 16 + f["beside"],
            NODES + _SET + (f["row"] * _LEVELS + f["column"]) * 16 + f["kernel"],
        ])  # fmt: skip
        return self.mixer.code(self.coder, 0, 0 * row, contexts, None if flat is None else flat != 0)

    def _sign(
        self, f: dict[str, Int64], tap: int, row: Int64, column: Int64, where: Int64, known: Int64 | None
    ) -> NDArray[np.bool_]:
        if self.low == 0 or self.high == 0:
            return np.full(len(where), self.low < 0)
        row, column = row[where], column[where]
        own = self._own(1, tap, row, column)
        contexts = np.stack([
            own[0], own[1], own[2], own[3],
            self._lasting(0, 1, f["signs"][where]),
            self._lasting(1, 1, f["signs"][where] * 16 + f["beside"][where]),
        ])  # fmt: skip
        given = None if known is None else known < 0
        return self.mixer.code(self.coder, 1, 0 * row + 1, contexts, given).astype(bool)

    def _size(self, f: dict[str, Int64], where: Int64, negative: NDArray[np.bool_], known: Int64 | None) -> Int64:
        """Magnitudes >= 1: the power of two by yes and no, then the bits below it."""
        most = np.where(negative, -self.low, self.high)
        contexts = self._of_size({k: v[where] for k, v in f.items()}, negative)
        power = np.zeros(len(where), np.int64)
        alive = np.flatnonzero(most > 1)
        for k in range(8):
            if not alive.size:
                break
            given = None if known is None else known[alive] >= 2 << k
            more = self._question(contexts, alive, 2 if k == 0 else 3, np.full(alive.size, _UNARY + k), given)
            alive = alive[more.astype(bool)]
            power[alive] += 1
            alive = alive[most[alive] >= 4 << k]
        return self._below(contexts, power, known)

    def _below(self, contexts: Int64, power: Int64, known: Int64 | None) -> Int64:
        size = np.ones(len(power), np.int64)
        for bit in range(int(power.max(initial=0)) - 1, -1, -1):
            alive = np.flatnonzero(power > bit)
            depth = power[alive] - 1 - bit  # bits known below the leading one
            prefix = np.where(depth == 0, 0, np.where(depth == 1, 1 + (size[alive] & 1), np.minimum(depth + 1, 6)))
            node = _TREE + 8 * power[alive] + prefix
            given = None if known is None else (known[alive] >> bit) & 1
            size[alive] = 2 * size[alive] + self._question(contexts, alive, 4, node, given)
        return size

    def _of_size(self, f: dict[str, Int64], negative: NDArray[np.bool_]) -> Int64:
        """Contexts (INPUTS, n) of node 0 for the questions of the magnitudes; those of node k are k * _SPAN further."""
        pick = (
            (0, f["row"] * _LEVELS + f["channel"]), (0, 144 + f["row"] * _LEVELS + f["column"]),
            (1, f["kernel"] * 16 + f["beside"]), (2, f["row"] * 2 + negative), (2, 32 + f["column"]),
            (2, 64 + f["channel"]),
        )  # fmt: skip
        return np.stack([self._lasting(part, 0, c) for part, c in pick])

    def _question(self, contexts: Int64, alive: Int64, kind: int, node: Int64, given: Any) -> Bits:
        return self.mixer.code(self.coder, kind, node, contexts[:, alive] + node * _SPAN, given)


def distances(codes: Int8, centre: int) -> Int64:
    """Codes (O, I/g, kh, kw) or (O, I) as distances (O, I, T) from a code."""
    return codes.astype(np.int64).reshape(len(codes), codes.shape[1], -1) - centre
