"""report.md: the report as Markdown, for pull requests and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdeploy.report import background, tables
from xdeploy.report.tables import Table, facts


def render(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    lines = [f"# xdeploy report: {_cell(report['model']['name'])}", ""]
    lines += [f"- {_cell(line)}" for line in facts(report)]
    for table in _tables(report):
        if table.rows:
            lines += ["", f"## {_cell(table.title)}", "", *_table(table)]
    return "\n".join(lines) + "\n"


def _tables(report: Mapping[str, Any]) -> list[Table]:
    """Every table in reading order."""
    return [
        tables.headline(report),
        tables.targets(report),
        tables.mix(report),
        background.steps(report),
        tables.layers(report),
        tables.model(report),
        tables.slow(report),
        tables.kernels(report),
        background.confusions(report),
        background.stages(report),
        background.surroundings(report),
    ]


def _table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (table.columns, *table.rows)]
    lines.insert(1, "| " + " | ".join("---:" if a == ">" else "---" for a in table.align) + " |")
    return [*lines, "", table.note] if table.note else lines


def _cell(text: str) -> str:
    """Text that cannot break a table or turn into markup."""
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    for char in "\\|<>`*_[]":
        text = text.replace(char, f"\\{char}")
    return text.replace("\n", " ")
