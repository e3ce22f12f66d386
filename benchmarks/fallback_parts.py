"""Nodes for benchmarks/fallback.py: an encoder block, normalisations, and convolutions with odd attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
Shape = tuple[int, ...]


def model(nodes: list[Any], given: Shape, result: Shape, **constants: Any) -> Any:
    """Nodes from "x" to "y", constants by name."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", given), ("y", result))]
    made = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "part", ports[:1], ports[1:], made)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(whole, full_check=True)
    return whole


def normal(*shape: int) -> np.ndarray:
    """Weights that keep the size of what goes through them; a vector has size 1."""
    inputs = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0] if len(shape) == 2 else 1
    return (np.random.default_rng(shape).normal(size=shape) / np.sqrt(inputs)).astype(np.float32)


def encoder(rows: int = 64, width: int = 128, heads: int = 4) -> Any:
    """A transformer's encoder block: norm, attention, norm, two layers with GELU."""
    node, each = helper.make_node, width // heads
    nodes = [node("LayerNormalization", ["x", "g", "b"], ["n1"], axis=-1)]
    for k, turn in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["n1", f"w{k}"], [f"{k}0"]), node("Add", [f"{k}0", "b"], [f"{k}1"]),
            node("Reshape", [f"{k}1", "heads"], [f"{k}2"]), node("Transpose", [f"{k}2"], [f"{k}3"], perm=turn),
        ]  # fmt: skip
    nodes += [
        node("MatMul", ["q3", "k3"], ["s0"]), node("Mul", ["s0", "less"], ["s1"]), node("Softmax", ["s1"], ["s2"]),
        node("MatMul", ["s2", "v3"], ["a0"]), node("Transpose", ["a0"], ["a1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a1", "rows"], ["a2"]), node("MatMul", ["a2", "wo"], ["a3"]), node("Add", ["a3", "x"], ["r"]),
        node("LayerNormalization", ["r", "g", "b"], ["n2"], axis=-1),
        node("MatMul", ["n2", "w1"], ["m0"]), node("Add", ["m0", "b1"], ["m1"]), node("Mul", ["m1", "root"], ["e0"]),
        node("Erf", ["e0"], ["e1"]), node("Add", ["e1", "one"], ["e2"]), node("Mul", ["m1", "e2"], ["e3"]),
        node("Mul", ["e3", "half"], ["e4"]), node("MatMul", ["e4", "w2"], ["m2"]), node("Add", ["m2", "r"], ["y"]),
    ]  # fmt: skip
    return model(
        nodes, (1, rows, width), (1, rows, width), g=normal(width), b=normal(width), b1=normal(4 * width),
        **{f"w{k}": normal(width, width) for k in "qkvo"}, w1=normal(width, 4 * width), w2=normal(4 * width, width),
        heads=np.array([1, rows, heads, each]), rows=np.array([1, rows, width]), less=np.float32(each**-0.5),
        root=np.float32(0.5**0.5), one=np.float32(1), half=np.float32(0.5),
    )  # fmt: skip


def one(op: str, given: Shape, result: Shape, inputs: dict[str, Any] | None = None, **attrs: Any) -> Any:
    """A single node."""
    inputs = inputs or {}
    return model([helper.make_node(op, ["x", *inputs], ["y"], **attrs)], given, result, **inputs)


PARTS: dict[str, Callable[[], Any]] = {
    "Encoder block, 64 x 128, 4 heads": encoder,
    "LayerNormalization, 197 x 192": lambda: one(
        "LayerNormalization", (1, 197, 192), (1, 197, 192), {"g": normal(192), "b": normal(192)}, axis=-1
    ),
    "Softmax, 1024 x 128": lambda: one("Softmax", (1, 1024, 128), (1, 1024, 128), axis=-1),
    "InstanceNormalization, 32 x 28 x 28": lambda: one(
        "InstanceNormalization", (1, 32, 28, 28), (1, 32, 28, 28), {"g": normal(32), "b": normal(32)}
    ),
    "Grouped convolution 5x3, stride 2x1, dilation 1x2": lambda: one(
        "Conv", (1, 24, 33, 31), (1, 36, 16, 31), {"w": normal(36, 12, 5, 3), "b": normal(36)},
        pads=[2, 1, 0, 3], strides=[2, 1], dilations=[1, 2], group=2,
    ),
    "Convolution over 10 x 11 x 12": lambda: one(
        "Conv", (1, 8, 10, 11, 12), (1, 16, 10, 11, 12), {"w": normal(16, 8, 3, 3, 3)}, pads=[1] * 6
    ),
    "Transposed convolution 3x3, stride 2": lambda: one(
        "ConvTranspose", (1, 32, 15, 15), (1, 16, 30, 30), {"w": normal(32, 16, 3, 3)}, strides=[2, 2],
        pads=[1, 1, 1, 1], output_padding=[1, 1],
    ),
    "Linear layer 512 -> 1000": lambda: one("Gemm", (1, 512), (1, 1000), {"w": normal(1000, 512)}, transB=1),
}  # fmt: skip
