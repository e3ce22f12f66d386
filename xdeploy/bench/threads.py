"""One thread and two of a library that was built for both, in turns, so that what slows the machine slows both."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.bench.host import BURST_NS, HostRunner
from xdeploy.bench.model import significant
from xdeploy.errors import DeviceError
from xdeploy.formats import Float64, Int8
from xdeploy.handover import quantity

ROUNDS = 31
SETTLING = 64  # inferences by which the library finds out whether its second thread pays, before it is timed


def with_two(runner: HostRunner, codes: Int8, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure.

    Args:
        runner: of an artifact that can run here.
        codes: int8 inputs (N, *device input shape); the first is timed.
        rounds: in each of which one thread and two have a turn.

    Returns:
        `latency_two_threads` in seconds, and `ratio_two_threads`, the time with two over that with one; nothing where
        the package was not built for two threads, and values of None where there is no second one.
    """
    if "threads" not in runner.image.manifest:
        return {}
    try:
        times = turns(runner, codes, rounds)
    except DeviceError as error:
        note = error.message
        return {
            "latency_two_threads": quantity(None, "s", "measured", note=note),
            "ratio_two_threads": quantity(None, "1", "measured", note=note),
        }
    note = "median of bursts in which the library may use its second thread, 10th and 90th percentile, memory warm"
    return {"latency_two_threads": _spread(times[1] * 1e-9, "s", note), "ratio_two_threads": ratio(times)}


def ratio(times: Float64) -> dict[str, Any]:
    """The quantity of two threads' time over one's, of `turns`: median within rounds, 10th and 90th percentile."""
    found, wins = times[1] / times[0], int((times[1] < times[0]).sum())
    best = "two threads are" if np.median(found) < 1 else "one thread is"
    count = wins if best.startswith("two") else len(found) - wins
    note = f"time with two threads over time with one; {best} faster, in {count} of {len(found)} rounds"
    return _spread(found, "1", note)


def turns(runner: HostRunner, codes: Int8, rounds: int) -> Float64:
    """Nanoseconds per inference, float64 (2, rounds): with one thread, with two.

    Raises:
        DeviceError: there is no second thread here.
    """
    step, times = runner.step(codes), np.empty((2, rounds))
    start = time.perf_counter_ns()
    step()
    count = max(1, BURST_NS // max(time.perf_counter_ns() - start, 1))
    try:
        runner.set_threads(2)
        for _ in range(SETTLING):
            step()
        for turn in range(2 * rounds):
            runner.set_threads(1 + turn % 2)
            step()
            start = time.perf_counter_ns()
            for _ in range(count):
                step()
            times[turn % 2, turn // 2] = (time.perf_counter_ns() - start) / count
    finally:
        runner.set_threads(1)
    return times


def outputs_of_two(runner: HostRunner, codes: Int8) -> Int8 | None:
    """Output codes (N, *output shape) with two threads, None where there are none here."""
    if runner.most_threads < 2:
        return None
    try:
        runner.set_threads(2)
    except DeviceError:
        return None
    try:
        return runner.run_many(codes, workers=1)
    finally:
        runner.set_threads(1)


def _spread(values: NDArray[np.float64], unit: str, note: str) -> dict[str, Any]:
    low, middle, high = (significant(float(v)) for v in np.percentile(values, (10, 50, 90)))
    return quantity(middle, unit, "measured", low=low, high=high, n=len(values), note=note)
