"""How long the stages of a run will take: each one's work, by what is known of the model, and this machine's rates."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdeploy.errors import UsageError
from xdeploy.files import read_json
from xdeploy.forecast.rates import Estimate, Rates

if TYPE_CHECKING:
    from xdeploy.stages import Stages

_FLOAT = ("source", "score", "plan", "compress", "export", "lower")
_TRIES = 9  # networks that the search for a plan tries out
_BACKWARD = 3  # times the work of a forward pass that a training step is
_CHECKED = 1000  # samples that the exported file is run on


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides the work. macs: of one inference; train, validation, test: samples; epochs: of fine-tuning."""

    macs: int
    parameters: int
    train: int
    validation: int
    test: int
    scored: int
    calibration: int
    epochs: int

    def work(self, stage: str) -> float:
        """Units of a stage: samples read, multiply-accumulates, or, of `lower`, parameters."""
        m = float(self.macs)
        tuning = m * self.epochs * self.train * _BACKWARD
        units = {
            "source": float(self.train + self.validation + self.test),
            "score": m * self.scored,
            "plan": m * (self.validation * _TRIES + self.calibration),
            "compress": m * (self.calibration + 4 * self.validation) + tuning,
            "export": m * min(_CHECKED, self.validation or _CHECKED),
            "lower": float(self.parameters),
            "explain": m * self.scored,
            "accuracy": m * 3 * self.test,
        }
        return units.get(stage, m)  # a target runs a few inferences


def facts_of(stages: Stages) -> Facts | None:
    """What source.json tells; None: it is not there yet."""
    with contextlib.suppress(UsageError):
        source = read_json(stages.folder / "source.json", "xdeploy.source/1")
        data, o = source["data"] or {}, stages.recipe
        train, held = int(data.get("train", 0)), int(data.get("validation", 0))
        return Facts(
            int(source["model"]["macs"]), int(source["model"]["parameters"]), train, min(held, 2000),
            int(data.get("test", 0)), min(o.relevance.samples, train), min(o.data.calibration, train),
            o.recover.epochs,
        )  # fmt: skip
    return None


def names(stages: Stages, until: str) -> list[str]:
    """The stages of a run up to `until`, in order, targets by their names."""
    early = ["lower"] if stages.quantised else list(_FLOAT)
    targets = [t.name for t in stages.targets]
    if until in ("build", "report"):
        return [*early, *targets, *(["accuracy"] if until == "report" else [])]
    if until == "explain":
        return ["source", "score", "explain"]
    return early if stages.quantised else early[: early.index(until) + 1]


def forecast(stages: Stages, until: str) -> dict[str, Estimate]:
    """Stage -> what it will take; 0 seconds where it will be skipped. Empty while the model is not known."""
    facts = facts_of(stages)
    if facts is None:
        return {}
    rates = Rates()

    def one(name: str) -> Estimate:
        if stages.store.is_fresh(name, stages.keys[name]):
            return Estimate(0.0, 0)
        return rates.expect(_kept_as(stages, name), _kind(stages, name), facts.work(name))

    return {name: one(name) for name in names(stages, until)}


def note(stages: Stages, name: str, seconds: float) -> None:
    """Remember how long a stage took, for the next forecast."""
    facts = facts_of(stages)
    if facts is not None:
        Rates().note(_kept_as(stages, name), facts.work(name), seconds)


def _kind(stages: Stages, name: str) -> str:
    return next((t.kind for t in stages.targets if t.name == name), name)


def _kept_as(stages: Stages, name: str) -> str:
    """Under which name: a file that is kept as it is, and kernels that are tuned, are other work."""
    kept = " of a quantised file" if stages.quantised and name in ("lower", "accuracy") else ""
    tuned = stages.recipe.tune.effort if _kind(stages, name) != name else "off"
    return f"{name}{kept}{'' if tuned == 'off' else f', tune {tuned}'}"
