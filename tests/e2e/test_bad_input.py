"""One clear error for each mistake: the right exit code, no traceback, nothing half-written left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xdeploy.cli import main

Command = Callable[..., tuple[int, str]]

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=2, op=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, classes)
        self.op = op or (lambda x: x)
    def forward(self, x):
        return self.fc(self.op(torch.relu(self.conv(x)).mean((2, 3))))

def good(): return Net()
def three(): return Net(3)
def erf(): return Net(op=torch.erf)
def sort(): return Net(op=lambda x: x.sort(1).values)
def nan():
    net = Net()
    net.conv.weight.data[0] = float("nan")
    return net
def double(): return Net().double()
def branches(): return Net(op=lambda x: x if x.sum() > 0 else -x)
def broken(): raise RuntimeError("no such luck")
number = 3
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "nets.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    for name, classes in (("data", 2), ("one", 1)):
        for c in range(classes):
            (folder / name / f"class{c}").mkdir(parents=True)
            for i in range(12):
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(folder / name / f"class{c}" / f"{i}.png")
    (folder / "empty").mkdir()
    (folder / "corrupt" / "a").mkdir(parents=True)
    (folder / "corrupt" / "b").mkdir()
    (folder / "corrupt" / "a" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "corrupt" / "b" / "y.png")
    np.savez(folder / "nan.npz", x=np.full((8, 3, 8, 8), np.nan, np.float32), y=np.arange(8) % 2)
    (folder / "recipe.toml").write_text("[plan]\nflahs = 1\n")
    (folder / "weights.pth").write_bytes(b"\x80\x04K\x01.")
    (folder / "broken.onnx").write_bytes(b"\x08\x01garbage")
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def xdeploy(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command's own entry point, in the folder of the nets and data."""
    monkeypatch.chdir(work)

    def command(*args: str) -> tuple[int, str]:
        code = main(args)
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return code, message

    return command


CASES: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {
    # name: exit code, words that the message must hold, arguments
    "unknown target": (2, ("cortex-m9", "did you mean"), ("nets:good", "--data", "data", "--target", "cortex-m9")),
    "unknown flag": (2, ("--flahs",), ("nets:good", "--flahs", "3")),
    "unknown recipe key": (2, ("recipe.toml:2", "flash"), ("nets:good", "--data", "data", "--recipe", "recipe.toml")),
    "unknown format": (2, ("int7", "int8"), ("nets:good", "--data", "data", "--formats", "int7")),
    "bad size": (2, ("64Q",), ("nets:good", "--flash", "64Q")),
    "no module": (2, ("nosuch",), ("nosuch:thing", "--data", "data")),
    "no attribute": (2, ("nothere",), ("nets:nothere", "--data", "data")),
    "not a module": (2, ("number",), ("nets:number", "--data", "data")),
    "factory raises": (3, ("no such luck",), ("nets:broken", "--data", "data")),
    "unsupported op": (3, ("erf",), ("nets:erf", "--data", "data")),
    "unsupported op, two outputs": (3, ("sort",), ("nets:sort", "--data", "data")),
    "dtype": (3, ("float64",), ("nets:double", "--data", "data")),
    "data dependent": (3, ("nets:branches",), ("nets:branches", "--data", "data")),
    "NaN weights": (3, ("conv", "NaN"), ("nets:nan", "--data", "data")),
    "missing data": (2, ("nowhere",), ("nets:good", "--data", "nowhere")),
    "no data": (2, ("--data",), ("nets:good",)),
    "empty data": (2, ("empty",), ("nets:good", "--data", "empty")),
    "one class": (2, ("one", "class"), ("nets:good", "--data", "one")),
    "corrupt image": (2, ("x.png",), ("nets:good", "--data", "corrupt")),
    "NaN data": (2, ("nan.npz",), ("nets:good", "--data", "nan.npz")),
    "wrong class count": (2, ("3", "2"), ("nets:three", "--data", "data")),
    "pickled weights": (2, ("weights.pth", "safetensors"), ("nets:good", "--weights", "weights.pth", "--data", "data")),
    "broken onnx": (3, ("broken.onnx",), ("broken.onnx",)),
    "missing onnx": (2, ("absent.onnx",), ("absent.onnx",)),
    "missing plan": (2, ("noplan.json",), ("nets:good", "--data", "data", "--plan", "noplan.json")),
    "impossible budget": (4, ("flash",), ("nets:good", "--data", "data", "--flash", "10")),
}


@pytest.mark.parametrize("name", CASES)
def test_mistake(xdeploy: Command, tmp_path: Path, name: str) -> None:
    code, words, args = CASES[name]
    out = tmp_path / "out"
    given = args if "--target" in args else (*args, "--target", "cortex-m4")
    got, message = xdeploy("build", *given, "-o", str(out))
    assert (got, [w for w in words if w not in message]) == (code, []), message
    left = [p.name for p in out.rglob("*") if p.name.startswith(".") or p.suffix == ".part"] if out.exists() else []
    assert not left
    if code in (2, 3):
        assert not out.exists(), "a refused run left a folder behind"


def test_unwritable_output(xdeploy: Command) -> None:
    code, message = xdeploy("build", "nets:good", "--data", "data", "-o", "file/out")
    assert code == 2
    assert "cannot be written" in message


def test_missing_package(work: Path, tmp_path: Path) -> None:
    """A package that is not installed is named, with the command that installs it."""
    code = (
        "import sys; sys.modules['sklearn'] = None; from xdeploy.cli import main;"
        f"sys.exit(main(['build', '--target', 'x86-64', '-o', {str(tmp_path / 'o')!r}]))"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 5, done.stderr
    assert "pip install scikit-learn" in done.stderr
