"""`xdeploy pack` and `unpack` as a user runs them: the unpacked folder compiles to the same graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compress.toynets import io_of, residual, task
from xdeploy.cli import main
from xdeploy.compress.apply import quantise
from xdeploy.compress.model import CompressedModel
from xdeploy.export import export
from xdeploy.files import sha256
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.lower import lower
from xdeploy.recipe import CompressOptions


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed toy network, saved as a run does it."""
    torch.set_num_threads(1)
    network, (x, _) = residual(), task(64)
    formats = ("int4", "c4s8", "int8")
    plan = CompressionPlan(tuple(PlanLine(n.name, formats[k % 3]) for k, n in enumerate(network.weighted())))
    folder = tmp_path_factory.mktemp("run")
    quantise(network, plan, None, io_of(network), lambda: [x], CompressOptions()).save(folder)
    return folder


def test_there_and_back(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(run_folder), "-o", str(tmp_path / "m.xdc"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"] == (tmp_path / "m.xdc").stat().st_size
    assert main(["unpack", str(tmp_path / "m.xdc"), "-o", str(tmp_path / "out")]) == 0
    assert "xdeploy compile" in capsys.readouterr().out
    inputs = np.zeros((1, 2, 8, 8), np.float32)
    graphs = []
    for name, folder in (("a", run_folder), ("b", tmp_path / "out")):
        exported = export(CompressedModel.load(folder), inputs, tmp_path / name)
        lower(exported).save(tmp_path / name / "graph.txt", tmp_path / name / "graph.npz")
        graphs.append(sha256(tmp_path / name / "graph.npz"))
    lower(tmp_path / "out" / "model.onnx").save(tmp_path / "graph.txt", tmp_path / "graph.npz")
    assert graphs == [sha256(tmp_path / "graph.npz")] * 2


def test_the_table_names_every_layer(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(run_folder), "-o", str(tmp_path / "m.xdc")]) == 0
    text = capsys.readouterr().out
    assert all(x.name in text for x in residual().weighted())
    assert f"{(tmp_path / 'm.xdc').stat().st_size} bytes" in text


def test_bad_input_is_told(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.xdc").write_text("hello")
    (tmp_path / "file").write_text("")
    cases = {
        ("pack", str(tmp_path), "-o", str(tmp_path / "m")): "holds no compressed model",
        ("pack", str(run_folder), "-o", str(tmp_path / "file" / "m")): "cannot be written",
        ("unpack", str(tmp_path / "none"), "-o", str(tmp_path / "x")): "cannot be read",
        ("unpack", str(tmp_path / "text.xdc"), "-o", str(tmp_path / "x")): "not a packed model",
        ("pack", str(run_folder)): "-o",
    }
    for arguments, told in cases.items():
        assert main(arguments) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
