"""The slow part of a first build for Linux targets, begun while the model is still being scored and compressed."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys

from xdeploy.builder.link import static_flags
from xdeploy.process.child import tied
from xdeploy.process.lock import scratch_folder
from xdeploy.target import Target


def warm_up(target: Target) -> None:
    """Begin building a Linux target's C library in the background: a minute of work the first time, then cached.

    The flags are those of `link_static`, which decide what is cached. Nothing waits for it and nothing depends on
    its result; it ends with this process at the latest.
    """
    if target.kind != "linux" or importlib.util.find_spec("ziglang") is None:
        return
    scratch = contextlib.ExitStack()
    folder = scratch.enter_context(scratch_folder("warm"))
    atexit.register(scratch.close)
    (folder / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    zig = [sys.executable, "-m", "ziglang"]
    command = tied([*zig, "cc", *static_flags(str(target.compiler["triple"])), "empty.c", "-o", "empty"])
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(command, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)

    def end() -> None:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    atexit.register(end)
