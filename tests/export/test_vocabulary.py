"""Functions, products, differences and moves in the exported file: against torch, and lowered against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.export.toys import Toy, gated, inputs_of, moving, one_function
from xdeploy.compress.fakequant import FakeQuantModule, fake_quantise, to_codes
from xdeploy.compress.model import CompressedModel
from xdeploy.export import compare, export, to_onnx
from xdeploy.lir import ops
from xdeploy.lower import lower
from xdeploy.lower.compare import compare_with_onnx
from xdeploy.lower.runtime import session
from xdeploy.model.network import FUNCTIONS


def onnx_codes(path: Path, names: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """The codes `<layer>.q` that ONNX Runtime computes, for many layers at once."""
    model = onnx.load(path)
    for name in names:
        model.graph.output.append(onnx.ValueInfoProto(name=f"{name}.q"))
    found = session(model.SerializeToString()).run([f"{n}.q" for n in names], {"x": x})
    return dict(zip(names, found, strict=True))


def differences(compressed: CompressedModel, path: Path, x: np.ndarray) -> dict[str, tuple[int, float]]:
    """Layer -> (largest code difference, share of equal codes), each fed with ONNX Runtime's own input codes."""
    network, q = compressed.network, compressed.activations
    theirs = onnx_codes(path, list(q), x)
    real = {n: (torch.from_numpy(c.astype(np.float32)) - q[n].zero_point) * q[n].scale for n, c in theirs.items()}
    modules, result = FakeQuantModule(compressed).inner.modules_by_name, {}
    for layer in network.layers[1:]:
        with torch.no_grad():
            y = modules[layer.name](*(real[i] for i in layer.inputs))
        if layer.name not in q:  # its activation is fused
            real[layer.name] = y
            continue
        ours = to_codes(fake_quantise(y, q[layer.name]), q[layer.name]).numpy()
        gap = np.abs(ours - theirs[layer.name])
        result[layer.name] = (int(gap.max()), float((gap == 0).mean()))
    return result


TOYS = {"gated": gated, "moving": moving, **{n: lambda n=n: one_function(n) for n in FUNCTIONS}}


@pytest.mark.parametrize("make", TOYS.values(), ids=TOYS)
def test_each_node_equals_torch_within_a_code(tmp_path: Path, make: Callable[[], CompressedModel]) -> None:
    compressed = make()
    x = inputs_of(compressed.network, 16)
    exported = export(compressed, x[:2], tmp_path)
    for name, (largest, equal) in differences(compressed, exported.path, x).items():
        exact = compressed.network[name].kind in ("resize", "rearrange", "flatten")
        assert largest <= (0 if exact else 1), name
        assert equal > 0.99, name
    told = compare(compressed, exported, x)
    assert told["max_difference"] <= 2
    assert told["equal"] > 0.95


@pytest.mark.parametrize("make", TOYS.values(), ids=TOYS)
def test_each_node_lowers_to_integers_within_a_code(tmp_path: Path, make: Callable[[], CompressedModel]) -> None:
    compressed = make()
    x = inputs_of(compressed.network, 16)
    exported = export(compressed, x, tmp_path)
    graph = lower(exported)
    rows = compare_with_onnx(exported, graph, x)
    assert max(r["max_code_difference"] for r in rows) <= 1
    assert min(r["equal"] for r in rows) > 0.99
    assert (ops.run(graph, graph.io.to_codes(x))[graph.output] == exported.onnx_codes).mean() > 0.95
    found = {n.op for n in graph.nodes}
    wanted = {gated: {"mul", "add", "lut"}, moving: {"resize", "transpose"}}.get(make, {"lut"})
    assert wanted <= found
    tables = [n.op for n in graph.nodes].count("lut")
    assert tables == (3 if make is gated else 0 if make is moving else 1)  # a function is one table, whatever it is


def operators(model: Any, origin: str) -> list[str]:
    rows = [n for n in model.graph.node if ("origin", origin) in {(p.key, p.value) for p in n.metadata_props}]
    return [n.op_type for n in rows if not n.op_type.endswith("Linear")]


def test_functions_are_the_operators_of_onnx() -> None:
    expected = {
        "sigmoid": ["Sigmoid"], "tanh": ["Tanh"], "softplus": ["Softplus"], "hard_swish": ["HardSwish"],
        "hard_sigmoid": ["HardSigmoid"], "leaky_relu": ["LeakyRelu"], "elu": ["Elu"], "silu": ["Sigmoid", "Mul"],
        "gelu": ["Gelu"], "gelu_tanh": ["Gelu"],
    }  # fmt: skip
    assert set(expected) == set(FUNCTIONS)
    for name, wanted in expected.items():
        model = to_onnx(one_function(name))
        assert operators(model, "act") == wanted
        assert model.opset_import[0].version == 21
    (node,) = [n for n in to_onnx(one_function("hard_sigmoid")).graph.node if n.op_type == "HardSigmoid"]
    assert {a.name: pytest.approx(a.f) for a in node.attribute} == {"alpha": 1 / 6, "beta": 0.5}
    (node,) = [n for n in to_onnx(one_function("gelu_tanh")).graph.node if n.op_type == "Gelu"]
    assert node.attribute[0].s == b"tanh"


def test_moves_stand_on_codes_of_any_batch(tmp_path: Path) -> None:
    compressed = moving()
    model = to_onnx(compressed)
    assert operators(model, "twice") == ["Resize"]
    assert operators(model, "uneven") == ["Gather", "Gather"]
    assert operators(model, "deep") == operators(model, "shuffle") == ["Reshape", "Transpose", "Reshape"]
    for node in model.graph.node:  # every one of them reads codes, not floats
        if node.op_type in ("Resize", "Gather", "Transpose"):
            assert not node.input[0].endswith(".dq")
    path = export(compressed, inputs_of(compressed.network, 2), tmp_path).path
    for n in (1, 3):
        assert session(path, default=True).run(None, {"x": inputs_of(compressed.network, n)})[0].shape == (n, 5)


def test_moves_move_the_right_codes(tmp_path: Path) -> None:
    """Against numpy on the codes themselves, without torch."""
    compressed = moving()
    x = inputs_of(compressed.network, 3)
    path = export(compressed, x, tmp_path).path
    c = onnx_codes(path, ["stem", "deep", "grown", "twice", "uneven", "shuffle"], x)
    for i in range(12):
        for j in range(10):
            block = (i % 2) * 2 + j % 2  # channel (block, c) -> pixel (block row, block column) of channel c
            np.testing.assert_array_equal(
                c["deep"][:, :, i, j], c["stem"][:, 2 * block : 2 * block + 2, i // 2, j // 2]
            )
    np.testing.assert_array_equal(c["twice"], c["grown"].repeat(2, axis=2).repeat(3, axis=3))
    rows, cols = np.ix_([0, 0, 1, 3, 4, 9, 11], [0, 2, 2, 5, 13])
    np.testing.assert_array_equal(c["uneven"], c["twice"][:, :, rows, cols])
    np.testing.assert_array_equal(c["shuffle"], c["uneven"][:, [0, 2, 1, 3]])


def test_a_vector_is_sliced_along_its_own_axis(tmp_path: Path) -> None:
    t = Toy((6,))
    t.linear("fc", 8)
    t.add("cut", "slice", starts=(1,), stops=(7,), steps=(2,))
    compressed = t.compressed()
    x = inputs_of(compressed.network, 4)
    path = export(compressed, x, tmp_path).path
    codes = onnx_codes(path, ["fc", "cut"], x)
    np.testing.assert_array_equal(codes["cut"], codes["fc"][:, 1:7:2])
