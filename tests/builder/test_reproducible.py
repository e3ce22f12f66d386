"""Two builds of one input give one SHA-256, whatever folder, user, time zone, umask, hash seed and cores."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xdeploy.builder.sbom import content_digest
from xdeploy.files import sha256

# left out: bench.json, which holds times and names this machine
UNSTABLE = {"bench.json"}
TARGETS = ("cortex-m4", "x86-64")
NETWORK = """\
from pathlib import Path
from tests.networks import separable_network
from xdeploy.builder import build
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions, Recipe
from xdeploy.target import load_target

graph, golden = separable_network()
for name in {targets}:
    target = load_target(name)
    told = {{"recipe": Recipe().to_dict(), "model": {{"name": "net", "sha256": "ab" * 32}}, "packages": ["numpy"]}}
    build(bind(graph, target, "net"), graph, golden, target, Path("{folder}") / name, PackageOptions(), told)
"""
HERE = {
    "TZ": "UTC",
    "PYTHONHASHSEED": "1",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "2",
    "USER": "root",
    "LOGNAME": "root",
}
THERE = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "77", "LANG": "C", "LC_ALL": "C", "OMP_NUM_THREADS": "1",
         "OPENBLAS_NUM_THREADS": "1", "USER": "eve", "LOGNAME": "eve"}  # fmt: skip


def run(words: list[str], folder: Path, elsewhere: bool, cold: bool = False) -> None:
    """A command in `folder`; elsewhere: with another environment, home and umask, on one core; cold: without caches."""
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    keep = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "HOME": os.environ.get("HOME", "/")}
    changes = dict(HERE)
    if elsewhere:
        changes = {**THERE, "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache")}
        if not cold:  # filling the compiler's cache takes a minute
            changes["ZIG_GLOBAL_CACHE_DIR"] = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(Path.home() / ".cache/zig"))
        one = ["taskset", "-c", str(min(os.sched_getaffinity(0)))] if shutil.which("taskset") else []
        words = ["sh", "-c", 'umask 077; exec "$@"', "sh", *one, *words]
    done = subprocess.run(words, cwd=folder, env={**keep, **changes}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def content(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and permissions of every file, by name."""
    paths = (p for p in folder.rglob("*") if p.is_file() and p.name not in UNSTABLE)
    return {p.relative_to(folder).as_posix(): (sha256(p), p.stat().st_mode & 0o777) for p in paths}


def same(first: Path, second: Path) -> None:
    for target in TARGETS:
        a, b = content(first / target), content(second / target)
        assert {n for n in {*a, *b} if a.get(n) != b.get(n)} == set()
        assert {"manifest.json", "sbom.cdx.json", "program.json"} <= set(a)
        manifest = json.loads((first / target / "manifest.json").read_text())
        assert set(a) == {*manifest["files"], "manifest.json"}
        assert {n: h for n, (h, _) in a.items() if n != "manifest.json"} == manifest["files"]
        assert len({content_digest({n: h for n, (h, _) in c.items()}) for c in (a, b)}) == 1


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_small_network(cold: bool, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "a" / "deeper" / "place"
    exec(NETWORK.format(targets=TARGETS, folder=str(first / "out")))  # this process is the other user
    run([sys.executable, "-c", NETWORK.format(targets=TARGETS, folder="out")], second, elsewhere=True, cold=cold)
    same(first / "out", second / "out")
    for path in second.joinpath("out").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [w for w in (str(tmp_path), "Kathmandu", "deeper") if w.encode() in data], path


@pytest.mark.slow
def test_demo_with_training(tmp_path: Path) -> None:
    """From training on: scores, plan and codes come out of float sums, whose order the recipe's threads fix."""
    words = [sys.executable, "-c", "import sys; from xdeploy.cli import main; sys.exit(main(sys.argv[1:]))"]
    words += ["build", "--quiet", "--epochs", "1", *(w for t in TARGETS for w in ("--target", t))]
    first, second = tmp_path / "one", tmp_path / "a" / "deeper"
    run([*words, "-o", str(first / "out")], first, elsewhere=False)
    run([*words, "-o", "out"], second, elsewhere=True)
    same(first / "out", second / "out")
    for name in ("plan.json", "relevance.npz", "compressed.safetensors", "model.onnx", "graph.npz", "golden.npz"):
        assert sha256(first / "out" / name) == sha256(second / "out" / name), name
