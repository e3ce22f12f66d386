"""Functions, products, differences and moves: ranges, codes against exact integer meanings, training, pruning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import FUNCTION_PARAMETERS, Builder, batches, io_of, modern, task, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.calibrate import calibrate, shared_groups
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.prune import prune_network
from xdeploy.compress.trainable import TrainableModule
from xdeploy.formats import QParams, requant
from xdeploy.handover import CompressionPlan
from xdeploy.lir import ops
from xdeploy.lir.graph import Node
from xdeploy.model.network import FUNCTIONS, Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.quantise import importance
from xdeploy.recipe import CompressOptions, RecoverOptions

X, Y = task(96)


def compressed(network: Network, formats: tuple[str, ...] = ("int8",), epochs: int = 0) -> CompressedModel:
    return compress(
        network, plan_of(network, *formats), None, io_of(network), lambda: [X], lambda epoch: batches(X, Y),
        lambda: batches(X, Y), CompressOptions(), RecoverOptions(epochs=epochs, lr=0.01, batch=32), seed=0,
    )  # fmt: skip


def one_function(name: str) -> Network:
    b = Builder((2, 8, 8))
    b.conv("conv", 4)
    alpha, beta = FUNCTION_PARAMETERS.get(name, (0.0, 0.0))
    b.add("act", "function", function=name, alpha=alpha, beta=beta)
    b.global_pool()
    b.linear("fc", 4)
    return b.network()


# --------------------------------------------------------------------------------------------------- ranges
def test_ranges_of_the_new_kinds():
    network = modern()
    q = calibrate(network, [X], 100.0)
    values = {"input": X}
    with torch.no_grad():
        for layer, module in zip(network.layers[1:], NetworkModule(network).steps, strict=True):
            values[layer.name] = module(*(values[i] for i in layer.inputs))
    assert q["se_gate"] == q["sigmoid"] == QParams.from_range(0.0, 1.0)  # whatever was seen
    assert q["se_gate"].zero_point == -128
    for name in ("stem", "stem_act", "tanh", "se_mul", "product", "difference", "last_act"):  # nothing is fused
        v = values[name]
        assert q[name] == QParams.from_range(float(v.min()), float(v.max()))
    groups = shared_groups(network)
    assert groups["mid"] == groups["shuffle"] == "mid"
    assert groups["grouped"] == groups["grow"] == "grouped"


def test_a_product_is_no_finer_than_its_operands():
    b = Builder((2,), bias=0.0)
    b.linear("a", 1)
    b.layers.append(replace(b.layers[-1], name="b", inputs=("input",)))
    b.params["a"]["weight"][:] = [[1.0, 0.0]]
    b.params["b"] = {"weight": np.array([[0.0, 1.0]], np.float32), "bias": np.zeros(1, np.float32)}
    b.add("product", "mul", ("a", "b"))
    b.add("again", "mul", ("product", "b"))
    b.linear("fc", 2)
    x = torch.tensor([[1000.0, 0.0], [0.0, 1000.0], [1.0, 1.0]])  # never large together: products of 0 and 1
    q = calibrate(b.network(), [x], 100.0)
    unit = 1000.0 / 255.0
    assert q["product"].scale == pytest.approx(unit**2)
    assert q["again"].scale == pytest.approx(unit**3)
    for name, (left, right) in {"product": ("a", "b"), "again": ("product", "b")}.items():
        assert requant(q[left].scale * q[right].scale / q[name].scale, q[name].zero_point).shift <= 2


def test_a_sigmoid_in_a_concatenation_widens_the_common_range():
    b = Builder((2, 4, 4))
    b.conv("a", 3)
    gate = b.add("gate", "function", function="sigmoid", alpha=0.0, beta=0.0)
    b.add("cat", "concat", ("a", gate))
    b.global_pool()
    b.linear("fc", 4)
    network = b.network()
    x = torch.randn(9, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    q = calibrate(network, [x], 100.0)
    assert q["a"] == q["gate"] == q["cat"]
    assert (127 - q["cat"].zero_point) * q["cat"].scale >= 0.999


# -------------------------------------------------------------------------------------- integer meanings
def node_of(op: str, attrs: dict, consts: dict) -> Node:
    return Node("n", op, ("a", "b"), "y", attrs, consts)


def first(codes: np.ndarray) -> np.ndarray:
    """Channels last."""
    return np.moveaxis(codes, 1, -1)


def integer_result(model: CompressedModel, name: str, codes: dict[str, np.ndarray]) -> np.ndarray:
    """What the integer definition of a layer gives on its inputs' codes, channels first."""
    layer, q = model.network[name], model.activations
    xs, out = [codes[i] for i in layer.inputs], q[name]
    a = q[layer.inputs[0]]
    if layer.kind == "function":
        every = torch.from_numpy(a.dequantise(np.arange(-128, 128).astype(np.int8)).astype(np.float64))
        function = NetworkModule(model.network).modules_by_name[name]
        table = out.quantise(function(every).numpy())
        return ops.OPS["lut"].run(node_of("lut", {}, {"table": table}), xs)
    b = q[layer.inputs[1]]
    if layer.kind == "mul":
        r = requant(a.scale * b.scale / out.scale, out.zero_point)
        attrs = {"a_zero": a.zero_point, "b_zero": b.zero_point, "shift": r.shift, "out_zero": r.zero_point,
                 "low": r.low, "high": r.high}  # fmt: skip
        y = ops.OPS["mul"].run(node_of("mul", attrs, {"multiplier": r.multiplier}), [first(x) for x in xs])
        return np.moveaxis(y, -1, 1)
    assert layer.kind == "sub"  # an addition of the mirrored second operand: code' = -code, zero' = -zero
    attrs = ops.scaled_params(a, b, out)
    n = attrs["const"] + 2 * b.zero_point * attrs["b"]
    return ops.OPS["add"].run(node_of("add", {**attrs, "b": -attrs["b"], "const": n}, {}), xs)


@pytest.mark.parametrize(
    "make", [modern, *(lambda n=n: one_function(n) for n in FUNCTIONS)], ids=["modern", *FUNCTIONS]
)
def test_fake_quantisation_equals_the_integer_meaning_within_a_code(make):
    model = compressed(make())
    codes = FakeQuantModule(model).codes(X)
    kinds = set()
    for layer in model.network.layers:
        if layer.kind in ("function", "mul", "sub"):
            kinds.add(layer.kind)
            gap = np.abs(integer_result(model, layer.name, codes).astype(int) - codes[layer.name])
            assert gap.max() <= 1, layer.name
            assert (gap == 0).mean() > 0.995, layer.name
    assert kinds == ({"function", "mul", "sub"} if make is modern else {"function"})


def test_moves_keep_codes():
    model = compressed(modern())
    codes = FakeQuantModule(model).codes(X)
    rows, cols = np.ix_((0, 0, 1, 1, 2, 2, 3, 3), (0, 1, 1, 1, 2, 2, 3, 3))
    np.testing.assert_array_equal(codes["grow"], codes["grouped"][:, :, rows, cols])
    np.testing.assert_array_equal(codes["shuffle"], codes["mid"][:, [0, 4, 1, 5, 2, 6, 3, 7]])


# --------------------------------------------------------------------------------- compressing and training
def test_int8_loses_little_and_survives_saving(tmp_path):
    model = compressed(trained(modern(), 40))
    step = model.steps[0]
    assert step["accuracy_before"] > 50
    assert model.steps[-1]["accuracy_after"] >= step["accuracy_before"] - 5
    assert step["accuracy_after"] >= step["accuracy_before"] - 5
    model.save(tmp_path)
    again = CompressedModel.load(tmp_path)
    assert again.network.layers == model.network.layers
    torch.testing.assert_close(FakeQuantModule(again)(X), FakeQuantModule(model)(X), rtol=0, atol=0)


def test_training_reaches_the_gates():
    model = compressed(trained(modern(), 40), ("int4", "c3s8"))
    module = TrainableModule(model)
    module(X).square().sum().backward()
    for name in ("stem", "se_down", "se_up", "right", "fc"):
        assert float(module.layer(name).weight.grad.abs().sum()) > 0, name
    steps = compressed(trained(modern(), 40), ("int2",), epochs=2).steps
    assert steps[-1]["step"] == "recover"
    assert steps[-1]["accuracy_after"] >= steps[-1]["accuracy_before"]


def test_a_final_sigmoid_trains_on_its_logits():
    b = Builder((2, 8, 8))
    b.conv("conv", 8, stride=2)
    b.add("act", "function", function="silu", alpha=0.0, beta=0.0)
    b.add("flatten", "flatten")
    b.linear("fc", 4)
    b.add("p", "function", function="sigmoid", alpha=0.0, beta=0.0)
    network = b.network()
    before = compressed(network, ("int4",)).steps[-1]["accuracy_after"]
    after = compressed(network, ("int4",), epochs=8).steps[-1]["accuracy_after"]
    assert after > before + 10


@pytest.mark.parametrize("coupled", [("se_down",), ("stem", "se_up", "left", "right")], ids=["gate", "product"])
def test_pruned_equals_masked_around_gates(coupled):
    network = modern()
    channels = len(network.params[coupled[0]]["weight"])
    keep, gone = tuple(range(0, channels, 2)), slice(1, None, 2)
    lines = [replace(x, keep=keep if x.origin in coupled else None) for x in plan_of(network, "int8").layers]
    masked = {n: {k: v.copy() for k, v in p.items()} for n, p in network.params.items()}
    for name in coupled:
        for part in ("weight", "bias"):
            masked[name][part][gone] = 0
    pruned = prune_network(network, CompressionPlan(tuple(lines)))
    assert all(pruned[n].shape[0] == len(keep) for n in coupled)
    torch.testing.assert_close(NetworkModule(pruned)(X), NetworkModule(network.with_params(masked))(X))
    model = compress(
        network, CompressionPlan(tuple(lines)), None, io_of(network), lambda: [X], None, None, CompressOptions(),
        RecoverOptions(), 0,
    )  # fmt: skip
    assert FakeQuantModule(model)(X).shape == (len(X), 4)


def test_importance_of_a_gate_is_finite():
    scores = np.zeros((4, 8, 1, 1), np.float32)  # no sample used the layer
    assert importance(scores, 0.5) is None or np.isfinite(importance(scores, 0.5)).all()
