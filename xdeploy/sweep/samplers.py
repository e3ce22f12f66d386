"""Which point of the space a trial tries: Optuna's samplers, seeded by the trial's position.

A sampler is asked anew for each trial, in a study of its own in memory that holds what is known of the same target: so
one target's better figures do not draw the trials of the others, and a trial that is tried again gets the same seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna import create_study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from xdeploy.sweep.definition import Definition
from xdeploy.sweep.space import Choice, Dimension, Space

POPULATION = 24  # of NSGA-II: a few dozen to hundreds of trials make several generations


@dataclass(slots=True)
class Sampled:
    """A position, its target and its point; `notes` is what the sampler wants to know of the trial later."""

    position: int
    target: str
    options: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)
    trial: FrozenTrial | None = None

    @property
    def slot(self) -> FrozenTrial:
        """The trial in the storage."""
        assert self.trial is not None
        return self.trial


def write(storage: BaseStorage, space: Space, chosen: Sampled) -> None:
    """Make the point the parameters of its trial, whichever process has made the slot."""
    number = chosen.slot._trial_id
    for key, dimension in space.dimensions.items():
        d = distribution(dimension)
        storage.set_trial_param(number, key, d.to_internal_repr(stored(dimension, chosen.options[key])), d)
    storage.set_trial_user_attr(number, "options", chosen.options)
    storage.set_trial_user_attr(number, "notes", chosen.notes)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.labels)
    d = dimension
    if d.whole:
        return IntDistribution(int(d.low), int(d.high), log=d.log, step=int(d.step or 1))
    return FloatDistribution(d.low, d.high, log=d.log, step=d.step)


def stored(dimension: Dimension, value: Any) -> Any:
    """A value as the study stores it."""
    return json.dumps(value) if isinstance(dimension, Choice) else value


def _read(dimension: Dimension, value: Any) -> Any:
    return json.loads(value) if isinstance(dimension, Choice) else value


def propose(definition: Definition, position: int, target: str, before: Sequence[FrozenTrial]) -> Sampled:
    """The point of a position, in the light of what other trials of its target gave."""
    seed = int(hashlib.sha256(f"{definition.seed} {position}".encode()).hexdigest()[:8], 16)
    names = [o.direction for o in definition.objectives]
    shadow = create_study(directions=names, sampler=_sampler(definition.sampler, seed))
    space = {key: distribution(d) for key, d in definition.space.dimensions.items()}
    for t in before:
        if t.state == TrialState.COMPLETE and set(t.params) == set(space):
            notes = t.user_attrs.get("notes") or {}
            shadow.add_trial(create_trial(values=t.values, params=t.params, distributions=space, system_attrs=notes))
    asked = shadow.ask(space)
    options = {key: _read(definition.space.dimensions[key], v) for key, v in asked.params.items()}
    notes = {k: v for k, v in shadow.trials[-1].system_attrs.items() if "generation" in k}
    return Sampled(position, target, options, notes)


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=POPULATION)
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)
