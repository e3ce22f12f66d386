"""The space of a sweep: dimensions, each a recipe key (or a recipe file) with the values that it may take.

A space file is a recipe whose values are lists or ranges:

    [plan]
    flash = ["32K", "24K", "16K"]                       # one of these
    density = { low = 0.1, high = 0.5, step = 0.1 }     # of a range; step or log = true, or neither
    [relevance]
    method = ["lrp", "magnitude"]
"""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError, choose_from
from xdeploy.recipe import Recipe

BUDGETS = {name: f"plan.{name}" for name in ("flash", "ram", "coded", "instructions", "bops")}
RECIPE = "recipe"  # the dimension whose values are whole recipes, by name
_BYTES = frozenset({"plan.flash", "plan.ram", "plan.coded", "tune.flash", "tune.ram"})
_COUNTS = frozenset({"plan.instructions", "plan.bops"})
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)(?:i?[bB])?")
_MOST = 100_000  # points of a grid


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values; labels are what the study stores, as its storage takes no lists."""

    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """A text for each value, all different."""
        return tuple(json.dumps(v) for v in self.values)


@dataclass(frozen=True, slots=True)
class Range:
    """A number in low..high: whole where `whole`, in steps from low, or even on a logarithmic scale."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def listed(self) -> tuple[Any, ...] | None:
        """All its values; None: they are not counted."""
        step = self.step if self.step is not None else (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(self._number(self.low + i * step) for i in range(count))

    def _number(self, value: float) -> float | int:
        return int(value) if self.whole else float(f"{value:.12g}")


Dimension = Choice | Range


@dataclass(frozen=True, slots=True)
class Space:
    """Dimensions by recipe key; `RECIPE` stands for the recipe that everything else is changed in."""

    dimensions: Mapping[str, Dimension]

    @property
    def is_finite(self) -> bool:
        """Whether it is made of lists alone, which a grid can cover."""
        return all(isinstance(d, Choice) for d in self.dimensions.values())

    def grid(self) -> tuple[dict[str, Any], ...]:
        """Every combination, the last dimension fastest.

        Raises:
            UsageError: a range without steps, or too many points.
        """
        lists: dict[str, tuple[Any, ...]] = {}
        for key, dimension in self.dimensions.items():
            found = dimension.values if isinstance(dimension, Choice) else dimension.listed()
            if found is None:
                raise UsageError(
                    f"a grid needs lists, and {key} is a range", hint="give it a step, or choose another --sampler"
                )
            lists[key] = found
        if math.prod(map(len, lists.values())) > _MOST:
            raise UsageError(f"the grid has more than {_MOST} points", hint="choose --sampler nsga2 and --trials")
        return tuple(dict(zip(lists, point, strict=True)) for point in itertools.product(*lists.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {k: _plain(d) for k, d in self.dimensions.items()}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Space:
        """Read the JSON form."""
        return Space({k: Choice(tuple(d)) if isinstance(d, list) else Range(**d) for k, d in value.items()})


def _plain(d: Dimension) -> Any:
    if isinstance(d, Choice):
        return list(d.values)
    return {"low": d.low, "high": d.high, "step": d.step, "log": d.log, "whole": d.whole}


def load_space(path: Path) -> dict[str, Dimension]:
    """Read a space file.

    Raises:
        UsageError: unreadable, no TOML, an unknown recipe key, or a value that the key cannot have.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"space {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"space {path}: {error}") from None
    try:
        found = {key: dimension(key, entry) for key, entry in _leaves(value)}
    except UsageError as error:
        raise UsageError(f"space {path}: {error.message}", hint=error.hint) from None
    if not found:
        raise UsageError(f"space {path} names no recipe key", hint="for example: plan.flash = ['32K', '24K', '16K']")
    return found


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and entry; what holds `low` or `high` is a range and no section."""
    for key, entry in value.items():
        if isinstance(entry, dict) and not {"low", "high"} & set(entry):
            yield from _leaves(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry


def dimension(key: str, entry: Any) -> Dimension:
    """One dimension from what a file, or a caller, gives.

    Args:
        key: dotted recipe key.
        entry: a list of values; or a mapping with low, high and step or log.

    Raises:
        UsageError: neither, or a value that the key cannot have.
    """
    if isinstance(entry, Choice | Range):
        return entry
    if isinstance(entry, Mapping):
        return _range(key, entry)
    if not isinstance(entry, Sequence) or isinstance(entry, str):
        raise UsageError(f"{key} is {entry!r}", hint="give a list of values, or { low = ..., high = ... }")
    values = tuple(amount(key, v) for v in entry)
    if not values:
        raise UsageError(f"{key} is an empty list")
    if len({json.dumps(v) for v in values}) < len(values):
        raise UsageError(f"{key} names a value twice: {', '.join(map(str, values))}")
    for value in values:
        Recipe().with_options({key: value})
    return Choice(values)


def _range(key: str, entry: Mapping[str, Any]) -> Range:
    for name in entry:
        if name not in ("low", "high", "step", "log"):
            raise choose_from(f"word in the range of {key}", name, ("low", "high", "step", "log"))
    if not {"low", "high"} <= set(entry):
        raise UsageError(f"the range of {key} needs both low and high")
    log = entry.get("log", False)
    numbers = {n: amount(key, entry[n]) for n in ("low", "high", "step") if n in entry}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise UsageError(f"the range of {key}: {name} must be a number, got {number!r}")
    low, high, step = numbers["low"], numbers["high"], numbers.get("step")
    if not isinstance(log, bool):
        raise UsageError(f"the range of {key}: log must be true or false, got {log!r}")
    if low >= high or (step is not None and not 0 < step <= high - low) or (log and (low <= 0 or step is not None)):
        raise UsageError(
            f"the range of {key}: {dict(entry)} means nothing",
            hint="low < high; a step above 0 that fits between them, or log = true with low above 0",
        )
    for number in (low, high):
        Recipe().with_options({key: number})
    whole = all(isinstance(n, int) for n in numbers.values()) and _takes_whole(key, low)
    return Range(low, high, step, log, whole)


def _takes_whole(key: str, low: int) -> bool:
    """Whether the key's values are whole numbers: then the recipe keeps them as such."""
    changed: Any = Recipe().with_options({key: low})
    for part in key.split("."):
        changed = getattr(changed, part)
    return isinstance(changed, int)


def amount(key: str, value: Any) -> Any:
    """A size such as "32K" as bytes, a count such as "20M" as a number; everything else as it is.

    Raises:
        UsageError: a text that is neither, for a key that takes one.
    """
    if not isinstance(value, str) or key not in _BYTES | _COUNTS:
        return value
    found, base = _AMOUNT.fullmatch(value.strip()), 1024 if key in _BYTES else 1000
    if found is None:
        raise UsageError(f"{key}: {value!r} is no amount", hint="for example 65536, 64K or 1M")
    return int(float(found[1]) * base ** " kmg".index(found[2].lower() or " "))


def budget(text: str) -> tuple[str, Dimension]:
    """The dimension of `flash=32K,24K,16K`.

    Raises:
        UsageError: an unknown budget, or no amounts.
    """
    name, equals, rest = text.partition("=")
    if not equals:
        raise UsageError(f"--budgets wants NAME=AMOUNT,AMOUNT, got {text!r}", hint="for example flash=32K,24K,16K")
    if name not in BUDGETS:
        raise choose_from("budget", name, BUDGETS)
    amounts = [x.strip() for x in rest.split(",") if x.strip()]
    return BUDGETS[name], dimension(BUDGETS[name], [int(x) if x.isdecimal() else x for x in amounts])
