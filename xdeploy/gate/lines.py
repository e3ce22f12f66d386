"""The terminal's view: one line per gate, then the verdict."""

from __future__ import annotations

from collections.abc import Iterable

from xdeploy.gate.result import Gate, GateResult
from xdeploy.gate.text import line

_WORDS = {"ok": "ok", "failed": "FAILED", "noted": "-"}


def render(result: GateResult) -> str:
    """The whole text."""
    rows = [(_WORDS[g.status], line(g.target), g.figure, g.reason, *_right(g)) for g in result.gates]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"note: {x}" for t in result.targets if t.change for x in map(line, t.change.apart)]
    lines += [f"note: {x}" for x in result.apart]
    for row, gate in zip(rows, result.gates, strict=True):
        lines.append("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
        lines += [f"        note: {gate.warning}"] if gate.warning else []
    return "\n".join([*lines, verdict(result)])


def _right(gate: Gate) -> Iterable[str]:
    """Headroom, and how the value was obtained."""
    yield headroom(gate)
    yield str(gate.value["how"]) if gate.value is not None else ""


def headroom(gate: Gate) -> str:
    """What is left of the limit, or how far beyond it the value is."""
    if gate.headroom is None:
        return ""
    points = gate.value is not None and gate.value["unit"] in ("%", "points")
    return f"{abs(gate.headroom):.{2 if points else 1}f} {'points' if points else '%'} " + (
        "left" if gate.headroom >= 0 else "over"
    )


def verdict(result: GateResult) -> str:
    """passed: 9 gates; or FAILED: 2 of 9 gates."""
    judged = [g for g in result.gates if g.status != "noted"]
    if result.passed:
        return f"passed: {len(judged)} gate{'s' if len(judged) != 1 else ''}"
    return f"FAILED: {len(result.failed)} of {len(judged)} gate{'s' if len(judged) != 1 else ''}"
