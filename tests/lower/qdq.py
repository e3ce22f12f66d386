"""Small quantised ONNX graphs as other tools write them, built node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower import lower
from xdeploy.lower.compare import compare_with_onnx
from xdeploy.lower.runtime import run_onnx

TYPES = {"float32": TensorProto.FLOAT, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


class Qdq:
    """A chain of nodes; `at` is the current tensor. Activations are int8 unless `unsigned`."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "float32", unsigned: bool = False, opset: int = 21) -> None:
        self.rng = np.random.default_rng(3)
        self.shape, self.dtype, self.opset, self.unsigned = shape, dtype, opset, unsigned
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.at = "x"
        self.count = 0

    def const(self, array: Any) -> str:
        self.count += 1
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"k{self.count}"))
        return f"k{self.count}"

    def packed(self, data_type: int, array: np.ndarray) -> str:
        """An INT4, UINT4 or INT2 constant, packed by onnx itself."""
        self.count += 1
        self.constants.append(helper.make_tensor(f"k{self.count}", data_type, array.shape, array.reshape(-1)))
        return f"k{self.count}"

    def op(self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attrs: Any) -> str:
        self.count += 1
        self.at = f"t{self.count}"
        label = f"{kind.lower()}{self.count}" if name is None else name
        self.nodes.append(helper.make_node(kind, list(inputs), [self.at], name=label, domain=domain, **attrs))
        return self.at

    def q(self, scale: float = 0.05, zero: int = 3, at: str = "") -> str:
        """QuantizeLinear and DequantizeLinear with the same parameters; gives the float tensor."""
        return self.dq(self.quantise(at or self.at, scale, zero), scale, zero)

    def point(self, zero: int) -> str:
        return self.const(np.array(zero + 128, np.uint8) if self.unsigned else np.array(zero, np.int8))

    def quantise(self, at: str, scale: float, zero: int) -> str:
        return self.op("QuantizeLinear", at, self.const(np.float32(scale)), self.point(zero))

    def dq(self, at: str, scale: float = 0.05, zero: int = 3) -> str:
        return self.op("DequantizeLinear", at, self.const(np.float32(scale)), self.point(zero))

    def weight(self, shape: tuple[int, ...], axis: int = 0, per_channel: bool = True) -> str:
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        scale = self.rng.uniform(0.002, 0.004, shape[axis] if per_channel else ()).astype(np.float32)
        return self.op("DequantizeLinear", self.const(codes), self.const(scale), axis=axis)

    def bias(self, size: int) -> str:
        return self.const(self.rng.normal(size=size).astype(np.float32))

    def conv(self, out: int, channels: int, kernel: int = 3, at: str = "", **attrs: Any) -> str:
        x = at or self.at
        return self.op("Conv", x, self.weight((out, channels, kernel, kernel)), self.bias(out), **attrs)

    def model(self, output: str = "", dtype: str = "float32", batch: Any = "N") -> Any:
        given = helper.make_tensor_value_info("x", TYPES[self.dtype], [batch, *self.shape])
        taken = helper.make_tensor_value_info(output or self.at, TYPES[dtype], None)
        graph = helper.make_graph(self.nodes, "g", [given], [taken], self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))

    def save(self, folder: Path, **kwargs: Any) -> Path:
        path = folder / "net.onnx"
        onnx.save(self.model(**kwargs), path)
        return path


def checked(path: Path, n: int = 8, most: int = 1) -> tuple[LoweredGraph, list[dict[str, Any]]]:
    """Lower without fusing, compare node by node with ONNX Runtime on random inputs over the whole input range.

    The fused graph is compared likewise, and run as a whole: there single codes travel on.
    """
    plain, fused = lower(path, fuse=False), lower(path)
    assert plain.io.input_q is not None
    codes = np.random.default_rng(5).integers(-128, 128, (n, *plain.io.input_shape)).astype(np.int8)
    inputs = plain.io.input_q.dequantise(codes)
    rows = compare_with_onnx(path, plain, inputs)
    assert rows
    for r in (*rows, *compare_with_onnx(path, fused, inputs)):
        assert r["max_code_difference"] <= most, r
    theirs = run_onnx(path, fused.io, inputs)
    device = np.moveaxis(theirs, 1, -1) if theirs.ndim == 4 and plain.io.input_layout == "CHW" else theirs
    ours = ops.run(fused, fused.io.to_codes(inputs))[fused.output]
    assert ours.shape == device.shape
    assert np.abs(ours.astype(int) - device).mean() < 1.0
    return fused, rows


def ops_of(graph: LoweredGraph) -> list[str]:
    return [n.op for n in graph.nodes]
