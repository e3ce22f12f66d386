"""The float graph behind a quantised file, run by ONNX Runtime as a float model beside the quantised one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.toys import everything, inputs_of
from tests.lower.qdq import Qdq
from xdeploy.export import export
from xdeploy.lower import ObstacleError, lower
from xdeploy.lower.floatview import FloatView, float_view
from xdeploy.onnxfile import OnnxGraph, read


def proto(graph: OnnxGraph) -> Any:
    """The graph as an ONNX model."""
    nodes = [helper.make_node(n.op, n.inputs, n.outputs, name=n.name, **n.attrs) for n in graph.nodes]
    given = helper.make_tensor_value_info(graph.input.name, TensorProto.FLOAT, ["N", *graph.input.shape[1:]])
    taken = helper.make_tensor_value_info(graph.output.name, TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.ascontiguousarray(c.array), n) for n, c in graph.constants.items()]
    body = helper.make_graph(nodes, "g", [given], [taken], constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)], ir_version=10)


def answer(model: Any, x: np.ndarray) -> np.ndarray:
    source = model.SerializeToString() if not isinstance(model, str) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    runner = onnxruntime.InferenceSession(source, options)
    return np.asarray(runner.run(None, {runner.get_inputs()[0].name: x})[0])


def beside(path: Path, steps: float, spread: float = 1.0) -> FloatView:
    """The view; its answers are at most so many steps of the output's scale from those of the quantised file."""
    view = float_view(read(path))
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op for n in view.graph.nodes}
    rng = np.random.default_rng(6)
    assert view.input_q is not None
    codes = rng.integers(-128, 128, (16, *view.graph.input.shape[1:])).astype(np.int8)
    x = view.input_q.dequantise(codes) * np.float32(spread)
    given = onnx.load(path).graph.input[0].type.tensor_type.elem_type
    raw = x if given == TensorProto.FLOAT else codes if given == TensorProto.INT8 else codes.view(np.uint8) ^ 128
    theirs = answer(str(path), raw)
    if theirs.dtype != np.float32:
        assert view.output_q is not None
        theirs = view.output_q.dequantise((theirs.astype(int) - 128 * (theirs.dtype == np.uint8)).astype(np.int8))
    scale = view.output_q.scale if view.output_q else 1.0
    ours = answer(proto(view.graph), x)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= steps * scale, np.abs(ours - theirs).max() / scale
    assert np.abs(theirs).max() > 4 * scale
    return view


def test_weights_biases_and_one_rounding(tmp_path: Path) -> None:
    g = Qdq((3, 6, 5))
    g.conv(4, 3, at=g.q(at="x"))
    last = g.quantise(g.at, 0.05, 3)
    view = beside(g.save(tmp_path, output=last, dtype="int8"), 0.51)
    assert [n.op for n in view.graph.nodes] == ["Conv", "Clip"]
    assert view.graph.output.dtype == view.graph.input.dtype == "float32"
    assert view.kept == ((view.kept[0][0], pytest.approx(-131 * 0.05), pytest.approx(124 * 0.05)),)
    assert all(c.array.dtype == np.float32 for c in view.graph.constants.values())


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "integer"])
def test_a_relu_that_is_only_a_range_stays(tmp_path: Path, dtype: str, unsigned: bool) -> None:
    """Zero point at the bottom: everything below zero is cut off, and above 6 as well."""
    g = Qdq((3, 6, 5), ("uint8" if unsigned else "int8") if dtype == "integer" else "float32", unsigned)
    x = g.dq("x") if dtype == "integer" else g.q(at="x")
    g.q(6 / 255, -128, g.conv(4, 3, at=x))
    g.conv(2, 4, 1)
    last = g.quantise(g.at, 0.05, 3)
    view = beside(g.save(tmp_path, output=last, dtype="uint8" if unsigned else "int8"), 12)
    clip = next(k for k in view.kept if k[1] == 0.0)
    assert clip[2] == pytest.approx(6.0)


def test_a_relu_before_the_range_becomes_one_clip(tmp_path: Path) -> None:
    g = Qdq((3, 6, 5))
    g.op("Relu", g.conv(4, 3, at=g.q(at="x")), name="relu")
    last = g.quantise(g.at, 0.05, -128)
    view = beside(g.save(tmp_path, output=last, dtype="int8"), 0.51)
    assert [n.op for n in view.graph.nodes] == ["Conv", "Clip"]
    assert view.graph.nodes[1].name == "relu"


def test_no_clip_where_nothing_can_leave_the_range(tmp_path: Path) -> None:
    g = Qdq((4, 6, 6))
    x = g.q(at="x")
    y = g.q(at=g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]))
    y = g.q(at=g.op("MaxPool", y, kernel_shape=[3, 3]))
    g.op("Sigmoid", y)
    g.q(1 / 256, -128)
    view = float_view(read(g.save(tmp_path)))
    assert [n.op for n in view.graph.nodes] == ["AveragePool", "MaxPool", "Sigmoid"]
    assert view.kept == ()


def test_operators_on_codes_become_real(tmp_path: Path) -> None:
    """Pads with a code, limits as codes, slices, max pooling and concatenation of codes."""
    g = Qdq((3, 6, 6))
    x = g.quantise("x", 0.05, 3)
    p = g.op("Pad", x, g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), g.const(np.int8(40)))
    m = g.op("MaxPool", p, kernel_shape=[2, 2], strides=[2, 2])
    c = g.op("Clip", m, g.const(np.int8(-100)), g.const(np.int8(100)))
    s = g.op("Slice", c, g.const(np.array([1])), g.const(np.array([3])), g.const(np.array([1])))
    g.op("Concat", c, s, axis=1)
    g.dq(g.at)
    view = beside(g.save(tmp_path), 0.51)
    assert [n.op for n in view.graph.nodes] == ["Pad", "MaxPool", "Clip", "Slice", "Concat"]


def test_operators_in_one_node(tmp_path: Path) -> None:
    """QLinearConv with an integer bias, QLinearMatMul, and MatMul weights of four bits."""
    g = Qdq((3, 6, 5))
    x = g.quantise("x", 0.05, 3)
    zero = g.const(np.int8(0))
    w = g.const(g.rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8))
    ws = g.const(g.rng.uniform(0.002, 0.004, 4).astype(np.float32))
    b = g.const(g.rng.integers(-4000, 4000, 4).astype(np.int32))
    first = g.const(np.float32(0.05)), g.const(np.int8(3))
    y = g.const(np.float32(0.06)), g.const(np.int8(-4))
    g.op("QLinearConv", x, *first, w, ws, g.const(np.zeros(4, np.int8)), *y, b)
    f = g.op("Flatten", g.at)
    m = g.const(g.rng.integers(-127, 128, (48, 5)).astype(np.int8))
    g.op("QLinearMatMul", f, *y, m, g.const(np.float32(0.001)), zero, g.const(np.float32(0.05)), zero)
    g.dq(g.at, 0.05, 0)
    view = beside(g.save(tmp_path), 6)
    assert [n.op for n in view.graph.nodes if n.op != "Clip"] == ["Conv", "Flatten", "MatMul"]


def test_our_own_export_gives_back_its_weights(tmp_path: Path) -> None:
    """Codebooks and packed weights: the view holds exactly the values the codes stand for."""
    compressed = everything({"a": "c4s8", "b": "int2"}, bind=False)
    exported = export(compressed, inputs_of(compressed.network, 4), tmp_path)
    view = float_view(read(exported.path))
    convs = [n for n in view.graph.nodes if n.op in ("Conv", "Gemm", "MatMul")]
    assert len(convs) == len(compressed.weights)
    for node in convs:
        layer = compressed.weights[node.meta["origin"]]
        values = layer.codes if layer.codebook is None else layer.codebook[layer.codes.astype(int)]
        scale = layer.scale.reshape(-1, *[1] * (values.ndim - 1))
        mine = view.graph.constants[node.inputs[1]].array
        np.testing.assert_allclose(mine.reshape(values.shape), values * scale, rtol=1e-6)


def test_it_is_a_float_model_like_any_other(tmp_path: Path) -> None:
    """The front end for float ONNX takes it."""
    torch = pytest.importorskip("torch")
    from xdeploy.model.onnxgraph import module_of

    g = Qdq((3, 8, 8))
    x = g.q(0.05, -128, g.op("Relu", g.conv(4, 3, at=g.q(at="x"), pads=[1, 1, 1, 1])))
    g.op("Add", g.q(0.06, 5, g.conv(4, 4, 3, at=x, pads=[1, 1, 1, 1])), x)
    g.q(0.08, -128)
    g.op("Flatten", g.q(0.08, -128, g.op("GlobalAveragePool", g.at)))
    g.op("Gemm", g.at, g.weight((5, 4)), g.bias(5), transB=1)
    g.q(0.05, 0)
    view = beside(g.save(tmp_path), 12)
    module = module_of(view.graph, "net").eval()
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        ours = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, answer(proto(view.graph), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "zero", "shape", "expected"),
    [
        (1.0, -128, (3, 4, 4), [0.0, 255.0]), (1.0, 0, (4, 4, 1), [-128.0, 127.0]), (1 / 255, -128, (3, 4, 4), None),
        (1.0, -128, (9,), None),
    ],
)  # fmt: skip
def test_an_input_in_steps_of_one_takes_pixels(
    tmp_path: Path, scale: float, zero: int, shape: tuple[int, ...], expected: list[float] | None
) -> None:
    """Black and white become the ends of the input's range, in the view as in the lowered file."""
    g = Qdq(shape)
    g.op("LeakyRelu", g.q(scale, zero, "x"), alpha=0.5)
    path = g.save(tmp_path, output=g.quantise(g.at, scale, zero), dtype="int8")
    view, io = float_view(read(path)), lower(path).io
    assert view.normal == (io.mean, io.std)
    if expected is None:
        assert view.normal == ((), ())
        return
    black, white = ((pixel - io.mean[0]) / io.std[0] for pixel in (0.0, 1.0))
    np.testing.assert_allclose([black, white], expected, atol=1e-9)


def test_what_has_no_float_form_is_listed_by_name(tmp_path: Path) -> None:
    g = Qdq((12,))
    x = g.q(at="x")
    scales = g.const(np.ones(12, np.float32)), g.const(np.zeros(12, np.int8))
    g.op("QuantizeLinear", x, *scales, axis=1, name="per axis")
    g.op("DequantizeLinear", g.at, *scales, axis=1)
    with pytest.raises(ObstacleError, match=r"per axis .*per tensor"):
        float_view(read(g.save(tmp_path)))
