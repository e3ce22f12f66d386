"""Small ONNX files for the tests, made with onnx.helper, and ONNX Runtime's answer to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Array],
    shape: Sequence[int | str],
    *,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A file from `x` to `y` whose nodes are given; arrays become initialisers."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def answer(path: Path, x: Array) -> Array:
    """What ONNX Runtime gives, without optimisations."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def node(op: str, inputs: str, outputs: str = "y", name: str = "", **attrs: Any) -> NodeProto:
    """A node; names separated by spaces, `-` for an operand that is left out."""
    read = ["" if i == "-" else i for i in inputs.split()]
    return helper.make_node(op, read, outputs.split(), name=name, **attrs)
