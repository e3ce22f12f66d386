"""What a signal does to the command: its work and its children end within two seconds, a second signal ends it at once.

Python runs a signal's handler only between two steps of its main thread, which may be inside a compiler, a solver or
the end of a thread pool for a long time. So a thread of its own is told by the interpreter's C handler, ends the
children, gives the work a moment to put away what is temporary, and then ends the process. That is as safe as any end:
files are renamed into place when they are whole, and a stage counts when it is finished.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from xdeploy.process.descendants import descendants

GRACE = 1.2  # seconds between a signal and the end
TIDYING = 8.0  # seconds at most, where something is left on another machine otherwise
MESSAGE = "interrupted; what was finished is kept and the next run goes on from there"
_SHOW_CURSOR = "\x1b[?25h\r\x1b[K"  # a progress display hides it
_PR_SET_CHILD_SUBREAPER = 36  # Linux: prctl(2)


def open_standard_files() -> None:
    """Stand-ins for those of stdin, stdout and stderr that the caller has closed: no other file takes their place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)


class _Held:
    """Whether any thread is within a `with` of it."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it meanwhile."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    def __bool__(self) -> bool:
        return self._count > 0


_owed, _tidying = _Held(), _Held()


def to_be_tidied() -> contextlib.AbstractContextManager[None]:
    """What leaves something elsewhere that has to be tidied up: it may take `TIDYING` seconds after a signal."""
    return _owed.held()


def tidying() -> contextlib.AbstractContextManager[None]:
    """The tidying itself: its children live on after a signal; a second one ends it."""
    return _tidying.held()


class Guard:
    """Watches for SIGINT, SIGTERM and SIGHUP from now on; `received` is the first that came."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _leave)
        _adopt_orphans()
        threading.Thread(target=self._watch, name="xdeploy-signals", daemon=True).start()

    def _watch(self) -> None:
        watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        while self.received is None:
            self.received = next((n for n in self._next(None) if n in watched), None)
        began = time.monotonic()
        while time.monotonic() < began + (TIDYING if _owed or _tidying else GRACE):
            if not _tidying:
                end_children()
            if any(n in watched for n in self._next(0.1)):
                break
        end_now(self.received)

    def _next(self, seconds: float | None) -> bytes:
        """Numbers of the signals that came within so many seconds (None: however long it takes)."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return os.read(self._read, 64) if ready else b""


def end_now(number: int) -> NoReturn:
    """End this process and its children with the exit code of a signal."""
    text = f"{_SHOW_CURSOR}{MESSAGE}\n" if os.isatty(2) else f"{MESSAGE}\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    end_children()
    os._exit(128 + number)


def end_children() -> None:
    """Kill every process that descends from this one."""
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends first (a compiler behind its wrapper), to find them."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
