"""Dynamic storage allocation as an integer program, and a checker that compares every byte at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from xdeploy.memory import Buffer


def least_arena(buffers: Sequence[Buffer], align: int) -> int:
    """The smallest arena, by HiGHS: minimise h with x_i + s_i <= h, and of two alive together one below the other.

    Units are multiples of `align`. Buffers of one group have x_i = base + shift_i.
    """
    some = [b for b in buffers if b.size]
    groups = {name: k for k, name in enumerate(dict.fromkeys(b.group or f"/{b.name}" for b in some))}
    size = [-(-b.size // align) for b in some]
    shift = [b.shift // align for b in some]
    base = [groups[b.group or f"/{b.name}"] for b in some]
    pairs = [(i, j) for i in range(len(some)) for j in range(i) if base[i] != base[j] and some[i].overlaps(some[j])]
    big = sum(size) + max(shift, default=0)
    count = len(groups) + 1 + len(pairs)  # bases, height, which of a pair is below
    rows, low = [], []
    for i in range(len(some)):  # h - x_base >= shift + size
        row = np.zeros(count)
        row[len(groups)], row[base[i]] = 1, -1
        rows.append(row)
        low.append(shift[i] + size[i])
    for k, (i, j) in enumerate(pairs):
        for a, b, sign in ((i, j, 1), (j, i, -1)):  # x_b - x_a >= size_a + distance, unless the other is below
            row = np.zeros(count)
            row[base[b]], row[base[a]], row[len(groups) + 1 + k] = 1, -1, -big * sign * -1
            rows.append(row)
            low.append(size[a] + shift[a] - shift[b] - (0 if sign == 1 else big))
    cost = np.zeros(count)
    cost[len(groups)] = 1
    upper = np.concatenate([np.full(len(groups) + 1, 2 * big), np.ones(len(pairs))])
    found = milp(
        cost, constraints=LinearConstraint(np.array(rows), np.array(low), np.inf), bounds=Bounds(0, upper),
        integrality=np.ones(count), options={"mip_rel_gap": 0},
    )  # fmt: skip
    assert found.status == 0, found.message
    return round(found.fun) * align


def check_placement(buffers: Sequence[Buffer], offsets: Mapping[str, int], arena: int, align: int) -> None:
    """No byte belongs to two buffers at any step; all aligned, inside, and groups rigid."""
    assert set(offsets) == {b.name for b in buffers}
    some = [b for b in buffers if b.size]
    for step in {b.first for b in some}:  # live sets only grow where something begins
        owner = np.full(arena, -1)
        for i, b in enumerate(some):
            if b.first <= step <= b.last:
                at = offsets[b.name]
                assert at % align == 0 <= at <= arena - b.size, b
                assert (owner[at : at + b.size] == -1).all(), f"{b} overlaps {some[owner[at : at + b.size].max()]}"
                owner[at : at + b.size] = i
    starts: dict[str, int] = {}
    for b in some:
        if b.group:
            assert starts.setdefault(b.group, offsets[b.name] - b.shift) == offsets[b.name] - b.shift
