"""explain.html: the pictures in one self-contained page, each with a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdeploy.explain.samples import has_maps
from xdeploy.model.source import SourceModel
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.heatmaps import MAPPERS
from xdeploy.report.html import embedded, escape, page, render_table
from xdeploy.report.tables import Table

_READ = {
    "samples": (
        "Samples and what speaks for their class",
        "Test samples, each beside its relevance map: red speaks for the explained class, blue against it, white does "
        "not matter. Each map has its own scale. Samples that the network takes for another class are bold and begin "
        "with a cross. A map whose colour lies on the background, a border or a mark has found a shortcut in the data.",
    ),
    "layers": (
        "Where relevance is",
        "Each layer's share of the relevance beside its share of weights and MACs. Layers with much relevance and few "
        "weights deserve bits; those with many weights and little relevance can give them.",
    ),
    "filters": (
        "Filters",
        "Relevance of each layer's filters, most relevant first, as a share of the largest; dots are the L1 norms of "
        "the same filters. A line that falls early is a layer that can lose filters; dots that do not follow the line "
        "are where pruning by norm removes the wrong ones.",
    ),
    "weights": (
        "Weights: size against relevance",
        "Every weight of a layer by its magnitude and its score, both logarithmic; brighter is denser. Weights at the "
        "lower right are large and do not matter, those at the upper left are small and do. The rank correlation says "
        "how far magnitude alone would choose the same weights; weights or scores of exactly 0 are not drawn.",
    ),
}


def render(
    source: SourceModel, options: RelevanceOptions, table: Mapping[str, Any], folder: Path, pictures: list[str]
) -> str:
    """The page; `pictures` are files of `folder`, in any order."""
    parts = [f"<h1>What matters in {escape(source.name)}</h1>"]
    parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in facts(source, options, table)), "</ul>"]
    for kind, (title, text) in _READ.items():
        shown = [name for name in pictures if name.startswith(kind)]
        if shown:
            parts += [f"<h2>{escape(title)}</h2>", f"<p>{escape(text)}</p>"]
            parts += [embedded(folder / name, f"{title}, {k + 1} of {len(shown)}") for k, name in enumerate(shown)]
    if not has_maps(options.method):
        parts.append(f"<p>{escape(_without(options.method))}</p>")
    return page(f"xdeploy: {source.name} explained", [*parts, render_table(layers(table))])


def facts(source: SourceModel, options: RelevanceOptions, table: Mapping[str, Any]) -> list[str]:
    """What was scored, how, and how far to trust it."""
    maps = has_maps(options.method)
    told = {k: v for k, v in table["parameters"].items() if isinstance(v, str | int | float)}
    target = {
        "label": "the logit of the true class", "predicted": "the logit of the predicted class",
        "difference": "the true class's logit less logsumexp of the others",
    }[options.target]  # fmt: skip
    lines = [
        f"method {table['method']}; {', '.join(f'{k} {v}' for k, v in told.items())}",
        *([f"explained: {target}"] if maps else []),
        f"{table['samples']:,} training samples scored; data {Path(source.train.path).name}, "
        f"fingerprint {table['data_fingerprint'][:16]}",
    ]
    if maps:
        lines.append(
            f"conservation residual {table['conservation_residual']:.2e}: the share of the explained score that "
            "neither reaches the input nor stays in biases (what stabilisers take; 0 is perfect)"
        )
    return lines


def _without(method: str) -> str:
    return f"No heat-maps of samples: {method} does not reach the input. Methods that do: {', '.join(MAPPERS)}."


def layers(table: Mapping[str, Any]) -> Table:
    """The layers' rows of scores.json."""
    rows = tuple(
        (
            x["origin"], x["op"], f"{len(x['filters']):,}", f"{x['weights']:,}",
            *(f"{100 * x[k]:.1f}" for k in ("relevance_share", "weight_share", "mac_share")),
            "-" if x["rank_correlation"] is None else f"{x['rank_correlation']:.2f}",
        )
        for x in table["layers"]
    )  # fmt: skip
    columns = ("origin", "op", "filters", "weights", "relevance, %", "weights, %", "MACs, %", "rank corr. with |w|")
    return Table(
        "Layers", columns, "<<>>>>>>", rows, "scores of every filter: scores.json; of every weight: relevance.npz"
    )
