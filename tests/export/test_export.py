"""The exported file: every layer kind and weight format, against ONNX Runtime, torch and its own bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.export.toys import NONE, Toy, everything, inputs_of
from xdeploy.compress.model import CompressedModel
from xdeploy.errors import ModelError, UsageError
from xdeploy.export import adopt, compare, export, to_onnx
from xdeploy.formats import FORMATS, QParams
from xdeploy.handover import RelevanceMap
from xdeploy.lir import ops
from xdeploy.lower import lower
from xdeploy.lower.compare import compare_with_onnx
from xdeploy.lower.runtime import session

MIXED = {
    "stem": "int4", "a": "c4s8", "b": "int2", "dw": "c2s8",
    "left": "int3", "right": "int5", "fc1": "int6", "fc2": "c6s8",
}  # fmt: skip


def one_conv(format_name: str) -> CompressedModel:
    t = Toy((3, 5, 4))
    t.conv("block.0.conv", 5, (3, 2), fmt=format_name)
    t.add("block.0.act", "relu")
    return t.compressed()


@pytest.mark.parametrize("formats", [{}, MIXED], ids=["int8", "mixed"])
@pytest.mark.parametrize("bind", [True, False])
def test_every_layer_kind_through_onnx_runtime_and_lowering(
    tmp_path: Path, formats: dict[str, str], bind: bool
) -> None:
    compressed = everything(formats, bind)
    x = inputs_of(compressed.network, 24)
    exported = export(compressed, x, tmp_path, None, "toy")
    assert exported.onnx_codes.shape == (24, 12)
    plain, fused = lower(exported, fuse=False), lower(exported)
    for graph in (plain, fused):
        rows = compare_with_onnx(exported, graph, x)
        kinds = {"conv2d", "linear", "add", "concat", "pad", "slice", "max_pool2d", "avg_pool2d", "clamp", "softmax"}
        assert {r["op"] for r in rows} >= kinds
        assert max(r["max_code_difference"] for r in rows) <= 1
        assert min(r["equal"] for r in rows) > 0.99
    for graph in (plain, fused):
        codes = ops.run(graph, graph.io.to_codes(x))[graph.output]
        assert (codes == exported.onnx_codes).mean() > 0.9
    wanted = {n: w.format_name for n, w in compressed.weights.items()}
    assert {n.name: n.attrs["weight_format"] for n in fused.nodes if n.format} == wanted


def test_torch_fake_quantisation_agrees(tmp_path: Path) -> None:
    compressed = everything(MIXED)
    x = inputs_of(compressed.network, 24)
    told = compare(compressed, export(compressed, x[:2], tmp_path), x)
    assert told["n"] == 24
    assert told["equal"] > 0.95
    assert told["max_difference"] <= 2


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_each_format_is_kept_with_its_codes(tmp_path: Path, name: str) -> None:
    compressed = one_conv(name)
    weight = compressed.weights["block.0.conv"]
    exported = export(compressed, inputs_of(compressed.network, 4), tmp_path)
    (node,) = lower(exported.path).nodes
    assert node.name == "block.0.conv"
    assert node.attrs["weight_format"] == name
    np.testing.assert_array_equal(node.consts["codes"], weight.codes.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(node.consts["bias"], weight.bias)
    if weight.codebook is not None:
        np.testing.assert_array_equal(node.consts["codebook"], weight.codebook)
    assert node.requant.low == compressed.activations["block.0.act"].zero_point


@pytest.mark.parametrize(
    ("name", "bits", "kind"),
    [("int4", 4, "INT4"), ("int3", 4, "INT4"), ("int2", 2, "INT2"), ("c4s8", 4, "UINT4"), ("c1s8", 4, "UINT4")],
)
def test_codes_are_packed_in_the_file(name: str, bits: int, kind: str) -> None:
    compressed = one_conv(name)
    model = to_onnx(compressed)
    (tensor,) = [t for t in model.graph.initializer if t.name == "block.0.conv.codes"]
    assert tensor.data_type == getattr(TensorProto, kind)
    codes = compressed.weights["block.0.conv"].codes.reshape(-1)
    assert len(tensor.raw_data) == -(-codes.size * bits // 8)
    fields = []
    for byte in tensor.raw_data:  # element 0 in the low bits
        fields += [(byte >> s) & (2**bits - 1) for s in range(0, 8, bits)]
    assert fields[: codes.size] == [int(c) & (2**bits - 1) for c in codes]
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    assert len(casts) == (0 if name.startswith("c") else 1)


def test_opset_is_25_only_for_int2() -> None:
    for name, opset, version in (("int4", 21, 10), ("int2", 25, 13), ("c2s8", 21, 10)):
        model = to_onnx(one_conv(name))
        assert (model.opset_import[0].version, model.ir_version) == (opset, version)


def test_two_exports_have_the_same_bytes(tmp_path: Path) -> None:
    x = inputs_of(everything().network, 2)
    first, second = (export(everything(MIXED), x, tmp_path / k, None, "toy") for k in "ab")
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()


def test_metadata_tells_origin_format_and_relevance() -> None:
    compressed = one_conv("c4s8")
    score = np.ones((5, 3, 3, 2), np.float32)
    channel = {"block.0.conv": np.ones(5, np.float32)}
    weight = {"block.0.conv": score}
    relevance = RelevanceMap("lrp", {}, "f", 1, weight, channel, weight, 0.0)
    model = to_onnx(compressed, relevance)
    facts = {n.name: {p.key: p.value for p in n.metadata_props} for n in model.graph.node}
    assert facts["block.0.conv"] == {
        "origin": "block.0.conv", "weight_format": "c4s8", "weight_bits": "4", "relevance_share": "1",
    }  # fmt: skip
    assert facts["block.0.act.dq"] == {"origin": "block.0.act", "activation_format": "int8"}
    assert all("origin" in f for f in facts.values())
    props = {p.key: p.value for p in model.metadata_props}
    assert props["xdeploy.output_codes"] == "block.0.act.q"
    assert json.loads(props["xdeploy.io"])["labels"] == ["a", "b"]


def test_a_path_alone_gives_the_same_io(tmp_path: Path) -> None:
    compressed = one_conv("int8")
    exported = export(compressed, inputs_of(compressed.network, 2), tmp_path)
    assert lower(exported.path).io == exported.io == lower(exported).io


def test_batch_is_free_and_default_session_runs(tmp_path: Path) -> None:
    compressed = everything(MIXED)
    exported = export(compressed, inputs_of(compressed.network, 2), tmp_path)
    runner = session(exported.path, default=True)
    for n in (1, 5):
        assert runner.run(None, {"x": inputs_of(compressed.network, n)})[0].shape == (n, 12)


def test_output_codes_stand_in_the_named_tensor(tmp_path: Path) -> None:
    compressed = everything()
    x = inputs_of(compressed.network, 3)
    exported = export(compressed, x, tmp_path)
    model = onnx.load(exported.path)
    name = next(p.value for p in model.metadata_props if p.key == "xdeploy.output_codes")
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    codes = session(model.SerializeToString()).run([name], {"x": x})[0]
    np.testing.assert_array_equal(codes, exported.onnx_codes)


def test_adopt_takes_our_own_file_and_makes_inputs(tmp_path: Path) -> None:
    compressed = one_conv("int4")
    exported = export(compressed, inputs_of(compressed.network, 2), tmp_path)
    taken = adopt(exported.path)
    assert taken.io == exported.io
    assert taken.inputs.shape == (4, 3, 5, 4)
    assert taken.onnx_codes.shape == (4, *exported.io.output_shape)
    again = adopt(exported.path, exported.inputs)
    np.testing.assert_array_equal(again.onnx_codes, exported.onnx_codes)
    with pytest.raises(UsageError, match=r"expected \(N, 3, 5, 4\)"):
        adopt(exported.path, exported.inputs[:, :, :4])


def test_a_moved_tensor_must_keep_its_scale() -> None:
    t = Toy((3, 6, 6))
    t.add("grow", "pad", pads=(1, 1, 1, 1), channels=(0, 0))
    t.conv("c", 2, pads=NONE)
    model = t.compressed()
    wrong = replace(model, activations={**model.activations, "grow": QParams(0.5, 0)})
    with pytest.raises(ModelError, match="grow: pad keeps the scale of input"):
        to_onnx(wrong)


def test_unfused_relu_stays_a_node_of_its_own(tmp_path: Path) -> None:
    t = Toy((4, 6, 6))
    a = t.conv("a", 4)
    t.add("act", "relu", (a,))
    t.add("sum", "add", (a, "act"))
    compressed = t.compressed()
    graph = lower(export(compressed, inputs_of(compressed.network, 4), tmp_path))
    assert [n.op for n in graph.nodes] == ["conv2d", "clamp", "add"]
    assert graph.nodes[1].attrs["low"] == compressed.activations["a"].zero_point
