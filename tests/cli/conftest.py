"""A small quantised file that needs neither torch nor data, and the command line in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lower.qdq import Qdq

LIMIT = 300.0  # seconds: these machines may be busy


@dataclass(frozen=True)
class Ended:
    """How a command ended; `screen` is all that went to its terminal, if it had one."""

    code: int
    out: str
    err: str
    screen: str = ""


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "xdeploy.cli", *map(str, words)]


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR")}
    return {**kept, "XDEPLOY_CACHE": str(folder / "cache"), "TERM": "xterm-256color", **more}


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantised network of two layers, with a folder of its own."""
    folder = tmp_path_factory.mktemp("kept")
    net = Qdq((3, 8, 8))
    net.q()
    net.conv(8, 3, pads=[1, 1, 1, 1])
    net.q(0.04, -2)
    net.op("Flatten", net.at)
    net.op("MatMul", net.at, net.weight((8 * 8 * 8, 5), axis=1))
    net.q(0.1, 1)
    return net.save(folder)


@pytest.fixture(scope="session")
def plain(kept: Path) -> Callable[..., Ended]:
    """Run a command with pipes for its output."""

    def run(*words: str | Path, **more: str) -> Ended:
        env = environment(kept.parent, **more)
        done = subprocess.run(command(*words), capture_output=True, text=True, env=env, timeout=LIMIT, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def terminal(kept: Path) -> Callable[..., Ended]:
    """Run a command in a terminal of some size."""

    def run(*words: str | Path, size: tuple[int, int] = (24, 80), **more: str) -> Ended:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        env = environment(kept.parent, **more)
        child = subprocess.Popen(command(*words), stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        said = b""
        until = time.monotonic() + LIMIT
        with contextlib.suppress(OSError):  # the other side is closed
            while time.monotonic() < until:
                if select.select([master], [], [], 0.2)[0]:
                    part = os.read(master, 65536)
                    if not part:
                        break
                    said += part
        os.close(master)
        return Ended(child.wait(timeout=LIMIT), "", "", said.decode())

    return run


@pytest.fixture(scope="session")
def first(kept: Path, terminal: Callable[..., Ended]) -> Ended:
    """The first build, in a terminal of 80 columns and 24 lines; its run folder is `kept.parent / "out"`."""
    return terminal("build", kept, "--target", "cortex-m4", "-o", kept.parent / "out")
