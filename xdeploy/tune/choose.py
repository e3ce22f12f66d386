"""From figures to a choice: each node's best row, or the best choice that fits flash and RAM together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from xdeploy.errors import GateError
from xdeploy.kernel import Kernel
from xdeploy.tune.jobs import Figures
from xdeploy.tune.solver import InfeasibleError, Problem, minimise

Rows = Mapping[str, Kernel]
Objective = Literal["value", "flash"]
MOST_CUTS = 500


@dataclass(frozen=True, slots=True)
class Option:
    """One row on one node with what it costs: `value` in the objective's unit, `parts` of the flash by key."""

    row: Kernel
    value: float
    parts: Mapping[str, int]
    figures: Figures


@dataclass(frozen=True, slots=True)
class Ram:
    """Bytes of arena of a choice of rows, exactly (`of`) and at least (`least`); and what a row asks for.

    `asks` gives (workspace bytes, in place, residual in place): all that the arena depends on. `eased` is a row that
    asks for the least that any of several do.
    """

    of: Callable[[Rows], int]
    least: Callable[[Rows], int]
    asks: Callable[[str, Kernel], tuple[int, bool, bool]]
    eased: Callable[[str, list[Kernel]], Kernel]


def flash_of(options: Mapping[str, Option]) -> int:
    """Bytes of code and constants, what is shared counted once."""
    return sum({k: v for o in options.values() for k, v in o.parts.items()}.values())


def best(
    table: Mapping[str, list[Option]], objective: Objective, flash: int | None, ram: int | None, memory: Ram
) -> dict[str, Option]:
    """The choice of least total.

    Args:
        table: node -> options, one at least.
        objective: "value", ties by bytes; or "flash", ties by value.
        flash: bytes that code and constants may take; None: no limit.
        ram: bytes that the arena may take; None: no limit.
        memory: what is known about the arena.

    Raises:
        GateError: no choice fits.
    """
    free = {n: min(options, key=lambda o: (o.value, sum(o.parts.values()), o.row.name)) for n, options in table.items()}
    fits = flash is None or flash_of(free) <= flash
    if objective == "value" and fits and (ram is None or memory.of(_rows(free)) <= ram):
        return free
    problem = Problem({n: [(o.value, o.parts) for o in options] for n, options in table.items()}, flash)
    if ram is not None:
        _check_ram(table, ram, memory)
    if objective == "flash":
        smallest = flash_of(_solved(table, problem, "flash", ram, memory))
        problem.flash = smallest
    return _solved(table, problem, "value", ram, memory)


def _solved(
    table: Mapping[str, list[Option]], problem: Problem, objective: Objective, ram: int | None, memory: Ram
) -> dict[str, Option]:
    """Solve, and forbid what does not fit the RAM, until something does."""
    for _ in range(MOST_CUTS):
        try:
            found = minimise(problem, objective)
        except InfeasibleError:
            raise GateError(_too_much(table, problem), hint="choose a larger target or smaller formats") from None
        chosen = {n: table[n][i] for n, i in found.items()}
        if problem.flash is not None and flash_of(chosen) > problem.flash:  # within the solver's tolerance
            problem.cuts.append([(n, [i]) for n, i in found.items()])
            continue
        if ram is None or memory.of(_rows(chosen)) <= ram:
            return chosen
        problem.cuts.append(_conflict(table, chosen, ram, memory))
    raise GateError(f"no choice of kernels within {ram} bytes of RAM was found in {MOST_CUTS} attempts")


def _rows(chosen: Mapping[str, Option]) -> dict[str, Kernel]:
    return {n: o.row for n, o in chosen.items()}


def _eased(table: Mapping[str, list[Option]], memory: Ram) -> dict[str, Kernel]:
    return {n: memory.eased(n, [o.row for o in options]) for n, options in table.items()}


def _check_ram(table: Mapping[str, list[Option]], ram: int, memory: Ram) -> None:
    least = memory.least(_eased(table, memory))
    if least > ram:
        raise GateError(f"no choice of kernels fits {ram} bytes of RAM: the arena takes {least} bytes at least",
                        hint="choose a larger target")  # fmt: skip


def _too_much(table: Mapping[str, list[Option]], problem: Problem) -> str:
    if problem.cuts:
        return f"no choice of kernels fits the RAM together with {problem.flash} bytes of flash"
    found = minimise(Problem(problem.table, None), "flash")
    least = flash_of({n: table[n][i] for n, i in found.items()})
    return f"no choice of kernels fits {problem.flash} bytes of flash: code and constants take {least} bytes at least"


def _conflict(
    table: Mapping[str, list[Option]], chosen: Mapping[str, Option], ram: int, memory: Ram
) -> list[tuple[str, list[int]]]:
    """Nodes whose rows together break the limit, as few as possible, and the options of each that ask for no less.

    At least one of them has to take another option. A node whose row may be eased without the limit being kept has
    no part in it.
    """
    rows, eased = _rows(chosen), _eased(table, memory)
    culprits = []
    for name in table:
        trial = {**rows, name: eased[name]}
        if memory.least(trial) > ram or memory.of(trial) > ram:
            rows = trial
        else:
            culprits.append(name)
    return [(n, [i for i, o in enumerate(table[n]) if _no_less(memory, n, o.row, chosen[n].row)]) for n in culprits]


def _no_less(memory: Ram, node: str, row: Kernel, than: Kernel) -> bool:
    (space, *places), (least, *given) = memory.asks(node, row), memory.asks(node, than)
    return space >= least and all(mine <= theirs for mine, theirs in zip(places, given, strict=True))
