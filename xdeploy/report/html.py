"""report.html: one self-contained file, no network, no script from the model's names (all text is escaped)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xdeploy.report import background, cards, layertable, tables
from xdeploy.report.markup import (
    bare_table,
    details,
    embedded,
    escape,
    figure,
    page,
    pairs,
    render_table,
)
from xdeploy.report.tables import Table

__all__ = ["embedded", "escape", "page", "render", "render_table"]
_PICK = '<div class="tools" data-pick></div>'


def render(report: Mapping[str, Any], picture: Path | None = None) -> str:
    """The whole report as one HTML page.

    Args:
        report: the document of report.json.
        picture: survival.png, with survival.npz beside it: samples with their heat-maps before and after, if there.
    """
    parts = [*_headline(report), *_bought(report), *_layers(report), *_roofs(report), *_memory(report)]
    parts += _samples(report, picture)
    return page(f"xdeploy: {report['model']['name']}", [*parts, *_deeper(report), *_origin(report)], script=True)


def _headline(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h1>xdeploy report: {escape(report['model']['name'])}</h1>"
    yield cards.of_model(report)
    if len(report["targets"]) > 1:
        yield _PICK
    yield from (cards.of_target(report, at, name) for at, name in enumerate(report["targets"]))
    if report["targets"]:
        yield f'<p class="note">{escape(tables.TARGET_NOTE)}</p>'
    if len(report["targets"]) > 1:
        yield details("all targets side by side", bare_table(tables.targets(report)))


def _bought(report: Mapping[str, Any]) -> Iterator[str]:
    """Steps, front, relevance against bits."""
    from xdeploy.report import charts

    rows = charts.stairs(report)
    shown = []
    if rows:
        told = "; ".join(" ".join(cells) for cells in background.steps(report).rows)
        text = "What each step changed: bytes of the parameters, and accuracy on the validation samples in points."
        chart = charts.waterfall(rows, f"{text} {told}")
        shown.append(figure(chart, text, details("the numbers", bare_table(background.steps(report)))))
    front = charts.front(report)
    if front:
        shown.append(figure(front, _FRONT, details("the numbers", bare_table(background.front(report)))))
    if report.get("front"):
        chart = charts.sweep(report["front"])
        shown.append(figure(chart, _SWEEP, details("the numbers", bare_table(background.swept(report)))))
    bits = charts.bits(report)
    if bits:
        shown.append(figure(bits, _BITS))
    weighted = [x for x in report["layers"] if x["weight_format"]]
    if not rows and weighted:
        yield "<h2>What each step bought</h2>"
        kept = "The file was quantised already and is kept as it is: no step changed its bytes or its accuracy."
        yield f"<p>{'The accuracy after each step was not measured.' if report['relevance'] else kept}</p>"
    if shown:
        yield f'<h2>What each step bought</h2><div class="charts">{"".join(shown)}</div>'
    if weighted:
        yield _shares(weighted)


_FRONT = "Accuracy against bytes of what this run measured; up and to the left is better."
_SWEEP = "The trials of the sweep that this run belongs to, of the same target; the line is the front."
_BITS = (
    "Each layer's share of the relevance against the bits its weights take, scales, biases and codebooks counted; "
    "larger dots are more weights, each named when the pointer rests on it. Bits should go where relevance is."
)


def _shares(rows: list[Mapping[str, Any]]) -> str:
    """Relevance share beside the share of the bytes, per weighted layer."""
    total = sum(x["bytes"] for x in rows) or 1
    scored = any(x["relevance_share"] is not None for x in rows)
    body = "".join(
        f"<tr><td>{escape(x['origin'])}</td><td>{escape(x['weight_format'])}</td>"
        + (f"<td>{_bar(x['relevance_share'] or 0.0)}</td>" if scored else "")
        + f"<td>{_bar(x['bytes'] / total)}</td></tr>\n"
        for x in rows
    )
    head = "<th>origin</th><th>weights</th>" + ("<th>share of relevance</th>" if scored else "")
    table = f"<table><thead><tr>{head}<th>share of bytes</th></tr></thead>\n<tbody>{body}</tbody></table>"
    title = "Where relevance is, where bytes are" if scored else "Where bytes are"
    return details(title, f'<div class="scroll">{table}</div>')


def _bar(share: float) -> str:
    return f'<span class="bar" style="width:{share * 20:.2f}em"></span> {100 * share:.1f} %'


def _layers(report: Mapping[str, Any]) -> Iterator[str]:
    if not report["layers"]:
        return
    yield f"<h2>Layers</h2>{layertable.render(report)}"
    for at, name in enumerate(report["targets"]):
        if any(x["targets"].get(name, {}).get("energy") for x in report["layers"]):
            text = f"energy on {name}: modelled cycles times the board's energy per cycle"
            yield f'<p class="note" data-t="{at}">{escape(text)}</p>'
    slow = tables.slow(report)
    if slow.rows:
        yield details(slow.title, bare_table(slow))


def _roofs(report: Mapping[str, Any]) -> Iterator[str]:
    """The roofline of each target that was measured on this machine."""
    if not any(t.get("limits") for t in report["targets"].values()):
        return
    from xdeploy.report import roofchart

    for at, name in enumerate(report["targets"]):
        chart = roofchart.roofline(report, name)
        if not chart:
            continue
        table = roofchart.numbers(report, name)
        inside = f'{bare_table(table)}<p class="note">{escape(table.note)}</p>'
        yield f'<div data-t="{at}"><h2>Roofline: what the layers reach of this machine</h2>'
        yield f"{figure(chart, f'{name}: {roofchart.TEXT}', details('the numbers', inside))}</div>"


def _memory(report: Mapping[str, Any]) -> Iterator[str]:
    """The arena of each target over the steps of an inference."""
    found = report.get("memory") or {}
    if not found:
        return
    from xdeploy.report.charts import arena

    yield "<h2>Memory of the arena, step by step</h2>"
    if len(report["targets"]) > 1:
        yield _PICK
    for at, name in enumerate(report["targets"]):
        memory = found.get(name)
        if memory is None:
            continue
        bound, size = memory["lower_bound"], memory["bytes"]
        text = f"{name}: {size:,} bytes, {size - bound:,} above the largest live set. Grey: workspaces of kernels."
        chart = arena(memory, name)
        inside = figure(chart, text, details("the buffers", bare_table(background.buffers(memory))))
        yield f'<div data-t="{at}">{inside if chart else f"<p>{escape(name)}: no buffer lies in an arena.</p>"}</div>'


def _samples(report: Mapping[str, Any], picture: Path | None) -> Iterator[str]:
    """Heat-maps and confusions."""
    from xdeploy.report import pictures

    found = report.get("confusion")
    if picture is not None and (report["relevance"] or {}).get("survival"):
        labels = found["labels"] if found else []
        yield f"<h2>Explanations before and after</h2>{pictures.heatmaps(picture, labels)}"
    if found:
        n = sum(row[2] for row in found["counts"])
        yield "<h2>Confusions of the deployed code</h2>"
        yield f'<p class="note">{n:,} test samples; each line is a true class, each column what the code said.</p>'
        yield pictures.confusion(found)


def _deeper(report: Mapping[str, Any]) -> Iterator[str]:
    table = tables.mix(report)
    if table.rows:
        yield render_table(table)


def _origin(report: Mapping[str, Any]) -> Iterator[str]:
    """Environment, provenance, recipe and stages."""
    yield "<h2>Environment and provenance</h2>"
    yield "<ul>" + "".join(f"<li>{escape(x)}</li>" for x in tables.facts(report)) + "</ul>"
    yield pairs(background.environment(report))
    for name, values in background.built(report).items():
        yield details(f"built for {name}", pairs(values))
    recipe = background.recipe(report)
    if recipe:
        lines = "".join(f"<li>{escape(key)} = {escape(value)}</li>" for key, value in recipe.items())
        yield details("the recipe, with all defaults", f'<ul class="many">{lines}</ul>')
    stages: Table = background.stages(report)
    if stages.rows:
        yield render_table(stages)
