"""What the arena takes under a choice of rows, by planning it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xdeploy.kernel import Kernel
from xdeploy.lir.graph import LoweredGraph
from xdeploy.memory import Placement, Storage
from xdeploy.program import arrange
from xdeploy.target import Target
from xdeploy.tune.choose import Ram, Rows


def arena_of(graph: LoweredGraph, fixed: Mapping[str, Kernel], target: Target) -> Ram:
    """The arena of a graph on a target, as a function of the rows chosen; `fixed` are those of the other nodes."""
    known: dict[tuple[tuple[str, int, bool, bool], ...], Placement] = {}
    nodes = {n.name: n for n in graph.nodes}

    def asks(node: str, row: Kernel) -> tuple[int, bool, bool]:
        at = nodes[node]
        return row.workspace(graph, at), row.in_place(graph, at), row.residual_in_place

    def placed(rows: Rows) -> Placement:
        key = tuple((n, *asks(n, row)) for n, row in rows.items())
        if key not in known:
            known[key] = arrange(graph, Storage(graph, target.align), {**fixed, **rows})
        return known[key]

    def eased(node: str, rows: list[Kernel]) -> Kernel:
        spaces, places, residuals = zip(*(asks(node, row) for row in rows), strict=True)
        return replace(rows[0], workspace=lambda g, n: min(spaces), in_place=lambda g, n: any(places),
                       residual_in_place=any(residuals))  # fmt: skip

    return Ram(lambda rows: placed(rows).layout.arena, lambda rows: placed(rows).floor, asks, eased)
