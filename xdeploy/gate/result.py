"""What a check of an artifact finds: one gate per limit and target, and what changed against a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from xdeploy import __version__
from xdeploy.gate.limits import Limits

SCHEMA = "xdeploy.gate/1"
Status = Literal["ok", "failed", "noted"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One limit on one target.

    rule: a key of `limits.RULES`. figure: its name for people. status: "noted" is not judged, `reason` says why.
    value: the quantity that was judged (value, unit, how, ...), None where there is none. limit: in the unit of the
    value, None where none is a number. headroom: percent of the limit that is left (points for accuracies), negative
    beyond it. warning: "" or what to know although it passed. source: the file of the value.
    """

    target: str
    rule: str
    figure: str
    status: Status
    reason: str
    value: Mapping[str, Any] | None = None
    limit: float | int | None = None
    headroom: float | None = None
    warning: str = ""
    source: Path = Path("bench.json")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; of the source only the name."""
        return {**asdict(self), "value": None if self.value is None else dict(self.value), "source": self.source.name}


@dataclass(frozen=True, slots=True)
class FigureChange:
    """A figure before and now, None where it is not known; `apart` says why the two are not comparable, if so."""

    key: str
    title: str
    unit: str
    before: float | int | None
    now: float | int | None
    how: str
    apart: str = ""


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer of which something changed; None: it is not there, or not counted, on that side.

    Each pair is (before, now): instructions executed, bytes of constants, weight format, names of the kernels.
    """

    origin: str
    instructions: tuple[int | None, int | None]
    bytes: tuple[int | None, int | None]
    format: tuple[str | None, str | None]
    kernel: tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Change:
    """One target against the baseline's: what is not comparable, all figures, the layers that changed, most first."""

    apart: tuple[str, ...]
    figures: tuple[FigureChange, ...]
    layers: tuple[LayerChange, ...]

    def __getitem__(self, key: str) -> FigureChange:
        return next(f for f in self.figures if f.key == key)


@dataclass(frozen=True, slots=True)
class TargetResult:
    """The gates of one target; change: None without a baseline that has this target."""

    target: str
    isa: str
    model: str
    sha256: str
    runner: str
    verdict: str
    gates: tuple[Gate, ...]
    change: Change | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        head = {k: getattr(self, k) for k in ("target", "isa", "model", "sha256", "runner", "verdict")}
        change = None if self.change is None else asdict(self.change)
        return {**head, "gates": [g.to_dict() for g in self.gates], "change": change}


@dataclass(frozen=True, slots=True)
class GateResult:
    """The outcome for an artifact folder; apart: which targets have no counterpart in the baseline."""

    folder: Path
    limits: Limits
    targets: tuple[TargetResult, ...]
    baseline: Path | None = None
    apart: tuple[str, ...] = ()

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Of all targets, in order."""
        return tuple(g for t in self.targets for g in t.gates)

    @property
    def failed(self) -> tuple[Gate, ...]:
        """The gates that failed."""
        return tuple(g for g in self.gates if g.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """The document of `--json`."""
        return {
            "schema": SCHEMA, "tool": {"name": "xdeploy", "version": __version__}, "artifact": str(self.folder),
            "baseline": None if self.baseline is None else str(self.baseline), "passed": self.passed,
            "limits": self.limits.to_dict(), "apart": list(self.apart),
            "targets": [t.to_dict() for t in self.targets],
        }  # fmt: skip
