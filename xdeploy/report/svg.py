"""Matplotlib's figures as SVG inside the page, in the page's own colours, so that dark mode and print follow.

A figure is drawn in marker colours (`INK`, `SERIES`, ...), each of which becomes a CSS variable. Names reach the page
as escaped text alone: the drawing is read as XML, and only known elements and attributes are written again.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from xdeploy.report.markup import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTE, LINE, PAPER, BAD = "#000001", "#000002", "#000003", "#000004", "#000005"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
_ROLES = {INK: "ink", MUTE: "mute", LINE: "line", PAPER: "paper", BAD: "bad", "#000000": "ink", "#ffffff": "paper"}
_ROLES |= {colour: f"s{k + 1}" for k, colour in enumerate(SERIES)}
_STYLE = {
    "font.size": 9.5, "axes.titlesize": 9.5, "xtick.labelsize": 9.0, "ytick.labelsize": 9.0, "axes.labelsize": 9.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": MUTE, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": MUTE, "ytick.color": MUTE, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "grid.color": LINE, "grid.linewidth": 0.6, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False, "legend.fontsize": 9.0, "axes.axisbelow": True, "hatch.linewidth": 0.6,
    "svg.hashsalt": "xdeploy", "svg.fonttype": "none", "text.parse_math": False, "axes.unicode_minus": True,
}  # fmt: skip
WIDTH = 5.3  # inches at 72 units each: about a phone's width, so that letters keep their size there
TIP = "tip:"  # an artist's gid that begins so becomes what is told when the pointer rests on it
_KEPT = {"svg", "g", "path", "text", "tspan", "rect"}
_ATTRIBUTES = {"d", "transform", "x", "y", "width", "height", "style", "viewBox"}
_XLINK = "{http://www.w3.org/1999/xlink}href"


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's defaults with the page's style, whatever the user's own settings are; as before afterwards."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells about its font cache
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph.*")  # names that the measuring font cannot write
        yield


def axes(height: float, left: float = 0.6, bottom: float = 0.45, top: float = 0.15) -> tuple[Figure, Axes]:
    """A figure of one drawing area, `height` inches high with its margins."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, height))
    place = (left / WIDTH, bottom / height, (WIDTH - left - 0.15) / WIDTH, (height - bottom - top) / height)
    return made, made.add_axes(place)


def inline(made: Figure, text: str) -> str:
    """The figure as an svg element; `text` is read out where it cannot be seen."""
    file = io.BytesIO()
    made.savefig(file, format="svg", dpi=72, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(file.getvalue())
    shapes = {e.get("id"): e for e in root.iter() if e.get("id")}
    _, _, width, height = root.get("viewBox", "0 0 0 0").split()
    inside = "".join(_copy(e, shapes) for e in root)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(text)}">{inside}</svg>'


def _copy(element: ElementTree.Element, shapes: dict[str | None, ElementTree.Element]) -> str:
    name = element.tag.rpartition("}")[2]
    if name == "use":  # a marker: the shape itself, moved there
        shape = shapes.get(element.get(_XLINK, "").removeprefix("#"))
        if shape is None:
            return ""
        at = f"translate({element.get('x', '0')} {element.get('y', '0')})"
        style = ";".join(filter(None, (shape.get("style"), element.get("style"))))
        moved = ElementTree.Element("path", {"d": shape.get("d", ""), "transform": at, "style": style})
        return _copy(moved, shapes)
    if name not in _KEPT:
        return ""
    given = {k: _coloured(v) if k == "style" else v for k, v in element.items() if k in _ATTRIBUTES}
    told = "".join(f' {k}="{escape(v.strip())}"' for k, v in given.items())
    identity = element.get("id", "")
    tip = f"<title>{escape(identity.removeprefix(TIP))}</title>" if identity.startswith(TIP) else ""
    inside = tip + escape((element.text or "").strip()) + "".join(_copy(e, shapes) for e in element)
    if not inside and name in ("g", "text"):
        return ""
    return f"<{name}{told}>{inside}</{name}>"


def _coloured(style: str) -> str:
    """Marker colours as the page's, fonts as the page's."""
    style = re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{_ROLES[m[0]]})" if m[0] in _ROLES else m[0], style.lower())
    style = re.sub(r"font: (?:(bold|italic|\d{3}) )?([\d.]+)px [^;]*", _font, style)
    return re.sub(r"font-family: [^;]*;?", "", style)


def _font(found: re.Match[str]) -> str:
    weight = f"; font-weight: {found[1]}" if found[1] and found[1] != "italic" else ""
    return f"font-size: {found[2]}px{weight}"
