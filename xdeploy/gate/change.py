"""What changed in a target against the same target of a baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from xdeploy.gate.built import Built, Layer
from xdeploy.gate.limits import FIGURES, exact
from xdeploy.gate.result import Change, FigureChange, LayerChange

_ABSENT = Layer("", None, 0, "", None)


def hits(quantity: object) -> Fraction | None:
    """An accuracy in percent without the rounding of floats: from the number of right answers where it is known."""
    if not isinstance(quantity, dict):
        return None
    n, value = quantity.get("n"), quantity["value"]
    if isinstance(n, int) and 0 < n < 2**53:
        right = round(value * n / 100)
        if abs(100 * right / n - value) < 1e-9:
            return Fraction(100 * right, n)
    return exact(value)


def compare(before: Built, now: Built) -> Change:
    """The change from one build to another, of the same target or, said so, of another."""
    layers = sorted(_layers(before.layers, now.layers), key=_weight)
    return Change(tuple(_apart(before, now)), tuple(_figures(before, now)), tuple(layers))


def _apart(before: Built, now: Built) -> Iterable[str]:
    """What speaks against comparing, with the values on both sides."""
    pairs = (
        ("target", before.target, now.target), ("ISA", before.isa, now.isa), ("form", before.form, now.form),
        ("runner", before.runner, now.runner), ("model", _model(before), _model(now)),
        ("tool version", f"xdeploy {before.tool or 'unknown'}", f"xdeploy {now.tool or 'unknown'}"),
    )  # fmt: skip
    for what, a, b in pairs:
        if a != b:
            yield f"another {what}: {a or 'unknown'} in the baseline, {b or 'unknown'} now"
    counts = [x.accuracy["deployed"].get("n") if "deployed" in x.accuracy else None for x in (before, now)]
    if None not in counts and counts[0] != counts[1]:
        yield f"other test data: {counts[0]} samples in the baseline, {counts[1]} now"


def _value(quantity: Mapping[str, Any] | None) -> float | int | None:
    return None if quantity is None else quantity["value"]


def _model(built: Built) -> str:
    return f"{built.model} (SHA-256 {built.sha256[:12] or 'unknown'})"


def _figures(before: Built, now: Built) -> Iterable[FigureChange]:
    for f in FIGURES:
        a, b = before.quantities.get(f.key), now.quantities.get(f.key)
        if a is None and b is None:
            continue
        how = str((b or a or {})["how"])
        apart = f"{a['how']} in the baseline, {b['how']} now" if a and b and a["how"] != b["how"] else ""
        yield FigureChange(f.key, f.title, f.unit, _value(a), _value(b), how, apart)
    a, b = before.accuracy.get("deployed"), now.accuracy.get("deployed")
    if a is not None or b is not None:
        yield FigureChange("accuracy", "accuracy", "%", _value(a), _value(b), "measured")


def _layers(before: tuple[Layer, ...], now: tuple[Layer, ...]) -> Iterable[LayerChange]:
    """The layers of either side of which anything differs."""
    a, b = ({x.origin: x for x in side} for side in (before, now))
    for name in dict.fromkeys([*b, *a]):
        x, y = a.get(name), b.get(name)
        if x != y:
            first, second = x or _ABSENT, y or _ABSENT
            yield LayerChange(
                name,
                (first.instructions, second.instructions),
                (x.bytes if x else None, y.bytes if y else None),
                (first.format, second.format),
                (first.kernel or None, second.kernel or None),
            )


def _weight(layer: LayerChange) -> tuple[int, int, str]:
    """Sorts the largest change of instructions first, then of bytes, then by name."""
    counts, sizes = ([n or 0 for n in pair] for pair in (layer.instructions, layer.bytes))
    return -abs(counts[1] - counts[0]), -abs(sizes[1] - sizes[0]), layer.origin
