"""How long a stage takes, and how much memory it and the programs it starts hold at the most."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from xdeploy.process.descendants import descendants, memory

INTERVAL = 0.1  # seconds between two looks at the children


class Meter:
    """Measures what happens inside its `with`.

    seconds: of wall clock. memory: `peak_rss` in bytes, of this process and its children at the same time (its own
    peak is the system's, sums with children are sampled), and `peak_rss_note` where it is of something else.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.memory: dict[str, Any] = {}

    def __enter__(self) -> Meter:
        self._exact = _forget_peak()
        self._most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, name="xdeploy-meter", daemon=True)
        self._thread.start()
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._start
        self._done.set()
        self._thread.join()
        own = memory(os.getpid(), "VmHWM")
        if self._exact and own:
            self.memory = {"peak_rss": max(own, self._most)}
        else:
            self.memory = {"peak_rss": max(_most_ever(), self._most), "peak_rss_note": "the process's since its start"}

    def _sample(self) -> None:
        me = os.getpid()
        while not self._done.wait(INTERVAL):
            below = sum(map(memory, descendants(me)))
            if below:
                self._most = max(self._most, memory(me) + below)


def _forget_peak() -> bool:
    """Let the system's peak of this process begin anew (Linux); whether it did."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _most_ever() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
