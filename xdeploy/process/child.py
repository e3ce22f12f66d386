"""Programs that end when the process that started them does, even when that one is killed.

`python -P child.py PID PROGRAM ARGUMENTS` asks the system (Linux) to be killed with its parent and becomes the
program; nothing heavy is imported. A hook between fork and exec would do the same, but is not safe beside threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied(command: Sequence[str]) -> list[str]:
    """The command (its first word with its path) to give to `subprocess` instead, so that it ends with this process."""
    return [sys.executable, "-P", __file__, str(os.getpid()), *command]  # -P: the package's files are no modules here


def end_with(parent: int) -> None:
    """Be killed when the parent process ends, now if it has; elsewhere than on Linux, nothing."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def work_for(parent: int) -> None:
    """Be a working process: end with the parent, and leave a terminal's interrupt, which all of its get, to it."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
