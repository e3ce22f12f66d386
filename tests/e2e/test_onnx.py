"""ONNX at the front door, by the user's own path: float files like modules, quantised files as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.conftest import seed
from tests.e2e.conftest import BUILT, FrontDoor
from tests.e2e.files import blobs, float_onnx
from xdeploy.cli import main


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_float_file_is_built_like_a_module(door: FrontDoor) -> None:
    """Scored, planned, compressed; every target gives the reference's codes, ONNX Runtime at most one apart."""
    found = report(door.out)
    assert {n: t["verdict"] for n, t in found["targets"].items()} == dict.fromkeys(BUILT, "bit-exact")
    assert found["onnx"]["node_max_difference"] <= 1
    origins = {x["origin"]: x["weight_format"] for x in found["layers"] if x["weight_format"]}
    assert set(origins) == {"stem", "a", "b", "gate", "fc"}
    plan = json.loads((door.out / "plan.json").read_text())["layers"]
    assert {x["origin"]: x["weight_format"] for x in plan} == origins


def test_the_float_accuracy_is_the_files_own(door: FrontDoor) -> None:
    """The report's float accuracy, counted again with ONNX Runtime on the same held-out samples."""
    from xdeploy.model.source import SourceModel

    session = onnxruntime.InferenceSession(str(door.model))
    right = total = 0
    for x, y in SourceModel.load(door.out).test_batches(50):
        scores = session.run(None, {"image": x.numpy()})[0]
        right, total = right + int((scores.argmax(1) == y.numpy()).sum()), total + len(y)
    told = report(door.out)["accuracy"]["float"]
    assert (told["value"], told["n"]) == (pytest.approx(100 * right / total), total)


def test_the_other_exporter_gives_the_same_network(door: FrontDoor, tmp_path: Path) -> None:
    """torch.export's ONNX of the same weights: the same layers and the same plan."""
    float_onnx(tmp_path / "net.onnx", seed(), dynamo=True)
    arguments = ["plan", str(tmp_path / "net.onnx"), "--data", str(door.data), "-o", str(tmp_path / "out")]
    options = ["--formats", "int8,c4s8", "--max-drop", "100", "--set", "relevance.samples=32"]
    assert main([*arguments, *options, "--quiet"]) == 0
    ours, theirs = (
        {x["origin"]: x["weight_format"] for x in json.loads((f / "plan.json").read_text())["layers"]}
        for f in (tmp_path / "out", door.out)
    )
    assert ours == theirs


@pytest.fixture(scope="module")
def kept(door: FrontDoor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's own quantised file, kept as it is, with test data."""
    folder = tmp_path_factory.mktemp("kept")
    blobs(folder / "test.npz", seed() + 1, count=60)
    arguments = ["build", str(door.out / "model.onnx"), "--test-data", str(folder / "test.npz")]
    assert main([*arguments, "--target", "cortex-m4", "-o", str(folder / "out"), "--quiet"]) == 0
    return folder


def test_a_quantised_file_is_kept(kept: Path, door: FrontDoor) -> None:
    """The same weights as codes, no plan, no scores, and nothing float to tell."""
    found = report(kept / "out")
    assert found["targets"]["cortex-m4"]["verdict"] == "bit-exact"
    assert found["relevance"] is None
    assert found["accuracy"]["float"] is None
    assert not (kept / "out" / "plan.json").exists()
    assert found["weights"]["packed_bytes"] == report(door.out)["weights"]["packed_bytes"]


def test_its_deployed_accuracy_is_that_of_the_file(kept: Path, door: FrontDoor) -> None:
    """Counted again with ONNX Runtime on the npz itself; the codes may tip a tie, no more."""
    found = report(kept / "out")
    with np.load(kept / "test.npz") as data:
        session = onnxruntime.InferenceSession(str(door.out / "model.onnx"))
        scores = session.run(None, {session.get_inputs()[0].name: data["x"]})[0]
        expected = 100.0 * float((scores.argmax(1) == data["y"]).mean())
    assert found["accuracy"]["deployed"]["n"] == 60
    assert abs(found["accuracy"]["deployed"]["value"] - expected) <= 100 / 60 + 1e-9
    assert found["onnx"]["node_max_difference"] <= 1
    assert found["onnx"]["top1"] >= 59 / 60


def test_a_float_file_needs_data(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(door.model), "-o", str(tmp_path / "out")]) == 2
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantised_file_is_compressed_further(door: FrontDoor, tmp_path: Path) -> None:
    """Its float view goes through every stage: fewer bytes than the file it came from, exact on the target."""
    options = ["--further", "--formats", "c2s8", "--max-drop", "100", "--set", "relevance.samples=32"]
    arguments = ["build", str(door.out / "model.onnx"), "--data", str(door.data), "--target", "cortex-m4", *options]
    assert main([*arguments, "-o", str(tmp_path / "out"), "--quiet"]) == 0
    found = report(tmp_path / "out")
    assert found["targets"]["cortex-m4"]["verdict"] == "bit-exact"
    assert {x["weight_format"] for x in found["layers"] if x["weight_format"]} == {"c2s8"}
    assert found["weights"]["packed_bytes"]["value"] < report(door.out)["weights"]["packed_bytes"]["value"]


def test_further_is_for_quantised_files(door: FrontDoor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(door.model), "--data", str(door.data), "--further", "-o", str(tmp_path / "out")]) == 2
    assert "quantised already" in capsys.readouterr().err
