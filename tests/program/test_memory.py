"""The arena planner: properties on random lifetimes, exactness against brute force, known packings."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from xdeploy.memory import Buffer, lower_bound, plan_memory

ALIGN = 16


@st.composite
def lifetimes(draw: st.DrawFn, most: int = 12) -> list[Buffer]:
    count = draw(st.integers(1, most))
    rows = [(draw(st.integers(0, 200)), draw(st.integers(0, 8)), draw(st.integers(0, 4))) for _ in range(count)]
    return [Buffer(f"b{i}", size, first, first + length) for i, (size, first, length) in enumerate(rows)]


def rounded(size: int) -> int:
    return (size + ALIGN - 1) // ALIGN * ALIGN


@settings(deadline=None, max_examples=150, derandomize=True)
@given(lifetimes())
def test_placement_is_sound(buffers: list[Buffer]) -> None:
    layout = plan_memory(buffers, ALIGN)
    assert set(layout.offsets) == {b.name for b in buffers}
    for b in buffers:
        assert layout.offsets[b.name] % ALIGN == 0
        assert 0 <= layout.offsets[b.name] <= layout.arena - b.size
    for a, b in itertools.combinations(buffers, 2):
        if a.overlaps(b) and a.size and b.size:
            starts = sorted([(layout.offsets[a.name], a.size), (layout.offsets[b.name], b.size)])
            assert starts[0][0] + starts[0][1] <= starts[1][0]
    # the largest live set, counted step by step
    live = max(sum(rounded(b.size) for b in buffers if b.first <= step <= b.last) for step in range(14))
    assert layout.lower_bound == live <= layout.arena <= sum(rounded(b.size) for b in buffers)
    assert layout == plan_memory(buffers, ALIGN)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(lifetimes(most=5))
def test_small_placements_are_optimal(buffers: list[Buffer]) -> None:
    def height(order: tuple[Buffer, ...]) -> int:
        tops: dict[str, int] = {}
        for b in order:
            under = [tops[a.name] for a in order if a.name in tops and a.overlaps(b)]
            tops[b.name] = max(under, default=0) + rounded(b.size)
        return max(tops.values())

    best = (
        min(height(order) for order in itertools.permutations(b for b in buffers if b.size))
        if any(b.size for b in buffers)
        else 0
    )
    assert plan_memory(buffers, ALIGN).arena == best


def test_search_closes_a_gap_the_greedy_orders_leave() -> None:
    random.seed(3)
    gaps = []
    for _ in range(300):
        rows = [(random.randint(1, 12) * ALIGN, random.randint(0, 9), random.randint(0, 5)) for _ in range(12)]
        layout = plan_memory([Buffer(str(i), s, f, f + n) for i, (s, f, n) in enumerate(rows)], ALIGN)
        gaps.append(layout.gap if layout.found_by == "search" else -1)
    assert 0 in gaps
    assert max(gaps) <= 2 * ALIGN


def test_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [640, 1600, 320, 800, 160]
    chain = [Buffer(str(i), size, i, i + 1) for i, size in enumerate(sizes)]
    assert plan_memory(chain, ALIGN).arena == lower_bound(chain) == 640 + 1600


def test_nothing_to_place() -> None:
    assert plan_memory([], ALIGN).arena == 0
    assert plan_memory([Buffer("empty", 0, 0, 3)], ALIGN).offsets == {"empty": 0}
