"""A short Markdown summary, for comments on pull requests: verdict, what is not comparable, gates, what changed.

Everything that comes from a model or a file is a code span, in which nothing is a tag, a link or a mention.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xdeploy.gate import lines
from xdeploy.gate.result import Change, FigureChange, Gate, GateResult, LayerChange, TargetResult
from xdeploy.gate.text import amount, change, code

TOP = 10  # layers, formats and obstacles that are listed
_WORDS = {"ok": "ok", "failed": "**FAILED**", "noted": "not judged"}


def render(result: GateResult) -> str:
    """The summary of an artifact, with the changes where there is a baseline."""
    parts = [f"### xdeploy check: {lines.verdict(result)}", ""]
    if result.baseline is not None:
        parts += [f"{code(str(result.folder))} against the baseline {code(str(result.baseline))}.", ""]
    apart = [*result.apart, *(f"{t.target}: {x}" for t in result.targets if t.change for x in t.change.apart)]
    if apart:
        parts += ["**Not comparable:**", "", *(f"- {code(x, 200)}" for x in apart), ""]
    for target in result.targets:
        parts += [f"#### {code(target.target)}", "", *_target(target), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def _target(target: TargetResult) -> list[str]:
    found = target.change
    rows = list(_figures(target)) if found else []
    shown = {g.rule for g in target.gates if found and _key(g.rule) in {f.key for f in found.figures}}
    text: list[str] = []
    if rows:
        head = ("figure", "baseline", "now", "change", "limit", "verdict")
        text += table(head, "<>>>><", rows)
    gates = [g for g in target.gates if g.rule not in shown or g.status == "failed" or g.warning]
    if gates:
        body = [(g.figure, _WORDS[g.status], code(_told(g), 300), lines.headroom(g)) for g in gates]
        text += [*([""] if text else []), *table(("gate", "verdict", "why", "headroom"), "<<<>", body)]
    return text + (_layers(found) if found else [])


def _told(gate: Gate) -> str:
    how = f" ({gate.value['how']})" if gate.value is not None else ""
    return f"{gate.reason}{how}" + (f"; {gate.warning}" if gate.warning else "")


def _key(rule: str) -> str:
    """The figure that a rule is about."""
    return rule.removeprefix("max-growth-").removeprefix("max-").removeprefix("min-")


def _figures(target: TargetResult) -> Iterable[tuple[str, ...]]:
    for f in target.change.figures if target.change else ():
        gates = [g for g in target.gates if _key(g.rule) == f.key]
        limits = [_limit(g, f) for g in gates if g.limit is not None]
        word = next((_WORDS[s] for s in ("failed", "ok", "noted") if s in {g.status for g in gates}), "")
        note = f" ({f.apart})" if f.apart else ""
        now = f"{_cell(f.now, f.unit)} {f.how}{note}"
        yield f.title, _cell(f.before, f.unit), now, change(f.before, f.now, f.unit), ", ".join(limits), word


def _limit(gate: Gate, figure: FigureChange) -> str:
    what = "growth: " if gate.rule.startswith("max-growth") else ""
    return what + _cell(gate.limit, figure.unit)


def _cell(value: float | int | None, unit: str) -> str:
    """An amount; counts without their unit, which the row's title is already."""
    return amount(value, "" if unit in ("instruction", "cycle") else unit).rstrip()


def _layers(found: Change) -> list[str]:
    """The layers that changed most, and the weight formats that changed."""
    if not found.layers:
        return ["", "No layer changed."]
    text = ["", f"Layers that changed most, {min(TOP, len(found.layers))} of {len(found.layers)} that changed:", ""]
    text += table(("layer", "instructions", "bytes", "weights", "kernel"), "<>><<", map(_layer, found.layers[:TOP]))
    formats = [x for x in found.layers if x.format[0] != x.format[1] and None not in x.bytes]
    if formats:
        rows = [f"{code(x.origin)} {_pair(x.format)}" for x in formats[:TOP]]
        more = f" and {len(formats) - TOP} more" if len(formats) > TOP else ""
        text += ["", f"Weight formats that changed: {', '.join(rows)}{more}."]
    return text


def _layer(x: LayerChange) -> tuple[str, ...]:
    return (code(x.origin), _count(x.instructions), _count(x.bytes), _pair(x.format), _pair(x.kernel))


def _count(pair: tuple[int | None, int | None]) -> str:
    before, now = ("-" if n is None else f"{n:,}" for n in pair)
    return now if before == now else f"{before} → {now} ({change(*pair)})"


def _pair(pair: tuple[str | None, str | None]) -> str:
    before, now = ("-" if x is None or not x else code(x, 80) for x in pair)
    return now if before == now else f"{before} → {now}"


def render_model(document: Mapping[str, Any]) -> str:
    """The summary of whether a model can be deployed; `document` is what `xdeploy.check.check` returns."""
    obstacles = document["obstacles"]
    word = "deployable" if document["deployable"] else f"NOT deployable, {len(obstacles)} obstacle(s)"
    parts = [f"### xdeploy check: {word}", "", code(str(document["model"]))]
    rows = [
        (code(str(o["node"])), code(str(o["op"])), code(str(o["target"] or "all")), code(str(o["reason"]), 200),
         code(str(o["rewrite"]), 200) if o["rewrite"] else "")
        for o in obstacles[: 2 * TOP]
    ]  # fmt: skip
    if rows:
        parts += ["", *table(("node", "op", "target", "why", "instead"), "<<<<<", rows)]
        parts += ["", f"and {len(obstacles) - len(rows)} more"] if len(obstacles) > len(rows) else []
    for name, row in document["targets"].items():
        facts = "; ".join(row["facts"]) or "not examined, since there are obstacles"
        parts += ["", f"- {code(name)}: {code(facts, 300)}"]
    for row in document["fallback"][: 2 * TOP]:
        parts += ["", f"- in float: {code(str(row['node']))}"]
    return "\n".join(parts) + "\n"


def table(head: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; `align` is one of `<>` per column, the cells are safe already."""
    marks = ["---:" if a == ">" else "---" for a in align]
    return ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]
