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
from xdeploy.tune.jobs import Figures, Job
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
    table = candidates(pretune.fitted(graph, target), target, "tuned", "quick")
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
        assert pretune.agree(pretuned().get(job.work), now), told


def test_networks_that_share_a_layer_ship_the_same_figures_for_it() -> None:
    for text in shipped().values():
        for e in read(text):
            assert pretune.agree(pretuned().get(e.key), e.figures), e


def test_figures_agree_but_for_what_an_image_shares() -> None:
    one = Figures(instructions=100, cycles=1000, code=4)
    assert pretune.agree(one, replace(one, cycles=1009))
    for other in (replace(one, cycles=1020), replace(one, instructions=101), replace(one, code=8)):
        assert not pretune.agree(one, other)
    assert not pretune.agree(None, one)


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


def test_a_target_that_is_too_small_is_left_out(
    graph: LoweredGraph, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_target("cortex-m4")
    small = replace(whole, memory={"flash": 1000, "ram": 1000, "align": 8})
    monkeypatch.setattr(pretune, "TARGETS", ("small", "whole"))
    monkeypatch.setattr(pretune, "load_target", {"small": small, "whole": whole}.__getitem__)
    monkeypatch.setattr(pretune, "graph_of", lambda *_: graph)
    monkeypatch.setattr(pretune, "measured", lambda _, target, __: [target.name])
    assert list(pretune.entries(NAME, None, Silent())) == ["cortex-m4"]
    assert "cortex-m4 is left out: " in capsys.readouterr().err
