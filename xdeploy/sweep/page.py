"""front.html: all trials as points, the front as a line, and the front's members with links to their reports."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xdeploy.report.html import escape, page, render_table
from xdeploy.report.tables import Table
from xdeploy.sweep.definition import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORANGE, GREY = "#d55e00", "#888888"
_STYLE = {
    "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "xdeploy",
    "svg.fonttype": "none", "text.parse_math": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip
_CSS = "svg { max-width: 100%; height: auto; background: white; }"
Row = Mapping[str, Any]


def render(front: Mapping[str, Any]) -> str:
    """The page of a front.json."""
    study, names = front["study"], [o["name"] for o in front["objectives"]]
    counts = ", ".join(f"{n} {state}" for state, n in study["trials"].items())
    told = [
        f"{counts}; sampler {study['sampler']}, seed {study['seed']}, {study['threads']} threads",
        "Selected by " + ", ".join(f"{o['name']} ({o['direction']})" for o in front["objectives"])
        + "; accuracy is that on validation samples. Only the front's members were measured on the test data.",
    ]  # fmt: skip
    told += [f"{target}: timed on a board by {via}" for target, via in study["boards"].items()]
    parts = ["<h1>xdeploy sweep</h1>", *(f"<p>{escape(x)}</p>" for x in told)]
    for target in front["targets"]:
        rows = [t for t in front["trials"] if t["target"] == target]
        parts.append(f"<h2>{escape(target)}</h2>")
        if front["front"][target] and len(names) > 1:
            parts.append(_scatter(rows, names, target))
        parts.append(_members(front["front"][target], names))
    rest = [t for t in front["trials"] if t["state"] != "complete"]
    if rest:
        head = ("trial", "target", "options", "state", "reason")
        cells = [(str(t["trial"]), t["target"], shown(t["options"] or {}), t["state"], str(t["reason"])) for t in rest]
        parts.append(render_table(Table("Without a result", head, "><<<<", tuple(cells))))
    return page("xdeploy sweep", parts, _CSS)


def _members(members: Sequence[Row], names: Sequence[str]) -> str:
    """The front as a table with links."""
    if not members:
        return "<p>No trial of this target has a result.</p>"
    head = "".join(f"<th>{escape(c)}</th>" for c in ("trial", "options", *names, "test accuracy, %", "report"))
    body = ""
    for m in members:
        cells = [str(m["trial"]), shown(m["options"]), *(told(m["values"][n]) for n in names), told(m["test_accuracy"])]
        link = f'<td><a href="{escape(m["report"])}">report</a></td>'
        body += "<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + f"{link}</tr>\n"
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def told(q: Row) -> str:
    """A quantity in a cell, with how it was obtained."""
    value = f"{q['value']:,}" if isinstance(q["value"], int) else f"{q['value']:,.4g}"
    return f"{value} {q['how']}"


def _scatter(rows: Sequence[Row], names: Sequence[str], target: str) -> str:
    """Each pair of objectives as an inline SVG; points lead to the reports."""
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    pairs = [(x, names[0]) for x in names[1:]] if names[0] == "accuracy" else list(itertools.combinations(names, 2))
    done = [t for t in rows if t["state"] == "complete"]
    with style.context(["default", _STYLE]):
        made = Figure(figsize=(4.2 * len(pairs), 3.2), layout="constrained")
        FigureCanvasSVG(made)
        for ax, (x, y) in zip(made.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            _draw(ax, done, x, y)
        text = io.StringIO()
        made.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
    salt = re.sub(r"\W", "_", target)  # ids of several drawings in one page must differ
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{salt}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(target)}: trials and front" ', 1)


def _draw(ax: Axes, done: Sequence[Row], x: str, y: str) -> None:
    for on_front, colour, label in ((False, GREY, "other trials"), (True, ORANGE, "front")):
        chosen = [t for t in done if t["on_front"] == on_front]
        at = [[t["values"][k]["value"] for t in chosen] for k in (x, y)]
        marks = ax.scatter(at[0], at[1], s=36 if on_front else 18, color=colour, label=label, zorder=2 + on_front)
        if on_front:
            marks.set_urls([f"trials/{t['trial']:04}/report.html" for t in chosen])
    unit = {k: done[0]["values"][k]["unit"] for k in (x, y)}
    ax.set(xlabel=f"{x}, {unit[x]}", ylabel=f"{y}, {unit[y]}")
    ax.grid(color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.legend(fontsize=7, frameon=False)
