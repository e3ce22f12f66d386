"""The summary printed at the end of a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from xdeploy.report import tables


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the headline and the targets; the layers are in the report files."""
    for table in (tables.headline(report), _transposed(tables.targets(report))):
        rich = RichTable(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
        for column, side in zip(table.columns, table.align, strict=True):
            rich.add_column(column, justify="right" if side == ">" else "left")
        for row in table.rows:
            rich.add_row(*(Text(cell) for cell in row))
        console.print(rich)


def _transposed(table: tables.Table) -> tables.Table:
    """Targets side by side: a terminal is taller than wide."""
    names = tuple(row[0] for row in table.rows)
    rows = tuple((column, *(row[i] for row in table.rows)) for i, column in enumerate(table.columns) if i)
    return tables.Table(table.title, ("", *names), "<" + ">" * len(names), rows, table.note)
