"""Choosing what to stream: which of the first layers, in how many bands, so that the arena fits a budget.

The search estimates: kernels by their rows' cost, offsets by greedy orders. The program that is bound afterwards is
never larger than its estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from xdeploy.errors import GateError, UsageError
from xdeploy.kernel import Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import verify
from xdeploy.lir.rows import origin
from xdeploy.lir.stream import Schedule, cuts, evenly, stream
from xdeploy.memory.placement import Placer
from xdeploy.memory.storage import Storage
from xdeploy.target import Target

MOST_COST = 1.3  # of the unstreamed graph's estimated instructions, for the smallest arena
CUTS = 6  # that are searched: those with the lowest bound
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # input rows a band
LONGER = (0, 1, 2, 4, 6)  # rows that the first band has more

Choose = Callable[[LoweredGraph, Node], Kernel]


@dataclass(frozen=True, slots=True)
class Streamed:
    """A graph with its estimated arena in bytes and instructions, and its schedule (None: not streamed)."""

    graph: LoweredGraph
    arena: int
    cost: float
    schedule: Schedule | None


class Streaming:
    """Estimates of one graph for one target; `cost` is the row's estimate of executed instructions."""

    def __init__(
        self, graph: LoweredGraph, align: int, choose: Choose, cost: Callable[[LoweredGraph, Node, Kernel], float]
    ) -> None:
        self.graph, self.align, self.choose, self.cost = graph, align, choose, cost
        self._known: dict[tuple[object, ...], tuple[Kernel, float, int]] = {}
        self.whole = self._estimate(graph, None)

    def fit(self, budget: int) -> Streamed:
        """The fewest instructions within `budget` bytes of arena.

        Raises:
            GateError: no way of streaming is small enough.
        """
        best = self.nearest(budget)
        if best.arena > budget:
            least_told = f", {best.arena} with the first layers streamed" if best.arena < self.whole.arena else ""
            raise GateError(
                f"the arena takes {self.whole.arena} bytes{least_told}; its budget is {budget}",
                hint="allow more (--ram) or choose a smaller network",
            )
        return best

    def nearest(self, budget: int) -> Streamed:
        """The fewest instructions within `budget` bytes of arena; where nothing is small enough, the smallest arena."""
        if self.whole.arena <= budget:
            return self.whole
        best: Streamed | None = None
        least = self.whole
        for step in self._steps():
            for found in self._found(self._even(step)):
                least = min(least, found, key=lambda f: f.arena)
                if found.arena <= budget and (best is None or found.cost < best.cost):
                    best = found
            if best is not None:  # more bands cost more
                break
        return least if best is None else best

    def smallest(self) -> Streamed:
        """The smallest arena at no more than MOST_COST times the instructions."""
        found = [
            f for step in self._steps() for f in self._found(self._even(step)) if f.cost <= MOST_COST * self.whole.cost
        ]
        return min([self.whole, *found], key=lambda f: (f.arena, f.cost))

    def in_bands(self, count: int) -> Streamed:
        """The smallest arena with this number of bands.

        Raises:
            UsageError: the network has no layers that can be streamed so.
        """
        height = self.graph.tensors[self.graph.input].shape[0]
        steps = [(first, -(-(height - first) // (count - 1))) for first in range(1, height)]
        even = [(cut, (f, s)) for cut in self._cuts() for f, s in steps if s and s <= f <= s + LONGER[-1]]
        found = list(self._found(evenly(self.graph, cut, *pair) for cut, pair in even if self._bands(*pair) == count))
        if not found:
            raise UsageError(
                f"the first layers cannot run in {count} bands of their {height} input rows",
                hint="build.stream: auto, min, off, or a smaller number of bands",
            )
        return min(found, key=lambda f: (f.arena, f.cost))

    def _bands(self, first: int, step: int) -> int:
        return evenly(self.graph, 0, first, step).bands

    def _steps(self) -> list[int]:
        """Steps worth trying, of few bands first."""
        return [s for s in reversed(STEPS) if s < self.graph.tensors[self.graph.input].shape[0]]

    def _even(self, step: int) -> Iterator[Schedule]:
        """Schedules of one step worth trying."""
        height = self.graph.tensors[self.graph.input].shape[0]
        for cut in self._cuts():
            yield from (evenly(self.graph, cut, step + k, step) for k in LONGER if step + k < height)

    def _found(self, schedules: Iterable[Schedule]) -> Iterator[Streamed]:
        for schedule in schedules:
            yield self._estimate(stream(self.graph, schedule, check=False), schedule)

    @cache  # noqa: B019 - lives as long as the search
    def _cuts(self) -> list[int]:
        """The cuts with the lowest bound: what the layers behind need, and what leaves the streamed part."""
        if len(self.graph.tensors[self.graph.input].shape) != 3:
            return []
        live = self._placer(self.graph)[0].needs()
        return sorted(cuts(self.graph), key=lambda c: (max(live[c:]), c))[:CUTS]

    def _placer(self, graph: LoweredGraph) -> tuple[Placer, float]:
        storage = Storage(graph, self.align)
        rows, spaces, cost = dict[str, Kernel](), dict[str, int](), 0.0
        for node in graph.nodes:
            if node.name not in storage.aliases:
                rows[node.name], price, spaces[node.name] = self._row(graph, node)
                cost += price
        return Placer(graph, storage, rows, spaces), cost

    def _row(self, graph: LoweredGraph, node: Node) -> tuple[Kernel, float, int]:
        """The row of a node, its cost and its workspace, which bands of one shape have in common."""
        shapes = tuple(graph.tensors[t].shape for t in (*node.inputs, node.output))
        key = (origin(node.name), node.op, shapes, node.attrs.get("pads"))
        if key not in self._known:
            row = self.choose(graph, node)
            self._known[key] = row, self.cost(graph, node, row), row.workspace(graph, node)
        return self._known[key]

    def _estimate(self, graph: LoweredGraph, schedule: Schedule | None) -> Streamed:
        placer, cost = self._placer(graph)
        return Streamed(graph, placer.estimate(), cost, schedule)


def fit_memory(
    graph: LoweredGraph, target: Target, option: int | str, ram: Iterable[int | None], choose: Choose
) -> LoweredGraph:
    """The graph with its first layers streamed as the recipe's `build.stream` says.

    Args:
        graph: a verified graph.
        target: whose alignment and RAM count.
        option: "off"; "auto": as little as fits the RAM; "min": the smallest arena within MOST_COST; or how many bands.
        ram: bytes of arena that the user allows, as far as given.
        choose: the kernel row of a node.

    Raises:
        GateError: the user's budget cannot be met. UsageError: so many bands are impossible.
    """
    asked = [b for b in ram if b is not None]
    own = [int(target.memory["ram"])] if "ram" in target.memory else []
    if option == "off" or (option == "auto" and not asked + own):
        return graph
    search = Streaming(graph, target.align, choose, lambda g, n, row: float(row.cost(g, n, target)))
    if option == "auto":
        found = search.fit(min(asked + own))
    else:
        found = search.smallest() if option == "min" else search.in_bands(int(option))
    verify(found.graph)
    return found.graph
