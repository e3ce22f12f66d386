"""Artifact and limits -> GateResult. Nothing passes in silence: what was not measured fails the limit on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError
from xdeploy.gate.built import Built, read_all
from xdeploy.gate.change import compare, hits
from xdeploy.gate.limits import FIGURES, Figure, Limits, exact
from xdeploy.gate.result import Change, Gate, GateResult, TargetResult
from xdeploy.gate.text import amount, line

_ACCURACY = Path("..") / "accuracy.json"


def check_artifact(
    folder: Path, limits: Limits | None = None, baseline: Path | None = None, targets: Sequence[str] = ()
) -> GateResult:
    """Hold what was built to limits.

    Args:
        folder: OUT/<target>, or OUT for all its targets.
        limits: what it may cost and must reach; that the outputs are bit-exact is always asked.
        baseline: another such folder to compare with; targets are matched by name.
        targets: only these.

    Returns:
        The gates of every target; `passed` says whether none failed.

    Raises:
        UsageError: nothing built there, broken files, an unknown target, a limit on growth without a baseline.
    """
    limits = limits or Limits()
    if limits.growth is not None and baseline is None:
        raise UsageError("a limit on growth needs a baseline", hint="--baseline OUT of the build to compare with")
    now = read_all(folder, targets)
    if baseline is None:
        return GateResult(folder, limits, tuple(_target(b, limits) for b in now))
    before = {b.target: b for b in read_all(baseline)}
    names = [b.target for b in now]
    apart = [f"{line(n)} is not in the baseline" for n in names if n not in before]
    apart += [f"{line(n)} is in the baseline only" for n in before if n not in names and not targets]
    judged = tuple(_target(b, limits, before.get(b.target), against=True) for b in now)
    return GateResult(folder, limits, judged, baseline, tuple(apart))


def _target(now: Built, limits: Limits, before: Built | None = None, against: bool = False) -> TargetResult:
    change = compare(before, now) if before is not None else None
    gates = [_verdict(now, limits)]
    for figure in FIGURES:
        limit = getattr(limits, figure.key)
        if limit is not None:
            gates.append(_most(now, figure, limit, limits.strict))
    gates += _accuracies(now, limits, before is not None)
    if against:
        gates += _against(now, before, change, limits)
    gates = [replace(g, source=now.folder / g.source) for g in gates]
    return TargetResult(now.target, now.isa, now.model, now.sha256, now.runner, now.verdict, tuple(gates), change)


def _verdict(now: Built, limits: Limits) -> Gate:
    reason = f"{line(now.verdict)} ({line(now.runner)})" + (f": {line(now.reason)}" if now.reason else "")
    gate = Gate(now.target, "bit-exact", "outputs", "failed", reason)
    if now.verdict == "bit-exact":
        return replace(gate, status="ok", reason=f"equal to the reference bit for bit ({line(now.runner)})")
    if now.verdict == "not run" and limits.allow_not_run:
        return replace(gate, status="ok", warning="the outputs were not compared, as --allow-not-run allows")
    return gate


def _most(now: Built, figure: Figure, limit: float | int, strict: bool) -> Gate:
    """A cost and its upper limit."""
    gate = Gate(now.target, f"max-{figure.key}", figure.title, "failed", "", limit=limit)
    value = now.quantities.get(figure.key)
    if value is None:
        return replace(gate, reason=_missing(now, figure))
    high, low = value.get("high"), value.get("low")
    judged = max(value["value"], high) if strict and high is not None else value["value"]
    passed = judged <= limit
    end = " (the high end of its error bar)" if judged != value["value"] else ""
    word = "at most" if passed else "over the limit of"
    reason = f"{amount(judged, figure.unit)}{end}, {word} {amount(limit, figure.unit)}"
    return replace(
        gate, status="ok" if passed else "failed", reason=reason, value=value, headroom=_headroom(judged, limit),
        warning=_crossing(low, high, limit, figure.unit),
    )  # fmt: skip


def _missing(now: Built, figure: Figure) -> str:
    why = now.cannot.get(figure.key) or ("the artifact was not run" if now.verdict == "not run" else "")
    return f"not measured ({line(now.runner)})" + (f": {line(why)}" if why else "")


def _headroom(value: float | int, limit: float | int) -> float | None:
    """Percent of the limit that is left."""
    return float(100 * (1 - exact(value) / exact(limit))) if limit else None


def _crossing(low: float | None, high: float | None, limit: float | int, unit: str) -> str:
    if low is None or high is None or not low <= limit < high:
        return ""
    return f"the error bar from {amount(low, unit)} to {amount(high, unit)} crosses the limit"


# --------------------------------------------------------------------------------------------- accuracy
def _accuracies(now: Built, limits: Limits, against: bool) -> Iterable[Gate]:
    deployed = now.accuracy.get("deployed")
    if limits.accuracy is not None:
        least = limits.percent
        gate = Gate(now.target, "min-accuracy", "accuracy", "failed", "", limit=float(least), source=_ACCURACY)
        yield _least(gate, deployed, least) if deployed else replace(gate, reason=f"not measured: {now.accuracy_note}")
    if limits.drop is not None:
        gate = Gate(now.target, "max-drop", "loss of accuracy", "failed", "", limit=limits.drop, source=_ACCURACY)
        reference = now.accuracy.get("float")
        if reference is None and deployed is not None and against:
            reason = "not judged: no float network was measured; the baseline is what counts"
            yield replace(gate, status="noted", reason=reason)
            return
        note = now.accuracy_note or "accuracy.json has none of the float network"
        yield _drop(gate, reference, deployed, limits.drop, note, "the float network")


def _least(gate: Gate, value: Mapping[str, Any], least: Fraction) -> Gate:
    given = hits(value) or Fraction(0)
    passed = given >= least
    word = "at least" if passed else "below the limit of"
    samples = f" on {value['n']:,} samples" if isinstance(value.get("n"), int) else ""
    reason = f"{amount(value['value'], '%')}{samples}, {word} {amount(float(least), '%')}"
    return replace(gate, status="ok" if passed else "failed", reason=reason, value=value, headroom=float(given - least))


def _drop(
    gate: Gate, reference: Mapping[str, Any] | None, value: Mapping[str, Any] | None, most: float, note: str, of: str
) -> Gate:
    first, second = hits(reference), hits(value)
    if first is None or second is None:
        return replace(gate, reason=f"not measured: {note}")
    lost, limit = first - second, exact(most)
    passed = lost <= limit
    word = "at most" if passed else "over the limit of"
    reason = f"{amount(float(lost), 'points')} below {of}, {word} {amount(most, 'points')}"
    quantity = {"value": float(lost), "unit": "points", "how": "measured"}
    headroom = float(limit - lost)
    return replace(gate, status="ok" if passed else "failed", reason=reason, value=quantity, headroom=headroom)


# --------------------------------------------------------------------------------------------- baseline
def _against(now: Built, before: Built | None, change: Change | None, limits: Limits) -> Iterable[Gate]:
    """Growth and loss of accuracy against the baseline."""
    if limits.drop is not None:
        title = "loss against baseline"
        gate = Gate(now.target, "max-drop-baseline", title, "failed", "", limit=limits.drop, source=_ACCURACY)
        reference = before.accuracy.get("deployed") if before is not None else None
        note = now.accuracy_note or "the baseline has no accuracy of the deployed code"
        yield _drop(gate, reference, now.accuracy.get("deployed"), limits.drop, note, "the baseline")
    if limits.growth is None:
        return
    if before is None or change is None:
        reason = f"not comparable: {line(now.target)} is not in the baseline"
        yield Gate(now.target, "max-growth-flash", "growth", "failed", reason)
        return
    for f in FIGURES:
        a, b = before.quantities.get(f.key), now.quantities.get(f.key)
        if a is not None or b is not None:
            yield _growth(now, before, f, limits.growth)


def _growth(now: Built, before: Built, figure: Figure, growth: float) -> Gate:
    a, b = before.quantities.get(figure.key), now.quantities.get(figure.key)
    gate = Gate(now.target, f"max-growth-{figure.key}", f"growth of {figure.title}", "failed", "")
    if b is None:
        return replace(gate, reason=f"{_missing(now, figure)}, but the baseline has it")
    if a is None:
        return replace(gate, status="noted", reason="not judged: the baseline does not have it", value=b)
    if a["how"] != b["how"]:
        reason = f"not comparable: {a['how']} in the baseline, {b['how']} now"
        return replace(gate, status="noted", reason=f"not judged, {reason}", value=b)
    if figure.key == "latency" and b["how"] == "measured":
        reason = "not judged: times measured in two runs differ by more than the code does; limit them with max-latency"
        return replace(gate, status="noted", reason=reason, value=b)
    limit = exact(a["value"]) * (1 + exact(growth) / 100)
    passed = exact(b["value"]) <= limit
    word = "at most" if passed else "over the limit of"
    most = int(limit) if figure.unit not in ("s", "J") else float(limit)
    reason = f"{amount(b['value'], figure.unit)} after {amount(a['value'], figure.unit)}, {word} {growth:g} % more"
    headroom = float(100 * (1 - exact(b["value"]) / limit)) if limit else None
    return replace(gate, status="ok" if passed else "failed", reason=reason, value=b, limit=most, headroom=headroom)
