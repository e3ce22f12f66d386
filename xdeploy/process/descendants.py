"""The processes below one, from Linux's /proc; elsewhere none are found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Numbers of the living processes that descend from process `root`."""
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = list(_children(waiting.pop()))
        found += below
        waiting += below
    return found


def _children(process: int) -> Iterator[int]:
    with contextlib.suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                yield from (int(number) for number in (thread / "children").read_text().split())


def memory(process: int, entry: str = "VmRSS") -> int:
    """Bytes of an entry of /proc/<process>/status such as VmRSS or VmHWM; 0: not known, or it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return 1024 * int(line.split()[1])
    return 0
