"""Temporary folders beside other processes that clear away what killed ones left."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from xdeploy.files import quiet_stderr
from xdeploy.process.lock import scratch_folder, sweep_scratch


def test_a_sweep_before_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is there, but its lock is not yet: the sweep takes it for one of a killed process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[str] = []
    make = tempfile.mkdtemp

    def swept(prefix: str) -> str:
        made.append(make(prefix=prefix))
        if len(made) % 2:
            sweep_scratch()
            assert not Path(made[-1]).exists()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with scratch_folder("test") as folder:
        assert folder.is_dir()
    with quiet_stderr() as log:
        os.write(2, b"said\n")
    assert len(made) == 4
    assert not log.exists()
    assert not any(tmp_path.iterdir())


def test_a_sweep_leaves_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with quiet_stderr() as log:
        os.write(2, b"said\n")
        sweep_scratch()
        assert log.read_text() == "said\n"
