"""BatchNorm behind layers while they train: it begins as nothing, folds exactly, and sparse deep networks learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import Builder, batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import compress, quantise
from xdeploy.compress.compact import PLAIN, Rules
from xdeploy.compress.fakequant import FakeQuantModule, fake_quantise
from xdeploy.compress.learning import NormalisedLayer, new_size
from xdeploy.compress.normalise import EPS, Norm, Tally, mean_and_variance, moments
from xdeploy.compress.optimise import Optimiser
from xdeploy.compress.trainable import Rounded, TrainableModule
from xdeploy.formats import QParams
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import CompressOptions, RecoverOptions

TRAIN, CHECK = task(512, seed=1), task(256, seed=2)
INPUTS = [TRAIN[0][k : k + 64] for k in range(0, 512, 64)]


def module_of(network: Network, formats: tuple[str, ...], rules: Rules = PLAIN) -> TrainableModule:
    model = quantise(
        network, plan_of(network, *formats), None, io_of(network), lambda: INPUTS, CompressOptions(), rules=rules
    )
    return TrainableModule(model, rules, norms=moments(network, INPUTS))


@pytest.mark.parametrize("make", [plain, residual])
def test_statistics_are_those_of_all_samples_at_once(make):
    network = trained(make())
    found, module = moments(network, INPUTS), NetworkModule(network).eval()
    assert tuple(found) == network.hidden()
    values = {}
    for name in found:
        module.modules_by_name[name].register_forward_hook(lambda m, i, y, name=name: values.update({name: y.detach()}))
    module(TRAIN[0])
    for name, (mean, deviation) in found.items():
        axes = (0, *range(2, values[name].dim()))
        torch.testing.assert_close(mean, values[name].mean(axes), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(deviation, values[name].std(axes, correction=0), rtol=1e-4, atol=1e-5)


def test_parts_of_different_size_count_by_their_size():
    whole, tally = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0)), Tally()
    for part in whole.split([1, 7, 2]):
        tally.add(part)
    mean, var = tally.result()
    torch.testing.assert_close(mean, whole.mean((0, 2)))
    torch.testing.assert_close(var, whole.var((0, 2), correction=0))


def test_only_layers_that_others_follow_are_normalised():
    assert plain().hidden() == ("stem", "dw", "mid")
    network = residual()
    assert set(network.hidden()) == {x.name for x in network.weighted()} - {network.weighted()[-1].name}


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("fmt", ["int8", "c6s8"])
def test_it_begins_as_the_float_network(make, fmt):
    network = trained(make())
    module = module_of(network, (fmt,))
    x = TRAIN[0]
    with torch.no_grad():
        expected, begun = NetworkModule(network)(x), module(x)
    assert float((begun - expected).abs().max()) < 0.12 * float(expected.abs().max())
    for name in network.hidden():  # the measure of its weights is the network's own
        wanted = torch.from_numpy(network.params[name]["weight"])
        torch.testing.assert_close(module.layer(name).real(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compact", [False, True])
def test_folding_is_the_formula_and_changes_no_code(compact):
    network = trained(residual())
    module = module_of(network, ("int4", "c3s8"), Rules(compact=compact))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in module.layers():
            if isinstance(layer, NormalisedLayer):
                layer.norm.factor.mul_(0.5 + torch.rand(layer.norm.factor.shape, generator=rng))
                layer.norm.offset.add_(torch.randn(layer.norm.offset.shape, generator=rng) * 0.3)
    module.settle(INPUTS)
    before = {name: module.layer(name).codes().clone() for name in module.names}
    frozen = module.freeze()
    for name in network.hidden():
        layer, w = module.layer(name), frozen.weights[name]
        np.testing.assert_array_equal(w.codes, before[name].numpy())
        gain = (layer.norm.gamma() / torch.sqrt(layer.norm.var + EPS)).detach().double().numpy()
        np.testing.assert_allclose(w.scale, layer.step * gain, rtol=1 / 32 if compact else 1e-6)
        offset = layer.norm.beta().detach().double().numpy() - layer.norm.mean.double().numpy() * w.scale / layer.step
        step = layer.source.scale * w.scale.astype(np.float64)
        slack = (0.51 * step + layer.out.scale / 16) if compact else 0.51 * step
        assert (np.abs(w.bias * step - offset) <= slack).all()
    if not compact:  # statistics of these very samples: training and device agree but for rounding
        with torch.no_grad():
            trained_on, device = module(TRAIN[0]), FakeQuantModule(frozen)(TRAIN[0])
        assert float((trained_on - device).abs().max()) <= 6 * frozen.io.output_q.scale


def test_empty_channels_give_their_bias():
    network = trained(plain())
    module = module_of(network, ("int4",), Rules(compact=True))
    layer = module.layer("mid")
    with torch.no_grad():
        layer.weight[2] = 0.0
        layer.norm.offset[2] = 1.25
    module.settle(INPUTS)
    w = module.freeze().weights["mid"]
    assert not w.codes[2].any()
    assert w.scale[2] == w.scale.min()
    given = w.bias[2] * w.scale[2] * layer.source.scale
    assert given == pytest.approx(1.25 * float(layer.norm.size[2]), abs=layer.out.scale / 16)


def test_the_smallest_batch_is_normalised_by_what_was_seen():
    norm = Norm(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    norm.begin(torch.tensor([0.5, 2.0]), torch.tensor([0.0, 1.0]))
    z = torch.tensor([[6.0, 5.0]])
    torch.testing.assert_close(norm(z).detach(), torch.tensor([[3.0, 11.0]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_rates_do_not_see_the_size_of_weights(optimiser):
    """The last layer has no BatchNorm: w = unit * v with v of a new network's size, whatever w's own size is."""
    moved = []
    for size in (1.0, 1000.0):
        module = module_of(trained(plain()), ("int4",))
        layer = module.layer("fc")
        with torch.no_grad():
            layer.weight *= size
        before = layer.weight.detach().clone()
        step = Optimiser(module, RecoverOptions(epochs=1, lr=0.01, optimiser=optimiser, schedule="constant"))
        step.set_rate(0.0)
        direction = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
        layer.weight.grad = direction * 1e-2 / size  # the same function of w / size
        step.step()
        moved.append((layer.weight.detach() - before) / size)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-7)
    unit = float((before / 1000).square().mean().sqrt()) / new_size(before)
    expected = -0.01 * unit * direction.sign() if optimiser == "adam" else -0.01 * unit**2 * direction * 1e-2
    torch.testing.assert_close(moved[0], expected, rtol=1e-2, atol=1e-6)


def test_fast_rounding_is_the_exact_one_but_for_ties():
    q = QParams(0.037, -20)
    x = torch.linspace(-6, 6, 20_001, requires_grad=True)
    fast = Rounded.apply(x, q)
    fast.sum().backward()
    exact = fake_quantise(x.detach(), q)
    assert float((fast.detach() - exact).abs().max()) < 1e-5 + 0.037 * float(((fast - exact).abs() > 0.01).any())
    assert int(((fast - exact).abs() > 0.01).sum()) <= 2
    inside = (x > (-128 + 20) * 0.037) & (x < (127 + 20) * 0.037)
    torch.testing.assert_close(x.grad, inside.float())


def deep(seed: int = 0) -> Network:
    """Eight linear layers behind one another."""
    b = Builder((2, 8, 8), seed)
    b.add("flat", "flatten")
    for k in range(7):
        b.linear(f"fc{k}", 96)
        b.add(f"relu{k}", "relu")
    b.linear("out", 4)
    return b.network()


def test_sparse_deep_networks_learn_with_it_only():
    network = trained(deep(), 60)
    plan = CompressionPlan(tuple(PlanLine(x.name, "int4", density=0.05) for x in network.weighted()))
    reached = {}
    for batchnorm in (False, True):
        options = RecoverOptions(epochs=3, lr=0.05, batch=64, batchnorm=batchnorm)
        model = compress(
            network, plan, None, io_of(network), lambda: INPUTS, lambda epoch: batches(*TRAIN),
            lambda: batches(*CHECK), CompressOptions(), options, seed=0,
        )  # fmt: skip
        reached[batchnorm] = model.steps[-1]["accuracy_after"]
    assert reached[True] > 80 > reached[False] + 30, reached


def test_scores_outside_of_their_range_can_come_back():
    module = module_of(trained(plain()), ("int8",))
    bias = module.layer("fc").bias
    with torch.no_grad():
        bias[1] = -100.0
    torch.nn.functional.cross_entropy(module(TRAIN[0]), TRAIN[1]).backward()
    assert float(bias.grad[1]) < -1e-3


def test_a_constant_channel_has_no_variance_and_others_have_their_own():
    torch.manual_seed(1)
    z = torch.randn(64, 3, 8, 8)
    z[:, 1] = 0.1  # has no exact float32 form, so its mean is rounded
    mean, var = mean_and_variance(z)
    assert float(var[1]) == 0.0
    np.testing.assert_allclose(mean, z.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, z.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-9)
