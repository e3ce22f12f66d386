"""A nest with its tiles as loops of TIR: sums in registers, lanes as vectors, constants packed in the order of use."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .nest import Loop, Nest, kind, rebuild, strides, walk, with_values
from .nesttiles import Tiles, even, lapped, pieces

Piece = tuple[int, int, int]  # where, how many times, how large


@dataclass(frozen=True, slots=True)
class Constants:
    """What the nest may pack: the array behind a buffer, None if it is none; and a new buffer for an array."""

    array: Callable[[Any], NDArray[Any] | None]
    add: Callable[[NDArray[Any]], Any]


def emit(nest: Nest, tiles: Tiles, constants: Constants) -> list[Any]:
    """The statements of a nest: a set of loops for every combination of whole and remaining tiles."""
    cuts = {loop: even(loop.extent, size) for loop, size in tiles.rows}
    if tiles.lanes is not None and not tiles.across:
        cuts[tiles.lanes[0]] = lapped(tiles.lanes[0].extent, tiles.lanes[1])
    packed = _pack(nest, tiles, constants)
    combinations = itertools.product(*cuts.values())
    return [_Tile(nest, tiles, dict(zip(cuts, c, strict=True)), packed).loops() for c in combinations]


# ------------------------------------------------------------------------------------------------------ constants
@dataclass(frozen=True, slots=True)
class _Pack:
    """A constant in the order of use: blocks of lanes, then `loops`, then the lanes of the block."""

    load: Any
    buffer: Any
    loops: tuple[Loop, ...]


def _pack(nest: Nest, tiles: Tiles, constants: Constants) -> list[_Pack]:
    if tiles.lanes is None or tiles.across or nest.step is None:
        return []
    loop, width = tiles.lanes
    found = list[_Pack]()
    for load in walk(nest.step):
        array = constants.array(load.source) if kind(load) == "TensorLoad" else None
        if array is None:
            continue
        steps = strides(nest, load.source, load.indices)
        if steps[loop.var] != 1 or None in steps.values() or any(steps[x.var] for x in tiles.apart):
            continue
        loops = tuple(x for x in (*tiles.order, *tiles.sums) if x is not loop and steps[x.var])
        found.append(_Pack(load, constants.add(_ordered(array, load, steps, loops, loop, width)), loops))
    return found


def _ordered(
    array: NDArray[Any], load: Any, steps: dict[Any, int | None], loops: Sequence[Loop], lanes: Loop, width: int
) -> NDArray[Any]:
    """The elements that the load goes through, lanes innermost, in blocks of `width`, the rest behind them."""
    from tvm import sym

    at = [int(sym.Analyzer().simplify(with_values(i, {x: _int(0) for x in steps}))) for i in load.indices]
    base = int(np.ravel_multi_index(at, array.shape))
    order = (*loops, lanes)
    flat = np.ascontiguousarray(array).reshape(-1)[base:]
    grid = np.indices([x.extent for x in order]).reshape(len(order), -1)
    places = np.array([steps[x.var] for x in order]) @ grid
    whole = flat[places].reshape(-1, lanes.extent)
    blocks = [whole[:, start + k * size : start + (k + 1) * size].reshape(-1)
              for start, count, size in lapped(lanes.extent, width) for k in range(count)]  # fmt: skip
    return np.concatenate(blocks)


# ---------------------------------------------------------------------------------------------------------- loops
class _Tile:
    """One combination of tiles, with variables of its own."""

    def __init__(self, nest: Nest, tiles: Tiles, sizes: dict[Loop, Piece], packed: Sequence[_Pack]) -> None:
        from tvm import tirx

        self.nest, self.tiles, self.sizes, self.packed = nest, tiles, sizes, packed
        self.rows = [(tirx.Var(f"{x.var.name}_r", "int64"), sizes[x][2]) for x, _ in tiles.rows]
        inner = {x: row for (x, _), (row, _) in zip(tiles.rows, self.rows, strict=True)}
        self.around = [(tirx.Var(x.var.name, "int64"), sizes[x][1] if x in sizes else x.extent) for x in tiles.order]
        self.values = dict[Any, Any]()  # of the nest's variables, lanes left out
        for loop, (outer, _) in zip(tiles.order, self.around, strict=True):
            start, _, size = sizes.get(loop, (0, 1, 1))
            self.values[loop.var] = outer * size + start + inner.get(loop, 0)
        self.loop: Loop | None = tiles.lanes[0] if tiles.lanes else None
        self.pitch = tiles.lanes[1] if tiles.lanes else 1
        self.width = sizes[self.loop][2] if self.loop in sizes else 1  # lanes of the output
        self.sum = tirx.decl_buffer((self.pitch * math.prod(n for _, n in self.rows),), name="sums", scope="local")

    def loops(self) -> Any:
        """The loops around the tile, with it."""
        from tvm import tirx

        store = self.each(self.store, self.width)
        if not self.nest.sums:
            return _around(self.around, store)
        begin = self.each(
            lambda lane: self.keep(self.nest.start, lane), self.pitch if self.tiles.across else self.width
        )
        steps = [*self.whole_vectors(), *self.halves()] if self.tiles.across else [self.turns({}, self.width)]
        return _around(self.around, tirx.SeqStmt([tirx.AllocBuffer(self.sum), begin, *steps, store]))

    def whole_vectors(self) -> list[Any]:
        """The sum across lanes: whole vectors first, then what remains."""
        from tvm import tirx

        assert self.loop is not None
        made = []
        for start, count, size in pieces(self.loop.extent, self.pitch):
            outer = tirx.Var(self.loop.var.name, "int64")
            made.append(_around([(outer, count)], self.turns({self.loop.var: outer * size + start}, size)))
        return made

    def halves(self) -> list[Any]:
        """The sums of all lanes in the first, by halves."""
        join, made, half = type(self.nest.step), list[Any](), self.pitch // 2
        while half:

            def stmt(lane: Any, half: int = half) -> Any:
                return self.keep(join(self.running(lane), self.running(lane + half)), lane)

            made.append(self.each(stmt, half))
            half //= 2
        return made

    def turns(self, known: dict[Any, Any], width: int) -> Any:
        """The step of every sum of the tile, in the loops of the sum that are not known."""
        from tvm import tirx

        loops = {x.var: (tirx.Var(x.var.name, "int64"), x.extent) for x in self.tiles.sums if x.var not in known}
        values = known | {x: variable for x, (variable, _) in loops.items()}
        return _around(
            list(loops.values()),
            self.each(lambda lane: self.keep(self.filled(self.nest.step, values, lane), lane), width),
        )

    def store(self, lane: Any) -> Any:
        """The store of one element."""
        from tvm import tirx

        indices = [self.filled(i, {}, lane) for i in self.nest.indices]
        return tirx.BufferStore(self.nest.out, self.filled(self.nest.finish, {}, lane), indices)

    def each(self, stmt: Callable[[Any], Any], width: int) -> Any:
        """A statement for all rows and lanes."""
        from tvm import tirx

        lane = tirx.Var("lane", "int64")
        made = stmt(_int(0)) if width == 1 else _loop(lane, width, stmt(lane), tirx.ForKind.VECTORIZED)
        for row, size in reversed(self.rows):
            made = _loop(row, size, made, tirx.ForKind.UNROLLED)
        return made

    def place(self, lane: Any) -> Any:
        """Where the sum of the current row and this lane is."""
        at = _int(0)
        for row, size in self.rows:
            at = at * size + row
        return at * self.pitch + lane

    def keep(self, value: Any, lane: Any) -> Any:
        """The statement that makes this the sum."""
        from tvm import tirx

        return tirx.BufferStore(self.sum, value, [self.place(lane)])

    def running(self, lane: Any) -> Any:
        """The sum so far."""
        from tvm import tirx

        return tirx.BufferLoad(self.sum, [self.place(lane)])

    def filled(self, expr: Any, known: dict[Any, Any], lane: Any) -> Any:
        """An expression of the nest with this tile's indices, sums and packed constants."""
        values = self.values | known
        if self.loop is not None and self.loop.var in values:
            values[self.loop.var] = values[self.loop.var] + lane

        def change(e: Any) -> Any:
            if kind(e) == "Var":
                return self.running(lane) if e.same_as(self.nest.running) else values.get(e)
            pack = next((p for p in self.packed if p.load.same_as(e)), None)
            return None if pack is None else self.unpacked(pack, values, lane)

        return rebuild(expr, change)

    def unpacked(self, pack: _Pack, values: dict[Any, Any], lane: Any) -> Any:
        """The element of a packed constant."""
        from tvm import tirx

        assert self.loop is not None
        start, _, width = self.sizes[self.loop]
        block, inside, size = self.around[self.tiles.order.index(self.loop)][0], _int(0), 1
        for x in pack.loops:
            inside, size = inside * x.extent + values[x.var], size * x.extent
        before = start and self.loop.extent // self.pitch * self.pitch * size  # whole blocks
        return tirx.BufferLoad(pack.buffer, [(block * size + inside) * width + before + lane])


def _int(value: int) -> Any:
    from tvm import tirx

    return tirx.IntImm("int64", value)


def _around(loops: Sequence[tuple[Any, int]], body: Any) -> Any:
    from tvm import tirx

    for variable, extent in reversed(loops):
        body = _loop(variable, extent, body, tirx.ForKind.SERIAL)
    return body


def _loop(variable: Any, extent: int, body: Any, how: Any) -> Any:
    from tvm import tirx

    return tirx.For(variable, _int(0), _int(extent), how, body)
