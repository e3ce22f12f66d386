"""Offline placement of buffers in one arena: dynamic storage allocation over known lifetimes.

Best of several greedy orders first; where they miss the lower bound, an exact search over packings built from the
bottom up (every optimal packing, pushed down, arises by placing buffers in order of offset, each on the highest of the
buffers below it). The search is cut off by a number of steps, not by time, so that equal input gives equal offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from xdeploy.kernel import Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual

ALIASES = frozenset({"reshape"})  # ops that only rename memory
SEARCH_STEPS = 100_000
SEARCH_BUFFERS = 150  # more are left to the greedy orders


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size` bytes that must keep their place from step `first` to step `last`, both included."""

    name: str
    size: int
    first: int
    last: int

    def overlaps(self, other: Buffer) -> bool:
        """Whether both are alive at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Layout:
    """Offsets by buffer name, the arena's size, the largest live set, and which order found the placement."""

    offsets: Mapping[str, int]
    arena: int
    lower_bound: int
    found_by: str

    @property
    def gap(self) -> int:
        """Bytes above the lower bound; 0 is proven optimal."""
        return self.arena - self.lower_bound


_ORDERS: dict[str, Callable[[Buffer], tuple[int, ...]]] = {
    "size": lambda b: (-b.size, b.first),
    "area": lambda b: (-b.size * (b.last - b.first + 1), b.first),
    "lifetime": lambda b: (b.first - b.last, -b.size),
    "start": lambda b: (b.first, -b.size),
    "end": lambda b: (-b.last, -b.size),
}


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Bytes of the largest set of buffers alive at one step."""
    deltas: dict[int, int] = {}
    for b in buffers:
        deltas[b.first] = deltas.get(b.first, 0) + b.size
        deltas[b.last + 1] = deltas.get(b.last + 1, 0) - b.size
    live = peak = 0
    for step in sorted(deltas):
        live += deltas[step]
        peak = max(peak, live)
    return peak


def plan_memory(buffers: Sequence[Buffer], align: int) -> Layout:
    """Place the buffers, aligned, so that no two that are alive together overlap.

    Args:
        buffers: unique names, sizes >= 0 in bytes; sizes are rounded up to `align`.
        align: a power of two in bytes.

    Returns:
        The layout; equal input gives an equal layout.
    """
    rounded = [Buffer(b.name, -(-b.size // align) * align, b.first, b.last) for b in buffers if b.size]
    bound = lower_bound(rounded)
    plans = {name: _greedy(sorted(rounded, key=key)) for name, key in _ORDERS.items()}
    found_by = min(plans, key=lambda name: _height(rounded, plans[name]))
    offsets = plans[found_by]
    if _height(rounded, offsets) > bound:
        better = _exact(rounded, bound, _height(rounded, offsets), align)
        offsets, found_by = (offsets, found_by) if better is None else (better, "search")
    empty = {b.name: 0 for b in buffers if not b.size}
    return Layout({**empty, **offsets}, _height(rounded, offsets), bound, found_by)


def _height(buffers: Sequence[Buffer], offsets: Mapping[str, int]) -> int:
    return max((offsets[b.name] + b.size for b in buffers), default=0)


def _greedy(order: Sequence[Buffer]) -> dict[str, int]:
    """Place in order, each into the tightest gap that its placed neighbours leave (the lowest on a tie)."""
    offsets: dict[str, int] = {}
    placed: list[Buffer] = []
    for b in order:
        taken = sorted((offsets[p.name], offsets[p.name] + p.size) for p in placed if p.overlaps(b))
        top, gaps = 0, []
        for start, end in taken:
            if start - top >= b.size:
                gaps.append((start - top, top))
            top = max(top, end)
        offsets[b.name] = min(gaps)[1] if gaps else top
        placed.append(b)
    return offsets


def _exact(buffers: Sequence[Buffer], bound: int, height: int, align: int) -> dict[str, int] | None:
    """A packing lower than `height`, if the search finds one: goals upwards from the bound, then downwards."""
    if len(buffers) > SEARCH_BUFFERS:
        return None
    search = _Search(buffers, SEARCH_STEPS // 2)
    for goal in range(bound, height, align):
        found = search.fit(goal)
        if found is not None or not search.steps:
            break
    if found is not None or search.steps:  # optimal, or nothing below `height` exists
        return found
    search.steps, best = SEARCH_STEPS // 2, None
    while search.steps and (found := search.fit(height - align)) is not None:
        best, height = found, _height(buffers, found)
    return best


class _Search:
    """Depth-first search for a packing of at most a given height, within a budget of steps."""

    def __init__(self, buffers: Sequence[Buffer], steps: int) -> None:
        self.buffers = sorted(buffers, key=lambda b: (-b.size, b.first, b.last, b.name))
        self.steps = steps
        times = {t: i for i, t in enumerate(sorted({t for b in buffers for t in (b.first, b.last)}))}
        self.spans = [range(times[b.first], times[b.last] + 1) for b in self.buffers]
        self.count = len(times)

    def fit(self, goal: int) -> dict[str, int] | None:
        """Offsets with nothing above `goal`, or None: impossible (steps left) or not found (none left)."""
        self.goal = goal
        self.sky = [0] * self.count  # height reached at each step
        self.rest = [0] * self.count  # bytes that still have to be stacked there
        for b, span in zip(self.buffers, self.spans, strict=True):
            for t in span:
                self.rest[t] += b.size
        self.offsets: dict[str, int] = {}
        return dict(self.offsets) if self._place(0, frozenset(range(len(self.buffers)))) else None

    def _place(self, floor: int, left: frozenset[int]) -> bool:
        """Stack the remaining buffers in order of offset, none below `floor`."""
        if not left:
            return True
        tried = set()
        for i in sorted(left, key=lambda i: (max(self.sky[t] for t in self.spans[i]), i)):
            b, span = self.buffers[i], self.spans[i]
            kind = (b.size, b.first, b.last)
            at = max(self.sky[t] for t in span)
            if kind in tried or at < floor:
                continue
            if not self.steps:
                return False
            tried.add(kind)
            self.steps -= 1
            if self._stack(i, at, left):
                return True
        return False

    def _stack(self, i: int, at: int, left: frozenset[int]) -> bool:
        b, span = self.buffers[i], self.spans[i]
        before = [self.sky[t] for t in span]
        for t in span:
            self.sky[t] = at + b.size
            self.rest[t] -= b.size
        self.offsets[b.name] = at
        if all(self.sky[t] + self.rest[t] <= self.goal for t in span) and self._place(at, left - {i}):
            return True
        for t, height in zip(span, before, strict=True):
            self.sky[t] = height
            self.rest[t] += b.size
        return False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: in the caller's input or output buffer, or in the arena at `offset`; `size` bytes."""

    kind: Literal["input", "output", "arena"]
    offset: int
    size: int


class Storage:
    """Which tensors share memory (aliases, in-place nodes), and how long each piece lives."""

    def __init__(self, graph: LoweredGraph, rows: Mapping[str, Kernel]) -> None:
        self.graph = graph
        self.root = {name: name for name in graph.tensors}
        steps = {n.output: i for i, n in enumerate(graph.nodes)}
        self.first = {name: steps.get(name, 0) for name in graph.tensors}
        self.last = dict(self.first)
        for i, n in enumerate(graph.nodes):
            for name in n.inputs:
                self.last[name] = i
        self.last[graph.output] = len(graph.nodes)
        for n in graph.nodes:
            if n.op in ALIASES:
                self._merge(n.inputs[0], n.output)
        for i, n in enumerate(graph.nodes):
            if n.op not in ALIASES:
                self._in_place(i, n, rows[n.name])

    def _find(self, name: str) -> str:
        while self.root[name] != name:
            name = self.root[name]
        return name

    def _merge(self, old: str, new: str) -> None:
        a, b = self._find(old), self._find(new)
        if a != b:
            self.root[b] = a
            self.first[a] = min(self.first[a], self.first[b])
            self.last[a] = max(self.last[a], self.last[b])

    def _in_place(self, step: int, node: Node, row: Kernel) -> None:
        """Let the output take the memory of the input that dies here, where the row allows it."""
        candidates = [node.inputs[0]] if row.in_place else []
        if has_residual(node) and row.residual_in_place and self._find(node.inputs[0]) != self._find(node.inputs[1]):
            candidates.append(node.inputs[1])
        for name in candidates:
            dies = self.last[self._find(name)] == step and self._find(name) != self._find(self.graph.input)
            if dies and self.graph.tensors[name].size == self.graph.tensors[node.output].size:
                self._merge(name, node.output)
                return

    def _kind(self, name: str) -> Literal["input", "output", "arena"]:
        # an output that is only a view of the input has to be copied: it keeps its own place
        if self._find(name) == self._find(self.graph.input):
            return "output" if name == self.graph.output else "input"
        return "output" if self._find(name) == self._find(self.graph.output) else "arena"

    def buffers(self) -> list[Buffer]:
        """What the arena has to hold."""
        used = {t for n in self.graph.nodes for t in (*n.inputs, n.output)}
        roots = [t for t in self.graph.tensors if t in used and self._find(t) == t and self._kind(t) == "arena"]
        return [Buffer(t, self.graph.tensors[t].size, self.first[t], self.last[t]) for t in roots]

    def places(self, layout: Layout) -> dict[str, Place]:
        """Where each tensor lies."""
        return {
            name: Place(kind, layout.offsets.get(self._find(name), 0) if kind == "arena" else 0, tensor.size)
            for name, tensor in self.graph.tensors.items()
            for kind in (self._kind(name),)
        }
