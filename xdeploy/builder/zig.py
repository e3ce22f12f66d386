"""The C compiler and linker for every target: `zig cc`, from the ziglang package."""

from __future__ import annotations

import errno
import functools
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xdeploy.caches import cache_root
from xdeploy.errors import ToolchainError
from xdeploy.files import storage_error
from xdeploy.process.child import tied

TIME_LIMIT = 900  # seconds; the first build for a target also builds its C library
_NO_ROOM = ("NoSpaceLeft", "No space left on device")
_LITTLE = 1 << 20  # bytes that are as good as none for an object file
_ABORTS = (signal.SIGABRT, signal.SIGBUS)
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def cc(arguments: Sequence[str | Path], folder: Path) -> None:
    """Run `zig cc` in `folder`; give paths relative to it, so that outputs do not hold its name.

    Raises:
        ToolchainError: zig is missing, fails (with the command and its last lines) or takes too long.
        StorageError: it fails because a disk is full.
    """
    _zig("cc", arguments, folder)


def ar(arguments: Sequence[str | Path], folder: Path) -> None:
    """Run `zig ar` in `folder`; errors as of `cc`."""
    _zig("ar", arguments, folder)


def _zig(tool: str, arguments: Sequence[str | Path], folder: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        raise ToolchainError("the Python package 'ziglang' is not installed", hint="pip install ziglang")
    words = [str(a) for a in arguments]
    command = tied([sys.executable, "-m", "ziglang", tool, *words])
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"zig {tool} {shlex.join(words)}: no end after {TIME_LIMIT} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        if is_full := _full_folder(done.returncode, done.stderr, folder):
            raise storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), is_full)
        said = "\n  ".join(lines[-12:])
        raise ToolchainError(f"zig {tool} {shlex.join(words)}\n  ended with {done.returncode}: {said}")


def _full_folder(code: int, said: str, folder: Path) -> Path | None:
    """Where there was no room, if that is why zig failed: it says so, or is aborted while it writes."""
    own = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
    places = (folder, Path(own) if own else cache_root() / "zig", Path(tempfile.gettempdir()))
    full = next((p for p in places if p.exists() and shutil.disk_usage(p).free < _LITTLE), None)
    if any(text in said for text in _NO_ROOM):
        return full or folder
    return full if -code in _ABORTS or code - 128 in _ABORTS else None


def tool_versions(names: Sequence[str] = ("apache-tvm", "ziglang")) -> dict[str, str]:
    """Versions of the Python packages that are installed, by default of those that decide the generated code."""
    return {name: version for name in names if (version := _installed(name))}


@functools.cache
def clang_version() -> str:
    """Version of the compiler inside ziglang, "unknown" if it does not tell."""
    command = [sys.executable, "-m", "ziglang", "cc", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"clang version (\d+(?:\.\d+)*)", done.stdout)
    return found[1] if found else "unknown"


@functools.cache
def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
