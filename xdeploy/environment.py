"""Where a run happened: machine, system, versions, and the commit of a checkout; kept in accuracy.json."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from xdeploy import __version__
from xdeploy.cpu import cpu_name

_PACKAGES = ("numpy", "torch", "onnx", "onnxruntime", "scipy", "apache-tvm", "ziglang", "unicorn", "captum")
_SECONDS = 5.0  # that git may take


def environment() -> dict[str, Any]:
    """What a number of this run may depend on beside its inputs.

    Returns:
        `cpu` and `cores` of this machine, `system`, `python`, `xdeploy`, `packages` (name -> version, of those that
        are installed), `commit` of the checkout that xdeploy is run from ("-dirty" if files differ), or None.
    """
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "xdeploy": __version__,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": commit(Path(__file__).resolve().parents[1]),
    }


@cache  # what runs is what was loaded, whatever happens to the checkout meanwhile
def commit(root: Path) -> str | None:
    """The commit checked out in `root` when it was first asked for, None where `root` is no checkout or without git."""
    if not (root / ".git").exists():  # a package below some other project's checkout has no commit of ours
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
