"""`xdeploy check`: exit codes, the document, and every obstacle at once, for each kind of MODEL."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.conftest import FrontDoor
from tests.e2e.files import hindered_float, hindered_quantised
from xdeploy.cli import main

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    xdeploy_input = {"shape": (3, 8, 8)}
    def __init__(self, op):
        super().__init__()
        self.conv, self.fc, self.op = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2), op
    def forward(self, x):
        return self.fc(self.op(torch.relu(self.conv(x)).mean((2, 3))))

def good(): return Net(torch.sigmoid)
def bad(): return Net(lambda x: x.sort(1).values.cumsum(1))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "check_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("check_nets", None)
    return "check_nets"


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["check", *arguments, "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["schema"] == "xdeploy.check/1"
    assert document["deployable"] == (code == 0) == (not document["obstacles"])
    assert {"obstacles", "layers", "fallback", "targets", "kind", "model"} <= set(document)
    return code, document


def test_a_factory(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys, f"{nets}:good")
    assert code == 0
    kinds = [x["op"] for x in found["layers"]]
    assert [k for k in kinds if k in ("conv2d", "linear", "function")] == ["conv2d", "function", "linear"]
    assert found["layers"][0]["shape"] == [3, 8, 8]


def test_a_factory_with_obstacles(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys, f"{nets}:bad")
    assert code == 3
    assert [o["op"] for o in found["obstacles"]] == ["aten.sort", "aten.cumsum"]
    assert all("check_nets.py" in o["reason"] for o in found["obstacles"])


def test_a_program(tmp_path: Path, nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module = importlib.import_module(nets).good().eval()
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3, 8, 8),)), tmp_path / "net.pt2")
    assert checked(capsys, str(tmp_path / "net.pt2"))[0] == 0


def test_a_float_file(door: FrontDoor, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys, str(door.model), "--target", "cortex-m4", "--target", "x86-64")
    assert (code, found["kind"]) == (0, "float")
    assert {n: t["deployable"] for n, t in found["targets"].items()} == {"cortex-m4": True, "x86-64": True}
    assert found["targets"]["cortex-m4"]["ram_limit"] > found["targets"]["cortex-m4"]["arena_bytes"] > 0


def test_a_float_file_with_obstacles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both operators at once, each with its shape; what hangs on them is not reported."""
    code, found = checked(capsys, str(hindered_float(tmp_path / "net.onnx")))
    assert code == 3
    rows = {o["node"]: o for o in found["obstacles"]}
    assert {n: o["op"] for n, o in rows.items()} == {"wave": "Sin", "running": "CumSum"}
    assert rows["wave"]["shape"] == rows["running"]["shape"] == [5, 4, 4]
    assert all(o["reason"] for o in rows.values())


def test_a_quantised_file(door: FrontDoor, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys, str(door.out / "model.onnx"), "--target", "cortex-m4")
    assert (code, found["kind"]) == (0, "quantised")
    built = json.loads((door.out / "cortex-m4" / "program.json").read_text())
    assert found["targets"]["cortex-m4"]["weight_bytes"] == built["weight_bytes"]
    assert found["targets"]["cortex-m4"]["arena_bytes"] == built["arena"]["bytes"]


def test_a_quantised_file_with_obstacles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = checked(capsys, str(hindered_quantised(tmp_path / "net.onnx")))
    assert code == 3
    assert {(o["node"], o["op"]) for o in found["obstacles"]} == {("running", "CumSum"), ("best", "TopK")}
    assert all(o["shape"] == [6] and o["reason"] for o in found["obstacles"])


def target_file(folder: Path, **changes: str) -> str:
    """cortex-m4 with some lines of its TOML file changed."""
    from importlib.resources import files

    text = (files("xdeploy.targets") / "cortex-m4.toml").read_text()
    for key, value in changes.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    (folder / "board.toml").write_text(text)
    return str(folder / "board.toml")


def test_a_target_that_is_too_small(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = target_file(tmp_path, name='"board"', flash="200", ram="64")
    code, found = checked(capsys, str(door.model), "--target", board)
    assert code == 3
    assert [(o["node"], o["target"]) for o in found["obstacles"]] == [("(memory)", "board")]
    assert "does not fit" in found["obstacles"][0]["reason"]


def test_a_target_without_kernels(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No feature, no row: each node is an obstacle there, and nowhere else."""
    board = target_file(tmp_path, name='"board"', features="[]")
    code, found = checked(capsys, str(door.out / "model.onnx"), "--target", board, "--target", "x86-64")
    assert code == 3
    assert {o["target"] for o in found["obstacles"]} == {"board"}
    assert {o["op"] for o in found["obstacles"]} >= {"conv2d", "linear", "mul", "lut"}
    assert found["targets"]["x86-64"]["deployable"]


def test_what_is_no_model_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.onnx").write_bytes(b"not a protobuf")
    code, found = checked(capsys, str(tmp_path / "net.onnx"))
    assert code == 3
    assert "not an ONNX file" in found["obstacles"][0]["reason"]
    assert main(["check", str(tmp_path / "none.onnx")]) in (2, 3)
    assert main(["check", str(tmp_path / "net.onnx"), "--target", "cortex-m44"]) == 2


def test_the_text_names_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(hindered_float(tmp_path / "net.onnx"))]) == 3
    text = capsys.readouterr().out
    assert all(word in text for word in ("wave (Sin)", "running (CumSum)", "5x4x4", "not deployable: 2 obstacle(s)"))
