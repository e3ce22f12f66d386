"""Each method's scores a second way: exact Hessians, brute force, and parts that add up to the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compress.toynets import Builder, batches, modern, plain, residual, task, trained
from xdeploy.errors import ModelError, UsageError
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance import METHODS, score
from xdeploy.relevance.baselines import lamp_scores
from xdeploy.relevance.hessian import Traces
from xdeploy.relevance.method import Gradients, explained_weights, gradient_pass, weighted_modules
from xdeploy.relevance.paths import along_path
from xdeploy.relevance.wanda import square_sums

X, Y = task(24)


def scored(network: Network, method: str, **more: object) -> RelevanceMap:
    options = RelevanceOptions(**{"method": method, "samples": 24, **more})  # type: ignore[arg-type]
    return score(network, batches(X, Y, 10), options, "data", seed=3)


def tiny() -> Network:
    b = Builder((2, 4, 4), seed=3)
    b.conv("conv", 3)
    b.add("act", "function", function="tanh", alpha=0.0, beta=0.0)
    b.global_pool()
    b.linear("fc", 4)
    return b.network()


# ------------------------------------------------------------------------------------- integrated gradients
@pytest.mark.parametrize("make", [plain, residual, modern])
def test_parts_add_up_in_every_cut(make):
    network = trained(make(), 10)
    module = NetworkModule(network).double()
    x = X.double()
    weights = explained_weights(module(x), Y, RelevanceOptions())
    seen: dict[str, Tensor] = {}
    names = ("stem", "fc")  # every path from input to output passes through each of these
    given, difference = along_path(module, x, weights, 128, names, lambda name, a, s, r: seen.update({name: r}))
    logits = module(x).gather(1, Y[:, None])[:, 0] - module(torch.zeros_like(x)).gather(1, Y[:, None])[:, 0]
    torch.testing.assert_close(difference, logits.detach())
    for parts in (given, *seen.values()):
        missed = (parts.flatten(1).sum(1) - difference).abs().sum() / difference.abs().sum()
        assert float(missed.detach()) < 0.01


def test_more_steps_miss_less():
    network = trained(residual(), 10)
    found = [scored(network, "integrated-gradients", steps=k).conservation_residual for k in (2, 8, 64)]
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.01


def test_on_a_linear_network_one_step_is_exact_and_equals_gradient_times_input():
    b = Builder((6,), bias=0.0)
    b.linear("a", 5)
    b.linear("b", 4)
    network, x = b.network(), torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    options = [RelevanceOptions(method=m, samples=8, steps=1) for m in ("integrated-gradients", "gradient")]
    maps = [score(network, [(x, Y[:8])], o, "d") for o in options]
    for name in ("a", "b"):
        np.testing.assert_allclose(maps[0].weight[name], maps[1].weight[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(maps[0].channel[name], maps[1].channel[name], rtol=1e-4, atol=1e-7)
    assert maps[0].conservation_residual < 1e-6


def test_weight_scores_are_path_sums_sample_by_sample():
    network, steps = trained(residual(), 5), 3
    found = scored(network, "integrated-gradients", steps=steps)
    neurons = scored(network, "conductance", steps=steps)
    module = NetworkModule(network).eval()
    layer = weighted_modules(module)["right"]
    expected, per_neuron = torch.zeros_like(layer.weight), torch.zeros(4)
    for x, y in zip(X, Y, strict=True):
        passes = [one_pass(module, x[None] * (k / steps), int(y)) for k in range(steps + 1)]
        signal, conductance = torch.zeros_like(layer.weight), 0
        for before, after in pairwise(passes):
            s = (before.at["right"] + after.at["right"]) / 2
            da = after.values["sum_relu"] - before.values["sum_relu"]
            probe = layer.weight.detach().clone().requires_grad_()
            signal += torch.autograd.grad((layer.run(da, probe, None) * s).sum(), probe)[0]
            conductance = conductance + s * (after.values["right"] - before.values["right"])
        expected += (signal * layer.weight).abs().detach() / 24
        per_neuron += conductance.abs().sum(dim=(0, 2, 3)) / 24
    np.testing.assert_allclose(found.weight["right"], expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(found.weight["right"], neurons.weight["right"])
    np.testing.assert_allclose(neurons.channel["right"], per_neuron, rtol=1e-3, atol=1e-6)
    assert (neurons.channel["right"] >= found.channel["right"] - 1e-6).all()


def one_pass(module: NetworkModule, x: Tensor, label: int) -> Gradients:
    return gradient_pass(module, x, ["right"], lambda logits: logits[:, label])


def test_a_path_in_too_few_pieces_is_refused():
    b = Builder((3,), bias=0.0)
    b.linear("a", 4)
    b.add("cut", "clip", low=2.0, high=3.0)
    b.linear("b", 4)
    x = torch.full((4, 3), 4.0)
    with pytest.raises(ModelError, match=r"relevance\.steps = 1 ") as caught:
        score(b.network(), [(x, Y[:4])], RelevanceOptions(method="conductance", steps=1), "d")
    assert "relevance.steps = 4" in str(caught.value)


# ------------------------------------------------------------------------------------------- Hessian trace
def exact_traces(network: Network, x: Tensor, y: Tensor) -> dict[str, float]:
    """Diagonal blocks of the Hessian of the mean cross entropy, element by element."""
    module = NetworkModule(network)
    loss = torch.nn.functional.cross_entropy(module(x), y)
    found = {}
    for name, layer in weighted_modules(module).items():
        (g,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
        rows = [
            torch.autograd.grad(v, layer.weight, retain_graph=True)[0].flatten()[k] for k, v in enumerate(g.flatten())
        ]
        found[name] = float(torch.stack(rows).sum())
    return found


def test_hutchinson_against_the_exact_hessian():
    network, options = trained(tiny(), 20), RelevanceOptions(method="hessian-trace")
    x, y = X[:, :, ::2, ::2], Y
    estimate = Traces(network, 200, seed=1)
    estimate.add(x[:12], y[:12], options)
    estimate.add(x[12:], y[12:], options)
    found, exact = estimate.traces(), exact_traces(network, x, y)
    for name, (trace, error) in found.items():
        assert 0 < error < 0.3 * abs(exact[name])
        assert abs(trace - exact[name]) < 4 * error
    few = Traces(network, 20, seed=1)
    few.add(x, y, options)
    assert all(e > found[n][1] for n, (_, e) in few.traces().items())


def test_hessian_scores_are_the_mean_curvature_times_the_square():
    network = trained(plain(), 20)
    found = scored(network, "hessian-trace")
    again = scored(network, "hessian-trace")
    for layer in network.weighted():
        w = network.params[layer.name]["weight"]
        trace = abs(found.parameters["trace"][layer.name][0]) / w.size
        np.testing.assert_allclose(found.sensitivity[layer.name], trace, rtol=1e-5)
        np.testing.assert_allclose(found.weight[layer.name], w**2 * trace, rtol=1e-5)
        np.testing.assert_array_equal(found.weight[layer.name], again.weight[layer.name])


# ------------------------------------------------------------------------------------------ Wanda and LAMP
@pytest.mark.parametrize("name", ["stem", "dw", "mid", "fc"])
def test_wanda_against_brute_force(name):
    """Input norms by moving a one through the weights: the output is then what the weight is multiplied with."""
    network = plain()
    module = NetworkModule(network)
    layer = weighted_modules(module)[name]
    with torch.no_grad():
        values = {"input": X}
        for x, step in zip(network.layers[1:], module.steps, strict=True):
            values[x.name] = step(*(values[i] for i in x.inputs))
    a = values[network[name].inputs[0]]
    sums = np.zeros(layer.weight.shape)
    for index in np.ndindex(*layer.weight.shape):
        probe = torch.zeros_like(layer.weight)
        probe[index] = 1
        sums[index] = float((layer.run(a, probe, None) ** 2).sum().detach())
    np.testing.assert_allclose(square_sums(layer, a), sums, rtol=1e-4, atol=1e-5)
    found = scored(network, "wanda")
    weight = network.params[name]["weight"]
    np.testing.assert_allclose(found.weight[name], np.abs(weight) * np.sqrt(sums / 24), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.sensitivity[name], sums / 24, rtol=1e-3, atol=1e-5)


def test_lamp_against_brute_force():
    network = residual()
    found = scored(network, "lamp")
    for layer in network.weighted():
        w = network.params[layer.name]["weight"].astype(np.float64)
        squares = w.ravel() ** 2
        expected = [u / squares[squares >= u].sum() for u in squares]
        np.testing.assert_allclose(found.weight[layer.name].ravel(), expected, rtol=1e-5)
        assert found.weight[layer.name].max() == 1.0
        norms = squares.reshape(len(w), -1).sum(axis=1)
        np.testing.assert_allclose(found.channel[layer.name], [u / norms[norms >= u].sum() for u in norms], rtol=1e-5)
        np.testing.assert_allclose(found.sensitivity[layer.name], 1 / squares.sum(), rtol=1e-5)
    assert lamp_scores(np.zeros((2, 3))).tolist() == [[0.0] * 3] * 2


# ------------------------------------------------------------------------------------ targets and aggregates
def test_the_difference_is_the_gradient_of_the_log_odds():
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    own = torch.nn.functional.one_hot(labels, 4).bool()
    log_odds = logits.gather(1, labels[:, None])[:, 0] - logits.masked_fill(own, -torch.inf).logsumexp(1)
    (expected,) = torch.autograd.grad(log_odds.sum(), logits)
    got = explained_weights(logits, labels, RelevanceOptions(target="difference"))
    torch.testing.assert_close(got, expected)
    assert not got.requires_grad
    torch.testing.assert_close(got.sum(dim=1), torch.zeros(5, dtype=torch.float64))
    with pytest.raises(UsageError, match="two classes"):
        explained_weights(logits[:, :1], labels * 0, RelevanceOptions(target="difference"))


@pytest.mark.parametrize("method", ["lrp", "gradient", "deeplift", "integrated-gradients"])
def test_every_method_explains_the_difference(method):
    network = residual(bias=0.0)
    difference, label = (scored(network, method, target=t, epsilon=1e-9) for t in ("difference", "label"))
    assert difference.parameters["target"] == "difference"
    assert difference.conservation_residual < 0.05
    assert not np.allclose(difference.weight["right"], label.weight["right"], rtol=0.01)


def test_lrp_of_the_difference_with_a_tiny_epsilon_is_gradient_times_activation():
    network = residual(bias=0.0)
    a = scored(network, "lrp", target="difference", epsilon=1e-7)
    b = scored(network, "gradient", target="difference")
    for name in a.weight:
        np.testing.assert_allclose(a.weight[name], b.weight[name], rtol=2e-2, atol=2e-5)


@pytest.mark.parametrize("method", ["gradient", "taylor"])
def test_aggregates_against_single_samples(method):
    network = residual()
    module = NetworkModule(network)
    maps = {k: scored(network, method, aggregate=k) for k in ("magnitude", "signed", "square", "sensitivity")}
    for name, layer in weighted_modules(module).items():
        grads = []
        for x, y in zip(X, Y, strict=True):
            logits = module(x[None])
            explained = logits[0, y] if method == "gradient" else torch.nn.functional.cross_entropy(logits, y[None])
            grads.append(torch.autograd.grad(explained, layer.weight)[0])
        g = torch.stack(grads).double().numpy()
        r = g * layer.weight.detach().double().numpy()
        expected = {"magnitude": np.abs(r), "signed": r, "square": r**2, "sensitivity": g**2}
        for kind, found in maps.items():
            want = expected[kind].mean(axis=0)
            np.testing.assert_allclose(found.weight[name], want, rtol=2e-3, atol=1e-5 * np.abs(want).max())
            np.testing.assert_allclose(found.sensitivity[name], maps["magnitude"].sensitivity[name])
            assert found.parameters["aggregate"] == kind
    fc = network.params["fc"]["weight"].size
    assert maps["sensitivity"].channel["fc"].sum() == pytest.approx(
        maps["sensitivity"].sensitivity["fc"].sum(), rel=1e-4
    )
    assert fc == maps["signed"].weight["fc"].size


def test_channels_of_aggregates():
    """A channel's relevance of one sample is the sum over positions of z * dlogit/dz."""
    network = residual()
    module = NetworkModule(network)
    found = gradient_pass(module, X, ["b"], lambda logits: logits.gather(1, Y[:, None])[:, 0])
    r = (found.values["b"] * found.at["b"]).sum(dim=(2, 3)).double().numpy()
    for kind, want in {"magnitude": np.abs(r), "signed": r, "square": r**2}.items():
        got = scored(network, "gradient", aggregate=kind).channel["b"]
        np.testing.assert_allclose(got, want.mean(axis=0), rtol=2e-3, atol=1e-6)


def test_an_absolute_stabiliser_is_one():
    network = trained(plain(), 10)
    relative, absolute = (scored(network, "lrp", stabiliser=s) for s in ("relative", "absolute"))
    assert relative.parameters["stabiliser"] == "epsilon * rms per sample"
    assert absolute.parameters["stabiliser"] == "epsilon"
    assert not np.allclose(relative.weight["mid"], absolute.weight["mid"])
    tiny = [scored(network, "lrp", stabiliser=s, epsilon=1e-8) for s in ("relative", "absolute")]
    np.testing.assert_allclose(tiny[0].weight["mid"], tiny[1].weight["mid"], rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------------------------- nothing is touched
class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("throws", [False, True])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_leaves_everything_as_it_was(method, throws, monkeypatch):
    """The network, every module a method built, torch's grad mode and its generator; also when a layer throws."""
    network, built = residual(), []
    before = {k: v.tobytes() for k, v in network.tensors().items()}
    init = NetworkModule.__init__

    def remember(self: NetworkModule, given: Network) -> None:
        init(self, given)
        built.append(self)
        calls = []

        def count(x: Tensor) -> Tensor:
            calls.append(x)
            if throws and len(calls) > 1:
                raise Broken
            return torch.relu(x)

        self.steps[-4].forward = count  # the last relu

    monkeypatch.setattr(NetworkModule, "__init__", remember)
    random, grad = torch.get_rng_state(), torch.is_grad_enabled()
    if throws and method not in ("magnitude", "random", "lamp"):
        with pytest.raises(Broken):
            score(network, batches(X, Y, 10), RelevanceOptions(method=method, samples=24), "d")
    else:
        scored(network, method)
    assert {k: v.tobytes() for k, v in network.tensors().items()} == before
    assert torch.is_grad_enabled() == grad
    assert torch.equal(torch.get_rng_state(), random)
    for module in (m for top in built for m in top.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert not any(p.grad is not None for p in module.parameters())
    for module in built:
        for name, layer in weighted_modules(module).items():
            np.testing.assert_array_equal(layer.weight.detach(), network.params[name]["weight"])
