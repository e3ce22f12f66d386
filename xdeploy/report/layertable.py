"""The per-layer table: what all targets share, and the columns of one target at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xdeploy.report.markup import escape

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell: what is shown, and what it is sorted by ("" for what is not known, which sorts last)."""

    text: str
    key: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column; numbers are aligned right and begin with the largest when sorted by."""

    title: str
    number: bool
    cell: Callable[[Row], Cell]
    wide: bool = False
    target: int | None = None  # whose it is; None: of all


def _text(value: str | None, missing: str = "–") -> Cell:
    return Cell(value or missing, value or "")


def _number(value: float | None, written: Callable[[float], str] = "{:,.0f}".format) -> Cell:
    return Cell("–", "") if value is None else Cell(written(value), repr(value))


def _shape(x: Row) -> Cell:
    size = 1
    for d in x["shape"]:
        size *= d
    return Cell("×".join(map(str, x["shape"])), str(size))


def _channels(x: Row) -> Cell:
    kept, before = x["channels_after"], x["channels_before"]
    return Cell("–", "") if kept is None else Cell(f"{kept}/{before}", str(kept))


def _zeros(x: Row) -> Cell:
    weights, zeros = x.get("weights"), x.get("zeros")
    return _number(100 * zeros / weights if weights and zeros is not None else None, "{:.1f}".format)


def _share(x: Row) -> Cell:
    share = x["relevance_share"]
    return _number(None if share is None else 100 * share, "{:.1f}".format)


_SHARED = (
    Column("origin", False, lambda x: _text(x["origin"], "(no name)")),
    Column("op", False, lambda x: _text(x["op"])),
    Column("shape", True, _shape),
    Column("MACs", True, lambda x: _number(x["macs"])),
    Column("weights", False, lambda x: _text(x["weight_format"])),
    Column("activations", False, lambda x: _text(x["activation_format"])),
    Column("channels", True, _channels),
    Column("zeros, %", True, _zeros),
    Column("relevance, %", True, _share),
    Column("bytes", True, lambda x: _number(x["bytes"])),
)
_FIGURES = (
    ("instructions", "instructions", 1.0), ("cycles", "cycles", 1.0), ("time, µs", "time", 1e-6),
    ("energy, µJ", "energy", 1e-6),
)  # fmt: skip


def _figure(name: str, key: str, scale: float) -> Callable[[Row], Cell]:
    def cell(x: Row) -> Cell:
        found = x["targets"].get(name, {}).get(key)
        digits = "{:,.2f}" if scale != 1.0 else "{:,.0f}"
        return _number(found["value"] / scale if found else None, digits.format)

    return cell


def _kernel(name: str) -> Callable[[Row], Cell]:
    return lambda x: _text(x["targets"].get(name, {}).get("kernel"), "(no code)")


def columns(report: Mapping[str, Any]) -> list[Column]:
    """All columns; a target's figures only where some layer has them."""
    several = len(report["targets"]) > 1
    found = list(_SHARED)
    for at, name in enumerate(report["targets"]):
        mark = f", {name}" if several else ""
        for title, key, scale in _FIGURES:
            how = next((q["how"] for x in report["layers"] if (q := x["targets"].get(name, {}).get(key))), None)
            if how:
                found.append(Column(f"{title}{mark} ({how})", True, _figure(name, key, scale), False, at))
        found.append(Column(f"kernel{mark}", False, _kernel(name), True, at))
    return found


_SUMS = {"MACs": "macs", "bytes": "bytes"}


def render(report: Mapping[str, Any]) -> str:
    """The table, with sums over the whole network; sorted and filtered by the page's script."""
    rows, found = report["layers"], columns(report)
    head = "".join(f'<th scope="col"{_marks(c)}>{escape(c.title)}</th>' for c in found)
    body = "".join(f"<tr>{''.join(_cell(c, c.cell(x)) for c in found)}</tr>\n" for x in rows)
    foot = "".join(f"<td{_marks(c)}>{_sum(c, rows) if k else 'whole network'}</td>" for k, c in enumerate(found))
    return (
        '<div class="tools" data-pick data-filter="layers"></div><div class="scroll">'
        f'<table id="layers" class="sortable first layers"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>'
        f"<tfoot><tr>{foot}</tr></tfoot></table></div>"
    )


def _marks(column: Column) -> str:
    kinds = " ".join(kind for kind, has in (("r", column.number), ("wide", column.wide)) if has)
    named = f' class="{kinds}"' if kinds else ""
    return named if column.target is None else f'{named} data-t="{column.target}"'


def _cell(column: Column, cell: Cell) -> str:
    text = escape(cell.text)
    if not column.number:  # long names may break behind a dot or an underscore
        text = re.sub(r"(?<=[._])(?=[^._])", "<wbr>", text)
    return f'<td{_marks(column)} data-v="{escape(cell.key)}">{text}</td>'


def _sum(column: Column, rows: list[Row]) -> str:
    """Sums of what can be added up."""
    if not column.number or (column.target is None and column.title not in _SUMS):
        return ""
    keys = [column.cell(x).key for x in rows]
    total = sum(float(k) for k in keys if k)
    return f"{total:,.2f}" if "µ" in column.title else f"{total:,.0f}"
