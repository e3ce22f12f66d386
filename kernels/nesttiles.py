"""How a nest is cut into register tiles: which loop becomes lanes, which become rows, and how many of each.

The rules look at strides alone. A loop becomes lanes where everything that is read lies side by side or does not
depend on it: output channels of a convolution (channels last), columns of a matrix product, channels of a pooling. If
there is none, a sum's own loop does, with a sum in every lane. Rows share what the lanes read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from xdeploy.target import Target

from .nest import Loop, Nest, kind, strides, walk

COLUMNS = 16  # lanes of a tile with rows, the same on every machine, as constants are packed for them
WIDE = 32  # without rows
LEAST = 4  # shorter loops are not worth lanes
MOST_ROWS = 12
_DEEP = 2  # loops whose turns are rows
_SPARE = 2  # registers for what is read
_LATENCY, _TILE = 4.0, 16.0  # cycles: from one product to the next on the same sum; to begin and end a tile
_Strides = dict[Any, int | None]


@dataclass(frozen=True, slots=True)
class Machine:
    """Floats of a vector register, and vector registers."""

    lanes: int
    registers: int

    @staticmethod
    def of(target: Target) -> Machine:
        """By what LLVM says of the target's CPU."""
        import tvm

        triple = str(target.tvm["mtriple"])
        if triple.startswith("x86_64"):
            wide = bool(tvm.target.codegen.target_has_features("avx512f", tvm.target.Target(dict(target.tvm))))
            return Machine(16, 32) if wide else Machine(8, 16)
        return Machine(4, 32 if triple.startswith("aarch64") else 16)


PLAIN = Machine(8, 16)  # where only what is equal on all machines is asked for


@dataclass(frozen=True, slots=True)
class Tiles:
    """The cut.

    lanes: loop and width, None: one element at once. across: the lanes are turns of a sum. rows: loops and sizes.
    order: the spatial loops from the outside in; sums: those of the sum. apart: loops that are rows on some machine.
    All but the rows and whether the lanes' loop is outermost is equal on all machines.
    """

    lanes: tuple[Loop, int] | None
    across: bool
    rows: tuple[tuple[Loop, int], ...]
    order: tuple[Loop, ...]
    sums: tuple[Loop, ...]
    apart: tuple[Loop, ...] = ()


def pieces(extent: int, size: int) -> list[tuple[int, int, int]]:
    """Where, how many times, how large: whole tiles and what remains."""
    whole, rest = divmod(extent, size)
    found = [(0, whole, size)] if whole else []
    return [*found, (whole * size, 1, rest)] if rest else found


def lapped(extent: int, size: int) -> list[tuple[int, int, int]]:
    """The same, but what remains is a multiple of LEAST, some of which was done before: odd vectors are slow."""
    whole, rest = divmod(extent, size)
    if not whole or not rest:
        return pieces(extent, size)
    last = -(-rest // LEAST) * LEAST
    return [(0, whole, size), (extent - last, 1, last)]


def even(extent: int, size: int) -> list[tuple[int, int, int]]:
    """The same for tiles of nearly one size, at most this: no small one remains."""
    count = -(-extent // size)
    small, larger = divmod(extent, count)
    found = [(0, larger, small + 1), (larger * (small + 1), count - larger, small)]
    return [piece for piece in found if piece[1]]


def cut(nest: Nest, machine: Machine) -> Tiles:
    """The tiles of a nest."""
    step = nest.finish if nest.step is None else nest.step
    read = [strides(nest, e.source, e.indices) for e in walk(step) if kind(e) == "TensorLoad"]
    lanes, across = _lanes(nest, step, read, strides(nest, nest.out, nest.indices)), False
    if lanes is None and nest.sums and _horizontal(nest):
        lanes = next((x for x in reversed(nest.sums) if x.extent >= 2 * LEAST and _adjacent(x, step, read)), None)
        across = lanes is not None
    if not nest.sums:
        size = None if lanes is None else (lanes, min(WIDE, lanes.extent))
        return Tiles(size, False, (), nest.spatial if lanes else _near(nest, read), ())
    others = [x for x in nest.spatial if x is not lanes]
    shared = {x.var: _shared(x, lanes, read) for x in others}
    ranked = sorted(others, key=lambda x: (shared[x.var], nest.spatial.index(x)), reverse=True)[:_DEEP]
    width = 1 if lanes is None else _power(lanes.extent) if across else min(COLUMNS if ranked else WIDE, lanes.extent)
    rows = _rows(nest, ranked, read, lanes, width, machine)
    first = not across and lanes is not None and any(shared[x.var] for x, _ in rows)
    order = nest.spatial if not first or lanes is None else (lanes, *others)
    lead = next((s for s in read if lanes is not None and s[lanes.var]), read[0] if read else {})
    sums = tuple(sorted(nest.sums, key=lambda x: -(lead.get(x.var) or 0)))
    return Tiles(None if lanes is None else (lanes, width), across, rows, order, sums, tuple(ranked))


def _near(nest: Nest, read: Sequence[_Strides]) -> tuple[Loop, ...]:
    """The loops of a transposition in the order that stays within the first cache: large steps outside."""
    steps = [*read, strides(nest, nest.out, nest.indices)]
    if any(s[x.var] is None for s in steps for x in nest.spatial):
        return nest.spatial
    return tuple(sorted(nest.spatial, key=lambda x: -sum(s[x.var] or 0 for s in steps)))


def _power(extent: int) -> int:
    """The largest power of two up to the extent and COLUMNS: sums of lanes are added by halves."""
    return min(COLUMNS, 1 << (extent.bit_length() - 1))


def _adjacent(loop: Loop, step: Any, read: Sequence[_Strides]) -> bool:
    """Whether what is read lies side by side or does not depend on the loop, without conditions on it."""
    if any(kind(e) == "Call" and e.op.name == "tirx.if_then_else" and _depends(e.args[0], loop) for e in walk(step)):
        return False
    return all(s[loop.var] in (0, 1) for s in read) and any(s[loop.var] == 1 for s in read)


def _depends(expr: Any, loop: Loop) -> bool:
    return any(kind(e) == "Var" and e.same_as(loop.var) for e in walk(expr))


def _lanes(nest: Nest, step: Any, read: Sequence[_Strides], out: _Strides) -> Loop | None:
    """The loop of the output that becomes lanes: the one the output is contiguous in, if there is a choice."""
    found = [x for x in nest.spatial if x.extent >= LEAST and _adjacent(x, step, read)]
    if not nest.sums:
        found = [x for x in found if out[x.var] == 1]
    return max(found, key=lambda x: (out[x.var] == 1, x.extent), default=None)


def _horizontal(nest: Nest) -> bool:
    """Whether sums of several lanes can be joined in the end."""
    step = nest.step
    return kind(step) in ("Add", "Max", "Min") and any(e.same_as(nest.running) for e in (step.a, step.b))


def _shared(loop: Loop, lanes: Loop | None, read: Sequence[_Strides]) -> int:
    """How many of the vectors that are read serve all rows of this loop."""
    return sum(1 for s in read if lanes is not None and s[lanes.var] == 1 and s[loop.var] == 0)


def _rows(
    nest: Nest, loops: Sequence[Loop], read: Sequence[_Strides], lanes: Loop | None, width: int, machine: Machine
) -> tuple[tuple[Loop, int], ...]:
    """Sizes of the rows that take the fewest cycles by a simple model of the core."""
    vectors = -(-width // machine.lanes)
    turns = 1
    for loop in nest.sums:
        turns *= loop.extent
    room = max(1, min(MOST_ROWS, (machine.registers - _SPARE - vectors) // vectors))
    chosen, taken = list[tuple[Loop, int]](), 1
    for loop in loops:

        def cycles(size: int, loop: Loop = loop, taken: int = taken) -> float:
            moved = 0.0
            for s in read:
                each = vectors if lanes is not None and s[lanes.var] else 1
                moved += each * (size if s[loop.var] != 0 else 1) * taken
            return max(size * taken * vectors / 2, moved / 2, _LATENCY) + _TILE / turns

        size = _cheapest(loop.extent, room // taken, cycles)
        if size > 1:
            chosen.append((loop, size))
            taken *= size
    return tuple(chosen)


def _cheapest(extent: int, most: int, cycles: Callable[[int], float]) -> int:
    """The size with the least cycles over the whole loop, the larger of equal ones."""
    sizes = range(max(1, min(extent, most)), 0, -1)
    return min(sizes, key=lambda size: sum(n * cycles(s) for _, n, s in even(extent, size)))
