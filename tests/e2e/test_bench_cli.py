"""`xdeploy bench` as a user calls it: measured power, comparison with ONNX Runtime, flags that do not go together."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.bench import traces
from tests.e2e.conftest import FrontDoor
from xdeploy.bench.compare import agreement, source_model
from xdeploy.bench.peerfiles import forms
from xdeploy.bench.peers import OnnxRuntime, Work
from xdeploy.cli import main
from xdeploy.handover import Artifact, GoldenIo, Measurement
from xdeploy.lir.graph import LoweredGraph

needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")


@pytest.fixture
def out(door: FrontDoor, tmp_path: Path) -> Path:
    """A copy of the run folder: bench writes into it."""
    shutil.copytree(door.out, tmp_path / "out")
    return tmp_path / "out"


def test_measured_power(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into bench.json beside the modelled figures, and from there into the report."""
    trace = traces.ppk2(tmp_path / "trace.csv")
    arguments = ["bench", str(out / "cortex-m4"), "--power", str(trace), "--supply", "1.8V", "--inferences", "4"]
    before = Measurement.load(out / "cortex-m4/bench.json")
    assert main([*arguments, "--gate", "D2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = Measurement.load(out / "cortex-m4/bench.json")
    assert saved.quantities == printed["quantities"]
    expected = (traces.ACTIVE_W - traces.IDLE_W) * 0.1 / 4
    assert saved.quantities["energy"]["value"] == pytest.approx(expected, rel=2e-3)
    assert saved.quantities["energy"]["how"] == saved.quantities["latency"]["how"] == "measured"
    for key in ("energy", "latency"):
        if key in before.quantities:
            assert saved.quantities[f"{key}_modelled"] == before.quantities[key]
    assert main(["report", str(out), "--quiet"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["targets"]["cortex-m4"]["energy"] == saved.quantities["energy"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "energy " in text
    assert "450 uJ (measured; 450 to 450)" in text or "449" in text
    assert "bit-exact" in text


def test_what_is_saved(out: Path, tmp_path: Path) -> None:
    """Another runner's figures only with --save; a bad trace leaves everything as it was."""
    path, trace = out / "cortex-m4/bench.json", traces.generic(tmp_path / "t.csv")
    before = path.read_text()
    call = ["bench", str(out / "cortex-m4"), "--via", "unicorn", "--power", str(trace), "--quiet"]
    assert main(call) == 0
    assert path.read_text() == before
    assert main([*call, "--save"]) == 0
    assert Measurement.load(path).quantities["energy"]["how"] == "measured"
    path.write_text(before)
    assert main([*call, "--save", "--gate", "D7"]) == 2
    assert path.read_text() == before


@needs_x86
def test_comparison(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["bench", str(out / "x86-64"), "--repeats", "2", "--compare", "onnxruntime", "--rounds", "3"]
    assert main([*call, "--json"]) == 0
    quantities = json.loads(capsys.readouterr().out)["quantities"]
    row = quantities["peers"]["onnxruntime"]
    assert row["latency"]["value"] > 0
    assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
    assert row["ratio"]["n"] == 3
    assert row["top1"]["value"] >= 0.5
    assert row["version"]
    assert "1 thread" in row["configuration"]
    assert len(row["tried"]) == 4
    assert quantities["ratio_to_best_peer"]["peer"] == "onnxruntime"
    assert Measurement.load(out / "x86-64/bench.json").quantities["peers"] == quantities["peers"]
    assert main(call) == 0
    text = capsys.readouterr().out
    assert "onnxruntime " in text
    assert "ours/peer" in text
    assert "no energy" in text or "energy " in text


def test_forms_of_the_file(door: FrontDoor) -> None:
    """Every form gives nearly our codes in ONNX Runtime, and has no packed or codebook weights left."""
    artifact = Artifact.load(door.out / "x86-64")
    assert source_model(artifact) == (door.out / "model.onnx").resolve()
    golden, graph = GoldenIo.load(artifact.folder / "golden.npz"), LoweredGraph.load(door.out / "graph.npz")
    found = forms(door.out / "model.onnx", graph.io)
    assert [f.name for f in found] == [
        "QDQ, float at its borders", "QDQ on int8 codes", "QDQ on uint8 codes", "float32",
    ]  # fmt: skip
    for form in found:
        assert {n.op_type for n in form.model.graph.node}.isdisjoint({"CodebookWeight", "Cast"})
        assert len(form.model.functions) == 0
    assert not any("Quantize" in n.op_type for n in found[3].model.graph.node)
    for form, offset in ((found[1], 0), (found[2], 128)):
        given = form.codes(golden.inputs).astype(int) - offset
        assert np.array_equal(np.moveaxis(given, 1, -1), golden.input_codes)
    ready, refused = OnnxRuntime().ready(Work(tuple(found), graph, golden.inputs))
    assert refused == {}
    for r, most in zip(ready, (1, 1, 40, 40), strict=True):  # sums of uint8 products saturate on CPUs without VNNI
        agrees = agreement(r.outputs(golden.inputs), golden.output_codes, graph.io)
        assert agrees["max_difference"]["value"] <= most, r.configuration


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gate", "D0"], "--gate goes with --power"),
        (["--supply", "1.8V"], "--supply goes with --power"),
        (["--inferences", "2"], "--inferences goes with --power"),
        (["--power", "T", "--inferences", "0"], "--inferences 0: at least 1"),
        (["--power", "T", "--supply", "1.8A"], "'1.8A' is no voltage"),
        (["--power", "T", "--supply", "1800"], "1800 V is no supply of a board"),
        (["--power", "none.csv"], "does not exist"),
        (["--power", "T", "--power-format", "vcd"], "unknown format of a trace 'vcd'"),
        (["--rounds", "9"], "--rounds goes with --compare"),
        (["--compare", "--rounds", "2"], "--rounds 2: at least 3"),
        (["--compare", "tensorrt"], "unknown peer 'tensorrt'"),
        (["--compare", "--via", "unicorn"], "--compare runs on this machine, not via unicorn"),
        (["--compare"], "nothing to compare: cortex-m4 via unicorn"),
        (["--exec-with", "nice"], "--exec-with goes with --via ssh://"),
        (["--core", "1", "--via", "unicorn"], "--core goes with --via ssh://"),
        (["--repeats", "0"], "--repeats 0: at least 1"),
        (["--timeout", "0"], "--timeout 0: seconds above 0"),
        (["--timeout", "nan"], "--timeout nan: seconds above 0"),
    ],
)
def test_flags_that_do_not_go(
    door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    trace = traces.write_csv(tmp_path / "t.csv", "time(s),power(W),D0", [(i, 1.0, i % 2) for i in range(9)])
    arguments = [str(trace) if a == "T" else a for a in arguments]
    assert main(["bench", str(door.out / "cortex-m4"), *arguments]) == 2
    assert words in capsys.readouterr().err
