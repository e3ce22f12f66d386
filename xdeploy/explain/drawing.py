"""Matplotlib, set up the same way for every picture: no display, no pyplot, no time stamps, colours for all eyes.

Diverging values are red over white to blue, which the common colour blindnesses keep apart; lines and bars are the
palette of Okabe and Ito 2008. Two runs give the same bytes.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from xdeploy.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIVERGING, DENSITY = "RdBu_r", "viridis"
ORANGE, BLUE, GREEN, GREY = "#d55e00", "#0072b2", "#009e73", "#666666"
FOR, AGAINST = "#b2182b", "#2166ac"  # the two sides of DIVERGING
_STYLE = {
    "font.size": 8.0, "axes.titlesize": 8.0, "axes.spines.top": False, "axes.spines.right": False,
    "figure.facecolor": "white", "savefig.facecolor": "white", "legend.frameon": False,
    "svg.hashsalt": "xdeploy", "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a `$` in a name is a `$`
}  # fmt: skip


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's defaults with our style, whatever the user's own settings are; these are as before afterwards."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells about its font cache
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Glyph.*")  # a class name that the built-in font cannot write
        yield


@dataclass(frozen=True, slots=True)
class Margins:
    """Space in inches around all axes of a figure, and between them across and down."""

    left: float
    right: float
    top: float
    bottom: float
    across: float = 0.0
    down: float = 0.0


def figure(rows: int, columns: int, width: float, height: float, margins: Margins) -> tuple[Figure, NDArray[Any]]:
    """A figure and its axes (rows, columns), each `width` by `height` inches.

    Places are computed here: matplotlib's own layouts take seconds for a hundred axes.
    """
    from matplotlib.figure import Figure

    m = margins
    wide = m.left + m.right + columns * width + (columns - 1) * m.across
    high = m.top + m.bottom + rows * height + (rows - 1) * m.down
    made = Figure(figsize=(wide, high))
    place = {
        "left": m.left / wide, "right": 1 - m.right / wide, "bottom": m.bottom / high, "top": 1 - m.top / high,
        "wspace": m.across / width, "hspace": m.down / height,
    }  # fmt: skip
    return made, made.subplots(rows, columns, squeeze=False, gridspec_kw=place)


def grid(count: int, across: int, width: float, height: float, margins: Margins) -> tuple[Figure, list[Axes]]:
    """As `figure`, of `count` axes, `across` in a row; the rest of the last row stays empty."""
    made, found = figure(-(-count // across), across, width, height, margins)
    axes: list[Axes] = list(found.ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return made, axes[:count]


def powers_of_ten(ax: Axes) -> None:
    """Few ticks on logarithmic axes, written 1e-3, as formulas in texts are switched off; none on others."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for axis in (ax.xaxis, ax.yaxis):
        logarithmic = axis.get_scale() == "log"
        axis.set_major_locator(LogLocator(numticks=4) if logarithmic else NullLocator())
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e"))
        )
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    ax.tick_params(labelsize=6)


def save(made: Figure, path: Path, dpi: int = 110) -> None:
    """Write as the path's suffix says, svg or png, atomically and without a date."""
    kind = path.suffix[1:]
    with replacing(path) as part:
        made.savefig(part, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})


def plain(text: str, length: int = 40) -> str:
    """A name as it may stand in a picture: no character that cannot be seen, shortened in the middle."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    head = (length - 1) // 2
    return shown if len(shown) <= length else f"{shown[:head]}…{shown[head + 1 - length :]}"
