"""All obstacles of a float file in one list: behind a refused node too, with shapes where ONNX infers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from xdeploy.errors import Obstacle
from xdeploy.model.onnxgraph import load_onnx
from xdeploy.onnxfile import ObstacleError, read
from xdeploy.onnxshapes import inferred


def obstacles(path: Path) -> tuple[Obstacle, ...]:
    with pytest.raises(ObstacleError) as caught:
        load_onnx(path)
    return caught.value.obstacles


def written(path: Path, nodes: list[Any], shape: tuple[Any, ...], constants: dict[str, Any]) -> Path:
    """Nodes between the input x and their last output."""
    arrays = [numpy_helper.from_array(np.asarray(a), k) for k, a in constants.items()]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    taken = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [given], [taken], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Recurrent(nn.Module):
    """Layer norm, linear resizing, an LSTM and log-softmax: four things that cannot be deployed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.LayerNorm([4, 8, 8])
        self.lstm, self.fc = nn.LSTM(16, 8, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        x = F.interpolate(self.norm(self.conv(x)), scale_factor=2, mode="bilinear")
        x, _ = self.lstm(x.mean(1))
        return F.log_softmax(self.fc(x[:, -1]), -1)


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("free", [True, False])
def test_torch_export(tmp_path: Path, free: bool) -> None:
    path, axes = tmp_path / "net.onnx", {"image": {0: "n"}} if free else None
    given = (torch.randn(1, 1, 8, 8),)
    torch.onnx.export(
        Recurrent().eval(), given, path, dynamo=False, opset_version=17, input_names=["image"], dynamic_axes=axes
    )
    found = {o.op: o for o in obstacles(path)}
    assert list(found) == ["LayerNormalization", "Resize", "LSTM", "LogSoftmax"]
    assert found["Resize"].attribute == "mode"
    assert "nearest" in found["Resize"].rewrite
    assert "leave it out" in found["LogSoftmax"].rewrite


def test_attributes_where_no_shape_is_known(tmp_path: Path) -> None:
    """Behind a node that makes the shape unknown, the attributes alone tell; shape arithmetic is left in peace."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="choice"),
        helper.make_node("Cast", ["a"], ["b"], name="number", to=1),
        helper.make_node("Resize", ["b", "", "scales"], ["c"], name="grow", mode="cubic"),
        helper.make_node("Shape", ["c"], ["s"], name="size"),
        helper.make_node("Cast", ["s"], ["s1"], name="arithmetic", to=6),
        helper.make_node("Cast", ["s1"], ["s2"], name="back", to=7),
        helper.make_node("Reshape", ["c", "s2"], ["d"], name="same"),
        helper.make_node("Exp", ["d"], ["e"], name="function"),
        helper.make_node("Gemm", ["e", "w"], ["f"], name="turned", transA=1),
        helper.make_node("MaxPool", ["f"], ["y"], name="pool", kernel_shape=[2, 2], dilations=[2, 2]),
    ]
    constants = {"scales": np.ones(4, np.float32), "w": np.ones((3, 3), np.float32)}
    found = obstacles(written(tmp_path / "m.onnx", nodes, ("n", 3, 8, 8), constants))
    assert [o.node for o in found] == ["choice", "grow", "function", "turned", "pool"]


def test_what_only_capture_refuses(tmp_path: Path) -> None:
    """Softmax over an image is refused when the graph is captured; behind and before a refused node alike."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], name="first", axis=1),
        helper.make_node("LRN", ["a"], ["b"], name="norm", size=3),
        helper.make_node("Softmax", ["b"], ["c"], name="second", axis=1),
        helper.make_node("Flatten", ["c"], ["y"], name="flat"),
    ]
    found = obstacles(written(tmp_path / "m.onnx", nodes, ("n", 3, 8, 8), {}))
    assert [o.node for o in found] == ["first", "norm", "second"]


def test_inferred_shapes_keep_the_batch_first(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("LRN", ["x"], ["norm"], size=3),
        helper.make_node("Transpose", ["norm"], ["moved"], perm=[1, 0, 2, 3]),
        helper.make_node("Flatten", ["norm"], ["y"]),
    ]
    graph = read(written(tmp_path / "m.onnx", nodes, (1, 3, 4, 5), {}))
    assert inferred(graph, graph.nodes, {}) == {"norm": (3, 4, 5), "y": (60,)}


def test_a_graph_that_contradicts_itself_has_no_shapes(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="c")]
    graph = read(written(tmp_path / "m.onnx", nodes, (1, 3, 4, 5), {"w": np.ones((2, 2), np.float32)}))
    assert "y" not in inferred(graph, graph.nodes, {k: c.array for k, c in graph.constants.items()})
