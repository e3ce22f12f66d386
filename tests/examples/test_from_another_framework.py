"""scikit-learn's classifier by its own exporter to a Cortex-M4; without the exporter, a file with the same nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from xdeploy.recipe import Recipe

QUICK = {"threads": 1, "data.calibration": 64, "relevance.samples": 32, "plan.max_drop": 3.0, "bench.repeats": 2}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a few iterations do here


@pytest.fixture(scope="module")
def example() -> Any:
    import from_another_framework

    return from_another_framework


def as_exported(model: Any, folder: Path) -> Path:
    """The nodes that skl2onnx 1.20 writes for a classifier, cut at the probabilities, by onnx's helper."""
    nodes, constants, last = [helper.make_node("Cast", ["X"], ["cast_input"], to=1)], [], "cast_input"
    for i, (w, b) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        constants += [numpy_helper.from_array(w.astype(np.float32), f"coefficient{i}"),
                      numpy_helper.from_array(b[None].astype(np.float32), f"intercepts{i}")]  # fmt: skip
        nodes += [helper.make_node("MatMul", [last, f"coefficient{i}"], [f"mul{i}"]),
                  helper.make_node("Add", [f"mul{i}", f"intercepts{i}"], [f"add{i}"])]  # fmt: skip
        last = f"add{i}"
        if i + 1 < len(model.coefs_):
            nodes.append(helper.make_node("Relu", [last], [last := f"next{i}"]))
    nodes += [
        helper.make_node("Softmax", [last], ["p"], axis=1),
        helper.make_node("Identity", ["p"], ["probabilities"]),
    ]
    given = helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 64])
    gives = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 10])
    graph = helper.make_graph(nodes, "sk", [given], [gives], constants)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "network.onnx"
    )
    return folder / "network.onnx"


@pytest.fixture(params=["exporter", "same nodes"])
def exporter(request: pytest.FixtureRequest, example: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "exporter":
        pytest.importorskip("skl2onnx", reason="skl2onnx is not installed: pip install skl2onnx")
    else:
        monkeypatch.setattr(example, "exported", as_exported)
    return str(request.param)


def test_all_the_way_to_a_microcontroller(exporter: str, example: Any, tmp_path: Path) -> None:
    report, said = example.deploy(tmp_path, Recipe().with_options(QUICK), iterations=40)
    assert report["targets"]["cortex-m4"]["verdict"] == "bit-exact"
    train, test = example.data()
    model = example.trained(train, iterations=40)
    ours = example.deployed_labels(tmp_path / "run/cortex-m4", test.x)
    assert np.mean(ours == model.predict(test.x)) > 0.95
    assert abs(np.mean(ours == test.y) * 100 - report["accuracy"]["deployed"]["value"]) < 1e-6
    assert f"{np.sum(ours == model.predict(test.x))} labels are the same" in said
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (float_scores,) = session.run(None, {"X": test.x})
    np.testing.assert_allclose(float_scores, model.predict_proba(test.x), atol=1e-5)


def test_whole_classifiers_are_told(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label and probabilities at once: the check says so before any work."""
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed: pip install skl2onnx")
    from xdeploy.cli import main

    train, _ = example.data()
    example.exported(example.trained(train, iterations=2), tmp_path)
    assert main(["check", str(tmp_path / "classifier.onnx"), "--target", "cortex-m4"]) == 3
    assert "2: label, probabilities" in capsys.readouterr().out
