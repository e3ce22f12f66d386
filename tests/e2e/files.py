"""Small files and data as a user has them: a float ONNX export, data in an npz, obstacles planted in files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn


class Net(nn.Module):
    """Batch norms, a residual addition, a gate, an upsampling, global pooling: ten classes of layers in few."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = nn.functional.hardswish(self.a(x) + x)
        x = torch.relu(self.b(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.fc(nn.functional.interpolate(x, scale_factor=2, mode="nearest").mean((2, 3)))


def float_onnx(path: Path, seed: int, dynamo: bool = False) -> nn.Module:
    """Export a network with lively batch norms; gives the module."""
    torch.manual_seed(seed)
    net = Net().eval()
    with torch.no_grad():
        net.norm.running_mean.normal_(0.0, 0.2)
        net.norm.running_var.uniform_(0.5, 2.0)
    names = {"input_names": ["image"], "output_names": ["scores"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("n")},)
            program = torch.onnx.export(
                net, (torch.zeros(2, 3, 8, 8),), dynamo=True, verbose=False, dynamic_shapes=shapes, **names
            )
            assert program is not None
            program.save(path)
        else:
            axes = {"image": {0: "n"}, "scores": {0: "n"}}
            torch.onnx.export(net, (torch.zeros(1, 3, 8, 8),), path, dynamo=False, dynamic_axes=axes, **names)
    return net


def blobs(path: Path, seed: int, shape: tuple[int, ...] = (3, 8, 8), count: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Four blobs of noise as an npz; gives x and y."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 4
    x = (rng.normal(size=(4, *shape))[y] + 0.3 * rng.normal(size=(count, *shape))).astype(np.float32)
    np.savez(path, x=x, y=y)
    return x, y


def save(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: tuple[int, ...], out: int
) -> Path:
    """A file of these nodes from x (N, *shape) to y (N, out)."""
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", out])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def hindered_float(path: Path) -> Path:
    """A float file with two unrelated obstacles: a sine and a cumulative sum."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
        helper.make_node("Sin", ["c"], ["s"], name="wave"),
        helper.make_node("CumSum", ["s", "axis"], ["t"], name="running", reverse=1),
        helper.make_node("GlobalAveragePool", ["t"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    return save(path, nodes, {"w": weight, "axis": np.array(3, np.int64)}, (3, 4, 4), 5)


def hindered_quantised(path: Path) -> Path:
    """A QDQ file in which a cumulative sum stands between two quantised tensors, and a sort before the output."""
    scale, zero = {"s": np.array(0.05, np.float32)}, {"z": np.array(0, np.int8)}

    def pair(source: str, to: str) -> list[onnx.NodeProto]:
        q, dq = f"{to}.q", to
        return [
            helper.make_node("QuantizeLinear", [source, "s", "z"], [q], name=q),
            helper.make_node("DequantizeLinear", [q, "s", "z"], [dq], name=f"{to}.dq"),
        ]

    nodes = [
        *pair("x", "a"),
        helper.make_node("CumSum", ["a", "axis"], ["b"], name="running", exclusive=1),
        *pair("b", "c"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        *pair("r", "d"),
        helper.make_node("TopK", ["d", "k"], ["e", "places"], name="best", axis=1),
        *pair("e", "f"),
        helper.make_node("Add", ["c", "f"], ["g"], name="sum"),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["h"], name="h"),
        helper.make_node("DequantizeLinear", ["h", "s", "z"], ["y"], name="y.dq"),
    ]
    constants = {**scale, **zero, "axis": np.array(1, np.int64), "k": np.array([6], np.int64)}
    return save(path, nodes, constants, (6,), 6)
