"""Many small images are decoded by several processes: the same pixels, the same errors, and nothing that lives on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xdeploy.errors import UsageError
from xdeploy.model import decoding
from xdeploy.model.data import load_data
from xdeploy.process.descendants import descendants

SIZE, COUNT = 6, 90


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images of noise, some of them grey."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = tmp_path / "data" / f"class{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (SIZE, SIZE) if i % 5 == 0 else (SIZE, SIZE, 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, pieces of four images."""
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 1)
    monkeypatch.setattr(decoding, "_PIECE", 4 * SIZE * SIZE)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)


def pixels(folder: Path) -> np.ndarray:
    """As Pillow alone reads them, in the order of their names."""
    return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in sorted(folder.rglob("*.png"))])


@pytest.mark.usefixtures("shared_out")
def test_processes_give_the_same_pixels_and_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(descendants(os.getpid()))
    monkeypatch.setattr(decoding._Here, "__call__", None)  # whoever falls back to this process fails
    np.testing.assert_array_equal(load_data(folder).samples, pixels(folder))
    assert set(descendants(os.getpid())) <= before


@pytest.mark.usefixtures("shared_out")
def test_the_first_broken_image_is_the_one_that_is_named(folder: Path) -> None:
    names = sorted(folder.rglob("*.png"))
    for k in (41, 42, 49, 60, 89):
        names[k].write_bytes(b"\x89PNG nothing")
    Image.new("RGB", (SIZE, SIZE + 1)).save(names[70])
    for _ in range(5):
        with pytest.raises(UsageError, match=f"{names[41].name} is not a readable image"):
            load_data(folder)
    for k in (41, 42, 49, 60, 89):
        Image.new("RGB", (SIZE, SIZE)).save(names[k])
    with pytest.raises(UsageError, match=rf"{names[70].name} is {SIZE}x{SIZE + 1}"):
        load_data(folder)


@pytest.mark.usefixtures("shared_out")
@pytest.mark.parametrize("how", ["killed", "never begun"])
def test_a_process_that_dies_is_no_loss(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    begin = decoding._There.__init__

    def dead(self: decoding._There, here: decoding._Here) -> None:
        if how == "never begun":
            raise OSError(11, "Resource temporarily unavailable")
        begin(self, here)
        self._child.kill()
        self._child.wait()

    monkeypatch.setattr(decoding._There, "__init__", dead)
    np.testing.assert_array_equal(load_data(folder).samples, pixels(folder))
