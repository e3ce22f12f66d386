"""The plan stage: the source's data and the recipe become one call of `allocate`, with the accuracy of its tries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.recipe import Recipe
from xdeploy.request import Progress
from xdeploy.target import Target

if TYPE_CHECKING:
    from xdeploy.model.source import SourceModel

SEARCH_BATCHES = 8  # of AT_ONCE samples, after each of which a plan may be given up
CLEAR = 4.0  # standard errors


def decide(
    source: SourceModel, recipe: Recipe, relevance: RelevanceMap, targets: Sequence[Target], progress: Progress
) -> CompressionPlan:
    """Choose channels, densities and weight formats.

    Args:
        source: network and data.
        recipe: all options.
        relevance: scores of the source's network.
        targets: that budgets of RAM and instructions are about.
        progress: told about the search.

    Raises:
        PlanError: no plan meets the budgets.
    """
    from xdeploy.compress.apply import Memory
    from xdeploy.compress.fakequant import FakeQuantModule
    from xdeploy.compressing import SEARCH_SAMPLES, apply_plan, rescorer
    from xdeploy.model.top1 import AT_ONCE, right
    from xdeploy.model.torchmodule import NetworkModule
    from xdeploy.plan.allocate import allocate
    from xdeploy.trial import device_of

    s, o = source, recipe
    before = right(NetworkModule(s.network), s.validation_batches(AT_ONCE, limit=SEARCH_SAMPLES))
    memory = Memory(s.network)

    def evaluate(plan: CompressionPlan) -> float:
        """Accuracy in percent, less one standard error of its (paired) difference from the float network's.

        A plan that is clearly too far below by part of the samples is not tried on the others.
        """
        module = FakeQuantModule(apply_plan(s, o, relevance, plan, progress, memory, search=True))
        batches, after = s.validation_batches(AT_ONCE, limit=SEARCH_SAMPLES), np.zeros(0, np.bool_)
        change = error = 0.0
        while len(after) < len(before) and change + CLEAR * error >= -o.plan.max_drop:
            after = np.concatenate([after, right(module, islice(batches, SEARCH_BATCHES))])
            told = before[: len(after)]
            change = 100.0 * float(after.mean() - told.mean())
            error = 100.0 * float((after != told).mean() ** 0.5 / len(after) ** 0.5)
        return 100.0 * float(before.mean()) + change - error

    return allocate(
        s.network, relevance, o.plan, evaluate, 100.0 * float(before.mean()), progress,
        o.compress.codebook_weighting, rescore=rescorer(s, o), device=device_of(s, o, targets, progress),
    )  # fmt: skip
