"""The layer-by-layer comparison as a terminal table and as one self-contained HTML page with charts."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

from xdeploy.report.html import escape, page, render_table
from xdeploy.report.tables import Table

_ROW, _LABELS, _WIDTH = 18, 230, 460  # pixels of the charts: height of a row, room for names, length of the bars
_DB_LIMIT = 80.0  # dB at the chart's right end
_COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#14b8a6", "#ec4899", "#84cc16")
_CLASS = {True: "ok", False: "off", None: ""}
_STYLE = """
svg { max-width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; }
svg .grid { stroke: #8886; } .ok::before { content: "= "; } .off::before { content: "\\2260 "; }
.off { color: #ef4444; } ul.verdicts { list-style: none; padding: 0; }
"""


def verdict(pair: Mapping[str, Any]) -> str:
    """One line: whether a pair is equal, and the first layer that differs."""
    name, first = pair["name"], pair["first"]
    if not pair["compared"]:
        return f"{name}: nothing to compare"
    if first is None and pair["equal"] is None:
        return f"{name}: lowest signal-to-noise ratio in layer {pair['worst_layer']} ({pair['compared']} layers)"
    if first is None:
        within = f" within {pair['tolerance']:.0e} of the largest value" if pair["measure"] == "real" else ""
        return f"{name}: all equal{within} ({pair['compared']} layers)"
    if pair["measure"] == "real":
        return f"{name}: first layer that differs: {first['layer']}, by {first['max']:.2e} of its largest value"
    place = "(" + ", ".join(map(str, first["index"])) + ")"
    count = first["max_difference"]
    text = f"{name}: first layer that differs: {first['layer']}, by {count} code{'s' * (count > 1)} at index {place}"
    text += f" of sample {first['sample']}; largest over all layers {pair['max_difference']}"
    alone = pair.get("alone_max_difference")
    return text if alone is None else f"{text}; each node alone at most {alone}"


def table(document: Mapping[str, Any]) -> Table:
    """One row per layer, one column per pair."""
    names = [p["name"] for p in document["pairs"]]
    rows = tuple(
        (x["origin"], x["op"], "x".join(map(str, x["shape"])), *(_cell(x["pairs"].get(n)) for n in names))
        for x in document["layers"]
        if x["pairs"]
    )
    note = (
        "real values: cosine, signal-to-noise ratio; codes: largest difference, share equal, in brackets the largest "
        "difference of the node fed with the left side's own codes"
    )
    return Table("Layer by layer", ("layer", "op", "shape", *names), "<<<" + ">" * len(names), rows, note)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    if "cosine" in row:
        return f"{row['cosine']:.5f}, {row['sqnr_db']:.1f} dB"
    alone = row.get("alone_difference")
    return f"{row['max_difference']}, {_share(row['equal'])}" + ("" if alone is None else f" [{alone}]")


def _share(share: float) -> str:
    """Percent; 100 only where all are equal."""
    return "100 %" if share == 1.0 else f"{min(100 * share, 99.99):.2f} %"


def show(document: Mapping[str, Any], width: int | None = None) -> str:
    """The text for a terminal: the table, and one verdict per pair."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    data = table(document)
    rich = RichTable(title=data.title, title_justify="left")
    for column, side in zip(data.columns, data.align, strict=True):
        rich.add_column(column, justify="right" if side == ">" else "left")
    for row in data.rows:
        rich.add_row(*(Text(cell) for cell in row))
    text = io.StringIO()
    console = Console(file=text, width=width or max(120, 40 + 26 * len(data.columns)), force_terminal=False)
    console.print(rich)
    lines = [data.note, "", *(verdict(p) for p in document["pairs"]), *(f"note: {n}" for n in document["notes"])]
    return text.getvalue() + "\n".join(lines) + "\n"


def html(document: Mapping[str, Any]) -> str:
    """The whole page: verdicts, charts, table."""
    inputs = document["inputs"]
    verdicts = "".join(f'<li class="{_CLASS[p["equal"]]}">{escape(verdict(p))}</li>\n' for p in document["pairs"])
    notes = "".join(f'<p class="note">{escape(n)}</p>' for n in document["notes"])
    parts = [
        f"<h1>xdeploy diff: {escape(document['what'])}</h1>",
        f"<p>{inputs['n']} inputs: {escape(inputs['from'])}</p>",
        f'<ul class="verdicts">{verdicts}</ul>{notes}',
        *_charts(document),
        render_table(table(document)),
    ]
    return page(f"xdeploy diff: {document['what']}", parts, _STYLE)


def _charts(document: Mapping[str, Any]) -> Iterable[str]:
    reals = [p["name"] for p in document["pairs"] if p["measure"] == "real"]
    codes = [p["name"] for p in document["pairs"] if p["measure"] == "codes"]
    if reals:
        yield "<h2>Signal-to-quantisation-noise ratio, dB (longer is better)</h2>"
        yield _chart(document["layers"], reals, "sqnr_db", _DB_LIMIT)
    if codes:
        most = max((p["max_difference"] for p in document["pairs"] if p["measure"] == "codes"), default=0)
        yield "<h2>Largest difference, codes (no bar: equal)</h2>"
        yield _chart(document["layers"], codes, "max_difference", float(max(most, 4)))


def _chart(layers: Iterable[Mapping[str, Any]], names: list[str], key: str, limit: float) -> str:
    """Horizontal bars, one group per layer, one colour per pair, as SVG."""
    rows = [x for x in layers if any(n in x["pairs"] for n in names)]
    top = 16 * len(names) + 8
    height = top + _ROW * len(rows) + 24
    parts = [_legend(names), *_axis(limit, top, height)]
    for k, layer in enumerate(rows):
        y = top + _ROW * k
        parts.append(
            f'<text x="{_LABELS - 6}" y="{y + 13}" text-anchor="end">{escape(_shortened(layer["origin"]))}</text>'
        )
        parts += _bars(layer, names, key, limit, y)
    size = f'viewBox="0 0 {_LABELS + _WIDTH + 60} {height}" width="{_LABELS + _WIDTH + 60}" height="{height}"'
    return f'<svg {size} role="img">\n' + "\n".join(parts) + "\n</svg>"


def _bars(layer: Mapping[str, Any], names: list[str], key: str, limit: float, y: int) -> Iterable[str]:
    thick = (_ROW - 4) / len(names)
    for i, name in enumerate(names):
        if name not in layer["pairs"]:
            continue
        value = float(layer["pairs"][name][key])
        length = _WIDTH * min(max(value, 0.0), limit) / limit
        title = escape(f"{layer['origin']}: {name}: {value:.6g}")
        yield (
            f'<rect x="{_LABELS}" y="{y + 2 + i * thick:.1f}" width="{length:.1f}" height="{max(thick - 0.5, 1):.1f}" '
            f'fill="{_COLOURS[i % len(_COLOURS)]}"><title>{title}</title></rect>'
        )


def _legend(names: list[str]) -> str:
    marks = (
        f'<rect x="{_LABELS}" y="{4 + 16 * i}" width="10" height="10" fill="{_COLOURS[i % len(_COLOURS)]}"/>'
        f'<text x="{_LABELS + 16}" y="{13 + 16 * i}">{escape(n)}</text>'
        for i, n in enumerate(names)
    )
    return "\n".join(marks)


def _axis(limit: float, top: int, height: int) -> Iterable[str]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 256) if limit / s <= 8 or s == 256)
    for value in range(0, int(limit) + 1, step):
        x = _LABELS + _WIDTH * value / limit
        yield f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{height - 18}"/>'
        yield f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{value}</text>'


def _shortened(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:15]}...{name[-16:]}"
