"""What importing and asking for help may cost, and what the public surface is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HEAVY = ("torch", "tvm", "onnx", "onnxruntime", "scipy", "sklearn", "unicorn", "matplotlib")


@pytest.mark.parametrize(
    "code", ["import xdeploy", "from xdeploy.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"]
)
def test_no_heavy_library_is_loaded(code: str) -> None:
    code += f"\nimport sys; print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("loaded: []")


def test_public_names() -> None:
    import xdeploy
    from xdeploy import builder, pipeline

    assert set(xdeploy.__all__) == {"__version__", "build"}
    assert builder.build is not xdeploy.build is pipeline.build


def test_every_package_is_installed() -> None:
    """The list in pyproject.toml is written by hand: every folder with Python or data files stands in it."""
    root = Path(__file__).resolve().parents[1]
    listed = set(tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    places = {"xdeploy": root / "xdeploy", "xdeploy.kernels": root / "kernels", "xdeploy.targets": root / "targets"}
    found = set()
    for name, place in places.items():
        for file in place.rglob("__init__.py"):
            found.add(".".join((name, *file.parent.relative_to(place).parts)))
    assert listed == found
