"""What the plan decides: channels kept, weights kept, and which weight format each layer gets.

Formats are an integer programme over relevance-weighted distortion and budgets: minimise sum_l D[l, f(l)] subject to
sum_l B[l, f(l)] <= budget, one format per layer (that of Yao et al. 2021, HAWQ-V3, with relevance sensitivity in place
of the Hessian trace), solved exactly. Without a budget the smallest plan is searched whose network still has the
accuracy asked for. `rules` holds other ways to choose, to compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from xdeploy.errors import PlanError
from xdeploy.handover import CompressionPlan, RelevanceMap, quantity
from xdeploy.model.groups import prune
from xdeploy.model.network import Network
from xdeploy.model.removal import cut_relevance
from xdeploy.plan import solver
from xdeploy.plan.channels import Removal
from xdeploy.plan.cost import CostTable, Progress, cost_table
from xdeploy.plan.density import share_out
from xdeploy.plan.device import Device
from xdeploy.plan.explain import Decided, build_plan, column_plan
from xdeploy.plan.fitting import narrow, within_ram
from xdeploy.plan.limits import Count, Instructions, limits_of
from xdeploy.plan.rounds import Rescore, remove_channels
from xdeploy.plan.rules import PATHS, levels_of
from xdeploy.plan.solver import Choice, Limit, least_size
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
    instructions: Instructions | None = None,
    rescore: Rescore | None = None,
    device: Device | None = None,
) -> CompressionPlan:
    """Choose the channels, the density and the weight format of every weighted layer.

    First `options.channels`, then `options.density` of what is left, then formats: with a budget (flash, coded, bops,
    instructions) the plan of least distortion that meets it. Otherwise, with `evaluate`, the smallest plan found by
    bisection whose accuracy is at least the float accuracy minus `options.max_drop`. With neither, the plan of least
    distortion. With `options.ram` and a device, channels go until the arena fits (see `fitting`), and formats whose
    kernels need more scratch than is left are out; without a device it is only recorded.

    Args:
        network: the float network.
        relevance: its scores; None counts all weights alike.
        options: allowed formats, budgets, shares and pinned layers.
        evaluate: validation accuracy in percent of the network compressed by a plan, without fine-tuning.
        float_accuracy: the same of the float network; None: the most accurate plan's takes its place.
        progress: told (what, done, total).
        weighting: exponent of the sensitivity inside the quantisers, as `compress` will use it.
        instructions: layer -> weight format -> measured instructions; None: those of options.instruction_table.
        rescore: scores a network whose channels were removed anew, between rounds; None: the old scores are cut.
        device: tells the arena, and the instructions where neither `instructions` nor a table does.

    Raises:
        PlanError: no plan fits a budget (with the least feasible one), or no plan is accurate enough.
    """
    removal, small, scores = _without_channels(network, relevance, options, rescore, progress)
    if device is not None and options.ram is not None:
        narrowed = narrow(network, relevance, removal, options, device, progress)
        removal, small, scores = narrowed.removal, narrowed.network, narrowed.relevance
    sharings = share_out(small, scores, options)
    if len(sharings) > 1 and options.rule not in ("ilp", "hawq"):
        raise PlanError(
            f"plan.rule = {options.rule!r} takes one plan.density, not {len(sharings)}", hint="or plan.rule = 'ilp'"
        )
    priced = _hawq(scores) if options.rule == "hawq" else scores
    table = cost_table(small, priced, options.formats, options.fixed, weighting, progress, sharings)
    decided = Decided(network, small, relevance, options, table, removal)
    counted = None if device is None else _count(decided, scores, device)

    def decide(within: Decided) -> CompressionPlan:
        limits, budget = limits_of(options, within.table, instructions, counted), _recorded(options)
        search = _Search(within, limits, evaluate, float_accuracy, progress, budget)
        choice = search.along(options.rule, scores) if options.rule in PATHS else search.exact()
        return _told(build_plan(within, choice, budget), limits, choice)

    if device is None or options.ram is None:
        return decide(decided)
    return _in_ram(decided, scores, options.ram, device, decide)


def _count(decided: Decided, scores: RelevanceMap | None, device: Device) -> Count:
    """Counts the instructions of the layers in one column, each column once."""
    known: dict[int, Mapping[str, int]] = {}

    def count(column: int) -> Mapping[str, int]:
        if column not in known:
            known[column] = device.instructions(decided.small, column_plan(decided, column), scores)
        return known[column]

    return count


def _in_ram(
    decided: Decided,
    scores: RelevanceMap | None,
    ram: int,
    device: Device,
    decide: Callable[[Decided], CompressionPlan],
) -> CompressionPlan:
    """A plan whose arena, laid out with all its formats together, is at most `ram` bytes.

    Raises:
        PlanError: there is none.
    """
    small, table = decided.small, decided.table
    fits, words = within_ram(table, lambda j: column_plan(decided, j), small, scores, ram, device)
    while True:
        plan = decide(replace(decided, table=replace(table, allowed=fits), excluded=words))
        arena = device.arena(small, plan, scores, ram)
        if arena.size <= ram:
            note = f"on {arena.target}, most while {arena.at} runs"
            size = quantity(arena.size, "byte", "modelled", note=note)
            return replace(plan, predicted={**plan.predicted, "arena": size})
        row = table.layers.index(arena.at) if arena.at in table.layers else None
        # what fits alone may not fit together: offsets leave gaps, and bands are chosen for the whole
        if row is None or fits[row].sum() < 2:
            raise PlanError(
                f"the arena of the plan takes {arena.size} bytes on {arena.target}, plan.ram is {ram}",
                hint=f"raise plan.ram to {arena.size}, or lower plan.channels",
            )
        fits = fits.copy()
        fits[row] &= np.array(table.formats) != plan[arena.at].weight_format
        if not fits[row].any():
            raise PlanError(
                f"{arena.at}: no format of it fits plan.ram = {ram} bytes; the arena takes {arena.size}",
                hint=f"raise plan.ram to {arena.size}",
            )


def _told(plan: CompressionPlan, limits: tuple[Limit, ...], choice: Choice) -> CompressionPlan:
    """With the instructions that the plan is predicted to take, where they are counted."""
    found = next((x for x in limits if x.name == "plan.instructions"), None)
    if found is None:
        return plan
    what = quantity(found.of(choice), "instruction", "emulated", note="sum over the kernels, each measured alone")
    return replace(plan, predicted={**plan.predicted, "instructions": what})


def solve(table: CostTable, budget: int, limits: tuple[Limit, ...] = ()) -> Choice:
    """The choice of least total distortion within `budget` bytes and the limits; PlanError if nothing fits."""
    return solver.solve(table.size, table.distortion, table.allowed, budget, limits)


def _without_channels(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    rescore: Rescore | None,
    progress: Progress | None,
) -> tuple[Removal | None, Network, RelevanceMap | None]:
    if options.channels is None:
        return None, network, relevance
    removal = remove_channels(network, relevance, options, rescore, progress)
    assert relevance is not None  # without it no channel was ranked
    return removal, prune(network, removal.keep), cut_relevance(network, relevance, removal.keep)


def _hawq(relevance: RelevanceMap | None) -> RelevanceMap:
    """HAWQ's sensitivities: every weight has the mean of its layer (the Hessian's trace over n), for ||W - Q(W)||^2."""
    if relevance is None:
        raise PlanError("plan.rule = 'hawq' needs sensitivities", hint="score with relevance.method = 'hessian-trace'")
    mean = {n: np.full_like(s, np.asarray(s, np.float64).mean()) for n, s in relevance.sensitivity.items()}
    return replace(relevance, sensitivity=mean)


def _recorded(options: PlanOptions) -> dict[str, Any]:
    """The options that made the plan, for its budget: always the first ones, others where they are not the default."""
    budget: dict[str, Any] = {"flash": options.flash, "ram": options.ram, "formats": list(options.formats)}
    usual = PlanOptions()
    for key in (
        "rule", "coded", "bops", "instructions", "density", "density_by", "least_density", "zeros", "zeros_per",
        "channels", "channels_of", "channels_by", "least_channels", "whole", "rounds",
    ):  # fmt: skip
        value = getattr(options, key)
        if value != getattr(usual, key):
            budget[key] = list(value) if isinstance(value, tuple) else value
    return budget


class _Search:
    """The choice by budgets, or the smallest plan that is accurate enough."""

    def __init__(
        self,
        decided: Decided,
        limits: tuple[Limit, ...],
        evaluate: Evaluate | None,
        float_accuracy: float | None,
        progress: Progress | None,
        budget: dict[str, Any],
    ) -> None:
        self.decided, self.table, self.options = decided, decided.table, decided.options
        self.limits, self.evaluate, self.float_accuracy = limits, evaluate, float_accuracy
        self.progress, self.budget = progress, budget
        # where the plan chooses among densities the device's bytes do not tell them apart
        self.size = self.table.coded if len(set(map(id, self.table.sharings))) > 1 else self.table.size
        self.seen: dict[bytes, float] = {}

    # ------------------------------------------------------------------------------------ the integer programme
    def exact(self) -> Choice:
        """By the integer programme."""
        most = int(np.where(self.table.allowed, self.table.size, 0).max(axis=1).sum())
        flash = self.options.flash
        if flash is not None:
            least = least_size(self.table.size, self.table.allowed)
            if flash < least:
                raise PlanError(
                    f"no plan fits plan.flash = {flash} bytes; the smallest with these formats needs {least} bytes",
                    hint=f"raise plan.flash to {least}, or allow formats with fewer bits",
                )
        if flash is not None or self.limits:
            return solve(self.table, most if flash is None else flash, self.limits)
        if self.evaluate is None:
            return solve(self.table, int(self.table.size.max(axis=1).sum()))
        self.budget["max_drop"] = self.options.max_drop
        return self._smallest()

    def _within(self, size: int) -> Choice:
        return solver.solve(self.size, self.table.distortion, self.table.allowed, size)

    def _smallest(self) -> Choice:
        """The smallest accurate choice found; records what was searched in `budget`."""
        most = int(np.where(self.table.allowed, self.size, 0).max(axis=1).sum())
        high = self._within(most)
        low = self._within(least_size(self.size, self.table.allowed))
        wanted = self._wanted(high)
        best = self._bisect(low, high, wanted)
        self.budget.update(accuracy=self._accuracy(best), evaluations=len(self.seen))
        return best

    def _wanted(self, most_accurate: Choice) -> float:
        """The accuracy asked for, in percent; PlanError if not even the most accurate choice has it."""
        top = self._accuracy(most_accurate)
        reference = top if self.float_accuracy is None else self.float_accuracy
        wanted = reference - self.options.max_drop
        self.budget.update(reference_accuracy=reference, accuracy_floor=wanted)
        if top < wanted:
            raise PlanError(
                f"even the most accurate plan drops from {reference:.2f} % to {top:.2f} %; "
                f"plan.max_drop allows {self.options.max_drop:g} points",
                hint="allow formats with more bits, raise plan.max_drop, or give plan.flash and recover.epochs instead",
            )
        return wanted

    def _bisect(self, low: Choice, high: Choice, wanted: float) -> Choice:
        """Halve the gap between the largest failing and the smallest passing number of bytes."""
        if self._accuracy(low) >= wanted:
            return low
        fails, passes, best = self._bytes(low), self._bytes(high), high
        for _ in range(SEARCH_STEPS):
            if passes - fails < 2:
                break
            middle = (passes + fails) // 2
            choice = self._within(middle)
            if self._accuracy(choice) >= wanted:
                best, passes = choice, self._bytes(choice)
            else:
                fails = middle
        return best

    # ------------------------------------------------------------------------------------------- other rules
    def along(self, rule: str, scores: RelevanceMap | None) -> Choice:
        """By the path of a rule: the first choice within all budgets, or the last that is accurate enough."""
        path = list(PATHS[rule](self.table, levels_of(self.table), scores))
        limits = list(self.limits)
        if self.options.flash is not None:
            limits.insert(0, Limit("plan.flash", "bytes", self.table.size, self.options.flash))
        if limits:
            found = next((c for c in path if all(x.of(c) <= x.bound for x in limits)), None)
            if found is None:
                told = ", ".join(f"{x.name} = {x.bound} {x.unit} (least {min(map(x.of, path))})" for x in limits)
                raise PlanError(
                    f"no plan of plan.rule = {rule!r} meets {told}",
                    hint="raise the budget, allow formats with fewer bits, or take plan.rule = 'ilp'",
                )
            return found
        if self.evaluate is None or len(path) == 1:
            return path[0]
        self.budget["max_drop"] = self.options.max_drop
        wanted = self._wanted(path[0])
        passes, fails = 0, len(path)
        while fails - passes > 1:  # accuracy is taken to fall along the path
            middle = (passes + fails) // 2
            if self._accuracy(path[middle]) >= wanted:
                passes = middle
            else:
                fails = middle
        self.budget.update(accuracy=self._accuracy(path[passes]), evaluations=len(self.seen))
        return path[passes]

    def _bytes(self, choice: Choice) -> int:
        return int(self.size[np.arange(len(choice)), choice].sum())

    def _accuracy(self, choice: Choice) -> float:
        key = choice.tobytes()
        if key not in self.seen:
            assert self.evaluate is not None
            self.seen[key] = float(self.evaluate(build_plan(self.decided, choice, self.budget)))
            if self.progress is not None:
                self.progress("search plan", len(self.seen), SEARCH_STEPS + 2)
        return self.seen[key]
