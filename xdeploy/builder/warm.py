"""The slow part of a first build for Linux targets, begun while the model is still being scored and compressed."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from xdeploy.builder.link import program_flags
from xdeploy.target import Target


def warm_up(target: Target) -> None:
    """Begin building a Linux target's C library in the background: a minute of work the first time, then cached.

    The flags are those of `link_program`, which decide what is cached. Nothing waits for it and nothing depends on
    its result; it ends with this process at the latest.
    """
    if target.kind != "linux" or importlib.util.find_spec("ziglang") is None:
        return
    folder = Path(tempfile.mkdtemp(prefix="xdeploy-warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    command = [sys.executable, "-m", "ziglang", "cc", *program_flags(target), "empty.c", "-o", "empty"]
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(command, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)

    def end() -> None:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    atexit.register(end)
