"""Final codes against fake quantisation, safety of scales and biases, refusals, determinism."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.compress.toynets import batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import Memory, compress
from xdeploy.compress.fakequant import FakeQuantModule, fake_quantise, through, to_codes
from xdeploy.compress.integer import BIAS_LIMIT, quantise_layer, requant_shift
from xdeploy.compress.model import CompressedModel
from xdeploy.errors import PlanError, UnsupportedError, UsageError
from xdeploy.formats import QParams, prove_accumulator
from xdeploy.handover import CompressionPlan, PlanLine, RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.top1 import accuracy
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import CompressOptions, RecoverOptions


def plan_of(network: Network, *formats: str) -> CompressionPlan:
    lines = [PlanLine(x.name, formats[k % len(formats)]) for k, x in enumerate(network.weighted())]
    return CompressionPlan(tuple(lines))


def compressed(network: Network, *formats: str, relevance=None, **more) -> CompressedModel:
    x, y = task(256, seed=5)
    options = {"options": CompressOptions(), "recover": RecoverOptions(), "seed": 0, **more}
    return compress(
        network, plan_of(network, *formats), relevance, io_of(network),
        calibration=lambda: x.split(64), train=None, validation=lambda: batches(x, y), **options,
    )  # fmt: skip


def conv_codes(model: CompressedModel, name: str, codes: dict[str, np.ndarray]) -> np.ndarray:
    """The layer's output codes from its input codes by plain float64 arithmetic on the integers."""
    network, w = model.network, model.weights[name]
    layer, fused = network[name], network.fused_activation(name)
    q_in, out = model.activations[layer.inputs[0]], name if fused is None else fused.name
    q_out = model.activations[out]
    module = NetworkModule(network).modules_by_name[name]
    centred = torch.from_numpy(codes[layer.inputs[0]].astype(np.float64) - q_in.zero_point)
    acc = module.run(
        centred, torch.from_numpy(w.values.astype(np.float64)), torch.from_numpy(w.bias.astype(np.float64))
    )
    scale = torch.from_numpy(q_in.scale * w.scale.astype(np.float64)).reshape(-1, *[1] * (acc.ndim - 2))
    real = acc * scale
    if fused is not None:
        real = real.clamp(min=0.0, max=fused.attrs["high"] if fused.kind == "clip" else None)
    return np.clip(np.rint(real.numpy() / q_out.scale) + q_out.zero_point, -128, 127)


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("formats", [("int8",), ("int4", "c4s8"), ("c2s8", "int2", "int3")])
def test_fake_quant_is_what_the_integers_say(make, formats):
    network = make()
    model = compressed(network, *formats)
    codes = FakeQuantModule(model).codes(task(32, seed=6)[0])
    assert set(codes) == set(model.activations)
    for layer in network.weighted():
        fused = network.fused_activation(layer.name)
        got = codes[layer.name if fused is None else fused.name]
        expected = conv_codes(model, layer.name, codes)
        difference = np.abs(got - expected)
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.998  # float32 sums may fall on the other side of a tie


def test_weights_and_output_are_exactly_the_codes():
    model = compressed(plain(), "c4s8", "int4")
    module = FakeQuantModule(model)
    for name, w in model.weights.items():
        held = module.inner.modules_by_name[name]
        exact = w.values.astype(np.float32) * w.scale.reshape(-1, *[1] * (w.codes.ndim - 1))
        np.testing.assert_array_equal(held.weight.detach().numpy(), exact)
    x, _ = task(16)
    out = module(x).detach().numpy()
    np.testing.assert_array_equal(out, model.io.output_q.dequantise(module.codes(x, ())[model.network.output.name]))
    np.testing.assert_array_equal(module.codes(x)["input"], model.io.input_q.quantise(x.numpy()))


def test_moved_tensors_keep_their_codes():
    model = compressed(residual(), "int8")
    c = FakeQuantModule(model).codes(task(8)[0])
    np.testing.assert_array_equal(c["cut"], c["stem_relu"][:, :, ::2, ::2])
    np.testing.assert_array_equal(c["cat"], np.concatenate([c["left"], c["right"]], axis=1))
    zero = model.activations["cat"].zero_point
    np.testing.assert_array_equal(c["cat_relu"], np.maximum(c["cat"], zero))


def test_eight_bits_keep_the_accuracy_and_steps_say_so():
    network = trained(residual())
    model = compressed(network, "int8")
    x, y = task(256, seed=5)
    base, n = accuracy(NetworkModule(network), batches(x, y))
    assert base > 60
    step, mended = model.steps
    assert (step["step"], mended["step"]) == ("quantise", "restore")
    assert step["accuracy_before"] == base
    assert step["n"] == n == 256
    assert min(step["accuracy_after"], mended["accuracy_after"]) > base - 3
    assert compressed(network, "int8", measure_steps=False).steps == ()


def test_saved_bytes_are_the_same_twice(tmp_path):
    for folder in ("a", "b"):
        compressed(residual(), "int4", "c3s8").save(tmp_path / folder)
    for file in ("compressed.safetensors", "compressed.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    loaded = CompressedModel.load(tmp_path / "a")
    x, _ = task(4)
    again = FakeQuantModule(loaded)(x)
    assert torch.equal(again, FakeQuantModule(compressed(residual(), "int4", "c3s8"))(x))


def test_sensitivity_moves_codebook_entries():
    network = plain()
    rng = np.random.default_rng(0)
    maps = {
        x.name: rng.gamma(0.3, size=network.params[x.name]["weight"].shape).astype(np.float32)
        for x in network.weighted()
    }
    channel = {n: np.ones(len(m), np.float32) for n, m in maps.items()}
    relevance = RelevanceMap("test", {}, "", 1, maps, channel, maps, 0.0)
    options = CompressOptions(restore=False)  # which moves scales, not entries
    a, b = (compressed(network, "c3s8", relevance=r, options=options) for r in (None, relevance))

    def error(model: CompressedModel, name: str) -> float:
        w = model.weights[name]
        real = w.values * w.scale.reshape(-1, *[1] * (w.codes.ndim - 1))
        return float((np.sqrt(maps[name]) * (network.params[name]["weight"] - real) ** 2).sum())

    assert sum(error(b, n) for n in maps) < 0.95 * sum(error(a, n) for n in maps)
    with pytest.raises(UsageError, match="score this network again"):
        compressed(residual(), "c3s8", relevance=relevance)


@pytest.mark.parametrize("fmt", ["int8", "int2", "c4s8"])
def test_large_biases_on_dead_channels_fit(fmt):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    weight[0] = 0
    weight[1] *= 1e-12
    bias = np.array([50.0, -30.0, 1.0, 0.0], np.float32)
    source, out = QParams(0.01, -128), QParams(0.4, -128)
    w = quantise_layer("layer", weight, bias, fmt, source, out, None)
    shift = requant_shift("layer", source, w.scale, out)
    assert np.abs(w.bias.astype(np.int64)).max() <= BIAS_LIMIT
    np.testing.assert_allclose(w.bias * (source.scale * w.scale.astype(np.float64)), bias, atol=0.01)
    assert prove_accumulator(w.values.reshape(4, -1), w.bias, shift, "layer") < 2**31


def test_impossible_requantisation_names_the_layer():
    weight = np.full((1, 4), 1e6, np.float32)
    with pytest.raises(UnsupportedError, match="head"):
        quantise_layer("head", weight, np.zeros(1, np.float32), "int2", QParams(1.0, 0), QParams(1e-8, 0), None)
    with pytest.raises(UnsupportedError, match="finite"):
        quantise_layer("head", weight * np.nan, np.zeros(1, np.float32), "int8", QParams(1.0, 0), QParams(1.0, 0), None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda p: (*p, PlanLine("stemm", "int8")), "stem"),
        (lambda p: p[1:], "stem"),
        (lambda p: (*p, p[0]), "two lines"),
        (lambda p: (replace(p[0], activation_format="int16"), *p[1:]), "int16"),
        (lambda p: (replace(p[0], weight_format="int7"), *p[1:]), "int7"),
        (lambda p: (replace(p[0], keep=(0, 6)), *p[1:]), r"0\.\.5"),
        (lambda p: (replace(p[0], keep=()), *p[1:]), "at least one"),
        (lambda p: (replace(p[0], keep=(2, 1)), *p[1:]), "ascending"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change, word):
    network = plain()
    plan = CompressionPlan(change(plan_of(network, "int8").layers))
    with pytest.raises(PlanError, match=word) as caught:
        compress(
            network,
            plan,
            None,
            io_of(network),
            lambda: [task(4)[0]],
            None,
            None,
            CompressOptions(),
            RecoverOptions(),
            0,
        )
    assert caught.value.hint


def test_straight_through_gradients():
    x = torch.tensor([-3.0, -0.4, 0.26, 9.0], requires_grad=True)
    q = QParams(0.1, -100)
    y = fake_quantise(x, q)
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert torch.equal(y.detach(), (to_codes(x.detach(), q) + 100) * 0.1)
    w = torch.ones(2, requires_grad=True)
    (through(w, torch.tensor([3.0, 4.0])) * 2).sum().backward()
    assert w.grad.tolist() == [2.0, 2.0]


def test_memory_changes_nothing_but_the_work(monkeypatch):
    network = residual()
    plans = (("int8",), ("int4", "c4s8"), ("int8", "c4s8"), ("int8",))
    alone = [compressed(network, *f) for f in plans]
    counted: list[str] = []

    def counting(origin, *args):
        counted.append(origin)
        return quantise_layer(origin, *args)

    monkeypatch.setattr("xdeploy.compress.apply.quantise_layer", counting)
    memory = Memory(network)
    for formats, expected in zip(plans, alone, strict=True):
        got = compressed(network, *formats, memory=memory)
        assert got.activations == expected.activations
        for name, w in expected.weights.items():
            np.testing.assert_array_equal(got.weights[name].codes, w.codes)
            np.testing.assert_array_equal(got.weights[name].scale, w.scale)
            np.testing.assert_array_equal(got.weights[name].bias, w.bias)
    pairs = {(n, w.format_name) for m in alone for n, w in m.weights.items()}
    assert len(counted) == len(pairs)  # each layer once in each format
    assert set(memory.weights) == pairs


def test_memory_of_another_network_is_not_used():
    network, other = residual(), residual(seed=1)
    memory = Memory(other)
    compressed(other, "int8", memory=memory)
    a, b = compressed(network, "int8", memory=memory), compressed(network, "int8")
    assert a.activations == b.activations
    for name, w in b.weights.items():
        np.testing.assert_array_equal(a.weights[name].codes, w.codes)
