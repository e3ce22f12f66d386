"""The roofline: what each layer reaches of the machine it was measured on; matplotlib is loaded when it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xdeploy.report.charts import named_dots
from xdeploy.report.svg import INK, MUTE, SERIES, TIP, axes, drawing, inline
from xdeploy.report.tables import Table, labelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT = (
    "Multiply-accumulates per second of each layer (measured) against those per byte it moves (modelled: its inputs, "
    "output and packed weights, each once); larger dots took more of the time. Lines: what this machine can do at most "
    "on one thread, by reading and by multiplying (measured in the same run). Winograd's kernels multiply less often "
    "than is counted here, so they may lie above."
)


@dataclass(frozen=True, slots=True)
class Point:
    """A layer: multiply-accumulates per byte, per second, seconds, and its name."""

    name: str
    intensity: float
    rate: float
    seconds: float


def points(report: Mapping[str, Any], target: str) -> list[Point]:
    """The layers with multiply-accumulates whose time was measured on the target, in order."""
    found = []
    for x in report["layers"]:
        time = x["targets"].get(target, {}).get("time")
        if time and x["macs"] and x.get("traffic"):
            seconds = time["value"]
            found.append(Point(x["origin"], x["macs"] / x["traffic"]["value"], x["macs"] / seconds, seconds))
    return found


def roofline(report: Mapping[str, Any], target: str) -> str:
    """The chart of one target as an svg element; "" where nothing was measured."""
    limits, rows = report["targets"][target].get("limits"), points(report, target)
    if not limits or not rows:
        return ""
    with drawing():
        made, ax = axes(3.4, left=0.7, top=0.35)
        ax.set_xscale("log")
        ax.set_yscale("log")
        most = max(p.seconds for p in rows)
        for p in rows:
            (dot,) = ax.plot(
                p.intensity, p.rate / 1e9, "o", color=SERIES[0], alpha=0.55, markeredgecolor=INK, markeredgewidth=0.5,
                markersize=4 + 8 * (p.seconds / most) ** 0.5,
            )  # fmt: skip
            dot.set_gid(f"{TIP}{p.name}: {p.rate / 1e9:.3g} GMAC/s, {p.intensity:.3g} MAC a byte, {_time(p.seconds)}")
        low, high = min(p.intensity for p in rows) / 2, max(p.intensity for p in rows) * 2
        ax.set_xlim(low, high)
        rates = [p.rate / 1e9 for p in rows]
        top = (limits.get("multiply") or {"value": 0.0})["value"] / 1e9
        ax.set_ylim(min(rates) / 2.5, 1.6 * max(top, *rates))
        _roofs(ax, limits)
        for axis in (ax.xaxis, ax.yaxis):
            _plain(axis)
        ax.set(xlabel="multiply-accumulates a byte", ylabel="GMAC/s")
        ax.grid()
        ordered = sorted(rows, key=lambda p: -p.seconds)
        named_dots(ax, [(p.intensity, p.rate / 1e9, p.name) for p in ordered])
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, handletextpad=0.3)
        told = "; ".join(f"{p.name}: {p.rate / 1e9:.3g} GMAC/s at {p.intensity:.3g} MAC a byte" for p in ordered[:12])
        return inline(made, f"Roofline of {target}. {told}")


def _roofs(ax: Axes, limits: Mapping[str, Any]) -> None:
    """Lines of what reading allows, each up to what multiplying allows; the picture clips nothing by itself."""
    (low, high), (bottom, ceiling) = ax.get_xlim(), ax.get_ylim()
    top = limits["multiply"]["value"] / 1e9 if limits.get("multiply") else None
    for key, style, label in (("cache", "--", "reading the cache"), ("memory", ":", "reading memory")):
        if not limits.get(key):
            continue
        slope = limits[key]["value"] / 1e9
        start, end = max(low, bottom / slope), min(high, (top or ceiling) / slope)
        if start >= end:  # all of it lies outside
            continue
        ax.plot([start, end], [start * slope, end * slope], style, color=MUTE, linewidth=1.1, label=label)
    if top is not None:
        ax.plot([low, high], [top, top], "-", color=MUTE, linewidth=1.1, label="multiplying")


def _plain(axis: Any) -> None:
    """Ticks at 1, 2 and 5, or at powers of ten where there are many, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.3g} µs"


def numbers(report: Mapping[str, Any], target: str) -> Table:
    """The same as a table: the machine's limits below the layers."""
    top = (report["targets"][target]["limits"].get("multiply") or {}).get("value")
    rows = [
        (
            p.name,
            f"{p.intensity:.3g}",
            _time(p.seconds),
            f"{p.rate / 1e9:.3g}",
            f"{100 * p.rate / top:.0f}" if top else "-",
        )
        for p in points(report, target)
    ]
    limits = report["targets"][target]["limits"]
    note = "; ".join(f"{key}: {labelled(q, 1e9, 1)}, 1e9 {q['unit']} ({q['note']})" for key, q in limits.items())
    columns = ("layer", "MAC a byte", "time", "GMAC/s", "% of multiplying")
    return Table(f"Roofline of {target}", columns, "<>>>>", tuple(rows), f"limits: {note}")
