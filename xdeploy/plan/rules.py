"""Other ways to spend bits than the integer programme: each gives a path of choices from the most bytes to the fewest.

The plan takes the first step of the path that meets the budgets, or the last one that is accurate enough.

* `uniform`: every layer the same format.
* `memory-driven` (Rusci et al. 2020, arXiv 1905.13082; section 4 and its code): the first of the layers whose share of
  the weight bytes is within 5 points of the largest goes one format down. It asks nothing of the data.
* `greedy` (a reading of Sabih et al. 2020, arXiv 2008.09072): the layers by rising relevance per weight go one format
  down each, then all once more, to the last format.
* `quantile` (a reading of Soroush et al. 2023, arXiv 2507.05286): by their relevance per weight the upper quarter of
  the layers has the largest format, the next half the middle one, the rest the smallest; one step only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from xdeploy.errors import PlanError
from xdeploy.formats import weight_format
from xdeploy.handover import RelevanceMap
from xdeploy.plan.cost import CostTable
from xdeploy.plan.solver import Choice

NEAR_LARGEST = 0.05  # delta of the memory-driven rule, a share of all weight bytes
QUARTERS = (0.25, 0.75)  # quantiles between the formats of the quantile rule

Levels = list[list[int]]  # per layer: its columns, the most bits first
Path = Callable[[CostTable, Levels, RelevanceMap | None], Iterator[Choice]]


def levels_of(table: CostTable) -> Levels:
    """Each layer's allowed columns, one for each number of bits (the first of equals), the most bits first."""
    found: Levels = []
    for allowed in table.allowed:
        bits: dict[int, int] = {}
        for j in np.flatnonzero(allowed):
            bits.setdefault(weight_format(table.formats[j]).bits, int(j))
        found.append([bits[b] for b in sorted(bits, reverse=True)])
    return found


def per_weight(table: CostTable, relevance: RelevanceMap | None) -> list[float]:
    """Mean |relevance| of each layer's weights.

    Raises:
        PlanError: there is no relevance.
    """
    if relevance is None:
        raise PlanError("this plan.rule orders layers by relevance, which is missing", hint="score the network first")
    return [float(np.abs(relevance.weight[n]).mean(dtype=np.float64)) for n in table.layers]


def uniform(table: CostTable, levels: Levels, relevance: RelevanceMap | None) -> Iterator[Choice]:
    """Every layer the same number of bits; a layer that is not allowed them, the next fewer or its fewest."""
    bits = [[weight_format(table.formats[j]).bits for j in row] for row in levels]
    for most in sorted({b for row in bits for b in row}, reverse=True):
        yield _choice(levels, [next((k for k, b in enumerate(row) if b <= most), len(row) - 1) for row in bits])


def memory_driven(table: CostTable, levels: Levels, relevance: RelevanceMap | None) -> Iterator[Choice]:
    """The cut of Rusci et al., one layer one level at a time."""
    at = [0] * len(levels)
    while True:
        choice = _choice(levels, at)
        yield choice
        size = table.size[np.arange(len(levels)), choice]
        able = [k for k, row in enumerate(levels) if at[k] + 1 < len(row)]
        if not able:
            return
        share = size / size.sum()
        largest = max(share[k] for k in able)
        at[next(k for k in able if share[k] >= largest - NEAR_LARGEST)] += 1


def greedy(table: CostTable, levels: Levels, relevance: RelevanceMap | None) -> Iterator[Choice]:
    """The least relevant layers first, one level in each round."""
    order = np.argsort(per_weight(table, relevance), kind="stable")
    at = [0] * len(levels)
    yield _choice(levels, at)
    for level in range(1, max(map(len, levels))):
        for k in order:
            if level < len(levels[k]):
                at[k] = level
                yield _choice(levels, at)


def quantile(table: CostTable, levels: Levels, relevance: RelevanceMap | None) -> Iterator[Choice]:
    """More bits for layers of higher mean score."""
    score = np.asarray(per_weight(table, relevance))
    rank = np.empty(len(score))
    rank[np.argsort(-score, kind="stable")] = (np.arange(len(score)) + 0.5) / len(score)
    part = [sum(r >= q for q in QUARTERS) / len(QUARTERS) for r in rank]
    yield _choice(levels, [round(p * (len(row) - 1)) for p, row in zip(part, levels, strict=True)])


PATHS: dict[str, Path] = {
    "uniform": uniform,
    "memory-driven": memory_driven,
    "greedy": greedy,
    "quantile": quantile,
}


def _choice(levels: Levels, at: list[int]) -> Choice:
    return np.array([row[min(k, len(row) - 1)] for row, k in zip(levels, at, strict=True)], np.intp)
