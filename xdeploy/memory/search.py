"""Exact search for a lower packing of buffers that each stand alone, where greedy orders leave a gap.

Packings are built from the bottom up: every optimal packing, pushed down, arises by placing buffers in order of offset,
each on the highest of the buffers below it. The search is cut off by a number of steps, not by time, so that equal
input gives equal offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdeploy.memory.buffers import Buffer, height_of

SEARCH_STEPS = 100_000
SEARCH_BUFFERS = 150  # more are left to the greedy orders


def lower_packing(buffers: Sequence[Buffer], bound: int, height: int, align: int) -> dict[str, int] | None:
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
        best, height = found, height_of(buffers, found)
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
