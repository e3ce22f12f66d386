"""report.html: one self-contained file, no network, no script from the model's names (all text is escaped)."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xdeploy.report.tables import Table, all_tables, facts

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b82f6; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: left; }
th { position: sticky; top: 0; } .r { text-align: right; } .note { opacity: .75; font-size: .85rem; }
img { max-width: 100%; height: auto; background: white; }
.bar { display: inline-block; height: .7em; background: var(--bar); vertical-align: baseline; }
@media print { body { max-width: none; } .scroll { overflow: visible; } td, th { white-space: normal; } }
"""


def escape(text: str) -> str:
    """Text as it may stand in the page: no markup, and no character that cannot be seen or turns the writing round."""
    return html.escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def render(report: Mapping[str, Any], picture: Path | None = None) -> str:
    """The whole report as one HTML page; `picture`: samples with their heat-maps before and after, if there is one."""
    name = escape(report["model"]["name"])
    parts = [f"<h1>xdeploy report: {name}</h1>", "<ul>", *(f"<li>{escape(x)}</li>" for x in facts(report)), "</ul>"]
    for table in all_tables(report):
        if table.rows:
            parts.append(render_table(table))
        if table.title == "Targets":
            parts.append(_chart(report))
    if picture is not None and (report["relevance"] or {}).get("survival"):
        parts.append(_survival(picture))
    return page(f"xdeploy: {report['model']['name']}", parts)


def page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A whole page of parts that are HTML already; the title is text."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}{style}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def render_table(table: Table) -> str:
    """A titled table as HTML."""
    side = ["r" if a == ">" else "" for a in table.align]
    head = "".join(f'<th class="{s}">{escape(c)}</th>' for s, c in zip(side, table.columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{s}">{escape(c)}</td>' for s, c in zip(side, row, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>{note}'


def _survival(picture: Path) -> str:
    text = (
        "Test samples with what speaks for their class (red) and against it (blue), in the float network and in the "
        "compressed one; each map has its own scale. Bold, with a cross: one of the two predicts another class."
    )
    return f"<h2>Explanations before and after</h2><p>{escape(text)}</p>{embedded(picture, text)}"


def embedded(path: Path, text: str) -> str:
    """An img element that holds the picture, .png or .svg, itself; `text` is read out where it cannot be seen."""
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(text)}" src="data:{kind};base64,{data}">'


def _chart(report: Mapping[str, Any]) -> str:
    """Relevance share beside the share of the bytes, per weighted layer."""
    rows = [x for x in report["layers"] if x["weight_format"]]
    total = sum(x["bytes"] for x in rows) or 1
    body = "".join(
        f"<tr><td>{escape(x['origin'])}</td><td>{escape(x['weight_format'])}</td>"
        f"<td>{_bar(x['relevance_share'] or 0.0)}</td><td>{_bar(x['bytes'] / total)}</td></tr>\n"
        for x in rows
    )
    head = "<tr><th>origin</th><th>weights</th><th>share of relevance</th><th>share of bytes</th></tr>"
    return f'<h2>Where relevance is, where bytes are</h2><div class="scroll"><table>{head}\n{body}</table></div>'


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{share * 40:.2f}em"></span> {100 * share:.1f} %'
