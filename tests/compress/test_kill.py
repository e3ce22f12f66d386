"""A command that is killed while it fine-tunes goes on where it was, and ends with the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xdeploy.cli import main
from xdeploy.stages import CHECKPOINT

FILES = ("compressed.safetensors", "compressed.json")


def arguments(out: Path) -> list[str]:
    settings = ("plan.density=0.3", "plan.max_drop=100", "relevance.samples=32", "ecq.refresh=10")
    options = [x for setting in settings for x in ("--set", setting)]
    return ["compress", "-o", str(out), "--epochs", "4", "--ecq", "ecqx", "--formats", "int4", *options, "--quiet"]


@pytest.mark.slow
def test_killed_command_ends_as_if_never_killed(tmp_path):
    out = tmp_path / "killed"
    run = subprocess.Popen([sys.executable, "-m", "xdeploy.cli", *arguments(out)], start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not (out / CHECKPOINT).exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert run.returncode == -signal.SIGKILL  # it was still at it
    assert (out / CHECKPOINT).is_file()
    assert not (out / FILES[0]).exists()
    assert main(arguments(out)) == 0
    assert not (out / CHECKPOINT).exists()
    whole = tmp_path / "whole"
    assert main(arguments(whole)) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (whole / name).read_bytes()
