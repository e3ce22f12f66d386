"""Comparison with other engines: order and arithmetic with made-up ones, ONNX Runtime for real, the forms they read."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.networks import residual_network, separable_network
from xdeploy.bench import bench, compare, ptefile
from xdeploy.bench.compare import CompareOptions, agreement, interleaved, known_peers, ratio, source_model, with_peers
from xdeploy.bench.host import HostRunner
from xdeploy.bench.peerfiles import Form
from xdeploy.bench.peers import ExecuTorch, LiteRt, OpenVino, Ready, Work
from xdeploy.bench.ptecall import COMPILER
from xdeploy.bench.runner import RunOptions
from xdeploy.bench.tflitefile import tflite
from xdeploy.errors import UnsupportedError, UsageError
from xdeploy.files import write_json
from xdeploy.formats import QParams
from xdeploy.handover import Artifact, GoldenIo, Measurement
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import load_target

X86 = platform.machine() in ("x86_64", "AMD64")
needs_x86 = pytest.mark.skipif(not X86, reason="the host target is x86-64")
MS = 1_000_000


class Clock:
    """A clock that only steps move; they write down who they are."""

    def __init__(self) -> None:
        self.now, self.calls = 0, list[str]()

    def __call__(self) -> int:
        return self.now

    def step(self, name: str, cost: Callable[[int], int]) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += cost(self.calls.count(name))

        return run


def test_rounds_are_interleaved() -> None:
    """A B C A B C..., each turn with one untimed call and as many timed ones as fill the turn."""
    clock = Clock()
    steps = [clock.step("a", lambda n: MS), clock.step("b", lambda n: 2 * MS), clock.step("c", lambda n: 50 * MS)]
    times = interleaved(steps, 4, clock)
    assert times.tolist() == [[MS] * 4, [2 * MS] * 4, [50 * MS] * 4]
    assert clock.calls == [*"aabbcc", *("a" * 6 + "b" * 4 + "c" * 2) * 4]


def test_ratios_are_formed_within_rounds() -> None:
    """The machine becomes ten times slower from round to round: the ratio does not notice."""
    slower = 10.0 ** np.arange(11)
    theirs = slower * 4.0
    ours = slower * np.linspace(1.0, 3.0, 11)
    found = ratio(ours, theirs)
    assert found["value"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == (pytest.approx(0.3), pytest.approx(0.7))
    assert found["n"] == 11


def test_agreement_by_hand() -> None:
    graph, _ = residual_network()
    io = replace(graph.io, output_q=QParams(0.5, 0))
    ours = np.array([[1, 5, 3], [7, 7, 0]], np.int8)
    found = agreement(np.array([[0.5, 2.5, 1.5], [3.4, 3.6, 0.0]], np.float32), ours, io)
    assert found["top1"]["value"] == 1.0  # 3.4 and 3.6 are one code: a tie agrees
    assert found["max_difference"]["value"] == 0
    found = agreement(np.array([[4.0, 2.5, 1.5], [3.5, 3.5, 0.0]], np.float32), ours, io)
    assert (found["top1"]["value"], found["max_difference"]["value"]) == (0.5, 7)


@pytest.fixture(scope="module")
def run_folder(built: Built, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Measurement]:
    """An artifact in a run folder of its own with graph.npz, without an ONNX file."""
    artifact, golden = built("x86-64")
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(artifact.folder, folder / "x86-64")
    graph, _ = residual_network()
    graph.save(folder / "graph.txt", folder / "graph.npz")
    GoldenIo(graph.io.input_q.dequantise(golden.input_codes).transpose(0, 3, 1, 2), golden.input_codes,
             golden.output_codes).save(folder / "x86-64" / "golden.npz")  # fmt: skip
    artifact = Artifact.load(folder / "x86-64")
    return artifact, bench(artifact, golden, load_target("x86-64"), options=RunOptions(repeats=2))


class Fake:
    """An engine with two forms that give our own outputs, or others."""

    module = "numpy"

    def __init__(self, name: str, clock: Clock, costs: dict[str, int], wrong: str = "") -> None:
        self.name, self.clock, self.costs, self.wrong = name, clock, costs, wrong

    def ready(self, work: Work) -> tuple[list[Ready], dict[str, str]]:
        expected = ops.run(work.graph, work.graph.io.to_codes(work.inputs))[work.graph.output]
        real = work.graph.tensors[work.graph.output].q.dequantise(expected)
        found = []
        for form, cost in self.costs.items():
            values = -real if form == self.wrong else real
            step = self.clock.step(f"{self.name} {form}", lambda n, c=cost: c)
            found.append(Ready(form, step, lambda x, v=values: v))
        return found, {"other": "it cannot"}


@needs_x86
def test_each_engine_runs_its_fastest_form(
    run_folder: tuple[Artifact, Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, measured = run_folder
    clock = Clock()
    fakes = {
        "numpy": Fake("numpy", clock, {"slow": 8 * MS, "fast": 4 * MS, "wrong": MS}, wrong="wrong"),
        "scipy": Fake("scipy", clock, {"only": 2 * MS}),
        "absent": Fake("absent", clock, {}),
        "unable": Fake("unable", clock, {}),
    }
    fakes["absent"].module = "no_such_module"  # type: ignore[misc]
    monkeypatch.setattr(compare, "PEERS", fakes)
    monkeypatch.setattr(HostRunner, "step", lambda self, codes: clock.step("ours", lambda n: 3 * MS))
    options = CompareOptions(("numpy", "scipy", "absent", "unable"), rounds=5)
    q = with_peers(measured, artifact, options, clock=clock).quantities
    assert q["peers"]["numpy"]["configuration"] == "fast"
    assert q["peers"]["numpy"]["ratio"]["value"] == pytest.approx(0.75)
    assert q["peers"]["numpy"]["tried"]["wrong"].startswith("other outputs")
    assert q["peers"]["numpy"]["tried"]["slow"]["value"] == pytest.approx(8e-3)
    assert q["peers"]["numpy"]["tried"]["other"] == "it cannot"
    assert q["peers"]["absent"] == {"reason": "not installed: pip install absent"}
    assert q["peers"]["unable"]["reason"] == "cannot compare, because other: it cannot"
    assert q["ratio_to_best_peer"]["value"] == pytest.approx(1.5)
    assert q["ratio_to_best_peer"]["peer"] == "scipy"
    assert q["latency_interleaved"]["value"] == pytest.approx(3e-3)
    order = [c.split()[0] for c in clock.calls[-30:]]
    turns = [a for a, b in zip(order, [*order[1:], ""], strict=True) if a != b]
    assert turns[-6:] == ["ours", "numpy", "scipy"] * 2


@needs_x86
def test_nothing_is_compared_without_proof(run_folder: tuple[Artifact, Measurement]) -> None:
    artifact, measured = run_folder
    for wrong in (replace(measured, verdict="differs", reason="1 of 5"), replace(measured, runner="unicorn")):
        with pytest.raises(UsageError, match="nothing to compare"):
            with_peers(wrong, artifact, CompareOptions())
    with pytest.raises(UsageError, match="unknown peer 'onnxrt'"):
        known_peers(["onnxrt"])


@needs_x86
def test_an_artifact_outside_of_its_run_folder(built: Built) -> None:
    artifact, golden = built("x86-64")
    measured = bench(artifact, golden, load_target("x86-64"), options=RunOptions(repeats=1))
    found = with_peers(measured, artifact, CompareOptions(("onnxruntime",), rounds=3))
    assert "not in its run folder" in found.quantities["peers"]["onnxruntime"]["reason"]
    assert "ratio_to_best_peer" not in found.quantities


def test_which_file_the_peers_read(built: Built, tmp_path: Path) -> None:
    artifact = replace(built("cortex-m4")[0], folder=tmp_path / "x")
    assert source_model(artifact) is None
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert source_model(artifact) == tmp_path / "model.onnx"
    with pytest.raises(UsageError, match="does not exist"):
        source_model(artifact, tmp_path / "none.onnx")
    (tmp_path / "model.onnx").unlink()
    write_json(tmp_path / "run.json", {"schema": "xdeploy.run/1", "request": {"model": "gone.onnx"}})
    assert source_model(artifact) is None


# ------------------------------------------------------------------------------------------------ TFLite
LITERT = importlib.util.find_spec("ai_edge_litert") is not None
OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.mark.skipif(not LITERT, reason="ai-edge-litert is not installed")
@pytest.mark.parametrize("network", [residual_network, separable_network])
def test_tflite_gives_our_codes(network: Callable[[], tuple[LoweredGraph, GoldenIo]]) -> None:
    """Rounding apart: a residual is added in one step by us, in two by TFLite."""
    graph, golden = network()
    real = graph.io.input_q.dequantise(golden.input_codes)
    ready, refused = LiteRt().ready(Work((), graph, np.moveaxis(real, -1, 1)))
    assert refused == {}
    found = agreement(ready[0].outputs(np.moveaxis(real, -1, 1)), golden.output_codes, graph.io)
    assert found["max_difference"]["value"] <= 2
    ready[0].step()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="g++ is not installed: apt-get install g++")
@pytest.mark.parametrize("network", [residual_network, separable_network])
def test_executorch_gives_our_codes(network: Callable[[], tuple[LoweredGraph, GoldenIo]]) -> None:
    graph, golden = network()
    real = np.moveaxis(graph.io.input_q.dequantise(golden.input_codes), -1, 1)
    ready, refused = ExecuTorch().ready(Work((), graph, real))
    assert refused == {}
    assert len(ready) == 2
    for one in ready:
        assert agreement(one.outputs(real), golden.output_codes, graph.io)["max_difference"]["value"] <= 2
        one.step()


def test_executorch_program_in_torch_gives_our_codes() -> None:
    """What is handed to ExecuTorch, without it: quantise, dequantise and float operators."""
    for graph, golden in (residual_network(), separable_network()):
        found = ptefile.Module(graph)(ptefile.batch(golden.input_codes, channels_last=True)).numpy()
        found = np.moveaxis(found, 1, -1) if found.ndim == 4 else found
        assert np.abs(found.astype(int) - golden.output_codes).max() <= 1


@pytest.mark.skipif(not LITERT, reason="ai-edge-litert is not installed")
def test_what_tflite_has_no_operator_for() -> None:
    graph, _ = residual_network()
    odd = Node("strange", "lut", (graph.nodes[-1].output,), "odd", {}, {"table": np.zeros(256, np.int8)})
    more = replace(graph, nodes=(*graph.nodes, odd), tensors={**graph.tensors, "odd": graph.tensors[graph.output]})
    with pytest.raises(UnsupportedError, match=r"no operator for strange \(lut\)"):
        tflite(more)


@pytest.mark.skipif(not OPENVINO, reason="openvino is not installed")
def test_openvino_refuses_by_reason() -> None:
    graph, golden = residual_network()
    _, refused = OpenVino().ready(Work((Form("broken", _Broken()),), graph, golden.inputs))
    assert list(refused) == [f"broken, {OpenVino.configuration}"]


class _Broken:
    def SerializeToString(self) -> bytes:
        return b"\0"
