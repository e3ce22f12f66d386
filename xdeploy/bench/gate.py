"""Energy of the gated parts of a power trace: trapezoids over uneven steps, piece by piece, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdeploy.bench.traces import Chunk
from xdeploy.errors import UsageError
from xdeploy.formats import Float64

DEBOUNCE = 3  # a level that lasts fewer samples is a glitch
EDGES = 1_000_000  # more edges are noise, not a gate
KEPT = 1 << 17  # samples kept for the median of the idle power
GAP = 20.0  # a step so many times the usual one is a gap
Window = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Edge:
    """A border of a gated part: seconds, joules from the trace's start to there, and how many samples lie before."""

    time: float
    energy: float
    sample: int
    rises: bool


@dataclass(frozen=True, slots=True)
class Integral:
    """What a pass over a trace gives.

    edges: of the gate, in order. idle: watts, the median over time of what lies outside the gate, or None if nothing
    does. gaps: (start, seconds) of steps far above the usual. start, end: seconds. open: the gate is high at the end.
    """

    edges: tuple[Edge, ...]
    idle: float | None
    gaps: tuple[Window, ...]
    start: float
    end: float
    samples: int
    still: int  # steps of no length
    open: bool


class _Idle:
    """The median, weighted by duration, of a stream: every k-th sample, k doubled whenever too many are kept."""

    def __init__(self) -> None:
        self.stride, self.phase = 1, 0
        self.power, self.weight = np.empty(0), np.empty(0)

    def add(self, power: Float64, weight: Float64) -> None:
        """Take more samples."""
        skip = -self.phase % self.stride
        self.phase = (self.phase + len(power)) % self.stride
        self.power = np.concatenate([self.power, power[skip :: self.stride]])
        self.weight = np.concatenate([self.weight, weight[skip :: self.stride]])
        while len(self.power) > KEPT:
            self.power, self.weight, self.stride = self.power[::2], self.weight[::2], self.stride * 2
            self.phase = 0

    def median(self) -> float | None:
        """The power below which half of the time was spent."""
        if not self.weight.sum() > 0:
            return None
        order = np.argsort(self.power)
        share = np.cumsum(self.weight[order])
        return float(self.power[order][np.searchsorted(share, share[-1] / 2)])


class _Pass:
    """The running sums of one pass."""

    def __init__(self, windows: Sequence[Window] | None) -> None:
        borders = [(t, rises) for w in windows or () for t, rises in ((w[0], True), (w[1], False))]
        self.windows, self.borders = windows, borders
        self.edges: list[Edge] = []
        self.gaps: list[Window] = []
        self.idle = _Idle()
        self.energy, self.samples, self.still = 0.0, 0, 0
        self.usual = 0.0
        self.start = self.end = 0.0
        self.last: tuple[float, float, bool] | None = None  # time, power, level of the sample before

    def take(self, chunk: Chunk) -> None:
        """One more piece, joined to the last sample of the piece before."""
        high = self._high(chunk)
        time, power = chunk.time, chunk.power
        if self.last is None:
            self.start = float(time[0])
        else:
            time = np.concatenate([[self.last[0]], time])
            power = np.concatenate([[self.last[1]], power])
            high = np.concatenate([[self.last[2]], high])
        joined = len(time) - len(chunk.time)
        step = np.diff(time)
        self._check(step, time, chunk, joined)
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.energy + np.concatenate([[0.0], np.cumsum(step * (power[:-1] + power[1:]) / 2)])
        if not np.isfinite(total[-1]):
            raise UsageError(f"the trace's energy overflows after line {chunk.line}: its values are too large")
        if self.windows is None:
            self._level_edges(time, power, total, high, self.samples - joined)
            quiet = ~high[:-1] & ~high[1:]
            quiet[:-1] &= ~high[2:]
            quiet[1:] &= ~high[:-2]
        else:
            self._window_edges(time, power, total, self.samples - joined)
            quiet = self._outside(time)
        self.idle.add((power[:-1] + power[1:])[quiet] / 2, step[quiet])
        self.energy, self.samples = float(total[-1]), self.samples + len(chunk.time)
        self.last, self.end = (float(time[-1]), float(power[-1]), bool(high[-1])), float(time[-1])

    def _high(self, chunk: Chunk) -> NDArray[np.bool_]:
        """The gate per sample; an unknown level is that of the sample before."""
        if chunk.level is None:
            return np.zeros(len(chunk.time), np.bool_)
        before = float(self.last[2]) if self.last else 0.0
        level = np.concatenate([[before], chunk.level])
        known = np.maximum.accumulate(np.where(np.isnan(level), 0, np.arange(len(level))))
        high: NDArray[np.bool_] = level[known][1:] > 0.5
        return high

    def _check(self, step: Float64, time: Float64, chunk: Chunk, joined: int) -> None:
        if (step < 0).any():
            at = int(np.argmax(step < 0))
            line = f"{at + 1 - joined} samples after line {chunk.line}"
            raise UsageError(
                f"time runs backwards, {line}: {time[at]:.9g} s is followed by {time[at + 1]:.9g} s",
                hint="export one recording only, in the order of time",
            )
        self.still += int((step == 0).sum())
        if not self.usual and (step > 0).any():
            self.usual = float(np.median(step[step > 0]))
        for at in np.flatnonzero(step > GAP * self.usual)[: EDGES - len(self.gaps)] if self.usual else ():
            self.gaps.append((float(time[at]), float(step[at])))

    def _level_edges(self, time: Float64, power: Float64, total: Float64, high: NDArray[np.bool_], before: int) -> None:
        """An edge lies in the middle between the two samples that differ."""
        at = np.flatnonzero(high[1:] != high[:-1])
        if len(self.edges) + len(at) > EDGES:
            raise UsageError(f"the gate has more than {EDGES:,} edges", hint="is it the right channel?")
        middle = (time[at] + time[at + 1]) / 2
        for i, t, e in zip(at, middle, _energy_at(middle, time, power, total), strict=True):
            self.edges.append(Edge(float(t), float(e), before + int(i) + 1, bool(high[i + 1])))

    def _window_edges(self, time: Float64, power: Float64, total: Float64, before: int) -> None:
        inside = [b for b in self.borders if time[0] <= b[0] <= time[-1]]
        if inside:
            at = np.array([b[0] for b in inside])
            places = np.searchsorted(time, at, "right")
            for b, e, i in zip(inside, _energy_at(at, time, power, total), places, strict=True):
                self.edges.append(Edge(b[0], float(e), before + int(i), b[1]))
                self.borders.remove(b)

    def _outside(self, time: Float64) -> NDArray[np.bool_]:
        """Steps that lie in no window."""
        out = np.ones(len(time) - 1, np.bool_)
        for low, high in self.windows or ():
            out &= (time[1:] <= low) | (time[:-1] >= high)
        return out


def _energy_at(times: Float64, time: Float64, power: Float64, total: Float64) -> Float64:
    """Energy from the start to each of `times`, power being linear between samples."""
    i = np.clip(np.searchsorted(time, times, "right") - 1, 0, len(time) - 2) if len(time) > 1 else np.zeros(0, int)
    if not len(i):
        return np.full(len(times), float(total[0]))
    result: Float64 = total[i] + (times - time[i]) * (power[i] + np.interp(times, time, power)) / 2
    return result


def integrate(chunks: Iterable[Chunk], windows: Sequence[Window] | None = None) -> Integral:
    """Integrate a trace, gated by the level in its pieces or by windows of (start, end) seconds.

    Raises:
        UsageError: no samples, time that runs backwards, a gate of noise, a window outside of the trace.
    """
    sums = _Pass(windows)
    for chunk in chunks:
        sums.take(chunk)
    if sums.samples < 2:
        raise UsageError(f"the trace holds {sums.samples} sample(s)")
    if sums.borders:
        left = sums.borders[0][0]
        raise UsageError(f"the gate's {left:.9g} s lies outside of the trace: {sums.start:.9g} to {sums.end:.9g} s")
    level = bool(sums.last and sums.last[2])
    return Integral(
        tuple(sums.edges), sums.idle.median(), tuple(sums.gaps), sums.start, sums.end, sums.samples, sums.still, level
    )


def debounced(edges: Sequence[Edge]) -> tuple[list[Edge], int]:
    """The edges without glitches, and how many of those there were: first short lows, then short highs."""
    kept, glitches = list(edges), 0
    for rises in (False, True):
        result: list[Edge] = []
        for edge in kept:
            short = result and result[-1].rises is rises and edge.sample - result[-1].sample < DEBOUNCE
            if short:
                result.pop()
                glitches += 1
            else:
                result.append(edge)
        kept = result
    return kept, glitches
