"""The same recipe and seed give the same bytes, however many processors a build is let have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small

from xdeploy.caches import cache_root

# `threads` of the recipe says over how many threads sums are split; the default, and more than one
RECIPE = ["--set", "threads=2", "--set", "recover.epochs=2", "--quiet"]
DEMO = ["build", "--target", small.TARGET, *RECIPE]
SMALL = ["--set", "threads=2", "--set", "recover.epochs=3"]
ONE, TWO = "1", "2"


def built(work: Path, output: Path, arguments: list[str], threads: str, processors: set[int]) -> str:
    """Hash of all that a build leaves, by a process that is told to use so many threads on these processors."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    places = {"XDEPLOY_CACHE": str(work / f"cache-{output.name}"), "XDG_CACHE_HOME": str(work / f"xdg-{output.name}")}
    # compiled C libraries may be shared, and on a busy machine threads that wait should not turn round
    waiting = {"ZIG_GLOBAL_CACHE_DIR": str(cache_root() / "zig"), "OMP_WAIT_POLICY": "passive"}
    words = ["taskset", "-c", ",".join(map(str, sorted(processors))), sys.executable, "-m", "xdeploy", *arguments]
    done = subprocess.run(
        words, cwd=work, env={**os.environ, **counts, **places, **waiting}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    return small.digest(output)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["small", "demo"])
def test_processors_change_nothing(net: str, tmp_path: Path) -> None:
    """Told to use one thread, two threads, and two on one processor; the demo is trained anew each time."""
    if len(processors := sorted(os.sched_getaffinity(0))) < 2:
        pytest.skip("one processor")
    small.prepare(tmp_path)
    found = {}
    for name, threads, allowed in (
        ("one", ONE, processors[:2]),
        ("two", TWO, processors[:2]),
        ("cpu", TWO, processors[:1]),
    ):
        output = tmp_path / name
        arguments = small.command(output, 0, *SMALL) if net == "small" else [*DEMO, "-o", str(output)]
        found[name] = built(tmp_path, output, arguments, threads, set(allowed))
    assert len(set(found.values())) == 1, found
    sealed = {(tmp_path / name / small.TARGET / "manifest.json").read_bytes() for name in found}
    assert len(sealed) == 1
