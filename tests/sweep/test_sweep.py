"""Whole sweeps of a small network: the same as single builds, however they are interrupted or shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import seed
from tests.e2e.files import blobs, float_onnx
from xdeploy.cli import main
from xdeploy.errors import ToolchainError, UsageError
from xdeploy.files import sha256
from xdeploy.pipeline import run
from xdeploy.recipe import Recipe
from xdeploy.request import Request
from xdeploy.sweep import storage, sweep
from xdeploy.sweep.front import Point, dominates, pareto
from xdeploy.sweep.objectives import objectives_of

TARGET = "cortex-m4"
BASE = {
    "plan.max_drop": 100.0, "relevance.samples": 16, "bench.repeats": 1, "data.calibration": 64, "data.golden": 2,
    "compress.restore": False,
}  # fmt: skip


class Given:
    """Paths of a small network and its data, and the arguments of its sweep."""

    def __init__(self, folder: Path) -> None:
        self.model, self.data, self.test = folder / "net.onnx", folder / "data.npz", folder / "test.npz"
        float_onnx(self.model, seed())
        blobs(self.data, seed(), count=120)
        blobs(self.test, seed() + 1, count=40)

    def sweep(self, output: Path, space: dict[str, Any], **more: Any) -> dict[str, Any]:
        recipe = {"recipe": Recipe().with_options(BASE)}
        return sweep(
            str(self.model), data=self.data, test_data=self.test, target=TARGET, space=space, recipes=recipe,
            output=output, **more,
        )  # fmt: skip

    def command(self, output: Path, *more: str) -> list[str]:
        settings = [x for k, v in BASE.items() for x in ("--set", f"{k}={json.dumps(v)}")]
        return ["sweep", str(self.model), "--data", str(self.data), "--test-data", str(self.test), "--target", TARGET,
                *settings, "-o", str(output), *more]  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("given"))


SMALL = {"plan.formats": [["int8"], ["int2"]], "plan.flash": [10**6, 10]}


@pytest.fixture(scope="module")
def swept(given: Given, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("swept") / "out"
    return output, given.sweep(output, SMALL)


def test_results_reasons_and_files(given: Given, swept: tuple[Path, dict[str, Any]]) -> None:
    output, front = swept
    assert front["schema"] == "xdeploy.front/1"
    assert front == json.loads((output / "front.json").read_text())
    assert [t["state"] for t in front["trials"]] == ["complete", "pruned", "complete", "pruned"]
    assert "no plan fits" in front["trials"][1]["reason"]
    members = front["front"][TARGET]
    folders = {f"trials/{m['trial']:04}" for m in members}
    assert {str(p.relative_to(output)) for p in (output / "trials").iterdir()} == folders
    for m in members:
        report = json.loads((output / m["folder"] / "report.json").read_text())
        assert m["test_accuracy"] == report["accuracy"]["deployed"]
        assert m["test_accuracy"]["n"] == 40
        assert m["values"]["accuracy"]["n"] == report["data"]["validation"]
        assert m["values"]["flash"] == report["targets"][TARGET]["flash"]
        assert m["values"]["instructions"]["how"] == "emulated"
        assert (output / m["report"]).is_file()
    assert "<svg" in (output / "front.html").read_text()
    shared = sorted(p.name for p in (output / "stages").iterdir())
    assert shared == [TARGET, "lower", "score"]
    assert len([p for p in (output / "stages" / "score").iterdir() if p.is_dir()]) == 1  # of all trials together


def test_the_front_is_that_of_brute_force(swept: tuple[Path, dict[str, Any]]) -> None:
    _, front = swept
    objectives = objectives_of([o["name"] for o in front["objectives"]])
    done = {t["trial"]: [t["values"][o.name]["value"] for o in objectives] for t in front["trials"] if t["values"]}
    alone = {i for i, v in done.items() if not any(dominates(w, v, objectives) for w in done.values())}
    assert {m["trial"] for m in front["front"][TARGET]} == alone
    assert {p.position for p in pareto([Point(i, tuple(v)) for i, v in done.items()], objectives)} == alone


def test_a_trial_is_what_a_build_gives(given: Given, swept: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    output, front = swept
    member = front["front"][TARGET][0]
    _compare(given, output, member, tmp_path / "single")


def _compare(given: Given, output: Path, member: dict[str, Any], folder: Path) -> None:
    recipe = Recipe().with_options({**BASE, **member["options"], "threads": 1})
    run(Request(str(given.model), None, given.data, given.test, recipe, (TARGET,), folder), until="build")
    assert sha256(folder / "compressed.safetensors") == member["compressed_sha256"]
    files = [p.relative_to(folder / TARGET) for p in sorted((folder / TARGET).rglob("*")) if p.is_file()]
    ours = output / member["folder"] / TARGET
    for name in files:
        if name.name != "bench.json":  # tells when it was measured
            assert (ours / name).read_bytes() == (folder / TARGET / name).read_bytes(), name
    a, b = (json.loads((x / "manifest.json").read_text())["files"] for x in (ours, folder / TARGET))
    assert a == b


def test_running_it_again_changes_nothing(given: Given, swept: tuple[Path, dict[str, Any]]) -> None:
    output, front = swept
    before = {p: p.stat().st_mtime_ns for p in (output / "trials").rglob("accuracy.json")}
    assert given.sweep(output, SMALL) == front
    assert {p: p.stat().st_mtime_ns for p in (output / "trials").rglob("accuracy.json")} == before


def test_another_sweep_in_the_same_folder(given: Given, swept: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="another sweep; it differs in space"):
        given.sweep(swept[0], {"plan.formats": [["int4"]]})


def test_bad_input(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for more, message in (
        ((), "something to vary"),
        (("--budgets", "flash=1K", "--jobs", "0"), "at least 1"),
        (("--budgets", "flash=1K", "--jobs", "900"), "more than this machine's"),
        (("--budgets", "flash=1K", "--sampler", "best"), "unknown sampler"),
        (("--budgets", "flash=1K", "--objective", "speed"), "unknown objective"),
        (("--budgets", "flash=1K", "--sampler", "tpe"), "--trials"),
        (("--budgets", "flash=1K", "--set", "threads=2"), "--threads"),
        (("--budgets", "flash=1K", "--storage", "nonsense://x"), "storage"),
        (("--budgets", "flash=1K", "--recipes", "no.toml"), "no.toml"),
    ):
        assert main([*given.command(out, *more), "--quiet"]) == 2, more
        assert message in capsys.readouterr().err
    assert not (out / "front.json").exists()


def test_without_optuna(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ToolchainError, match="needs Optuna") as told:
        given.sweep(tmp_path / "out", SMALL)
    assert "xdeploy[sweep]" in (told.value.hint or "")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ToolchainError):
        storage.open_storage(None, tmp_path)


@pytest.mark.slow
def test_a_grid_is_four_builds(given: Given, tmp_path: Path) -> None:
    space = {"plan.formats": [["int8"], ["int4"]], "compress.scale": ["channel", "tensor"]}
    front = given.sweep(tmp_path / "out", space, objectives=("accuracy", "flash"))
    assert [t["state"] for t in front["trials"]] == ["complete"] * 4
    for t in front["trials"]:
        folder = tmp_path / f"single-{t['trial']}"
        recipe = Recipe().with_options({**BASE, **t["options"], "threads": 1})
        run(Request(str(given.model), None, given.data, given.test, recipe, (TARGET,), folder), until="build")
        (shared,) = [
            p.parent for p in (tmp_path / "out" / "stages" / "lower").rglob("compressed.safetensors")
            if sha256(p) == sha256(folder / "compressed.safetensors")
        ]  # fmt: skip
        assert (shared / "graph.npz").read_bytes() == (folder / "graph.npz").read_bytes()
        packages = [p.parent for p in (tmp_path / "out" / "stages" / TARGET).rglob("manifest.json")]
        wanted = (folder / TARGET / "manifest.json").read_bytes()
        assert [p for p in packages if (p / "manifest.json").read_bytes() == wanted]


@pytest.mark.slow
def test_killed_midway(given: Given, tmp_path: Path) -> None:
    """The whole process group is killed when one trial is done; what follows gives the same front."""
    space = tmp_path / "space.toml"
    space.write_text('plan.formats = [["int8"], ["int4"], ["int2"]]\n')
    more = ("--space", str(space), "--jobs", "2", "--quiet")
    assert main(given.command(tmp_path / "whole", *more)) == 0
    command = [sys.executable, "-m", "xdeploy.cli", *given.command(tmp_path / "cut", *more)]
    child = subprocess.Popen(command, start_new_session=True)
    while not list((tmp_path / "cut").glob(f"stages/{TARGET}/*/stages.json")):
        assert child.poll() is None
        time.sleep(0.1)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "cut" / "front.json").exists()
    assert main(given.command(tmp_path / "cut", *more)) == 0
    a, b = (json.loads((tmp_path / x / "front.json").read_text()) for x in ("whole", "cut"))
    assert a["front"] == b["front"]
    assert a["trials"] == b["trials"]


@pytest.mark.slow
def test_two_machines_on_one_storage(given: Given, tmp_path: Path) -> None:
    """The same command with two output folders: each trial is run in one of them, both give the same front."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    more = ("--budgets", "flash=1000000,900000,800000,10", "--storage", url, "--quiet")
    commands = [[sys.executable, "-m", "xdeploy.cli", *given.command(tmp_path / x, *more)] for x in "ab"]
    children = [subprocess.Popen(c) for c in commands]
    assert [c.wait(900) for c in children] == [0, 0]
    a, b = (json.loads((tmp_path / x / "front.json").read_text()) for x in "ab")
    assert a["trials"] == b["trials"]
    assert a["front"] == b["front"]
    assert all(m["same_as_in_the_study"] for m in a["front"][TARGET])
