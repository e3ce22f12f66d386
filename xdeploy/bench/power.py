"""Energy per inference from a measured power trace: import, gate, idle power, quantities.

A gate is a digital channel that is high during inferences, or windows of time. Inside it the measured power is
integrated; outside of it lies the idle power, which is subtracted. Every figure says what it includes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.columns import UNITS
from xdeploy.bench.gate import Integral, Window, debounced, integrate
from xdeploy.bench.instruments import open_trace
from xdeploy.bench.model import significant
from xdeploy.bench.traces import Trace
from xdeploy.errors import UsageError
from xdeploy.formats import Float64
from xdeploy.handover import Measurement, quantity

MOST_GAPS = 0.05  # share of a gated part that may lie in gaps of the trace


@dataclass(frozen=True, slots=True)
class PowerOptions:
    """What is to be done with a trace.

    format: see instruments.FORMATS. gate: a channel's name, `t0:t1[,t0:t1...]` in seconds, or auto. idle: auto, none,
    or a power such as 1.2mW. inferences: of each gated part. supply: volts, for traces of current alone.
    """

    format: str = "auto"
    gate: str = "auto"
    idle: str = "auto"
    inferences: int = 1
    supply: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """Energy of every gated part.

    start, duration: float64 (n,) seconds. energy: float64 (n,) joules, idle power included. idle: watts, or None.
    inferences: of each part. notes: what was odd about the trace.
    """

    instrument: str
    gate: str
    start: Float64
    duration: Float64
    energy: Float64
    idle: float | None
    inferences: int
    notes: tuple[str, ...] = field(default=())

    @property
    def gross(self) -> Float64:
        """Joules per inference, idle power included."""
        return self.energy / self.inferences

    @property
    def net(self) -> Float64:
        """Joules per inference above the idle power."""
        return (self.energy - (self.idle or 0.0) * self.duration) / self.inferences


def si(text: str, kind: str, example: str) -> float:
    """A number with a unit of `kind` (power, voltage), or without one in SI; finite and not negative.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([a-zA-Zµμ]*)\s*", text)
    unit = "" if found is None else found[2].replace("µ", "u").replace("μ", "u").lower()
    known, factor = UNITS.get(unit, (kind if not unit else "", 1.0))
    try:
        value = float(found[1]) * factor if found else np.nan
    except ValueError:
        value = np.nan
    if known != kind or not np.isfinite(value):
        raise UsageError(f"{text!r} is no {kind}; example: {example}")
    return float(value)


def windows_of(text: str) -> tuple[Window, ...]:
    """The windows of `t0:t1[,t0:t1...]`, seconds, in order and apart.

    Raises:
        UsageError: a window that ends before it begins, or overlaps the one before.
    """
    found = list[Window]()
    for part in text.split(","):
        ends = part.split(":")
        try:
            low, high = (float(x) for x in ends)
        except ValueError:
            raise UsageError(f"--gate {part!r} is no window; example: 0.5:1.5,2.5:3.5") from None
        if not low < high or not np.isfinite([low, high]).all() or (found and low < found[-1][1]):
            raise UsageError(f"--gate {part!r}: windows have to follow each other, each start before its end")
        found.append((low, high))
    return tuple(found)


def measure(path: Path, options: PowerOptions) -> Reading:
    """Energy per inference of a measured trace.

    Raises:
        UsageError: see `instruments.open_trace`; or the gate cannot be made out, or is no gate of this trace.
    """
    trace = open_trace(path, options.format, options.supply)
    if re.fullmatch(r"[\d.eE+:,\s-]+", options.gate) and ":" in options.gate:
        windows = windows_of(options.gate)
        return _reading(integrate(trace.chunks(), windows), trace, f"{len(windows)} window(s) of time", options)
    gate = _toggling(trace, path) if options.gate == "auto" else options.gate
    return _reading(integrate(trace.chunks(gate)), trace, f"channel {gate}", options)


def _toggling(trace: Trace, path: Path) -> str:
    """The one digital channel that changes."""
    found = [name for name in trace.digital if _changes(trace, name)]
    if len(found) == 1:
        return found[0]
    has = f"several digital channels that change: {', '.join(found)}" if found else "no digital channel that changes"
    raise UsageError(
        f"{path} has {has}; --gate auto needs one",
        hint="name it (--gate D0), or give times in seconds (--gate 0.5:1.5)",
    )


def _changes(trace: Trace, name: str) -> bool:
    seen: set[bool] = set()
    for chunk in trace.chunks(name):
        level = chunk.level if chunk.level is not None else np.zeros(0)
        seen |= {bool(v) for v in np.unique(level[~np.isnan(level)] > 0.5)}
        if len(seen) == 2:
            return True
    return False


def _reading(found: Integral, trace: Trace, gate: str, options: PowerOptions) -> Reading:
    edges, glitches = debounced(found.edges) if gate.startswith("channel") else (list(found.edges), 0)
    notes = [f"{glitches} glitch(es) of the gate of fewer than 3 samples left out"] if glitches else []
    if edges and not edges[0].rises:
        edges, notes = edges[1:], [*notes, "the trace begins within a gated part, which is left out"]
    if edges and edges[-1].rises:
        edges, notes = edges[:-1], [*notes, "the trace ends within a gated part, which is left out"]
    if not edges:
        raise UsageError(f"{gate} is never high for a whole inference in {found.end - found.start:.6g} s of trace")
    ups, downs = edges[::2], edges[1::2]
    start, end = np.array([e.time for e in ups]), np.array([e.time for e in downs])
    energy = np.array([b.energy - a.energy for a, b in zip(ups, downs, strict=True)])
    fewest = min(b.sample - a.sample for a, b in zip(ups, downs, strict=True))
    if fewest < 2:
        raise UsageError(f"{gate}: a gated part holds {fewest} sample(s) of the trace", hint="sample faster")
    notes += _told_gaps(found, start, end)
    idle = _idle(found, options.idle)
    reading = Reading(
        trace.instrument, gate, start, end - start, energy, idle, options.inferences,
        (*notes, f"{found.samples} samples, at least {fewest} in a gated part"),
    )  # fmt: skip
    if idle is not None and np.median(reading.net) <= 0:
        power = float(np.median(energy / (end - start)))
        raise UsageError(
            f"the power within the gate ({power:.4g} W) is not above the idle power ({idle:.4g} W)",
            hint="is the gate low during inferences? --idle none leaves the idle power in",
        )
    return reading


def _told_gaps(found: Integral, start: Float64, end: Float64) -> list[str]:
    """Notes on gaps; a gated part that lies in gaps to a large part was not measured."""
    for low, high in zip(start, end, strict=True) if found.gaps else ():
        lost = sum(max(0.0, min(high, t + d) - max(low, t)) for t, d in found.gaps)
        if lost > MOST_GAPS * (high - low):
            raise UsageError(
                f"{lost:.4g} of the {high - low:.4g} s from {low:.6g} s are a gap in the trace",
                hint="samples were lost; record again, or gate another part",
            )
    notes = []
    if found.gaps:
        longest = max(d for _, d in found.gaps)
        notes.append(f"{len(found.gaps)} gap(s) in the trace, the longest {longest:.4g} s, bridged by a straight line")
    if found.still:
        notes.append(f"{found.still} sample(s) at the time of the one before")
    return notes


def _idle(found: Integral, wish: str) -> float | None:
    if wish == "none":
        return None
    if wish != "auto":
        return si(wish, "power", "--idle 1.2mW")
    if found.idle is None:
        raise UsageError(
            "nothing of the trace lies outside of the gate, so that the idle power cannot be told",
            hint="give it (--idle 1.2mW), or leave it in (--idle none)",
        )
    return max(found.idle, 0.0)


def _spread(values: Float64, unit: str, note: str, **extra: Any) -> dict[str, Any]:
    low, middle, high = (significant(float(v)) for v in np.percentile(values, (10, 50, 90)))
    bounds = {"low": low, "high": high} if len(values) > 1 else {}
    return quantity(middle, unit, "measured", **bounds, n=len(values), note=note, **extra)


def quantities(reading: Reading) -> dict[str, Any]:
    """Per inference: energy (above idle where known), energy_gross and latency; power and idle_power. All measured."""
    each = f"{len(reading.energy)} gated part(s) of {reading.inferences} inference(s)"
    source = f"{reading.instrument}, {reading.gate}, {each}: median, 10th and 90th percentile"
    place = {"instrument": reading.instrument}
    whole = "all that the supply gives where it was measured, idle power included"
    values = {
        "energy_gross": _spread(reading.gross, "J", f"{whole}; {source}", **place),
        "power": _spread(reading.energy / reading.duration, "W", f"mean within the gate, {whole}; {source}", **place),
        "latency": _spread(reading.duration / reading.inferences, "s", f"of the gate; {source}", **place),
    }
    if reading.idle is None:
        return {"energy": values["energy_gross"], **values}
    idle = f"median outside of the gate, or as given with --idle; {reading.instrument}"
    values["idle_power"] = quantity(significant(reading.idle), "W", "measured", note=idle, **place)
    above = f"above an idle power of {reading.idle:.4g} W, which energy_gross includes; {source}"
    return {"energy": _spread(reading.net, "J", above, **place), **values}


def with_power(measurement: Measurement, reading: Reading, path: Path) -> Measurement:
    """The measurement with the trace's quantities; modelled ones stay as `<key>_modelled`.

    A latency that the runner measured stays, and the gate's is `latency_gate`.
    """
    kept = dict(measurement.quantities)
    for key, value in quantities(reading).items():
        old = kept.get(key)
        if old is not None and old["how"] != "measured":
            kept[f"{key}_{old['how']}"] = old
        runners = old is not None and old["how"] == "measured" and "instrument" not in old
        kept[f"{key}_gate" if runners else key] = value
    trace = {
        "file": path.name, "instrument": reading.instrument, "gate": reading.gate, "parts": len(reading.energy),
        "inferences": reading.inferences, "notes": list(reading.notes),
    }  # fmt: skip
    tells = dict(measurement.tells)
    cannot = {k: v for k, v in tells.get("cannot", {}).items() if k not in ("energy", "latency")}
    tells |= {"can": list(dict.fromkeys([*tells.get("can", ()), "energy", "latency"])), "cannot": cannot}
    environment = {**measurement.environment, "power": trace}
    return replace(measurement, quantities=kept, environment=environment, tells=tells)
