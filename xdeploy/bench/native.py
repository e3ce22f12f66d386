"""Small C helpers compiled for this machine on first use; they live as long as the process."""

from __future__ import annotations

import atexit
import contextlib
import platform
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

from xdeploy.builder.zig import cc
from xdeploy.process.lock import scratch_folder


@cache
def _folder() -> Path:
    kept = contextlib.ExitStack()
    folder = kept.enter_context(scratch_folder("native"))
    atexit.register(kept.close)
    for name in ("count.h", "flash.h", "count_unicorn.c", "count_qemu.c", "roofline.c"):
        text = files("xdeploy.targets.support").joinpath(name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@cache
def native_library(source: str, *options: str) -> Path:
    """Compile a C file of targets/support to a shared library.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    folder = _folder()
    library = f"{source.removesuffix('.c')}.so"
    # a named target takes zig's own C library, so that no headers have to be installed
    own = ["-target", f"{platform.machine()}-linux-gnu"] if sys.platform == "linux" else []
    cc([*own, "-shared", "-fPIC", "-O2", "-fno-sanitize=all", "-g0", *options, source, "-o", library], folder)
    return folder / library
