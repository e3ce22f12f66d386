"""Whole files: shape arithmetic for any batch, names, obstacles, and what exporters write."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.onnxfiles import answer, node, save
from xdeploy.errors import ModelError, UnsupportedError, UsageError
from xdeploy.model.frontend import front_end
from xdeploy.model.onnxgraph import load_onnx, module_of
from xdeploy.model.onnxgraph.names import origins
from xdeploy.onnxfile import ObstacleError, OnnxNode, is_quantised, read

F32 = np.float32


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.act(self.bn1(self.conv1(x)))) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.hardswish(self.stem(x)))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)
        return self.fc(F.avg_pool2d(x, 2).view(x.size(0), -1))


WEIGHTED = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "fc"]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(5)
    return Net().eval()


def export(net: nn.Module, path: Path, way: str) -> Path:
    x = torch.randn(2 if "free" in way else 1, 3, 16, 16)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            if way == "dynamo free":
                free = ({0: torch.export.Dim("N", min=1, max=64)},)
                torch.onnx.export(net, (x,), path, dynamo=True, dynamic_shapes=free, external_data=False, verbose=False)
            else:
                axes = {"x": {0: "N"}} if "free" in way else None
                opset = int(way.split()[-1])
                torch.onnx.export(
                    net, (x,), path, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes
                )
        finally:
            logging.disable(logging.NOTSET)
    return path


@pytest.mark.parametrize("way", ["torchscript free 17", "torchscript fixed 11", "torchscript fixed 13", "dynamo free"])
def test_torch_exporters(net: nn.Module, tmp_path: Path, way: str) -> None:
    given = front_end(str(export(net, tmp_path / "net.onnx", way)))
    assert given.name == "net"
    assert given.declared.shape == (3, 16, 16)
    network = given.network(None)
    assert [x.name for x in network.weighted()] == WEIGHTED
    assert [x.attrs["function"] for x in network.layers if x.kind == "function"] == ["hard_swish", "gelu", "gelu"]
    x = torch.randn(5, 3, 16, 16)  # a batch that the file may not have been written for
    assert given.module is not None
    with torch.no_grad():
        torch.testing.assert_close(given.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_batch_of_a_fixed_file_is_free(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "a"), node("MatMul", "a w", "b"), node("Reshape", "b t")]
    constants = {"s": np.array([1, -1]), "w": np.eye(12, 6, dtype=F32), "t": np.array([1, 2, 3])}
    module = load_onnx(save(tmp_path / "m.onnx", nodes, constants, (1, 3, 2, 2)))
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(module(x), x.flatten(1)[:, :6].reshape(4, 2, 3))


def test_shape_arithmetic_is_computed_for_any_batch(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s i0", "n"),
        node("Gather", "s i1", "c"),
        node("Div", "c two", "h"),
        node("Unsqueeze", "n ax", "n1"),
        node("Unsqueeze", "h ax", "h1"),
        node("Concat", "n1 h1 m1", "t", axis=0),
        node("Reshape", "x t"),
    ]
    constants = {"i0": np.array(0), "i1": np.array(1), "two": np.array(2), "ax": np.array([0]), "m1": np.array([-1])}
    path = save(tmp_path / "m.onnx", nodes, constants, ("N", 4, 3, 5))
    x = torch.randn(3, 4, 3, 5)
    np.testing.assert_array_equal(load_onnx(path)(x).numpy(), answer(path, x.numpy()))


def test_every_obstacle_is_listed_at_once(tmp_path: Path) -> None:
    nodes = [
        node("LayerNormalization", "x g", "a", "norm", axis=-1),
        node("Resize", "a - sc", "b", "up", mode="linear"),
        node("Exp", "x", "e", "power"),
        node("LRN", "e", "l", "lrn", size=3),
        node("GRU", "l g g", "r", "rnn", hidden_size=2),
        node("ArgMax", "b", "m", "which"),
        node("Reshape", "x bad", "k", "mix"),
        node("Concat", "m r k", "y", "end", axis=1),
    ]
    constants = {"g": np.ones(6, F32), "sc": np.array([1, 1, 2, 2], F32), "bad": np.array([-1, 6])}
    path = save(tmp_path / "m.onnx", nodes, constants, ("N", 4, 5, 6))
    with pytest.raises(ObstacleError) as found:
        front_end(str(path))
    rows = {o.node: o for o in found.value.obstacles}
    assert set(rows) == {"norm", "power", "lrn", "rnn", "which", "mix"} | ({"up"} if "up" in rows else set())
    assert rows["mix"].attribute == "shape"
    assert "BatchNormalization" in rows["norm"].rewrite
    assert found.value.exit_code == 3
    assert all(o.reason and o.op for o in rows.values())


def test_obstacles_of_capture_name_the_files_nodes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [node("Softmax", "x", "a", "first", axis=2), node("Relu", "a", name="last")],
        {},
        ("N", 4, 5, 6),
    )
    with pytest.raises(ObstacleError) as found:
        front_end(str(path)).network(None)
    assert [(o.node, o.op) for o in found.value.obstacles] == [("first", "Softmax")]


def test_what_nobody_reads_is_no_obstacle(tmp_path: Path) -> None:
    nodes = [node("Relu", "x"), node("ArgMax", "x", "unused")]
    assert load_onnx(save(tmp_path / "m.onnx", nodes, {}, ("N", 4, 5, 6))).input_shape == (4, 5, 6)


@pytest.mark.parametrize(
    ("nodes", "constants", "shape", "opset", "says"),
    [
        ([node("Relu", "nowhere")], {}, ("N", 4), 17, "nowhere"),
        ([node("Relu", "x")], {}, ("N", 4), 6, "opset"),
        ([node("Relu", "c")], {"c": np.ones((1, 4), F32)}, ("N", 4), 17, "does not depend"),
        ([node("Conv", "x w")], {"w": np.ones((2, 3, 3, 3), F32)}, ("N", 4, 8, 8), 17, "do not fit|differs|does not"),
        ([node("Conv", "x w", strides=[0, 1])], {"w": np.ones((2, 4, 3, 3), F32)}, ("N", 4, 8, 8), 17, "strides"),
        ([node("MaxPool", "x", kernel_shape=[2**40, 2])], {}, ("N", 4, 8, 8), 17, "kernel_shape"),
        ([node("Expand", "x s")], {"s": np.array([1, 4, 2**20, 2**20])}, ("N", 4, 1, 1), 17, "above the limit"),
        (
            [node("ConstantOfShape", "s", "z"), node("Add", "x z")],
            {"s": np.array([2**20, 2**20])},
            ("N", 4),
            17,
            "above the limit",
        ),
        ([node("Transpose", "x", perm=[1, 0])], {}, ("N", 4), 17, "moves the batch"),
        ([node("MatMul", "x x")], {}, (4, 4), 17, "two tensors"),
    ],
)
def test_files_that_are_refused(nodes, constants, shape, opset, says, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=says):
        load_onnx(save(tmp_path / "m.onnx", nodes, constants, shape, opset=opset))


def test_a_difference_from_onnxruntime_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xdeploy.model.onnxgraph.rows import ROWS, operator

    before = ROWS["Tanh"]
    try:
        operator("Tanh")(lambda call: call.step(lambda part, x: torch.tanh(x) + 1e-3))
        with pytest.raises(ModelError, match="differs from ONNX Runtime"):
            load_onnx(save(tmp_path / "m.onnx", [node("Tanh", "x")], {}, ("N", 4)))
    finally:
        ROWS["Tanh"] = before


def test_origins_of_every_exporter() -> None:
    def made(name: str, op: str = "Conv", weight: str = "w", **meta: str) -> OnnxNode:
        return OnnxNode(name, op, ("x", weight), ("y",), {}, meta)

    scopes = {"pkg.torch.onnx.name_scopes": "['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']"}
    nodes = [
        made("/features/features.0/features.0.1/Conv"),
        made("/layer2/layer2.1/Add", "Add"),
        made("/layer2/layer2.1/conv/Conv"),
        made("node_conv2d", **scopes),
        made("node_conv2d_1", weight="head.fc.weight"),
        made("model/bn/FusedBatchNormV3;model/conv2d_1/BiasAdd;model/conv2d_2/Conv2D;model/conv2d_1/Conv2D"),
        made("model/act/Relu;model/add/add", "Relu"),
        made("a; rm -rf", "Relu", origin="layer.7"),
    ]
    assert origins(nodes, {"w", "head.fc.weight"}) == [
        "features.0.1",
        "layer2.1.add",
        "layer2.1.conv",
        "layer1.0.conv1",
        "head.fc",
        "model.conv2d_1",
        "model.act.Relu",
        "layer.7",
    ]


def test_names_that_torch_uses_itself(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "a", "forward"),
        node("Neg", "a", "b", "forward.b"),
        node("Tanh", "b", "c", "a.b"),
        node("Relu", "c", name="a"),
    ]
    module = load_onnx(save(tmp_path / "m.onnx", nodes, {}, ("N", 4)))
    assert [p.name for p in module.placed] == ["forward_", "forward_.b", "a.b", "a"]
    assert {n for n, _ in module.named_modules()} == {"", "forward_", "forward_.b", "a", "a.b"}


def test_graphs_made_by_others(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Relu", "x")], {}, ("N", 4))
    module = module_of(read(path), "view")
    assert front_end(module).name == "view"
    assert front_end(module).network(None).output.kind == "relu"


def test_quantised_files_take_another_way(tmp_path: Path) -> None:
    scale = {"s": F32(0.1), "z": np.int8(0)}
    weights = {**scale, "q": np.arange(12, dtype=np.int8).reshape(4, 3)}
    packed = save(
        tmp_path / "w.onnx", [node("DequantizeLinear", "q s z", "w"), node("MatMul", "x w")], weights, ("N", 4)
    )
    assert not is_quantised(packed)
    assert front_end(str(packed)).network(None).output.kind == "linear"
    nodes = [node("QuantizeLinear", "x s z", "a"), node("DequantizeLinear", "a s z")]
    quantised = save(tmp_path / "q.onnx", nodes, scale, ("N", 4))
    assert is_quantised(quantised)
    with pytest.raises(UnsupportedError, match="quantised already"):
        front_end(str(quantised))


def test_weights_do_not_go_with_a_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", [node("Relu", "x")], {}, ("N", 4))
    with pytest.raises(UsageError, match="weights"):
        front_end(str(path), tmp_path / "w.safetensors")


def test_opsets_from_the_oldest_to_the_newest(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in range(7, newest + 1):
        graph = helper.make_graph(
            [node("Relu", "x", "a"), node("Flatten", "a")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        )
        path = tmp_path / f"{opset}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
        x = torch.randn(2, 2, 1, 3)
        torch.testing.assert_close(module_of(read(path), "m")(x), x.relu().flatten(1))
