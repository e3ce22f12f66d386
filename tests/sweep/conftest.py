"""A small sweep that is never built, for the tests of the study itself."""

from __future__ import annotations

from xdeploy.recipe import Recipe
from xdeploy.sweep.definition import Definition
from xdeploy.sweep.objectives import objectives_of
from xdeploy.sweep.space import Choice, Dimension, Space


def defined(
    space: dict[str, Dimension] | None = None,
    targets: tuple[str, ...] = ("cortex-m4",),
    sampler: str = "grid",
    seed: int = 0,
) -> Definition:
    space = space or {"plan.flash": Choice((3000, 2000, 1000)), "relevance.method": Choice(("lrp", "magnitude"))}
    return Definition(
        None, None, None, None, {"recipe": Recipe()}, Space(space), targets,
        objectives_of(("accuracy", "flash")), sampler, seed, 1, {},
    )  # fmt: skip
