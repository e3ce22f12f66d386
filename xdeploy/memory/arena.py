"""Offline placement of buffers in one arena: dynamic storage allocation over known lifetimes.

Best of several greedy orders first. Where they miss the lower bound, an exact search; with buffers that are tied to
each other, for which the search's argument does not hold, exchanges in the best order instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from xdeploy.memory.buffers import Buffer, Layout, height_of, lower_bound
from xdeploy.memory.search import lower_packing

EXCHANGES = 120  # tried where buffers are tied to each other and the greedy orders leave a gap

Item = tuple[Buffer, ...]  # buffers that are placed together

_ORDERS: dict[str, Callable[[Item], tuple[int, ...]]] = {
    "size": lambda i: (-_span(i), _first(i)),
    "area": lambda i: (-sum(b.size * (b.last - b.first + 1) for b in i), _first(i)),
    "lifetime": lambda i: (_first(i) - _last(i), -_span(i)),
    "start": lambda i: (_first(i), -_span(i)),
    "end": lambda i: (-_last(i), -_span(i)),
}


def _span(item: Item) -> int:
    return max(b.shift + b.size for b in item)


def _first(item: Item) -> int:
    return min(b.first for b in item)


def _last(item: Item) -> int:
    return max(b.last for b in item)


def plan_memory(buffers: Sequence[Buffer], align: int, exchanges: int = EXCHANGES) -> Layout:
    """Place the buffers, aligned, so that no two that are alive together overlap.

    Args:
        buffers: unique names, sizes >= 0 in bytes; sizes are rounded up to `align`, shifts are multiples of it.
        align: a power of two in bytes.
        exchanges: how many orders are tried beyond the greedy ones where buffers are tied to each other.

    Returns:
        The layout; equal input gives an equal layout.
    """
    rounded = [replace(b, size=-(-b.size // align) * align) for b in buffers if b.size]
    bound, greedy = lower_bound(rounded), _Greedy(_items(rounded))
    orders = {name: greedy.order(key) for name, key in _ORDERS.items()}
    heights = {name: greedy.place(order) for name, order in orders.items()}
    found_by = min(heights, key=lambda name: heights[name])
    best, height = orders[found_by], heights[found_by]
    alone = len(greedy.items) == len(rounded)
    if height > bound and not alone:
        best, height, found_by = _exchange(greedy, best, bound, exchanges, found_by)
    greedy.place(best)
    offsets = greedy.offsets()
    if height > bound and alone and (better := lower_packing(rounded, bound, height, align)) is not None:
        offsets, found_by = better, "search"
    empty = {b.name: 0 for b in buffers if not b.size}
    return Layout({**empty, **offsets}, height_of(rounded, offsets), bound, found_by)


def _items(buffers: Sequence[Buffer]) -> list[Item]:
    groups: dict[str, list[Buffer]] = {}
    for b in buffers:
        groups.setdefault(b.group or f"\0{b.name}", []).append(b)
    return [tuple(group) for group in groups.values()]


class _Greedy:
    """Places items in a given order, each into the tightest gap that its placed neighbours leave."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.spans = [_span(i) for i in items]
        # item -> (neighbour, where it may not begin: between these bytes from the neighbour's beginning)
        self.apart: list[list[tuple[int, int, int]]] = [[] for _ in items]
        self.base: dict[int, int] = {}
        flat = sorted(((b, i) for i, item in enumerate(items) for b in item), key=lambda row: row[0].first)
        alive: list[tuple[Buffer, int]] = []
        for b, i in flat:
            alive = [row for row in alive if row[0].last >= b.first]
            for other, j in alive:
                if i != j:
                    distance = other.shift - b.shift
                    self.apart[i].append((j, distance - b.size, distance + other.size))
                    self.apart[j].append((i, -distance - other.size, b.size - distance))
            alive.append((b, i))

    def order(self, key: Callable[[Item], tuple[int, ...]]) -> list[int]:
        """The items by a key."""
        return sorted(range(len(self.items)), key=lambda i: key(self.items[i]))

    def place(self, order: Sequence[int]) -> int:
        """Place all items; bytes up to the highest end."""
        self.base = {}
        for i in order:
            self.base[i] = self._lowest(i)
        return max((base + self.spans[i] for i, base in self.base.items()), default=0)

    def _lowest(self, item: int) -> int:
        """Where an item begins: in the tightest gap, the lowest on a tie."""
        base, top, gaps = self.base, 0, []
        for start, end in sorted((base[j] + low, base[j] + high) for j, low, high in self.apart[item] if j in base):
            if start >= top:
                gaps.append((start - top, top))
            top = max(top, end)
        return min(gaps)[1] if gaps else top

    def offsets(self) -> dict[str, int]:
        """Offset of every buffer."""
        return {b.name: self.base[i] + b.shift for i, item in enumerate(self.items) for b in item}


def _exchange(
    greedy: _Greedy, order: list[int], bound: int, exchanges: int, found_by: str
) -> tuple[list[int], int, str]:
    """Orders that differ from the best one so far in the place of one item: the best, its height, how it was found."""
    height, draw = greedy.place(order), random.Random(0)
    for _ in range(exchanges):
        changed = list(order)
        changed.insert(draw.randrange(len(order)), changed.pop(draw.randrange(len(order))))
        found = greedy.place(changed)
        if found < height:
            found_by = "search"
        if found <= height:
            order, height = changed, found
        if height == bound:
            break
    return order, height, found_by
