"""Proposed points: within the space, repeatable, and of each target's own trials alone."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.sweep.conftest import defined
from xdeploy.sweep.definition import Definition
from xdeploy.sweep.samplers import POPULATION, distribution, propose, stored
from xdeploy.sweep.space import Choice, Range

SPACE = {
    "recover.lr": Range(1e-4, 1.0, log=True), "recover.epochs": Range(2, 8, 2, whole=True),
    "plan.density": Range(0.1, 0.5, 0.1), "plan.formats": Choice((["int8"], ["int4", "int8"])),
}  # fmt: skip


def _history(d: Definition, count: int) -> list[FrozenTrial]:
    """Trials of which a small lr is best in both objectives."""
    before: list[FrozenTrial] = []
    for position in range(count):
        s = propose(d, position, "cortex-m4", before)
        x = s.options["recover.lr"]
        params = {k: stored(SPACE[k], v) for k, v in s.options.items()}
        before.append(
            create_trial(
                state=TrialState.COMPLETE, values=[-x, x], params=params,
                distributions={k: distribution(v) for k, v in SPACE.items()}, user_attrs={"notes": s.notes},
            )
        )  # fmt: skip
    return before


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_points_are_in_the_space_and_repeatable(sampler: str) -> None:
    d = defined(SPACE, sampler=sampler)
    before = _history(d, 12)
    found = [propose(d, p, "cortex-m4", before) for p in range(20, 26)]
    for s in found:
        o: dict[str, Any] = s.options
        assert 1e-4 <= o["recover.lr"] <= 1.0
        assert o["recover.epochs"] in (2, 4, 6, 8)
        assert min(abs(o["plan.density"] - x / 10) for x in range(1, 6)) < 1e-9
        assert o["plan.formats"] in (["int8"], ["int4", "int8"])
        d.recipe(o)  # is one
    assert [propose(d, p, "cortex-m4", before).options for p in range(20, 26)] == [s.options for s in found]
    other = defined(SPACE, sampler=sampler, seed=1)
    assert propose(other, 20, "cortex-m4", before).options != found[0].options


def test_genetic_search_makes_generations() -> None:
    d = defined(SPACE, sampler="nsga2")
    before = _history(d, 3 * POPULATION)
    generations = [next(iter(t.user_attrs["notes"].values())) for t in before]
    assert generations == [i // POPULATION for i in range(3 * POPULATION)]
    mean = [sum(-t.values[0] for t in before[g * POPULATION : (g + 1) * POPULATION]) for g in (0, 2)]
    assert mean[1] < mean[0]  # it moves to where both objectives are better
