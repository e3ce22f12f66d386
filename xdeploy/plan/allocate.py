"""Which weight format each layer gets: an integer programme over relevance-weighted distortion and bytes.

minimise sum_l D[l, f(l)] subject to sum_l B[l, f(l)] <= budget, one format per layer (the integer programme of Yao et
al. 2021, HAWQ-V3, with relevance sensitivity in place of the Hessian trace), solved exactly. Without a flash budget the
smallest one is searched whose network still has the accuracy asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xdeploy.errors import PlanError
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.network import Network
from xdeploy.plan import solver
from xdeploy.plan.cost import CostTable, Progress, cost_table
from xdeploy.plan.explain import build_plan
from xdeploy.plan.solver import Choice, least_size
from xdeploy.recipe import PlanOptions

Evaluate = Callable[[CompressionPlan], float]  # validation accuracy in percent

SEARCH_STEPS = 6  # bisections after the two ends


def allocate(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    evaluate: Evaluate | None = None,
    float_accuracy: float | None = None,
    progress: Progress | None = None,
    weighting: float = 0.5,
) -> CompressionPlan:
    """Choose a weight format for every weighted layer.

    With `options.flash` the plan of least distortion that fits. Otherwise, with `evaluate`, the smallest plan found by
    bisection whose accuracy is at least the float accuracy minus `options.max_drop`. With neither, the plan of least
    distortion. `options.ram` is recorded; whether activations fit is known when memory is planned.

    Args:
        network: the float network.
        relevance: its scores; None counts all weights alike.
        options: allowed formats, budgets and pinned layers.
        evaluate: validation accuracy in percent of the network compressed by a plan, without fine-tuning.
        float_accuracy: the same of the float network; None: the most accurate plan's takes its place.
        progress: told (what, done, total).
        weighting: exponent of the sensitivity inside the quantisers, as `compress` will use it.

    Raises:
        PlanError: no plan fits the budget (with the least feasible bytes), or no plan is accurate enough.
    """
    table = cost_table(network, relevance, options.formats, options.fixed, weighting, progress)
    budget: dict[str, Any] = {"flash": options.flash, "ram": options.ram, "formats": list(options.formats)}
    if options.flash is not None:
        least = least_size(table.size, table.allowed)
        if options.flash < least:
            raise PlanError(
                f"no plan fits plan.flash = {options.flash} bytes; the smallest with these formats needs {least} bytes",
                hint=f"raise plan.flash to {least}, or allow formats with fewer bits",
            )
        choice = solve(table, options.flash)
    elif evaluate is not None:
        budget["max_drop"] = options.max_drop
        search = _Search(network, relevance, options, evaluate, float_accuracy, progress, table, budget)
        choice = search.run()
    else:
        choice = solve(table, int(table.size.max(axis=1).sum()))
    return build_plan(network, relevance, options, table, choice, budget)


def solve(table: CostTable, budget: int) -> Choice:
    """The choice of least total distortion within `budget` bytes; PlanError if nothing fits."""
    return solver.solve(table.size, table.distortion, table.allowed, budget)


class _Search:
    """Bisection over budgets for the smallest plan that is accurate enough."""

    def __init__(
        self,
        network: Network,
        relevance: RelevanceMap | None,
        options: PlanOptions,
        evaluate: Evaluate,
        float_accuracy: float | None,
        progress: Progress | None,
        table: CostTable,
        budget: dict[str, Any],
    ) -> None:
        self.network, self.relevance, self.options, self.evaluate = network, relevance, options, evaluate
        self.float_accuracy, self.progress, self.table, self.budget = float_accuracy, progress, table, budget
        self.seen: dict[bytes, float] = {}

    def run(self) -> Choice:
        """The smallest accurate choice found; records what was searched in `budget`."""
        most = int(np.where(self.table.allowed, self.table.size, 0).max(axis=1).sum())
        high = solve(self.table, most)
        low = solve(self.table, least_size(self.table.size, self.table.allowed))
        top = self._accuracy(high)
        reference = top if self.float_accuracy is None else self.float_accuracy
        wanted = reference - self.options.max_drop
        self.budget.update(reference_accuracy=reference, accuracy_floor=wanted)
        if top < wanted:
            raise PlanError(
                f"even the most accurate plan drops from {reference:.2f} % to {top:.2f} %; "
                f"plan.max_drop allows {self.options.max_drop:g} points",
                hint="allow formats with more bits, raise plan.max_drop, or give plan.flash and recover.epochs instead",
            )
        best = self._bisect(low, high, wanted)
        self.budget.update(accuracy=self._accuracy(best), evaluations=len(self.seen))
        return best

    def _bisect(self, low: Choice, high: Choice, wanted: float) -> Choice:
        """Halve the gap between the largest failing and the smallest passing number of bytes."""
        if self._accuracy(low) >= wanted:
            return low
        fails, passes, best = self._bytes(low), self._bytes(high), high
        for _ in range(SEARCH_STEPS):
            if passes - fails < 2:
                break
            middle = (passes + fails) // 2
            choice = solve(self.table, middle)
            if self._accuracy(choice) >= wanted:
                best, passes = choice, self._bytes(choice)
            else:
                fails = middle
        return best

    def _bytes(self, choice: Choice) -> int:
        return int(self.table.size[np.arange(len(choice)), choice].sum())

    def _accuracy(self, choice: Choice) -> float:
        key = choice.tobytes()
        if key not in self.seen:
            plan = build_plan(self.network, self.relevance, self.options, self.table, choice, self.budget)
            self.seen[key] = float(self.evaluate(plan))
            if self.progress is not None:
                self.progress("search plan", len(self.seen), SEARCH_STEPS + 2)
        return self.seen[key]
