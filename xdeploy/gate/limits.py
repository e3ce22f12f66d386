"""What an artifact may cost and must reach: the figures that can be limited, and how limits are read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from xdeploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class Figure:
    """A cost that every target may have: its key in bench.json and in `Limits`, its unit there, its name for people."""

    key: str
    unit: str
    title: str


FIGURES = (
    Figure("flash", "byte", "flash"),
    Figure("ram", "byte", "RAM"),
    Figure("arena", "byte", "arena"),
    Figure("stack", "byte", "stack"),
    Figure("instructions", "instruction", "instructions"),
    Figure("cycles", "cycle", "cycles"),
    Figure("latency", "s", "latency"),
    Figure("energy", "J", "energy"),
)
RULES: Mapping[str, str] = {
    "bit-exact": "The outputs of the built code equal the reference bit for bit.",
    **{f"max-{f.key}": f"{f.title[0].upper()}{f.title[1:]} stays within its limit." for f in FIGURES},
    "min-accuracy": "The deployed code reaches the accuracy asked for.",
    "max-drop": "The deployed code loses no more accuracy than allowed against the float network.",
    "max-drop-baseline": "The deployed code loses no more accuracy than allowed against the baseline.",
    **{f"max-growth-{f.key}": f"{f.title[0].upper()}{f.title[1:]} grows no more than allowed." for f in FIGURES},
    "deployable": "Every node of the model has an integer form and a kernel, and the model fits.",
    "float-part": "No node runs in float.",
}
_COUNTS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_PARTS = {"": Decimal(1), "m": Decimal("1e-3"), "u": Decimal("1e-6"), "µ": Decimal("1e-6"), "μ": Decimal("1e-6"),
          "n": Decimal("1e-9")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an artifact may cost and the least it must reach; None: not judged.

    flash, ram, arena, stack: bytes. instructions, cycles: counts per inference. latency: seconds per inference.
    energy: joules per inference. accuracy: of the deployed code, a share up to 1 (0.9), or above 1 percent up to 100
    (90). drop: points of accuracy that may be lost against the float network and, if there is one, the baseline.
    growth: percent that each cost may be above the baseline's. strict: the high end of an error bar is held to the
    limit in place of the value. allow_not_run: "not run" is let through where the outputs could not be compared.

    Raises:
        UsageError: a limit that is no finite number of 0 or more; an accuracy or drop above 100.
    """

    flash: int | None = None
    ram: int | None = None
    arena: int | None = None
    stack: int | None = None
    instructions: int | None = None
    cycles: int | None = None
    latency: float | None = None
    energy: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    growth: float | None = None
    strict: bool = False
    allow_not_run: bool = False

    def __post_init__(self) -> None:
        for key, value in self.given().items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise UsageError(f"the limit for {key} is {value!r}; it must be a finite number, 0 or more")
            if key in ("accuracy", "drop") and value > 100:
                raise UsageError(f"the limit for {key} is {value!r}; it can be 100 at most")

    def given(self) -> dict[str, Any]:
        """The limits that are set, by name, without the two switches."""
        names = [f.name for f in fields(self) if f.name not in ("strict", "allow_not_run")]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def percent(self) -> Fraction:
        """The accuracy asked for in percent, exact; 0 where none is."""
        value = exact(self.accuracy or 0)
        return value * 100 if value <= 1 else value

    def to_dict(self) -> dict[str, Any]:
        """JSON form: what is set, and the switches."""
        return {**self.given(), "strict": self.strict, "allow_not_run": self.allow_not_run}


def exact(value: float) -> Fraction:
    """A number as it was written: 0.1 is a tenth, not the float beside it."""
    return Fraction(value) if isinstance(value, int) else Fraction(repr(float(value)))


def _split(text: str, what: str, example: str, units: Mapping[str, Any]) -> tuple[Decimal, Any]:
    """The number at the front and the factor of the unit behind it.

    Raises:
        UsageError: no number, another unit.
    """
    digits = text.strip().rstrip("".join(units) + "kKMGmuµμnsJ% ")
    try:
        number, factor = Decimal(digits), units[text.strip()[len(digits) :].strip()]
    except (InvalidOperation, KeyError):
        raise UsageError(f"{text!r} is no {what}; examples: {example}") from None
    if not number.is_finite() or number < 0 or abs(number.adjusted()) > 30:
        raise UsageError(f"{text!r} is no {what}: it must be a finite number, 0 or more; examples: {example}")
    return number, factor


def count(text: str) -> int:
    """A count of instructions or cycles, decimal: 20M = 20,000,000."""
    number, factor = _split(text, "count", "20M, 350k, 1200000", _COUNTS)
    return int(number * factor)


def seconds(text: str) -> float:
    """A time with its unit, in seconds."""
    number, factor = _split(text, "time", "50ms, 800us, 1.5s", {f"{k}s": v for k, v in _PARTS.items()})
    return float(number * factor)


def joules(text: str) -> float:
    """An energy with its unit, in joules."""
    number, factor = _split(text, "energy", "5mJ, 300uJ, 1J", {f"{k}J": v for k, v in _PARTS.items()})
    return float(number * factor)


def accuracy(text: str) -> float:
    """An accuracy: a share up to 1, or percent above 1; "90%" is 90.

    Raises:
        UsageError: no number, above 100, or a percentage so small that it would read as a share.
    """
    number, _ = _split(text, "accuracy", "0.9, 90, 90%", {"": 1, "%": 1})
    if "%" in text and number <= 1:
        raise UsageError(f"{text!r}: numbers up to 1 are shares, 1 is all", hint="leave the % out: 0.9 is 90 %")
    return float(number)


def points(text: str) -> float:
    """Percent or points of it: "2%" or "2"."""
    number, _ = _split(text, "percentage", "2%, 0.5", {"": 1, "%": 1})
    return float(number)
