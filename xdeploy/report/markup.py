"""The pieces of a self-contained page: text is escaped, nothing is loaded, only the page's own script may run."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping
from pathlib import Path

from xdeploy.report.tables import Table

_HERE = Path(__file__).parent
STYLE = (_HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (_HERE / "page.js").read_text(encoding="utf-8")


def escape(text: str) -> str:
    """Text as it may stand in the page: no markup, and no character that cannot be seen or turns the writing round."""
    return html.escape("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def page(title: str, parts: Iterable[str], style: str = "", script: bool = False) -> str:
    """A whole page of parts that are HTML already; the title is text.

    Its policy forbids browsers to load anything, and to run any script but the page's own, told by its hash.
    """
    runs = f"'sha256-{_hash(SCRIPT)}'" if script else "'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {runs}; base-uri 'none'"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>"
    )
    body = "\n".join(parts)
    last = f"<script>{SCRIPT}</script>\n" if script else ""
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{last}</body></html>\n'


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render_table(table: Table, level: str = "h2") -> str:
    """A titled table as HTML."""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<{level}>{escape(table.title)}</{level}>{bare_table(table)}{note}"


def bare_table(table: Table) -> str:
    """The table alone; it scrolls by itself where it is wider than the page."""
    side = ["r" if a == ">" else "" for a in table.align]
    head = "".join(f'<th class="{s}" scope="col">{escape(c)}</th>' for s, c in zip(side, table.columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{s}">{escape(c)}</td>' for s, c in zip(side, row, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def details(summary: str, inside: str) -> str:
    """What is shown on demand (and always in print); `inside` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def figure(inside: str, caption: str, extra: str = "") -> str:
    """A picture, HTML already, with its caption and what follows it (HTML)."""
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption>{extra}</figure>"


def pairs(values: Mapping[str, object]) -> str:
    """Names and values, one pair a line."""
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in values.items())
    return f"<dl>{rows}</dl>"


def embedded(path: Path, text: str) -> str:
    """An img element that holds the picture, .png or .svg, itself; `text` is read out where it cannot be seen."""
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    return image(path.read_bytes(), text, kind)


def image(data: bytes, text: str, kind: str = "image/png") -> str:
    """An img element of the bytes of a picture."""
    return f'<img alt="{escape(text)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'
