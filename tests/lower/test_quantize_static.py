"""Files written by ONNX Runtime's own quantiser, the most common source of quantised ONNX."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from tests.lower.qdq import checked, ops_of
from xdeploy.lower import ObstacleError, lower


class Batches(CalibrationDataReader):
    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.rows: Iterator[Any] = iter([{"x": rng.normal(size=(2, 3, 12, 12)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> Any:
        return next(self.rows, None)


def float_model(folder: Path, function: str = "HardSwish") -> Path:
    """conv relu maxpool, a residual block with relu6, depthwise conv, global pool, linear, softmax."""
    rng, nodes, constants = np.random.default_rng(1), [], []

    def const(name: str, *shape: int) -> str:
        gain = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        constants.append(numpy_helper.from_array((rng.normal(size=shape) * gain).astype(np.float32), name))
        return name

    def op(kind: str, output: str, *inputs: str, **attrs: Any) -> None:
        nodes.append(helper.make_node(kind, list(inputs), [output], name=f"net/{output}", **attrs))

    pads = [1, 1, 1, 1]
    op("Conv", "c1", "x", const("w1", 8, 3, 3, 3), const("b1", 8), pads=pads)
    op("Relu", "r1", "c1")
    op("MaxPool", "m1", "r1", kernel_shape=[2, 2], strides=[2, 2])
    op("Conv", "c2", "m1", const("w2", 8, 8, 3, 3), const("b2", 8), pads=pads)
    constants.append(numpy_helper.from_array(np.float32(0), "zero"))
    constants.append(numpy_helper.from_array(np.float32(6), "six"))
    op("Clip", "r2", "c2", "zero", "six")
    op("Conv", "c3", "r2", const("w3", 8, 8, 1, 1), const("b3", 8))
    op("Add", "a1", "c3", "m1")
    op("Relu", "r3", "a1")
    op("Conv", "c4", "r3", const("w4", 8, 1, 3, 3), const("b4", 8), pads=pads, group=8, strides=[2, 2])
    op(function, "h", "c4")
    op("GlobalAveragePool", "g", "h")
    op("Flatten", "f", "g")
    op("Gemm", "fc", "f", const("w5", 5, 8), const("b5", 5), transB=1)
    op("Softmax", "y", "fc")
    given = helper.make_tensor_value_info("x", 1, ["N", 3, 12, 12])
    graph = helper.make_graph(nodes, "g", [given], [helper.make_tensor_value_info("y", 1, ["N", 5])], constants)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "float.onnx")
    return folder / "float.onnx"


def quantised(folder: Path, function: str = "HardSwish", **options: Any) -> Path:
    logging.disable(logging.WARNING)  # it warns that the model was not preprocessed
    try:
        quantize_static(float_model(folder, function), folder / "q.onnx", Batches(), **options)
    finally:
        logging.disable(logging.NOTSET)
    return folder / "q.onnx"


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
def test_qdq_files(tmp_path: Path, activations: QuantType, per_channel: bool) -> None:
    path = quantised(
        tmp_path, quant_format=QuantFormat.QDQ, per_channel=per_channel, activation_type=activations,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    graph, _ = checked(path)
    assert ops_of(graph).count("conv2d") == 4
    assert ops_of(graph).count("linear") == 1
    assert sum(n.op == "conv2d" and len(n.inputs) == 2 for n in graph.nodes) == 1


@pytest.mark.parametrize("function", ["LeakyRelu", "Sigmoid"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activations", [QuantType.QInt8, QuantType.QUInt8])
def test_qoperator_files(tmp_path: Path, activations: QuantType, per_channel: bool, function: str) -> None:
    """QLinearConv, QLinearAdd, QLinearGlobalAveragePool, QGemm and others of com.microsoft."""
    path = quantised(
        tmp_path, function, quant_format=QuantFormat.QOperator, per_channel=per_channel, activation_type=activations,
        weight_type=QuantType.QInt8,
    )  # fmt: skip
    foreign = {n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft"}
    assert foreign >= {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm", f"QLinear{function}"}
    graph, rows = checked(path)
    assert ops_of(graph).count("conv2d") == 4
    assert next(n for n in graph.nodes if n.op == "avg_pool2d").attrs.get("tie", 1) == 1
    assert {r["op"] for r in rows} >= {"conv2d", "add", "avg_pool2d", "linear", "softmax"}


@pytest.mark.parametrize("quant_format", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize(
    "options",
    [
        {"reduce_range": True}, {"weight_type": QuantType.QUInt8, "activation_type": QuantType.QUInt8},
        {"extra_options": {"WeightSymmetric": False, "ActivationSymmetric": True}},
    ],
    ids=["reduce_range", "unsigned", "asymmetric"],
)  # fmt: skip
def test_options_of_the_quantiser(tmp_path: Path, quant_format: QuantFormat, options: dict[str, Any]) -> None:
    given = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QInt8, **options}
    path = quantised(tmp_path, "LeakyRelu", quant_format=quant_format, **given)
    wide = given["weight_type"] == QuantType.QUInt8 or "extra_options" in options
    if wide:  # asymmetric: weights need a ninth bit, which a depthwise convolution cannot give them
        with pytest.raises(ObstacleError, match=r"net.c4 .*do not fit int8; instead: symmetric int8 weights") as caught:
            lower(path)
        assert len(caught.value.obstacles) == 1
        return
    checked(path)


def test_int16_activations_are_refused_by_name(tmp_path: Path) -> None:
    path = quantised(
        tmp_path, quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt16, weight_type=QuantType.QInt8,
        extra_options={"UseQDQContribOps": True},
    )  # fmt: skip
    with pytest.raises(ObstacleError, match="activations of type int16; instead: int8 or uint8"):
        lower(path)
