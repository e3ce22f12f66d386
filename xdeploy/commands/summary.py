"""The summary of a run that fits a terminal of 80 columns and 24 lines: before and after, and a line per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
MOST_TARGETS = 12  # lines of the table; further ones stand in the report
_MARKS = {"measured": "", "emulated": "e", "modelled": "m"}
_COLUMNS = ("target", "flash, B", "RAM, B", "instructions", "latency", "energy", "outputs")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_ENERGIES = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "uJ"), (1e-9, "nJ"))
Quantity = Mapping[str, Any]


def summary(report: Mapping[str, Any], width: int | None = WIDTH) -> list[str]:
    """The lines.

    Args:
        report: the document of report.json.
        width: columns; longer lines are cut. None: as long as they are.
    """
    lines = [*_headline(report), "", *_table(report["targets"])]
    return [line if width is None else cut(line, width) for line in lines]


def cut(text: str, width: int) -> str:
    """The text in at most `width` columns."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"[:width]


def _headline(report: Mapping[str, Any]) -> list[str]:
    accuracy, model, weights = report["accuracy"], report["model"], report["weights"]
    found = accuracy["deployed"] or accuracy["fake_quant"]
    lines = []
    if found:
        before = f"{_plain(accuracy['float'], 2)} % float, " if accuracy["float"] else ""
        which = "deployed" if accuracy["deployed"] else "fake-quant"
        lines.append(f"{model['name']}: accuracy {before}{_plain(found, 2)} % {which}, {found['n']:,} samples")
    else:
        lines.append(f"{model['name']}: accuracy not measured")
    coded = f", {_plain(weights['coded_bytes'])} B entropy-coded" if weights["coded_bytes"] else ""
    share = weights["ratio_to_float"]["value"]
    times = f" (1/{1 / share:.1f})" if share else ""
    lines.append(
        f"weights {_plain(model['float_bytes'])} B float, {_plain(weights['packed_bytes'])} B packed{times}{coded}"
    )
    macs = sum(x["macs"] for x in report["layers"])
    lines.append(f"MACs {model['macs']:,} float, {macs:,} deployed{_survival(report)}")
    return lines


def _survival(report: Mapping[str, Any]) -> str:
    found = (report["relevance"] or {}).get("survival")
    return f"; explanations correlate by {found['spearman']['value']:.2f} (rank)" if found else ""


def _table(targets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shown = list(targets.items())[:MOST_TARGETS]
    rows = [_COLUMNS, *(_row(name, t) for name, t in shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_aligned(row, widths) for row in rows]
    if len(targets) > len(shown):
        lines.append(f"and {len(targets) - len(shown)} more in the report")
    used = {q["how"] for _, t in shown for q in _quantities(t) if q}
    told = [f"{mark} {how}" for how, mark in _MARKS.items() if mark and how in used]
    return [*lines, *([", ".join([*told, "others measured"])] if told else [])]


def _quantities(t: Mapping[str, Any]) -> list[Quantity | None]:
    return [t[key] for key in ("flash", "ram", "instructions", "latency", "energy")]


def _row(name: str, t: Mapping[str, Any]) -> tuple[str, ...]:
    flash, ram, instructions, latency, energy = _quantities(t)
    numbers = (
        _marked(flash),
        _marked(ram),
        _marked(instructions),
        _scaled(latency, _TIMES),
        _scaled(energy, _ENERGIES),
    )
    return (name, *numbers, str(t["verdict"]))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *middle, last = (
        cell.ljust(w) if i in (0, len(row) - 1) else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *middle, last]).rstrip()


def _plain(q: Quantity | None, digits: int = 0) -> str:
    return "-" if not q or q["value"] is None else f"{q['value']:,.{digits}f}"


def _marked(q: Quantity | None) -> str:
    return "-" if not q or q["value"] is None else _plain(q) + _MARKS[q["how"]]


def _scaled(q: Quantity | None, units: Sequence[tuple[float, str]]) -> str:
    """A quantity with three digits in the unit that suits it, such as 10.6 ms m."""
    if not q or q["value"] is None:
        return "-"
    factor, unit = next(((f, u) for f, u in units if abs(q["value"]) >= f), units[-1])
    value = q["value"] / factor
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit} {_MARKS[q['how']]}".rstrip()
