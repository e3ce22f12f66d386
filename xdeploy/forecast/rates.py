"""How long stages took on this machine before: a file in the user's cache folder, read to say how long the next takes.

A stage takes a fixed time and a time per unit of its work (`forecast` says what is counted). The last runs give the
time per unit; where there are none, typical figures of a small machine do, and the estimate says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdeploy.files import write_json
from xdeploy.tune.cache import cache_folder

SCHEMA = "xdeploy.rates/1"
_RUNS = 9  # that are kept of each stage
# stage -> seconds that it always takes, seconds per unit of work: measured on two cores, x86-64 with AVX2
TYPICAL: dict[str, tuple[float, float]] = {
    "source": (2.5, 2e-4), "score": (1.0, 6e-10), "plan": (2.0, 2e-10), "compress": (1.5, 3e-10),
    "export": (0.8, 3e-10), "lower": (0.05, 2e-7), "explain": (5.0, 1e-9), "accuracy": (2.5, 4e-10),
    "linux": (3.0, 1e-7), "firmware": (1.5, 1.2e-7), "host": (3.0, 1e-8),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds that a stage will take, and of how many runs on this machine that is known; 0: of none."""

    seconds: float
    runs: int


class Rates:
    """What was noted on this machine. A file that is missing or broken counts as nothing noted."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = cache_folder().parent / "rates.json" if path is None else path
        self.machine = f"{platform.node()}, {os.cpu_count()} CPUs"
        self.known = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        known = value.get("machines") if isinstance(value, dict) and value.get("schema") == SCHEMA else None
        return known if isinstance(known, dict) else {}

    def _rows(self, stage: str) -> list[tuple[float, float]]:
        """(work, seconds) of the last runs."""
        rows = self.known.get(self.machine)
        rows = rows.get(stage, []) if isinstance(rows, dict) else []
        with contextlib.suppress(TypeError, ValueError):
            return [(float(work), float(seconds)) for work, seconds in rows]
        return []

    def note(self, stage: str, work: float, seconds: float) -> None:
        """Remember a run; a cache folder that cannot be written is no error."""
        self.known = self._read()  # another run may have noted something meanwhile
        rows = [*self._rows(stage), (round(work), round(seconds, 3))][-_RUNS:]
        before = self.known.get(self.machine)
        self.known[self.machine] = {**(before if isinstance(before, dict) else {}), stage: rows}
        with contextlib.suppress(OSError):
            write_json(self.path, {"schema": SCHEMA, "machines": self.known})

    def expect(self, stage: str, kind: str, work: float) -> Estimate:
        """How long a stage takes.

        Args:
            stage: as it is noted.
            kind: a key of TYPICAL.
            work: units of it.
        """
        fixed, each = TYPICAL[kind]
        rows = self._rows(stage)
        if not rows:
            return Estimate(fixed + each * work, 0)
        # a run tells by which factor this machine is apart from the typical one
        factor = statistics.median(seconds / (fixed + each * known) for known, seconds in rows)
        return Estimate(factor * (fixed + each * work), len(rows))
