"""Small legal models from which mutants are made: quantised and float, with every operator of the vocabulary once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import SHARED
from tests.lower.qdq import Qdq


def _cnn(unsigned: bool = False) -> Any:
    """Convolutions, a shortcut, pooling, a linear layer and softmax."""
    g = Qdq((3, 8, 8), unsigned=unsigned)
    x = g.q(at="x")
    a = g.conv(4, 3, at=x, pads=[1, 1, 1, 1], strides=[1, 1], kernel_shape=[3, 3], group=1, dilations=[1, 1])
    g.op("Relu", a)
    first = g.q()
    g.conv(4, 4, at=first, pads=[1, 1, 1, 1])
    second = g.q()
    g.op("Add", first, second)
    g.q(0.08)
    g.op("MaxPool", g.at, kernel_shape=[2, 2], strides=[2, 2])
    g.q(0.08)
    g.op("GlobalAveragePool", g.at)
    g.q(0.02)
    g.op("Flatten", g.at, axis=1)
    g.op("Gemm", g.at, g.weight((5, 4)), g.bias(5), transB=1, alpha=1.0)
    g.q()
    g.op("Softmax", g.at, axis=-1)
    return g.model()


def _movement() -> Any:
    """Everything that cuts, joins and rearranges, and functions given by tables."""
    g = Qdq((4, 6, 6))
    x = g.q(at="x")
    g.op("Slice", x, g.const(np.array([1, 0])), g.const(np.array([3, 6])), g.const(np.array([1, 2])))
    cut = g.at
    g.op("Pad", cut, g.const(np.array([0, 0, 1, 1, 0, 0, 1, 1])))
    g.q()
    g.conv(2, 2, at=g.at)
    other = g.q()
    g.op("Concat", cut, other, axis=1)
    g.q()
    for kind, attrs in (
        ("Sigmoid", {}), ("HardSigmoid", {"alpha": 0.2}), ("LeakyRelu", {"alpha": 0.1}), ("Tanh", {}),
        ("HardSwish", {}),
    ):  # fmt: skip
        g.op(kind, g.at, **attrs)
        g.q(0.01)
    g.op("Clip", g.at, g.const(np.float32(0)), g.const(np.float32(1)))
    g.q(0.01)
    g.op("AveragePool", g.at, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    g.q(0.01)
    g.op("Transpose", g.at, perm=[0, 2, 3, 1])
    g.op("Reshape", g.at, g.const(np.array([-1, 36])))
    g.op("MatMul", g.at, g.weight((36, 3), axis=1))
    g.op("Add", g.at, g.bias(3))
    g.q()
    return g.model()


def _codebook() -> Any:
    """Packed weights, and constants computed in the graph."""
    g = Qdq((2, 5, 5))
    x = g.q(at="x")
    codes = g.packed(TensorProto.INT4, np.arange(-8, 8).repeat(5)[: 4 * 2 * 9].reshape(4, 2, 3, 3))
    g.op("Cast", codes, to=TensorProto.INT8)
    w = g.op("DequantizeLinear", g.at, g.const(np.full(4, 0.01, np.float32)), axis=0)
    half = g.op("Mul", g.const(np.ones(4, np.float32)), g.const(np.float32(0.5)))
    g.op("Conv", x, w, half)
    g.q()
    g.op("ReduceMean", g.at, g.const(np.array([2, 3])), keepdims=0)
    g.q()
    return g.model()


def _qlinear() -> Any:
    """The operator-oriented form, on integer input."""
    g = Qdq((2, 4, 4), dtype="uint8", unsigned=True)
    scale, zero = g.const(np.float32(0.05)), g.point(3)
    # small weights: ONNX Runtime's kernel for this operator saturates sums of pairs on CPUs without VNNI
    w = g.const(g.rng.integers(-63, 64, (3, 2, 3, 3)).astype(np.int8))
    ws, wz = g.const(np.full(3, 0.01, np.float32)), g.const(np.zeros(3, np.int8))
    g.op("QLinearConv", "x", scale, zero, w, ws, wz, scale, zero, pads=[1, 1, 1, 1])
    g.op("DequantizeLinear", g.at, scale, zero)
    return g.model()


def _float(layout: str) -> Any:
    """A float network, channels first or (as converters write it) with transposes around."""
    rng = np.random.default_rng(1)
    k: list[Any] = []

    def const(array: Any) -> str:
        k.append(numpy_helper.from_array(np.asarray(array), f"k{len(k)}"))
        return f"k{len(k) - 1}"

    def weight(*shape: int) -> str:
        return const(rng.normal(size=shape).astype(np.float32))

    node, shape = helper.make_node, [3, 8, 8] if layout == "CHW" else [8, 8, 3]
    nodes = [] if layout == "CHW" else [node("Transpose", ["x"], ["i"], name="to_chw", perm=[0, 3, 1, 2])]
    one = np.ones(4, np.float32)
    nodes += [
        node("Conv", ["x" if layout == "CHW" else "i", weight(4, 3, 3, 3), weight(4)], ["a"], "conv", pads=[1] * 4),
        node("BatchNormalization", ["a", const(one), const(one), const(one), const(one)], ["b"], "bn"),
        node("Relu", ["b"], ["c"], "relu"),
        node("Conv", ["c", weight(4, 1, 3, 3)], ["d"], "dw", group=4, auto_pad="SAME_UPPER"),
        node("Clip", ["d", const(np.float32(0)), const(np.float32(6))], ["e"], "clip"),
        node("Add", ["c", "e"], ["f"], "sum"),
        node("MaxPool", ["f"], ["g"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["g", "", const(np.array([1, 1, 2, 2], np.float32))], ["h"], "up", mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Concat", ["h", "f"], ["j"], "cat", axis=1),
        node("AveragePool", ["j"], ["l"], "mean", kernel_shape=[4, 4], strides=[4, 4], count_include_pad=1),
        node("Reshape", ["l", const(np.array([-1, 32]))], ["m"], "view"),
        node("Gemm", ["m", weight(5, 32), weight(5)], ["n"], "fc", transB=1),
        node("Softmax", ["n"], ["y"], "softmax", axis=-1),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "float", [helper.make_tensor_value_info("x", 1, ["N", *shape])],
        [helper.make_tensor_value_info("y", 1, None)], k,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised() -> dict[str, Any]:
    """Seeds that are lowered as they are."""
    return {
        "cnn": _cnn(), "cnn-uint8": _cnn(True), "movement": _movement(), "codebook": _codebook(), "qlinear": _qlinear(),
    }  # fmt: skip


def floats() -> dict[str, Any]:
    """Seeds that are read into a network."""
    return {"float": _float("CHW"), "float-nhwc": _float("HWC")}


def shared() -> dict[str, Any]:
    """The MLPerf Tiny files, where they lie beside the project."""
    folder = SHARED / "models"
    return {p.stem: onnx.load_model(p) for p in sorted(Path(folder).glob("*.onnx"))} if folder.is_dir() else {}


def all_seeds(with_shared: bool = False) -> dict[str, Any]:
    """Every seed by name."""
    return {**quantised(), **floats(), **(shared() if with_shared else {})}
