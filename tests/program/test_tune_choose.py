"""The choice under limits, against trying every choice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from xdeploy.errors import GateError
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.tune.choose import Option, Ram, best, flash_of
from xdeploy.tune.jobs import Figures

ROW = KERNELS["clamp_s8_-_1x1__tir"]
FREE = Ram(lambda rows: 0, lambda rows: 0, lambda node, row: (0, False, False), lambda node, rows: rows[0])


def table_of(seed: int, nodes: int = 4, options: int = 3) -> dict[str, list[Option]]:
    """Random values; functions are shared over nodes, constants are each node's own."""
    rng = np.random.default_rng(seed)
    code = rng.integers(100, 900, options)
    return {
        f"n{n}": [
            Option(replace(ROW, name=f"r{i}"), float(rng.integers(1000, 90_000)),
                   {f"f{i}": int(code[i]), f"c{n}{i}": int(rng.integers(0, 3000))}, Figures())
            for i in range(options)
        ]
        for n in range(nodes)
    }  # fmt: skip


def every(table: dict[str, list[Option]]) -> list[dict[str, Option]]:
    return [dict(zip(table, picked, strict=True)) for picked in itertools.product(*table.values())]


def value(chosen: dict[str, Option]) -> float:
    return sum(o.value for o in chosen.values())


@pytest.mark.parametrize("seed", range(12))
def test_flash_limit_and_flash_objective_equal_brute_force(seed: int) -> None:
    table = table_of(seed)
    choices = every(table)
    sizes = sorted(flash_of(c) for c in choices)
    for limit in (sizes[0], sizes[len(sizes) // 10], sizes[len(sizes) // 2], sizes[-1]):
        found = best(table, "value", limit, None, FREE)
        assert flash_of(found) <= limit
        assert value(found) == min(value(c) for c in choices if flash_of(c) <= limit)
    least = best(table, "flash", None, None, FREE)
    assert flash_of(least) == sizes[0]
    assert value(least) == min(value(c) for c in choices if flash_of(c) == sizes[0])
    with pytest.raises(GateError, match=f"{sizes[0]} bytes at least"):
        best(table, "value", sizes[0] - 1, None, FREE)


def ram_of(table: dict[str, list[Option]], need: dict[tuple[str, str], int], tensors: dict[str, int]) -> Ram:
    """An arena that is the largest sum of a node's tensors and workspace."""

    def of(rows: Any) -> int:
        return max(tensors[n] + need[n, row.name] for n, row in rows.items())

    def asks(node: str, row: Kernel) -> tuple[int, bool, bool]:
        return need[node, row.name], False, False

    def eased(node: str, rows: list[Kernel]) -> Kernel:
        return min(rows, key=lambda r: need[node, r.name])

    return Ram(of, of, asks, eased)


@pytest.mark.parametrize("seed", range(8))
def test_flash_and_ram_together_equal_brute_force(seed: int) -> None:
    table = table_of(seed)
    rng = np.random.default_rng([seed, 1])
    need = {(n, o.row.name): int(rng.integers(0, 2000)) for n, options in table.items() for o in options}
    memory = ram_of(table, need, {n: int(rng.integers(1000, 3000)) for n in table})
    choices = every(table)
    rows = {id(c): {n: o.row for n, o in c.items()} for c in choices}
    arenas = sorted({memory.of(rows[id(c)]) for c in choices})
    sizes = sorted(flash_of(c) for c in choices)
    for ram, flash in itertools.product((arenas[0], arenas[len(arenas) // 2]), (sizes[len(sizes) // 3], sizes[-1])):
        allowed = [c for c in choices if memory.of(rows[id(c)]) <= ram and flash_of(c) <= flash]
        if not allowed:
            with pytest.raises(GateError, match="flash"):
                best(table, "value", flash, ram, memory)
            continue
        found = best(table, "value", flash, ram, memory)
        assert memory.of({n: o.row for n, o in found.items()}) <= ram
        assert flash_of(found) <= flash
        assert value(found) == min(map(value, allowed))
    with pytest.raises(GateError, match=f"{arenas[0]} bytes at least"):
        best(table, "value", None, arenas[0] - 1, memory)
