"""Energy of the whole CPU package while a host artifact runs, from Linux' powercap counters (RAPL; Intel and AMD).

The counters hold microjoules and wrap at `max_energy_range_uj`. Only root may read them on most systems; then the
result says so. What they count is every core, cache and the memory controller, so nothing else should run meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.model import significant
from xdeploy.formats import Float64
from xdeploy.handover import Measurement, quantity

ROOT = Path("/sys/class/powercap")
ROUNDS, IDLE_S, BURST_S = 5, 0.3, 0.6


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter: its folder, name (package-0) and the microjoules at which it starts again from 0."""

    folder: Path
    name: str
    range: int

    def read(self) -> int:
        """Microjoules; an OSError or ValueError where they cannot be read."""
        return int((self.folder / "energy_uj").read_text(encoding="ascii"))

    def since(self, before: int) -> int:
        """Microjoules since `before`, once around at most."""
        spent = self.read() - before
        return spent if spent >= 0 else spent + self.range


@dataclass(frozen=True, slots=True)
class Energy:
    """Rounds of idling and running: watts while idle (n,), and joules and seconds per inference while running (n,)."""

    idle: Float64
    gross: Float64
    seconds: Float64
    inferences: int
    zones: tuple[str, ...]

    @property
    def net(self) -> Float64:
        """Joules per inference above the idle power of the same round."""
        return self.gross - self.idle * self.seconds


def packages(root: Path = ROOT) -> tuple[Zone, ...] | str:
    """The counters of the CPU packages that can be read, or why there are none."""
    names: dict[str, Zone] = {}
    try:
        for folder in sorted(root.glob("intel-rapl*:*")):
            name = (folder / "name").read_text(encoding="ascii").strip()
            # the memory-mapped twin of a counter has its name; psys is the whole machine, sub-zones are parts
            if name.startswith("package") and name not in names:
                names[name] = Zone(folder, name, int((folder / "max_energy_range_uj").read_text(encoding="ascii")))
                names[name].read()
    except PermissionError:
        return f"{root}/*/energy_uj may not be read by this user: sudo chmod a+r, or run as root"
    except (OSError, ValueError) as error:
        return f"the counters below {root} cannot be read: {error}"
    return tuple(names.values()) or f"this machine shows no energy counters of its CPU below {root}"


def measure(
    step: Callable[[], None],
    zones: tuple[Zone, ...],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Idle and run by turns; `step` is one inference.

    Raises:
        OSError: a counter cannot be read any more.
    """
    start = clock()
    step()
    count = max(1, round(BURST_S / max(clock() - start, 1e-7)))
    rows = []
    for _ in range(ROUNDS):
        joules, seconds = _spent(lambda: sleep(IDLE_S), zones, clock)
        idle = joules / seconds
        joules, seconds = _spent(lambda: _repeat(step, count), zones, clock)
        rows.append((idle, joules / count, seconds / count))
    idle_w, gross, each = np.array(rows).T
    return Energy(idle_w, gross, each, ROUNDS * count, tuple(z.name for z in zones))


def _repeat(step: Callable[[], None], count: int) -> None:
    for _ in range(count):
        step()


def _spent(work: Callable[[], Any], zones: tuple[Zone, ...], clock: Callable[[], float]) -> tuple[float, float]:
    before, start = [z.read() for z in zones], clock()
    work()
    seconds = clock() - start
    return sum(z.since(b) for z, b in zip(zones, before, strict=True)) * 1e-6, max(seconds, 1e-9)


def with_rapl(measurement: Measurement, step: Callable[[], Callable[[], None]], root: Path = ROOT) -> Measurement:
    """The measurement with energy per inference of the CPU package, or with the reason why it is not told.

    step: makes the inference to be repeated; it is called only where there are counters.
    """
    can, cannot = list(measurement.tells.get("can", ())), dict(measurement.tells.get("cannot", {}))
    zones = packages(root)
    try:
        found = zones if isinstance(zones, str) else measure(step(), zones)
    except (OSError, ValueError) as error:
        found = f"the counters below {root} cannot be read: {error}"
    if isinstance(found, str):
        return replace(measurement, tells={"can": can, "cannot": {**cannot, "energy": found}})
    cannot.pop("energy", None)
    tells = {"can": [*can, "energy"], "cannot": cannot}
    return replace(measurement, tells=tells, quantities={**measurement.quantities, **quantities(found)})


def quantities(found: Energy) -> dict[str, Any]:
    """Per inference, above idle and with it, and the idle power; each a median with its 10th and 90th percentile."""
    which = f"package energy of the whole CPU ({', '.join(found.zones)}), RAPL, {ROUNDS} rounds of idling and running"

    def spread(values: Float64, unit: str, note: str) -> dict[str, Any]:
        low, middle, high = (significant(float(v)) for v in np.percentile(values, (10, 50, 90)))
        return quantity(middle, unit, "measured", low=low, high=high, n=found.inferences, note=f"{note}; {which}")

    return {
        "energy": spread(found.net, "J", "above idle power"),
        "energy_gross": spread(found.gross, "J", "idle power included"),
        "idle_power": spread(found.idle, "W", "while nothing of ours runs"),
    }
