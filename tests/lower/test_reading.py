"""Files that must not be trusted: every one ends in a typed error that names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.export.toys import everything
from tests.lower.qdq import Qdq
from xdeploy.errors import ModelError, UnsupportedError, UsageError, XdeployError
from xdeploy.export import to_onnx
from xdeploy.lower import ObstacleError, lower


def good() -> Qdq:
    g = Qdq((3, 5, 5))
    g.conv(4, 3, at=g.q(at="x"))
    g.q()
    return g


def lowered(folder: Path, model: Any) -> None:
    path = folder / "net.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    lower(path)


@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"not a model", b"\x08\x0a\x3a\xff\xff\xff\xff\x0f"])
def test_no_model_at_all(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ModelError, match="not an ONNX file"):
        lowered(tmp_path, data)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        lower(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        lower(tmp_path)


def test_external_data_is_not_opened(tmp_path: Path) -> None:
    model = good().model()
    tensor = next(t for t in model.graph.initializer if t.dims[:1] == [4] and len(t.dims) == 4)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    with pytest.raises(ModelError, match=r"another file, .*which is not opened"):
        lowered(tmp_path, model)


def test_external_data_inside_a_constant_node_and_a_subgraph(tmp_path: Path) -> None:
    model = good().model()
    hidden = TensorProto(name="hidden", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=hidden)], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["b"], ["z"], then_branch=inner, else_branch=inner))
    with pytest.raises(ModelError, match="'hidden' keeps its data in another file"):
        lowered(tmp_path, model)


def test_foreign_domains_functions_and_subgraphs_are_listed_together(tmp_path: Path) -> None:
    model = good().model()
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("Evil", ["x"], ["e"], domain="com.evil", name="bad"))
    model.graph.node.append(helper.make_node("Loop", ["x"], ["l"], body=inner, name="round"))
    opsets = [helper.make_opsetid("", 21)]
    body = [helper.make_node("Identity", ["idx"], ["out"])]
    model.functions.append(
        helper.make_function("xdeploy", "CodebookWeight", ["idx", "book", "scale"], ["out"], body, opsets)
    )
    with pytest.raises(ObstacleError) as caught:
        lowered(tmp_path, model)
    assert [o.node for o in caught.value.obstacles] == ["bad", "round", "CodebookWeight"]
    assert "com.evil" in str(caught.value)


def test_every_obstacle_is_listed_once_with_a_rewrite(tmp_path: Path) -> None:
    g = good()
    norm = g.op("LRN", g.at, size=3, name="norm")
    x = g.q(at=norm)
    left = g.q(at=g.op("ConvTranspose", x, g.weight((4, 2, 2, 2)), name="up"))
    g.op("Relu", left)
    g.op("Resize", g.q(), "", g.const(np.ones(4, np.float32)), name="grow")
    y = g.q()
    g.op("Mul", y, y, name="never reached")
    other = good()
    other.op("Concat", other.at, other.at, axis=0, name="rows")
    with pytest.raises(ObstacleError) as caught:
        lower(g.save(tmp_path))
    found = [(o.node, o.reason) for o in caught.value.obstacles]
    assert [node for node, _ in found] == ["norm", "up", g.at]  # what stands behind the first has obstacles of its own
    assert found[1][1] == "weight scales along the input channels"
    assert "not quantised" in found[2][1]
    with pytest.raises(ObstacleError, match="joins the batch axis; instead: one of the sample's axes"):
        lower(other.save(tmp_path))


def test_independent_obstacles_are_all_listed(tmp_path: Path) -> None:
    g = Qdq((3, 5, 5))
    x = g.q(at="x")
    a = g.q(at=g.op("InstanceNormalization", x, g.bias(3), g.bias(3), name="one"))
    float_weight = g.const(np.zeros((3, 3, 1, 1), np.float32))
    b = g.q(at=g.op("Conv", x, float_weight, name="two"))
    g.op("Add", a, b)
    g.q()
    with pytest.raises(ObstacleError) as caught:
        lower(g.save(tmp_path))
    assert [(o.node, o.op) for o in caught.value.obstacles] == [("one", "InstanceNormalization"), ("two", "Conv")]
    assert "DequantizeLinear" in caught.value.obstacles[1].rewrite


def test_nodes_behind_an_obstacle_are_judged(tmp_path: Path) -> None:
    """Attributes and shapes alike; what is fine behind it is not listed."""
    g = Qdq((3, 8, 8))
    g.q(at=g.op("InstanceNormalization", g.q(at="x"), g.bias(3), g.bias(3), name="norm"))
    g.conv(4, 3, at=g.at, pads=[1] * 4, name="fine")
    g.q()
    g.q(at=g.op("MaxPool", g.at, kernel_shape=[2, 2], dilations=[2, 2], name="sparse"))
    g.q(at=g.op("Softmax", g.at, axis=0, name="over samples"))
    with pytest.raises(ObstacleError) as caught:
        lower(g.save(tmp_path))
    assert [o.node for o in caught.value.obstacles] == ["norm", "sparse", "over samples"]
    assert [o.attribute for o in caught.value.obstacles[1:]] == ["dilations", "axis"]


def test_unquantised_output_and_middle_are_named(tmp_path: Path) -> None:
    g = Qdq((3, 5, 5))
    g.conv(4, 3, at=g.q(at="x"), name="head")
    with pytest.raises(ObstacleError, match="head before it is not quantised; instead: QuantizeLinear"):
        lower(g.save(tmp_path))
    g.op("Conv", g.at, g.weight((2, 4, 1, 1)), name="next")
    g.q()
    with pytest.raises(ObstacleError, match="its input is not quantised"):
        lower(g.save(tmp_path))


def test_a_scale_out_of_range_names_the_node(tmp_path: Path) -> None:
    g = Qdq((3, 5, 5))
    g.conv(4, 3, at=g.q(at="x"), name="tiny")
    g.q(1e-12)
    with pytest.raises(ObstacleError, match=r"tiny .*requantisation scale"):
        lower(g.save(tmp_path))


def test_declared_size_beyond_the_data_and_beyond_the_limit(tmp_path: Path) -> None:
    for dims, text in (([1 << 40], "above the limits"), ([7], "does not fit its shape"), ([1] * 9, "above the limits")):
        model = good().model()
        model.graph.initializer.append(TensorProto(name="big", data_type=1, dims=dims, raw_data=b"1234"))
        with pytest.raises(ModelError, match=text):
            lowered(tmp_path, model)


def test_nan_scales_and_two_inputs(tmp_path: Path) -> None:
    g = Qdq((3,))
    g.q(float("nan"), at="x")
    with pytest.raises(ModelError, match="not finite"):
        lower(g.save(tmp_path))
    model = good().model()
    model.graph.input.append(helper.make_tensor_value_info("second", 1, ["N", 2]))
    with pytest.raises(ModelError, match="one input is supported, this has 2: x, second"):
        lowered(tmp_path, model)


@pytest.mark.parametrize("shape", [["N", 0, 4], ["N", "C", 4], ["N"], ["N", 1 << 20, 1 << 20]])
def test_input_shapes_that_cannot_be(tmp_path: Path, shape: list[Any]) -> None:
    model = good().model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, shape))
    with pytest.raises(ModelError):
        lowered(tmp_path, model)


def test_hostile_names_do_not_reach_generated_text(tmp_path: Path) -> None:
    g = Qdq((3, 5, 5))
    g.conv(4, 3, at=g.q(at="x"), name='*/ system("x"); /*\n#include <x>')
    g.q()
    model = g.model()
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    onnx.save(model, tmp_path / "a.onnx")
    entry = conv.metadata_props.add()
    entry.key, entry.value = "origin", '*/\n"\\'
    onnx.save(model, tmp_path / "b.onnx")
    for name in ("a.onnx", "b.onnx"):
        (node,) = lower(tmp_path / name).nodes
        assert not set(node.name) & set('*/\\"\n<>();')


def test_damaged_bytes_give_typed_errors_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    data = np.frombuffer(to_onnx(everything({"a": "c4s8", "b": "int2"})).SerializeToString(), np.uint8)
    outcomes = {True: 0, False: 0}
    for _ in range(150):
        broken = data.copy()
        at = rng.integers(0, len(broken), rng.integers(1, 6))
        broken[at] = rng.integers(0, 256, len(at))
        cut = int(rng.integers(1, len(broken))) if rng.random() < 0.2 else len(broken)
        try:
            lowered(tmp_path, broken[:cut].tobytes())
            outcomes[True] += 1
        except XdeployError:
            outcomes[False] += 1
    assert outcomes[False] > 10


def test_damaged_attributes_give_typed_errors_only(tmp_path: Path) -> None:
    """Every attribute of every node in turn is removed, negated or emptied."""
    model = to_onnx(everything())
    for k, node in enumerate(model.graph.node):
        for j in range(len(node.attribute)):
            for change in ("drop", "negate", "empty"):
                copy = onnx.ModelProto()
                copy.CopyFrom(model)
                a = copy.graph.node[k].attribute[j]
                if change == "drop":
                    del copy.graph.node[k].attribute[j]
                elif change == "negate":
                    a.i, ints = -a.i - 1, [-v - 1 for v in a.ints]
                    del a.ints[:]
                    a.ints.extend(ints)
                else:
                    del a.ints[:]
                try:
                    lowered(tmp_path, copy)
                except XdeployError:
                    continue


def test_errors_are_model_errors(tmp_path: Path) -> None:
    g = good()
    g.op("LRN", g.at, size=3)
    with pytest.raises(UnsupportedError) as caught:
        lower(g.save(tmp_path))
    assert isinstance(caught.value, ModelError)
    assert caught.value.exit_code == 3
