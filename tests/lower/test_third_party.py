"""Graphs in the forms other converters write: each lowered, then compared node by node with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from tests.lower.qdq import Qdq, checked, ops_of
from xdeploy.formats import QParams
from xdeploy.lower import ObstacleError, lower


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "integer"])
def test_activations_of_either_sign(tmp_path: Path, unsigned: bool, dtype: str) -> None:
    kind = ("uint8" if unsigned else "int8") if dtype == "integer" else "float32"
    g = Qdq((3, 6, 5), kind, unsigned)
    x = g.dq("x") if dtype == "integer" else g.q(at="x")
    g.conv(4, 3, at=x, pads=[1, 1, 1, 1])
    g.op("Relu", g.at)
    last = g.quantise(g.at, 0.05, -128)
    graph, _ = checked(g.save(tmp_path, output=last, dtype="uint8" if unsigned else "int8"))
    assert graph.tensors[graph.input].q == QParams(float(np.float32(0.05)), 3)
    assert graph.tensors[graph.output].q.zero_point == -128
    assert ops_of(graph) == ["conv2d"]


def test_matmul_with_bias_in_an_add(tmp_path: Path) -> None:
    g = Qdq((7,))
    x = g.q(at="x")
    y = g.op("MatMul", x, g.weight((7, 4), axis=1))
    bias = g.op(
        "DequantizeLinear", g.const(np.arange(4, dtype=np.int32) * 100), g.const(np.float32(1e-3)), g.const(np.int32(0))
    )
    g.op("Add", bias, y)
    g.q(0.02)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["linear"]
    assert graph.nodes[0].consts["bias"].any()


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_both_ways_per_tensor(tmp_path: Path, trans: int) -> None:
    g = Qdq((7,))
    x = g.q(at="x")
    g.op("Gemm", x, g.weight((4, 7) if trans else (7, 4), per_channel=False), g.bias(4), transB=trans)
    g.q(0.02)
    graph, _ = checked(g.save(tmp_path))
    assert graph.nodes[0].consts["multiplier"].shape == (4,)


def test_transposed_weight_constant(tmp_path: Path) -> None:
    g = Qdq((7,))
    x = g.q(at="x")
    w = g.op("Transpose", g.weight((4, 7), axis=0), perm=[1, 0])
    g.op("MatMul", x, w)
    g.q(0.02)
    checked(g.save(tmp_path))


def test_channels_last_with_transposes_moves_no_data(tmp_path: Path) -> None:
    g = Qdq((6, 5, 3))
    x = g.q(at="x")
    g.op("Transpose", x, perm=[0, 3, 1, 2])
    g.conv(4, 3, auto_pad="SAME_UPPER", strides=[2, 2])
    g.op("Transpose", g.at, perm=[0, 2, 3, 1])
    y = g.q(0.06, -5)
    g.op("ReduceMean", y, g.const(np.array([1, 2])), keepdims=0)
    g.q(0.03, 1)
    graph, _ = checked(g.save(tmp_path))
    assert graph.io.input_layout == "HWC"
    assert ops_of(graph) == ["conv2d", "avg_pool2d", "reshape"]


def test_flatten_before_linear_permutes_columns(tmp_path: Path) -> None:
    g = Qdq((3, 4, 5))
    g.conv(2, 3, at=g.q(at="x"), pads=[1, 1, 1, 1])
    y = g.q(0.06, -5)
    g.op("Flatten", y)
    g.op("Gemm", g.at, g.weight((4, 40)), g.bias(4), transB=1)
    g.q(0.05)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["conv2d", "reshape", "linear"]


def test_flatten_at_the_output_keeps_the_models_order(tmp_path: Path) -> None:
    g = Qdq((3, 4, 5))
    g.conv(2, 3, at=g.q(at="x"), pads=[1, 1, 1, 1])
    y = g.q(0.06, -5)
    g.op("Flatten", y)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["conv2d", "transpose", "reshape"]


def test_exported_reshape_from_shape_gather_concat(tmp_path: Path) -> None:
    g = Qdq((3, 4, 5))
    g.op("GlobalAveragePool", g.q(at="x"))
    y = g.q(0.05)
    batch = g.op("Gather", g.op("Shape", y), g.const(np.array(0)), axis=0)
    batch = g.op("Unsqueeze", batch, g.const(np.array([0])))
    target = g.op("Concat", batch, g.const(np.array([-1])), axis=0)
    g.op("Reshape", y, target)
    g.op("Gemm", g.at, g.weight((4, 3)), g.bias(4), transB=1)
    g.q(0.05)
    checked(g.save(tmp_path))


def test_max_pool_in_float_commutes_with_rounding(tmp_path: Path) -> None:
    g = Qdq((3, 6, 6))
    g.conv(4, 3, at=g.q(at="x"), pads=[1, 1, 1, 1])
    g.op("Relu", g.at)
    g.op("MaxPool", g.at, kernel_shape=[2, 2], strides=[2, 2])
    g.q(0.05, -100)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph)[:2] == ["conv2d", "max_pool2d"]
    assert graph.nodes[0].attrs["low"] == -100


def test_max_pool_on_codes_and_to_another_scale(tmp_path: Path) -> None:
    g = Qdq((3, 6, 6), "int8")
    g.op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])
    y = g.dq(g.at)
    g.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    g.q(0.08, -9)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["max_pool2d", "max_pool2d", "rescale"]


def test_pad_in_float_and_on_codes_fold_into_convolutions(tmp_path: Path) -> None:
    g = Qdq((3, 6, 6))
    x = g.q(at="x")
    g.op("Pad", x, g.const(np.array([0, 0, 1, 0, 0, 0, 0, 1])))
    g.conv(4, 3, at=g.q())
    y = g.quantise(g.at, 0.06, 7)
    g.op("Pad", y, g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])), g.point(7))
    g.conv(4, 4, at=g.dq(g.at, 0.06, 7), strides=[2, 2])
    g.q(0.06)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["conv2d", "conv2d"]
    assert graph.nodes[0].attrs["pads"] == (1, 0, 0, 1)
    assert graph.nodes[1].attrs["pads"] == (1, 1, 1, 1)


def test_concat_of_three_scales_in_vectors_and_images(tmp_path: Path) -> None:
    g = Qdq((4, 4, 4))
    x = g.q(at="x")
    a, b = g.conv(2, 4, 1, at=x), ""
    a = g.q(0.04, 1, a)
    b = g.q(0.07, -20, g.conv(3, 4, 1, at=x))
    g.op("Concat", a, x, b, axis=1)
    y = g.q(0.07, -20)
    v = g.op("Flatten", g.q(0.05, 0, g.op("GlobalAveragePool", y)))
    w = g.q(0.06, 2, g.op("Gemm", v, g.weight((5, 9)), transB=1))
    g.op("Concat", v, w, axis=1)
    g.q(0.06, 2)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph).count("concat") == 2
    assert ops_of(graph).count("rescale") == 3  # the inputs that have the output's scale go in as they are


def test_additions_fuse_into_the_last_producer(tmp_path: Path) -> None:
    g = Qdq((4, 4, 4))
    x = g.q(at="x")
    a = g.q(0.04, 1, g.conv(4, 4, 1, at=x))
    b = g.q(0.05, -7, g.conv(4, 4, 1, at=a))
    g.op("Add", b, a)
    g.op("Relu", g.at)
    y = g.q(0.06, -128)
    g.op("Add", y, y)
    g.q(0.12, -128)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["conv2d", "conv2d", "add"]
    fused = graph.nodes[1]
    assert fused.inputs == (graph.nodes[0].output,) * 2
    assert fused.attrs["add_low"] == -128


def test_two_convolutions_added_fuse_the_later_one(tmp_path: Path) -> None:
    g = Qdq((4, 4, 4))
    x = g.q(at="x")
    a = g.q(0.04, 1, g.conv(4, 4, 1, at=x))
    b = g.q(0.05, -7, g.conv(4, 4, 3, at=x, pads=[1, 1, 1, 1]))
    g.op("Add", a, b)
    g.q(0.06, 5)
    graph, _ = checked(g.save(tmp_path))
    assert [len(n.inputs) for n in graph.nodes] == [1, 2]
    assert graph.nodes[1].consts["codes"].shape == (4, 3, 3, 4)


def test_functions_become_tables(tmp_path: Path) -> None:
    g = Qdq((9,))
    x = g.q(0.04, -3, "x")
    x = g.q(1 / 256, -128, g.op("Sigmoid", x))
    x = g.q(0.01, 0, g.op("Tanh", x))
    x = g.q(0.01, 0, g.op("HardSwish", x))
    s = g.op("HardSigmoid", x, alpha=0.3, beta=0.4)
    x = g.q(0.01, 0, g.op("Mul", x, s))
    x = g.q(0.02, 0, g.op("Mul", x, g.const(np.float32(-1.7))))
    x = g.q(0.02, 0, g.op("LeakyRelu", x, alpha=0.1))
    g.op("Sub", g.const(np.float32(1.0)), x)
    g.q(0.02, 0)
    graph, _ = checked(g.save(tmp_path))
    assert set(ops_of(graph)) == {"lut"}
    assert len(graph.nodes) == 7


def test_softmax_left_in_float_at_the_end(tmp_path: Path) -> None:
    g = Qdq((9,))
    g.op("Softmax", g.q(at="x"))
    graph = lower(g.save(tmp_path))
    assert graph.tensors[graph.output].q == QParams(1 / 256, -128)


def test_softmax_to_another_scale_is_rescaled(tmp_path: Path) -> None:
    g = Qdq((9,))
    g.op("Softmax", g.q(at="x"))
    g.q(1 / 255, -128)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["softmax", "rescale"]


def test_float_weights_behind_quantizelinear(tmp_path: Path) -> None:
    g = Qdq((3, 5, 5))
    x = g.q(at="x")
    real = g.const(g.rng.normal(size=(4, 3, 3, 3)).astype(np.float32) * 0.2)
    scale, zero = g.const(np.full(4, 0.004, np.float32)), g.const(np.zeros(4, np.int8))
    w = g.op("DequantizeLinear", g.op("QuantizeLinear", real, scale, zero, axis=0), scale, zero, axis=0)
    g.op("Conv", x, w)
    g.q(0.05)
    checked(g.save(tmp_path))


@pytest.mark.parametrize(
    ("kind", "low", "high", "zero", "expected"),
    [
        (TensorProto.INT4, -8, 8, 0, "int4"), (TensorProto.UINT4, 0, 16, 8, "int4"),
        (TensorProto.UINT4, 0, 16, 0, "int5"), (TensorProto.UINT8, 0, 256, 128, "int8"),
    ],
)  # fmt: skip
def test_narrow_and_unsigned_weights(tmp_path: Path, kind: int, low: int, high: int, zero: int, expected: str) -> None:
    g = Qdq((3, 5, 5))
    x = g.q(at="x")
    codes = np.arange(low, high, dtype=np.int64).repeat(1 + 36 // (high - low))[-36:].reshape(4, 3, 3, 1)
    codes = np.ascontiguousarray(codes.transpose(0, 1, 2, 3)).reshape(4, 3, 3, 1)
    scale, point = g.const(np.full((), 0.01, np.float32)), g.packed(kind, np.array(zero))
    w = g.op("DequantizeLinear", g.packed(kind, codes), scale, point)
    g.op("Conv", x, w)
    g.q(0.05)
    graph, _ = checked(g.save(tmp_path))
    assert graph.nodes[0].attrs["weight_format"] == expected


@pytest.mark.parametrize(("groups", "zero"), [(4, 100), (1, 0)])
def test_unsigned_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, groups: int, zero: int) -> None:
    """Nine bits with their sign in a depthwise convolution, and the one value that two halves cannot hold."""
    g = Qdq((4, 5, 5))
    x = g.q(at="x")
    codes = np.linspace(0, 255, 36 * 4 // groups).astype(np.uint8).reshape(4, 4 // groups, 3, 3)
    w = g.op("DequantizeLinear", g.const(codes), g.const(np.float32(0.01)), g.const(np.uint8(zero)))
    g.op("Conv", x, w, name="stage/conv", group=groups)
    g.q(0.05)
    with pytest.raises(ObstacleError, match=rf"stage.conv .*{-zero}\.\.{255 - zero}") as caught:
        lower(g.save(tmp_path))
    assert "symmetric int8" in caught.value.obstacles[0].rewrite


def test_qlinear_operators(tmp_path: Path) -> None:
    g = Qdq((3, 6, 5))
    x = g.quantise("x", 0.05, 3)

    def params(scale: float, zero: int) -> tuple[str, str]:
        return g.const(np.float32(scale)), g.const(np.int8(zero))

    w = g.rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    ws, wz = g.const(g.rng.uniform(0.002, 0.004, 4).astype(np.float32)), g.const(np.zeros(4, np.int8))
    bias = g.const(g.rng.integers(-4000, 4000, 4).astype(np.int32))
    g.op("QLinearConv", x, *params(0.05, 3), g.const(w), ws, wz, *params(0.06, -4), bias, strides=[2, 2])
    y = g.op("Reshape", g.at, g.const(np.array([0, -1])))
    m = g.rng.integers(-127, 128, (16, 5)).astype(np.int8)
    g.op("QLinearMatMul", y, *params(0.06, -4), g.const(m), *params(0.003, 0), *params(0.05, 0))
    g.dq(g.at, 0.05, 0)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["conv2d", "reshape", "linear"]


def test_fixed_batch_of_one_and_old_opset(tmp_path: Path) -> None:
    g = Qdq((3, 6, 5), opset=13)
    x = g.q(at="x")
    g.op("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    g.q(0.03, 4)
    graph, _ = checked(g.save(tmp_path, batch=1))
    assert graph.nodes[0].attrs["include_pad"] is False


def test_depth_and_channel_slices(tmp_path: Path) -> None:
    g = Qdq((6, 7, 5), "int8")
    g.op(
        "Slice",
        "x",
        g.const(np.array([1, -6])),
        g.const(np.array([2**40, 7])),
        g.const(np.array([1, 2])),
        g.const(np.array([2, 1])),
    )
    y = g.dq(g.at)
    g.op("Clip", y, g.const(np.float32(-1.0)), g.const(np.float32(2.0)))
    g.q(0.05, 3)
    graph, _ = checked(g.save(tmp_path))
    assert ops_of(graph) == ["slice", "clamp"]
    assert graph.tensors[graph.output].shape == (6, 5, 3)
