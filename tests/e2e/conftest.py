"""One small float ONNX file, built once for the tests of the front door."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import seed
from tests.e2e.files import blobs, float_onnx
from xdeploy.cli import main

BUILT = ("x86-64", "cortex-m4")


@dataclass(frozen=True)
class FrontDoor:
    """The file, its data, and the run folder that the command line made of them."""

    model: Path
    data: Path
    out: Path


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> FrontDoor:
    folder = tmp_path_factory.mktemp("door")
    float_onnx(folder / "net.onnx", seed())
    blobs(folder / "data.npz", seed())
    arguments = ["build", str(folder / "net.onnx"), "--data", str(folder / "data.npz"), "-o", str(folder / "out")]
    arguments += [x for name in BUILT for x in ("--target", name)]
    settings = ("plan.max_drop=100", "relevance.samples=32", "bench.repeats=2", "plan.formats=['int8', 'c4s8']")
    options = [x for setting in settings for x in ("--set", setting)]
    assert main([*arguments, *options, "--quiet"]) == 0
    return FrontDoor(folder / "net.onnx", folder / "data.npz", folder / "out")
