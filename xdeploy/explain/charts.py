"""Charts per layer, and `explain`, which writes them all beside the heat-maps and the table of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdeploy.explain.drawing import (
    BLUE,
    DENSITY,
    GREEN,
    GREY,
    ORANGE,
    Margins,
    drawing,
    figure,
    grid,
    plain,
    powers_of_ten,
    save,
)
from xdeploy.explain.montage import montage
from xdeploy.explain.page import render
from xdeploy.explain.samples import SHOWN, choose, has_maps, show
from xdeploy.explain.scores import scores
from xdeploy.files import write_json, write_text
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.source import SourceModel
from xdeploy.recipe import RelevanceOptions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Progress = Callable[[str, int, int], None]  # what, done, total
_FEW = 400  # weights up to which each is a dot of its own
_ACROSS = 5  # layers side by side
_PER_PICTURE = 25  # layers
_MARGINS = Margins(0.55, 0.15, 0.45, 0.55, 0.55, 0.65)
_FLOOR = 0.002  # share of the smallest scores that may lie outside the chart


def explain(
    source: SourceModel, relevance: RelevanceMap, options: RelevanceOptions, folder: Path, progress: Progress
) -> list[str]:
    """Write pictures, table and page of what was scored into `folder`; files of an earlier run there go.

    Args:
        source: the scored network, and the test samples whose heat-maps are drawn.
        relevance: its scores.
        options: they were made with; methods without heat-maps have no montage, and the page says so.
        folder: made if it is not there.
        progress: told per picture.

    Returns:
        the names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = scores(source.network, relevance)
    pictures: dict[str, Callable[[], Figure]] = {}
    if has_maps(options.method):
        pictures["samples.png"] = partial(_samples, source, options)
    pictures["layers.svg"] = partial(shares, table)
    names = list(relevance.channel)
    parts = [names[i : i + _PER_PICTURE] for i in range(0, len(names), _PER_PICTURE)]
    for k, part in enumerate(parts):
        mark = f"-{k + 1}" if len(parts) > 1 else ""
        pictures[f"filters{mark}.svg"] = partial(filters, source.network, relevance, part)
        pictures[f"weights{mark}.svg"] = partial(weights, source.network, relevance, table, part)
    for old in (*folder.glob("*.svg"), *folder.glob("*.png")):
        old.unlink()
    with drawing():
        for done, (name, draw) in enumerate(pictures.items()):
            progress("pictures", done, len(pictures))
            save(draw(), folder / name, 140)
    write_json(folder / "scores.json", table)
    write_text(folder / "explain.html", render(source, options, table, folder, list(pictures)))
    return [*pictures, "scores.json", "explain.html"]


def _samples(source: SourceModel, options: RelevanceOptions) -> Figure:
    shown = show(source, choose(source, SHOWN), [source.network], options)
    return montage(shown, source.io, ["relevance"], groups=5 if len(source.io.input_shape) == 3 else 2)


def shares(table: Mapping[str, Any]) -> Figure:
    """Each layer's share of the relevance beside its share of the weights and of the MACs, in percent."""
    rows = table["layers"]
    names = [plain(x["origin"]) for x in rows]
    left = 0.3 + 0.065 * max(map(len, names))  # inches of a character
    made, axes = figure(1, 1, 6.0, 0.34 * len(rows) + 0.1, Margins(left, 0.2, 0.35, 0.5))
    ax, at = axes[0, 0], np.arange(len(rows))
    bars = (("relevance", "relevance_share", ORANGE, ""), ("weights", "weight_share", BLUE, "//"))
    for k, (label, key, colour, hatch) in enumerate((*bars, ("MACs", "mac_share", GREEN, ".."))):
        values = [100 * x[key] for x in rows]
        ax.barh(at + 0.27 * (k - 1), values, 0.25, label=label, color=colour, hatch=hatch, edgecolor="white", lw=0)
    ax.set_yticks(at, names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("share of the network, %")
    ax.grid(axis="x", color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return made


def filters(network: Network, relevance: RelevanceMap, names: list[str]) -> Figure:
    """The scores of each layer's filters, sorted, with their L1 norms in the same order; both up to the largest."""
    made, axes = grid(len(names), min(_ACROSS, len(names)), 1.7, 1.2, _MARGINS)
    for ax, name in zip(axes, names, strict=True):
        score = np.abs(relevance.channel[name].astype(np.float64))
        norm = np.abs(network.params[name]["weight"]).reshape(len(score), -1).sum(axis=1)
        order, at = np.argsort(-score, kind="stable"), np.linspace(0, 100, len(score))
        (dots,) = ax.plot(at, norm[order] / (norm.max() or 1.0), ".", color=BLUE, markersize=2.5)
        (line,) = ax.plot(at, score[order] / (score.max() or 1.0), color=ORANGE, linewidth=1.4)
        ax.set_title(f"{plain(name, 24)}\n{len(score)} filters")
        ax.set_ylim(0, 1.05)
    _caption(
        made, "filters, most relevant first, %: line their relevance, dots their L1 norm, as shares of the largest"
    )
    axes[0].legend([line, dots], ["relevance", "L1 norm"], fontsize=6, loc="best")
    return made


def weights(network: Network, relevance: RelevanceMap, table: Mapping[str, Any], names: list[str]) -> Figure:
    """|weight| against |score| of every weight, as densities on logarithmic axes, with the rank correlation."""
    known = {x["origin"]: x for x in table["layers"]}
    made, axes = grid(len(names), min(_ACROSS, len(names)), 1.7, 1.5, _MARGINS)
    for ax, name in zip(axes, names, strict=True):
        row = known[name]
        told = "undefined" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}"
        ax.set_title(f"{plain(name, 24)}\nrank correlation {told}")
        _density(ax, np.abs(network.params[name]["weight"]).ravel(), np.abs(relevance.weight[name]).ravel())
        powers_of_ten(ax)
    _caption(made, "|weight| (across) against |score| (up), logarithmic; brighter: more weights")
    return made


def _caption(made: Figure, text: str) -> None:
    made.text(0.5, 0.1 / made.get_size_inches()[1], text, ha="center", va="bottom", fontsize=8)


def _density(ax: Axes, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
    both = (x > 0) & (y > 0)
    a, b = x[both].astype(np.float64), y[both].astype(np.float64)
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():  # no density on logarithmic axes
        ax.text(0.5, 0.5, "all alike, or all zero", ha="center", va="center", color=GREY, transform=ax.transAxes)
        return
    if len(a) <= _FEW:
        ax.plot(a, b, ".", color=BLUE, markersize=3, alpha=0.6)
        ax.set(xscale="log", yscale="log")
        return
    low = [float(np.quantile(v, _FLOOR)) for v in (a, b)]
    inside = (a >= low[0]) & (b >= low[1])
    ax.hexbin(
        a[inside], b[inside], gridsize=32, xscale="log", yscale="log", bins="log", mincnt=1, cmap=DENSITY,
        linewidths=0.1, rasterized=True,
    )  # fmt: skip
