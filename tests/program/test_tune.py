"""Choosing by measurement on real kernels: what is counted, what is chosen, refused, kept and taken up again."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xdeploy.tune
from tests.kernels.cases import Case
from tests.kernels.harness import DATA as DATA_AT
from tests.kernels.harness import Batch, Image, Unicorn, has_qemu, link
from tests.kernels.test_nibbles import stack
from tests.networks import Drawer
from xdeploy.builder import build
from xdeploy.errors import DeviceError, UsageError
from xdeploy.handover import GoldenIo
from xdeploy.kernel import KERNELS, Kernel
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import bind, choose, describe
from xdeploy.recipe import PackageOptions, TuneOptions
from xdeploy.target import load_target
from xdeploy.tune import tune
from xdeploy.tune.cache import Cache
from xdeploy.tune.candidates import candidates

M4 = load_target("cortex-m4")
FULL = TuneOptions(effort="full")


def network(seed: int = 0) -> tuple[LoweredGraph, GoldenIo]:
    """Two 3x3 convolutions with several rows each, a clamp and a linear layer."""
    d = Drawer((8, 8, 16), seed)
    y = d.conv("b", d.conv("a", "x", 16), 16)
    return d.finish(d.linear("d", d.reshape("r", d.clamp("c", y)), 5))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def notes(cache: Cache) -> dict[str, Any]:
    """Everything measured once for the tests below."""
    return dict(tune(network()[0], M4, FULL, cache=cache).notes)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels that were measured, not found in the cache."""
    seen: list[str] = []
    real = xdeploy.tune.measure_all

    def watch(cut: Any, *rest: Any) -> Iterator[Any]:
        seen.extend(job.kernel for jobs in cut for job in jobs)
        return real(cut, *rest)

    monkeypatch.setattr(xdeploy.tune, "measure_all", watch)
    return seen


def test_counts_equal_those_of_another_emulation(notes: dict[str, Any], tmp_path: Path) -> None:
    graph, _ = network()
    node = graph.node("a")
    alone = LoweredGraph((node,), {t: graph.tensors[t] for t in ("x", "a:out")}, "x", "a:out", graph.io)
    codes = np.random.default_rng([1, 8, 8, 16]).integers(-128, 128, (1, 8, 8, 16)).astype(np.int8)
    told = {c["name"]: c for c in notes["nodes"]["a"]["candidates"]}
    assert len(told) >= 3
    for name in [n for n in told if not n.endswith("c99")]:
        batch = Batch(M4, Image(DATA_AT, 1 << 20))
        batch.add(KERNELS[name], Case("a", alone, (codes,)), samples=1)
        machine = Unicorn(link(batch, tmp_path), M4, batch.image, count=True)
        assert machine.call(batch.calls[0].symbol, batch.calls[0].args) == told[name]["instructions"]


def test_the_least_of_all_applicable_rows_is_chosen(cache: Cache, notes: dict[str, Any], measured: list[str]) -> None:
    graph, _ = network()
    for objective, figure in (("instructions", "instructions"), ("cycles", "cycles")):
        choice = tune(graph, M4, TuneOptions(effort="full", objective=objective), cache=cache)
        for name, row in choice.kernels.items():
            told = {c["name"]: c[figure] for c in choice.notes["nodes"][name]["candidates"]}
            assert told[row] == min(told.values())
            applicable = {k.name for k in KERNELS.values() if k.op == graph.node(name).op and k.isa in M4.features
                          and k.isa != "c99" and k.applies(graph, graph.node(name), M4)}  # fmt: skip
            assert set(told) == applicable
    assert measured == []  # all of it was in the cache
    total = choice.notes["total"]
    assert total["chosen"]["value"] <= total["by_formula"]["value"]


def test_off_is_what_formulas_choose(measured: list[str]) -> None:
    graph, _ = network()
    choice = tune(graph, M4, TuneOptions(flash=50_000))
    assert (choice.kernels, choice.notes, measured) == ({}, {}, [])
    program = bind(graph, M4, "net", choice=choice)
    assert [c.kernel for c in program.calls] == [choose(graph, graph.node(c.node), M4).name for c in program.calls]
    assert "tuned" not in describe(program)
    assert program.memory["flash"] == 50_000


def test_quick_measures_the_likely_rows(cache: Cache, notes: dict[str, Any]) -> None:
    graph, _ = network()
    quick = tune(graph, M4, TuneOptions(effort="quick"), cache=cache)
    for name, node in quick.notes["nodes"].items():
        costs = [c["estimated_instructions"] for c in node["candidates"]]
        names = [c["name"] for c in node["candidates"]]
        assert 1 <= len(costs) <= 4
        assert set(names) <= {c["name"] for c in notes["nodes"][name]["candidates"]}
        assert choose(graph, graph.node(name), M4).name in names


def test_program_json_tells_figures_and_reason(cache: Cache, notes: dict[str, Any], tmp_path: Path) -> None:
    graph, _ = network()
    bind(graph, M4, "net", choice=tune(graph, M4, FULL, cache=cache)).save(tmp_path / "program.json")
    tuned = json.loads((tmp_path / "program.json").read_text())["tuned"]
    assert tuned == json.loads(json.dumps(notes))
    row = tuned["nodes"]["a"]
    assert row["why"].startswith("fewest instructions of")
    assert {"name", "instructions", "cycles", "bytes", "workspace"} <= set(row["candidates"][0])
    assert all(c["cycles"] >= c["instructions"] for c in row["candidates"])


def test_flash_objective_and_limit_give_a_smaller_image(cache: Cache, notes: dict[str, Any], tmp_path: Path) -> None:
    graph, golden = network()
    fast = bind(graph, M4, "net", choice=tune(graph, M4, FULL, cache=cache))
    small = bind(graph, M4, "net", choice=tune(graph, M4, TuneOptions("full", "flash"), cache=cache))
    assert [c.kernel for c in fast.calls] != [c.kernel for c in small.calls]
    flash = []
    for name, program in (("fast", fast), ("small", small)):
        made = build(program, graph, golden, M4, tmp_path / name, PackageOptions(), {}).manifest["flash"]
        flash.append(made["code"] + made["constants"] + made["data"])
    assert flash[1] < flash[0]
    estimates = [notes["total"]["chosen"]["flash"], small.tuned["total"]["chosen"]["flash"]]
    assert all(abs(told - real) < 0.1 * real for told, real in zip(estimates, flash, strict=True))
    between = TuneOptions(effort="full", flash=sum(estimates) // 2)
    limited = tune(graph, M4, between, cache=cache).notes["total"]["chosen"]
    assert limited["flash"] <= sum(estimates) // 2
    assert notes["total"]["chosen"]["value"] <= limited["value"]


def test_equal_layers_are_measured_once_and_other_values_not_again(
    cache: Cache, notes: dict[str, Any], measured: list[str]
) -> None:
    graph, _ = network(seed=7)  # other weights, same shapes and formats
    tune(graph, M4, FULL, cache=cache)
    assert measured == []
    assert [c["instructions"] for c in notes["nodes"]["a"]["candidates"]] == [
        c["instructions"] for c in notes["nodes"]["b"]["candidates"]
    ]


def test_a_spoilt_entry_is_measured_again(cache: Cache, notes: dict[str, Any], measured: list[str]) -> None:
    files = sorted(cache.folder.rglob("*.json"))
    before = {p: p.read_text() for p in files}
    files[0].write_text(before[files[0]][:40])
    graph, _ = network()
    again = tune(graph, M4, FULL, cache=cache)
    assert len(measured) == 1
    assert sorted(cache.folder.rglob("*.json")) == files
    whole, mended = json.loads(before[files[0]]), json.loads(files[0].read_text())
    assert mended == whole
    assert dict(again.notes) == notes


# ------------------------------------------------------------------------------------------------ wrong rows
def off_by_one(name: str) -> Kernel:
    """A row that clamps one code too low, and says that it costs nothing."""
    real = KERNELS["clamp_s8_-_1x1__tir"]

    def emit(graph: LoweredGraph, node: Any, target: Any) -> Any:
        wrong = dataclasses.replace(node, attrs={**node.attrs, "high": node.attrs["high"] - 1})
        code = real.emit(graph, wrong, target)
        return dataclasses.replace(code, text=f"# wrong\n{code.text}")

    return dataclasses.replace(real, name=name, emit=emit, cost=lambda *_: 0.0)


def clamp_network() -> LoweredGraph:
    d = Drawer((6, 6, 4))
    return d.finish(d.clamp("c", "x"))[0]


def test_a_row_that_differs_is_refused_loudly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[str]
) -> None:
    bad = off_by_one("clamp_s8_-_wrong__tir")
    monkeypatch.setitem(KERNELS._entries, bad.name, bad)
    graph = clamp_network()
    assert choose(graph, graph.nodes[0], M4).name == bad.name  # formulas would fall for it
    for _ in range(2):  # it is not kept in the cache either
        with pytest.warns(RuntimeWarning, match="clamp_s8_-_wrong__tir is refused: .* differ from the reference"):
            choice = tune(graph, M4, FULL, cache=Cache(tmp_path))
        assert choice.kernels["c"] != bad.name
        told = {c["name"]: c for c in choice.notes["nodes"]["c"]["candidates"]}
        assert "differ" in told[bad.name]["refused"]
    assert measured.count(bad.name) == 2
    monkeypatch.setattr(sys.modules["xdeploy.tune.candidates"], "applicable", lambda *_, **__: [bad])
    with pytest.warns(RuntimeWarning, match="refused"), pytest.raises(DeviceError, match="no kernel can be used"):
        tune(graph, M4, FULL, cache=Cache(tmp_path))


def test_a_row_that_does_not_compile_spoils_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = KERNELS["clamp_s8_-_1x1__tir"]
    broken = dataclasses.replace(
        real, name="clamp_s8_-_broken__tir",
        emit=lambda *a: dataclasses.replace(real.emit(*a), text="no python"),
    )  # fmt: skip
    monkeypatch.setitem(KERNELS._entries, broken.name, broken)
    with pytest.warns(RuntimeWarning, match="broken__tir is refused"):
        choice = tune(clamp_network(), M4, FULL, cache=Cache(tmp_path))
    assert choice.kernels["c"] != broken.name


# --------------------------------------------------------------------------------------------- other targets
def test_hosts_are_timed(tmp_path: Path) -> None:
    d = Drawer((6, 6, 8))
    graph, _ = d.finish(d.conv("a", "x", 8))
    choice = tune(graph, load_target("x86-64"), TuneOptions(effort="full"), cache=Cache(tmp_path))
    node = choice.notes["nodes"]["a"]
    times = {c["name"]: c["nanoseconds"] for c in node["candidates"]}
    assert len(times) >= 2
    assert min(times.values()) > 0
    assert times[choice.kernels["a"]] == min(times.values())
    assert choice.notes["how"] == "measured"


def test_hosts_read_weights_from_where_an_inference_does(tmp_path: Path) -> None:
    """As many copies of a layer's constants as make up the network's weights, for every row of it."""
    host = load_target("x86-64")
    for layers in (1, 5):
        graph = stack("int4", 64, layers)
        table = candidates(graph, host, "tuned", "full")
        for competing in table.values():
            assert {"linear_s8_s4_packed__x86", "linear_s8_s4_direct__x86"} <= {c.row.name for c in competing}
            assert {c.job.copies for c in competing} == {layers}
        choice = tune(graph, host, FULL, cache=Cache(tmp_path))
        nodes = choice.notes["nodes"].values()
        assert all("refused" not in c for n in nodes for c in n["candidates"])
    assert {c.job.copies for cs in candidates(graph, M4, "tuned", "full").values() for c in cs} == {1}


@pytest.mark.skipif(not has_qemu(), reason="qemu-system-arm is not installed")
def test_helium_rows_are_counted_in_qemu(tmp_path: Path) -> None:
    d = Drawer((6, 6, 8))
    graph, _ = d.finish(d.conv("a", "x", 8))
    choice = tune(graph, load_target("cortex-m55"), TuneOptions(effort="quick"), cache=Cache(tmp_path))
    assert choice.kernels["a"].endswith("mve")
    assert all(c["instructions"] > 100 for c in choice.notes["nodes"]["a"]["candidates"])


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed")
def test_rows_that_one_emulator_lacks_are_counted_in_another(tmp_path: Path) -> None:
    d = Drawer((6, 6, 8))
    graph, _ = d.finish(d.conv("a", "x", 8))
    choice = tune(graph, load_target("cortex-a710"), TuneOptions(effort="quick"), cache=Cache(tmp_path))
    assert all(c["instructions"] > 100 for c in choice.notes["nodes"]["a"]["candidates"])


def test_what_cannot_be_measured_is_refused_at_once() -> None:
    graph = clamp_network()
    silent = dataclasses.replace(M4, runner={"emulator": "none"})
    with pytest.raises(UsageError, match="no runner") as told:
        tune(graph, silent, FULL)
    assert "--tune off" in str(told.value)
    with pytest.raises(UsageError, match="no table of cycles"):
        tune(graph, dataclasses.replace(M4, cycles={}), TuneOptions(effort="full", objective="cycles"))


# ------------------------------------------------------------------------------------------- kill and resume
_RUN = """
import sys
from pathlib import Path
from tests.program.test_tune import M4, FULL, network
from xdeploy.tune import tune
from xdeploy.tune.cache import Cache
tune(network()[0], M4, FULL, cache=Cache(Path(sys.argv[1])), processes=int(sys.argv[2]),
     progress=lambda what, done, total: print(what, done, total, flush=True))
"""


def test_a_killed_run_goes_on_where_it_ended(
    tmp_path: Path, notes: dict[str, Any], measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _RUN, str(tmp_path), "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        words: list[list[str]] = []
        for line in child.stdout:
            words.append(line.split())
            if int(words[-1][1]) > 0:
                child.send_signal(signal.SIGKILL)
                break
    assert words[0][:2] == ["tuning", "0"]
    done, total = int(words[-1][1]), int(words[-1][2])
    assert 0 < done < total
    monkeypatch.setattr(xdeploy.tune, "PROCESS_JOBS", 1000)
    again = tune(network()[0], M4, FULL, cache=Cache(tmp_path))
    assert len(measured) <= total - done
    assert dict(again.notes) == notes


def test_reference_is_the_meaning_of_the_op() -> None:
    """A guard on the guard: the expected codes of a job are those of the reference run."""
    from xdeploy.tune.candidates import candidates

    graph, _ = network()
    job = candidates(graph, M4, "tuned", "quick")["a"][0].job
    assert np.array_equal(job.expected(), ops.run(graph, job.inputs()[0], keep=True)["a:out"])
    assert set(np.unique(job.inputs()[0][1])) == {-128, 127}
