"""The C compiler and linker for every target: `zig cc`, from the ziglang package."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xdeploy.errors import ToolchainError
from xdeploy.process.child import tied

TIME_LIMIT = 900  # seconds; the first build for a target also builds its C library
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def cc(arguments: Sequence[str | Path], folder: Path) -> None:
    """Run `zig cc` in `folder`; give paths relative to it, so that outputs do not hold its name.

    Raises:
        ToolchainError: zig is missing, fails (with the command and its last lines) or takes too long.
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
        said = "\n  ".join(lines[-12:])
        raise ToolchainError(f"zig {tool} {shlex.join(words)}\n  ended with {done.returncode}: {said}")


def tool_versions(names: Sequence[str] = ("apache-tvm", "ziglang")) -> dict[str, str]:
    """Versions of the Python packages that are installed, by default of those that decide the generated code."""
    return {name: importlib.metadata.version(name) for name in names if _installed(name)}


@functools.cache
def clang_version() -> str:
    """Version of the compiler inside ziglang, "unknown" if it does not tell."""
    command = [sys.executable, "-m", "ziglang", "cc", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"clang version (\d+(?:\.\d+)*)", done.stdout)
    return found[1] if found else "unknown"


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
