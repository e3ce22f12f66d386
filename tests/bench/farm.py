"""TVM's own tracker, and servers that register with it, as fixture `farm`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.bench.sshd import free_port
from xdeploy.bench.tracker import Tracker, TrackerError


class Farm:
    """A tracker and servers that register with it, each a process group of its own."""

    def __init__(self) -> None:
        self.port, self.children = free_port(), list[subprocess.Popen[bytes]]()
        self._start("rpc_tracker", self.port)

    def board(self, kind: str) -> str:
        """Start a server; its address."""
        port = free_port()
        self._start("rpc_server", port, "--tracker", f"127.0.0.1:{self.port}", "--key", kind)
        return f"127.0.0.1:{port}"

    def _start(self, module: str, port: int, *more: str) -> None:
        words = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1), "--silent", *more]
        command, null = [sys.executable, "-m", f"tvm.exec.{module}", *words], subprocess.DEVNULL
        self.children.append(subprocess.Popen(command, stdout=null, stderr=null, start_new_session=True))

    def until(self, kind: str, count: int) -> None:
        """Wait until so many of a kind are registered."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(TrackerError), Tracker("127.0.0.1", self.port, 5.0) as tracker:
                if tracker.kinds().get(kind, (0, 0))[0] == count:
                    return
            time.sleep(0.1)
        pytest.fail(f"not {count} boards {kind}")

    def kill(self, index: int) -> None:
        """End one with all that it has started."""
        os.killpg(self.children[index].pid, signal.SIGKILL)
        self.children[index].wait()


@pytest.fixture
def farm() -> Iterator[Farm]:
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    farm = Farm()
    try:
        yield farm
    finally:
        for i, child in enumerate(farm.children):
            if child.poll() is None:
                farm.kill(i)
