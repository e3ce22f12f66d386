"""The budgets of a plan beside its flash: coded bytes, MACs times bits, and instructions measured on the target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.errors import PlanError, UsageError
from xdeploy.plan.cost import CostTable
from xdeploy.plan.solver import Int64, Limit
from xdeploy.planoptions import PlanOptions

Instructions = Mapping[str, Mapping[str, float]]  # layer -> weight format -> instructions of one inference


def limits_of(options: PlanOptions, table: CostTable, instructions: Instructions | None = None) -> tuple[Limit, ...]:
    """The further budgets that the options set.

    Args:
        options: the budgets.
        table: of the layers and columns to choose from.
        instructions: measured ones; None: those of options.instruction_table.

    Raises:
        PlanError: a layer's instructions in an allowed format are not known. UsageError: the table cannot be read.
    """
    found = []
    if options.coded is not None:
        found.append(Limit("plan.coded", "bytes", table.coded, options.coded))
    if options.bops is not None:
        found.append(Limit("plan.bops", "bit operations", table.operations, options.bops))
    if options.instructions is not None:
        known = read_instructions(Path(options.instruction_table)) if instructions is None else instructions
        found.append(Limit("plan.instructions", "instructions", counted(table, known), options.instructions))
    return tuple(found)


def read_instructions(path: Path) -> Instructions:
    """Read {layer: {weight format: instructions}}, also from under a key `layers`.

    Raises:
        UsageError: no such file, or something else in it.
    """
    if path == Path(""):
        raise UsageError(
            "plan.instructions needs plan.instruction_table, a JSON file {layer: {weight format: instructions}}"
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
