"""Float parts in the exported file: their own nodes, names of their own, the same numbers as the part alone."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.compress.test_compress import plan_of
from tests.compress.toynets import Builder, io_of
from tests.export.toys import NONE, Toy, inputs_of
from xdeploy.compress.apply import compress
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.model import CompressedModel
from xdeploy.errors import ModelError
from xdeploy.export import compare, export, to_onnx
from xdeploy.formats import QParams
from xdeploy.lower.runtime import session
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import CompressOptions, RecoverOptions, RelevanceOptions
from xdeploy.relevance import score
from xdeploy.relevance.lrp import composite, propagate

SHAPE = (4, 5, 6)
Q = QParams(0.03, -7)


def float_model(nodes: list[Any], constants: dict[str, np.ndarray], opset: int = 17, functions: Any = ()) -> Any:
    """(N, 4, 5, 6) -> (N, 4, 5, 6), from x to y."""
    graph = helper.make_graph(
        nodes, "part",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *SHAPE])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    model = helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=functions)
    onnx.checker.check_model(model)
    return model


def layer_norm(opset: int = 17) -> Any:
    rng = np.random.default_rng(0)
    constants = {k: rng.normal(size=6).astype(np.float32) for k in ("scale", "bias")}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "bias"], ["normed"], axis=-1, name="norm"),
        helper.make_node("Neg", ["normed"], ["y"]),
    ]
    return float_model(nodes, constants, opset)


def fallback(name: str, source: str, model: Any) -> Layer:
    text = model if isinstance(model, str) else base64.b64encode(model.SerializeToString()).decode()
    return Layer(name, "fallback", (source,), SHAPE, {"onnx": text, "ops": ("LayerNormalization",)})


def with_parts(*models: Any) -> CompressedModel:
    """A convolution and float parts after it, the scales chosen by hand."""
    t = Toy(SHAPE)
    t.conv("conv", 4, (1, 1), pads=NONE)
    base = t.compressed()
    layers, q = list(base.network.layers), dict(base.activations)
    for k, model in enumerate(models):
        layers.append(fallback(f"part{k}", layers[-1].name, model))
        q[f"part{k}"] = Q
    return replace(base, network=Network(tuple(layers), base.network.params), activations=q)


def codes_of(path: Path, names: list[str], x: np.ndarray) -> list[np.ndarray]:
    model = onnx.load(path)
    for name in names:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    return session(model.SerializeToString()).run(names, {"x": x})


def test_float_parts_compute_what_they_do_alone(tmp_path: Path) -> None:
    part = layer_norm()
    compressed = with_parts(part, part)  # the same names inside, twice
    x = inputs_of(compressed.network, 6)
    path = export(compressed, x[:2], tmp_path).path
    codes = codes_of(path, ["conv.q", "part0.q", "part1.q"], x)
    before = compressed.activations["conv"]
    for ours, after, q in ((codes[0], codes[1], before), (codes[1], codes[2], Q)):
        alone = session(part.SerializeToString()).run(None, {"x": q.dequantise(ours)})[0]
        assert np.abs(Q.quantise(alone).astype(int) - after).max() <= 1


def test_float_parts_are_marked_and_named_apart() -> None:
    model = to_onnx(with_parts(layer_norm(), layer_norm()))
    marks = [{p.key: p.value for p in n.metadata_props}.get("fallback") for n in model.graph.node]
    inside = [(n.op_type, m) for n, m in zip(model.graph.node, marks, strict=True) if m]
    assert inside == [(op, f"part{k}") for k in (0, 1) for op in ("LayerNormalization", "Neg")]
    names = [t.name for t in model.graph.initializer]
    assert {"part0/scale", "part1/bias"} <= set(names)
    assert len(set(names)) == len(names)
    nodes = [n.name for n in model.graph.node]
    assert len(set(nodes)) == len(nodes)
    assert {"part0", "part1", "part0/norm"} <= set(nodes)


@pytest.mark.parametrize(("opset", "written"), [(17, 21), (21, 21), (23, 23)])
def test_the_lowest_opset_that_holds_all(tmp_path: Path, opset: int, written: int) -> None:
    compressed = with_parts(layer_norm(opset))
    exported = export(compressed, inputs_of(compressed.network, 2), tmp_path)
    assert onnx.load(exported.path).opset_import[0].version == written


def test_parts_with_branches_and_functions_of_their_own(tmp_path: Path) -> None:
    branches = {
        f"{k}_branch": helper.make_graph(
            [helper.make_node(op, ["a"], [f"{k}_out"])], k, [],
            [helper.make_tensor_value_info(f"{k}_out", TensorProto.FLOAT, None)],
        )
        for k, op in (("then", "Neg"), ("else", "Abs"))
    }  # fmt: skip
    twice = helper.make_function(
        "own", "Twice", ["i"], ["o"], [helper.make_node("Add", ["i", "i"], ["o"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("Twice", ["x"], ["a"], domain="own"),
        helper.make_node("If", ["yes"], ["y"], **branches),
    ]
    compressed = with_parts(float_model(nodes, {"yes": np.array(True)}, functions=[twice]))
    x = inputs_of(compressed.network, 4)
    path = export(compressed, x[:1], tmp_path).path
    before, after = codes_of(path, ["conv.q", "part0.q"], x)
    expected = Q.quantise(-2 * compressed.activations["conv"].dequantise(before))
    np.testing.assert_array_equal(after, expected)


def two_outputs() -> Any:
    model = layer_norm()
    model.graph.output.append(helper.make_tensor_value_info("normed", TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("bm9wZQ==", "is not an ONNX model"),
        ("%%%", "is not an ONNX model"),
        (two_outputs(), "1 inputs and 2 outputs"),
        (float_model([helper.make_node("Identity", ["c"], ["y"])], {"c": np.zeros((1, *SHAPE), np.float32)}), None),
    ],
    ids=["no model", "no base64", "two outputs", "constant"],
)
def test_parts_that_cannot_be_written_are_named(part: Any, says: str | None) -> None:
    if says is None:
        part.graph.input.pop()
        says = "0 inputs"
    with pytest.raises(ModelError, match=f"part0: .*{says}"):
        to_onnx(with_parts(part))


def compressed_with_part() -> CompressedModel:
    b = Builder((2, 5, 6))
    b.conv("conv", 4)
    b.layers.append(fallback("norm", "conv", layer_norm()))
    b.conv("after", 3)
    b.add("flat", "flatten")
    b.linear("fc", 4)
    network = b.network()
    x = torch.from_numpy(inputs_of(network, 64))
    return compress(
        network, plan_of(network, "int8"), None, io_of(network), lambda: [x], None, None, CompressOptions(),
        RecoverOptions(), seed=0,
    )  # fmt: skip


def test_a_float_part_is_calibrated_fake_quantised_and_exported(tmp_path: Path) -> None:
    compressed = compressed_with_part()
    x = inputs_of(compressed.network, 16)
    q = compressed.activations
    with torch.no_grad():
        real = FakeQuantModule(compressed).values(torch.from_numpy(x))
    alone = session(layer_norm().SerializeToString()).run(None, {"x": real["conv"].numpy()})[0]
    assert q["norm"].scale * 255 == pytest.approx(float(np.ptp(alone)), rel=0.2)  # a range of its own
    assert np.abs(q["norm"].quantise(alone).astype(int) - q["norm"].quantise(real["norm"].numpy())).max() <= 1
    exported = export(compressed, x, tmp_path)
    told = compare(compressed, exported, x)
    assert told["max_difference"] <= 1
    assert told["equal"] > 0.98


def test_a_float_part_conserves_relevance_and_lets_gradients_through() -> None:
    network = compressed_with_part().network
    x, y = torch.from_numpy(inputs_of(network, 24)), torch.arange(24) % 4
    for method in ("lrp", "gradient"):
        found = score(network, [(x, y)], RelevanceOptions(method=method, samples=24), "d")
        assert all(found.channel[n].sum() > 0 for n in ("conv", "after", "fc"))
    module = NetworkModule(network)
    balance = propagate(module, x, composite(network, "epsilon", 1e-9), lambda _: y, lambda *_: None)
    assert balance.residual("norm") < 1e-5
