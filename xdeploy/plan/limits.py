"""The budgets of a plan beside its flash: coded bytes, MACs times bits, and instructions measured on the target."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.errors import PlanError, UsageError
from xdeploy.plan.cost import CostTable
from xdeploy.plan.device import OTHERS
from xdeploy.plan.solver import Int64, Limit
from xdeploy.planoptions import PlanOptions

Instructions = Mapping[str, Mapping[str, float]]  # layer -> weight format -> instructions of one inference
Count = Callable[[int], Mapping[str, int]]  # column -> layer -> instructions in it, and those of OTHERS


def limits_of(
    options: PlanOptions, table: CostTable, instructions: Instructions | None = None, count: Count | None = None
) -> tuple[Limit, ...]:
    """The further budgets that the options set.

    Args:
        options: the budgets.
        table: of the layers and columns to choose from.
        instructions: measured ones; None: those of options.instruction_table, or else those of `count`.
        count: counts the instructions of all layers in one column; None: there is no target to ask.

    Raises:
        PlanError: a layer's instructions in an allowed format are not known. UsageError: the table cannot be read.
    """
    found = []
    if options.coded is not None:
        found.append(Limit("plan.coded", "bytes", table.coded, options.coded))
    if options.bops is not None:
        found.append(Limit("plan.bops", "bit operations", table.operations, options.bops))
    if options.instructions is not None:
        if instructions is None and not options.instruction_table and count is not None:
            cells, base = measured(table, count)
        else:
            known = read_instructions(Path(options.instruction_table)) if instructions is None else instructions
            cells, base = counted(table, known), int(np.ceil(known.get(OTHERS, {}).get(OTHERS, 0)))
        found.append(Limit("plan.instructions", "instructions", cells, options.instructions, base))
    return tuple(found)


def read_instructions(path: Path) -> Instructions:
    """Read {layer: {weight format: instructions}}, also from under a key `layers`.

    What runs besides the layers may stand under an empty name: {"": {"": instructions}}.

    Raises:
        UsageError: no such file, or something else in it.
    """
    if path == Path(""):
        raise UsageError(
            "plan.instructions needs plan.instruction_table, a JSON file {layer: {weight format: instructions}}",
            hint="or a target that they can be counted on",
        )
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"plan.instruction_table {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"plan.instruction_table {path} is not readable JSON: {error}") from None
    value = value.get("layers", value) if isinstance(value, dict) else value
    good = isinstance(value, dict) and all(
        isinstance(row, dict) and all(isinstance(n, int | float) and n >= 0 for n in row.values())
        for row in value.values()
    )
    if not good:
        raise UsageError(f"{path}: expected {{layer: {{weight format: instructions}}}}, the numbers not negative")
    found: Instructions = value
    return found


def measured(table: CostTable, count: Count) -> tuple[Int64, int]:
    """Instructions (layers, columns) as counted on the target, 0 where a column is not allowed, and those of the rest.

    The rest is the same in every column but for how kernels are shared out in memory: the most is taken.
    """
    found, base = np.zeros(table.size.shape, np.int64), 0
    for j in np.flatnonzero(table.allowed.any(axis=0)):
        known = count(int(j))
        base = max(base, known[OTHERS])
        found[:, j] = [known[n] if table.allowed[i, j] else 0 for i, n in enumerate(table.layers)]
    return found, base


def counted(table: CostTable, known: Instructions) -> Int64:
    """Instructions (layers, columns), rounded up; 0 where a column is not allowed.

    Raises:
        PlanError: an allowed one is not known.
    """
    found = np.zeros(table.size.shape, np.int64)
    for i, layer in enumerate(table.layers):
        for j in np.flatnonzero(table.allowed[i]):
            value = known.get(layer, {}).get(table.formats[j])
            if value is None:
                raise PlanError(
                    f"{layer}: its instructions in {table.formats[j]} are not in the table of the target",
                    hint="measure them, or take the format out of plan.formats",
                )
            found[i, j] = int(np.ceil(value))
    return found
