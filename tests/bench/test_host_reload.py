"""A library that was built anew in the same folder is the one that runs, in the same process."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from xdeploy.bench.host import _fresh


def library(folder: Path, value: int) -> Path:
    (folder / "x.c").write_text(f"int answer(void) {{ return {value}; }}\n")
    path = folder / "libx.so"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-nostdlib", "-o", str(path), str(folder / "x.c")]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.skipif(platform.system() != "Linux", reason="shared objects of Linux")
def test_a_library_built_anew_is_loaded_anew(tmp_path: Path) -> None:
    first = _fresh(library(tmp_path, 1))
    second = _fresh(library(tmp_path, 2))
    assert (first.answer(), second.answer()) == (1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["libx.so", "x.c"]
    path = library(tmp_path, 3)
    ctypes.CDLL(str(path))
    assert ctypes.CDLL(str(library(tmp_path, 4))).answer() == 3  # what the loader alone would give
