"""What a sweep makes large or small, and where a trial's value of it stands in its run folder.

Accuracy is the compressed network's on the validation samples: nothing that is selected by has seen the test data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xdeploy.errors import DeviceError, UsageError, choose_from
from xdeploy.files import read_json
from xdeploy.handover import Measurement, quantity

DEFAULT = ("accuracy", "flash", "instructions")
_BENCH = ("flash", "ram", "arena", "stack", "instructions", "cycles", "latency", "energy")
NAMES = ("accuracy", *_BENCH, "coded")


@dataclass(frozen=True, slots=True)
class Objective:
    """One quantity; of `accuracy` more is better, of all others less."""

    name: str

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna names it."""
        return "maximize" if self.name == "accuracy" else "minimize"

    def better(self, a: float, b: float) -> bool:
        """Whether a is better than b."""
        return a > b if self.name == "accuracy" else a < b


def objectives_of(names: Sequence[str]) -> tuple[Objective, ...]:
    """The objectives of these names.

    Raises:
        UsageError: none, an unknown name, or one given twice.
    """
    for name in names:
        if name not in NAMES:
            raise choose_from("objective", name, NAMES)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"objectives must be some names, each once; got {', '.join(names) or 'none'}")
    return tuple(map(Objective, names))


def measured(
    folder: Path, target: str, objectives: Sequence[Objective], board: Measurement | None = None
) -> dict[str, dict[str, Any]]:
    """The quantities of a trial whose run folder is built, by objective; what a board tells goes before its runner's.

    Raises:
        DeviceError: the built code differs from the reference.
        UsageError: the target's runner does not tell a quantity.
    """
    bench = Measurement.load(folder / target / "bench.json")
    if bench.verdict == "differs":
        raise DeviceError(f"{target}: outputs differ from the reference: {bench.reason}")
    found: dict[str, dict[str, Any]] = {}
    quantities = {**bench.quantities, **(board.quantities if board is not None else {})}
    for objective in objectives:
        if objective.name == "accuracy":
            value = _validation(folder)
        elif objective.name == "coded":
            value = quantity((folder / "model.xdc").stat().st_size, "byte", "measured", note="model.xdc")
        else:
            value = quantities.get(objective.name) or {}
        if value.get("value") is None:
            raise UsageError(
                f"{target}: runner {bench.runner} tells no {objective.name}",
                hint="choose other objectives with --objective, or a target with an emulator",
            )
        found[objective.name] = value
    return found


def _validation(folder: Path) -> dict[str, Any]:
    """Accuracy of the final integers, simulated in torch, after the last step of compression."""
    steps = read_json(folder / "compressed.json", "xdeploy.compressed/1")["steps"]
    if not steps:
        return {}
    note = "validation samples, final integers simulated in torch"
    return quantity(steps[-1]["accuracy_after"], "%", "measured", n=steps[-1]["n"], note=note)
