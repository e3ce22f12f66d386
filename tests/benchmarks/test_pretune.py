"""How much of what ships is current, by the layers of one small network: rows that are known, figures that are true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretune
import pytest

import xdeploy.tune
from tests.kernels.harness import has_qemu
from xdeploy.lir.graph import LoweredGraph
from xdeploy.request import Silent
from xdeploy.target import Target, load_target
from xdeploy.tune import tune
from xdeploy.tune.candidates import candidates
from xdeploy.tune.jobs import Job
from xdeploy.tune.measure import measure
from xdeploy.tune.pretuned import pretuned, read, shipped, written

NAME = "digits_cnn-int8"
AGAIN = "python benchmarks/pretune.py"
LEAST = 0.75  # of the rows that compete: kernels change often, and what is not known is only slower to tune
SAMPLES = 3  # rows measured again on a target


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> LoweredGraph:
    return pretune.graph_of(NAME, tmp_path_factory.mktemp("pretune"), None, Silent())


def usable(name: str) -> Target:
    """The target, where this machine's tools are those that the figures were made with."""
    target = load_target(name)
    if not has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    made, here = json.loads(shipped()[NAME].splitlines()[0])["tools"], pretune.tools()
    emulator = "qemu" if target.runner["emulator"] == "qemu" else "unicorn"
    if others := [t for t in ("apache-tvm", "ziglang", emulator) if made[t] != here[t]]:
        pytest.skip(f"what ships was made with other versions of {', '.join(others)}")
    return target


def jobs_of(graph: LoweredGraph, target: Target) -> list[Job]:
    fitted = pretune.fitted(graph, target)
    assert fitted is not None
    table = candidates(fitted, target, "tuned", "quick")
    return list({c.job.work: c.job for competing in table.values() for c in competing}.values())


@pytest.mark.parametrize("name", pretune.TARGETS)
def test_most_rows_that_compete_ship(graph: LoweredGraph, name: str) -> None:
    jobs = jobs_of(graph, usable(name))
    missing = sorted({j.kernel for j in jobs if pretuned().get(j.work) is None})
    told = f"{len(missing)} of {len(jobs)} rows have changed since figures were made: {missing}; run {AGAIN}"
    assert len(missing) <= (1 - LEAST) * len(jobs), told


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m4", "cortex-m55", "cortex-a53"])
def test_what_ships_is_what_would_be_measured(graph: LoweredGraph, name: str) -> None:
    target = usable(name)
    known = [j for j in jobs_of(graph, target) if pretuned().get(j.work) is not None]
    known = sorted(known, key=lambda j: j.work)[:SAMPLES]
    for job, now in zip(known, measure(known, target), strict=True):
        told = f"{job.kernel}: what builds or measures kernels has changed; run {AGAIN}"
        assert pretuned().get(job.work) == now, told


def test_a_quick_build_measures_nothing_that_ships(
    graph: LoweredGraph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path))
    target, seen, real = usable("cortex-m4"), list[Job](), xdeploy.tune.measure_all

    def watch(cut: Any, *rest: Any) -> Any:
        seen.extend(job for jobs in cut for job in jobs)
        return real(cut, *rest)

    monkeypatch.setattr(xdeploy.tune, "measure_all", watch)
    choice = tune(graph, target, pretune.QUICK)
    assert set(choice.kernels) == set(candidates(graph, target, "tuned", "quick"))
    assert {j.work for j in seen} == {j.work for j in jobs_of(graph, target) if pretuned().get(j.work) is None}


def test_the_check_tells_what_is_current(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read(shipped()[NAME])
    path = tmp_path / "figures.jsonl"
    assert not pretune.compared(NAME, rows, path)
    path.write_text(written(rows[1:], pretune.tools()))
    assert not pretune.compared(NAME, rows, path)
    told = f"{len(rows) - 1} of {len(rows)} rows are current, 1 are missing, 0 differ; 0 ship"
    assert told in capsys.readouterr().err
    path.write_text(written(rows, pretune.tools()))
    assert pretune.compared(NAME, rows, path)


def test_a_network_that_does_not_fit_is_left_out(graph: LoweredGraph) -> None:
    small = replace(load_target("cortex-m4"), memory={"flash": 1000, "ram": 1000, "align": 8})
    assert pretune.fitted(graph, small) is None
