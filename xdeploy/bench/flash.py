"""The flash memory of a board behind its caches: what the emulators are told, and what its reads cost.

The caches are simulated on the addresses that the code really fetches and loads (flash.h of targets/support), for the
first input of a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdeploy.bench.runner import Waits
from xdeploy.builder.elf import Elf

RAM = 0x20000000  # where memory of Arm's microcontrollers begins that can be written; images lie below
HIDDEN = 4  # bytes of code that a cycle takes: what a prefetch of the next read can hide


@dataclass(frozen=True, slots=True)
class Flash:
    """Table `cycles.flash` of a target.

    wait_states: cycles that a read takes beyond the first. read, line: bytes of one read and of a cache line.
    code, data: (sets, ways) of the caches; data (1, 0): both share the code's. prefetch: the read after the one in
    use is begun ahead.
    """

    wait_states: int
    read: int
    line: int
    code: tuple[int, int]
    data: tuple[int, int]
    prefetch: bool

    @staticmethod
    def of(cycles: Mapping[str, Any]) -> Flash | None:
        """The flash of a table `cycles`, None where it has none."""
        t = cycles.get("flash")
        if not t:
            return None
        code, data = (
            (int(t["code_sets"]), int(t["code_ways"])),
            (int(t.get("data_sets", 1)), int(t.get("data_ways", 0))),
        )
        return Flash(int(t["wait_states"]), int(t["read"]), int(t["line"]), code, data, bool(t.get("prefetch", False)))

    def numbers(self, elf: Elf) -> tuple[int, ...]:
        """Start and end of the flash in an image, and what else struct xd_flash begins with."""
        inside = [s for s in elf.segments if s.address < RAM]
        start, end = (min(s.address for s in inside), max(s.address + s.size for s in inside)) if inside else (0, 0)
        return (start, end, self.read, self.line, *self.code, *self.data)

    def cycles(self, waits: Waits) -> float:
        """Cycles that the core waits for these reads."""
        ahead = max(0.0, self.wait_states - self.read / HIDDEN) if self.prefetch else float(self.wait_states)
        return (waits.jumps + waits.data) * float(self.wait_states) + waits.sequence * ahead
