"""report.md: the report as Markdown, for pull requests and notes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdeploy.report.tables import Table, all_tables, facts


def render(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown."""
    lines = [f"# xdeploy report: {_cell(report['model']['name'])}", ""]
    lines += [f"- {_cell(line)}" for line in facts(report)]
    for table in all_tables(report):
        if table.rows:
            lines += ["", f"## {_cell(table.title)}", "", *_table(table)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (table.columns, *table.rows)]
    lines.insert(1, "| " + " | ".join("---:" if a == ">" else "---" for a in table.align) + " |")
    return [*lines, "", table.note] if table.note else lines


def _cell(text: str) -> str:
    """Text that cannot break a table or turn into markup."""
    for char in "\\|<>`*_[]":
        text = text.replace(char, f"\\{char}")
    return text.replace("\n", " ")
