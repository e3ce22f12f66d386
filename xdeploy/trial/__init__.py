"""Networks tried out on the target while they are planned: `device_of` gives what the planner asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xdeploy.recipe import Recipe
from xdeploy.request import Progress
from xdeploy.target import Target

if TYPE_CHECKING:
    from xdeploy.model.source import SourceModel
    from xdeploy.plan.device import Device

__all__ = ["device_of"]


def device_of(source: SourceModel, recipe: Recipe, targets: Sequence[Target], progress: Progress) -> Device | None:
    """The targets as the planner sees them; None where no budget of the plan is about them.

    Args:
        source: the network and the data that set activation ranges.
        recipe: budgets, and all that decides kernels and memory.
        targets: those asked for.
        progress: told about counting.
    """
    o = recipe.plan
    if o.ram is None and (o.instructions is None or o.instruction_table):
        return None
    from xdeploy.lower import Fallback
    from xdeploy.trial.device import TargetDevice
    from xdeploy.trial.lowered import SAMPLES, Lowering

    limit = min(recipe.data.calibration, SAMPLES)
    lowering = Lowering(
        source.network, source.io, lambda: (x for x, _ in source.train_batches(64, limit=limit)), recipe.compress,
        Fallback.of(recipe.lower, targets),
    )  # fmt: skip
    return TargetDevice(lowering, targets, recipe, progress)
