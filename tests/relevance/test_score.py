"""`score` with every method: shapes, streaming, conservation, and nothing touched."""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from tests.compress.toynets import batches, plain, residual, task, trained
from xdeploy.errors import ModelError, UsageError
from xdeploy.handover import RelevanceMap
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance import METHODS, score
from xdeploy.relevance.deeplift import contributions, explainable_module
from xdeploy.relevance.lrp import composite, propagate
from xdeploy.relevance.method import weighted_modules

X, Y = task(40)


def scored(network, method="lrp", size=16, **more) -> RelevanceMap:
    options = RelevanceOptions(**{"method": method, "samples": 40, **more})
    return score(network, batches(X, Y, size), options, "data", seed=3)


def test_methods_are_found():
    baselines = {"magnitude", "random", "lamp", "wanda", "taylor", "fisher", "hessian-trace"}
    assert {"lrp", "deeplift", "gradient", "integrated-gradients", "conductance"} | baselines == set(METHODS)
    with pytest.raises(UsageError, match="lrp"):
        scored(plain(), "lpr")


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("make", [plain, residual])
def test_shapes_values_and_saving(method, make, tmp_path):
    network = make()
    before = {k: v.tobytes() for k, v in network.tensors().items()}
    r = scored(network, method)
    assert {k: v.tobytes() for k, v in network.tensors().items()} == before
    assert r.samples == 40
    for layer in network.weighted():
        shape = network.params[layer.name]["weight"].shape
        for part in (r.weight, r.sensitivity):
            assert part[layer.name].shape == shape
            assert part[layer.name].dtype == np.float32
            assert (part[layer.name] >= 0).all()
        assert r.channel[layer.name].shape == shape[:1]
        assert r.channel[layer.name].sum() > 0
    assert sum(r.share().values()) == pytest.approx(1.0)
    r.save(tmp_path / "relevance.npz")
    assert RelevanceMap.load(tmp_path / "relevance.npz").parameters == r.parameters


@pytest.mark.parametrize("method", ["lrp", "gradient", "fisher", "taylor", "wanda", "integrated-gradients"])
def test_batching_changes_nothing(method):
    a, b = scored(residual(), method, size=40), scored(residual(), method, size=7)
    for name, values in a.weight.items():
        np.testing.assert_allclose(values, b.weight[name], rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(a.channel[name], b.channel[name], rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_batch_outlives_its_turn(method):
    """Memory does not grow with the samples: when the fifth batch is asked for, at most the fourth is still there."""
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 5

    def stream():
        nonlocal most
        for k in range(5):
            if k == 4:
                gc.collect()
                most = sum(r() is not None for r in alive)
            x, y = X[8 * k : 8 * k + 8].clone(), Y[8 * k : 8 * k + 8]
            alive.append(weakref.ref(x))
            yield x, y
            del x, y

    assert score(plain(), stream(), RelevanceOptions(method=method, samples=40, steps=4), "d").samples == 40
    assert len(alive) == 5
    assert most <= 1


def test_samples_are_limited_and_progress_told():
    told: list[tuple[str, int, int]] = []
    r = score(plain(), batches(X, Y, 16), RelevanceOptions(samples=20), "d", lambda *a: told.append(a))
    assert r.samples == 20
    assert told == [("score", 16, 20), ("score", 20, 20)]
    with pytest.raises(UsageError, match="at least one"):
        score(plain(), [], RelevanceOptions(), "d")


def test_weight_scores_are_means_of_per_sample_magnitudes():
    network = residual()
    r = scored(network, "gradient")
    module = NetworkModule(network)
    for name, layer in weighted_modules(module).items():
        grads = torch.stack([torch.autograd.grad(module(X[k : k + 1])[0, Y[k]], layer.weight)[0] for k in range(40)])
        np.testing.assert_allclose(r.weight[name], (grads * layer.weight).abs().mean(0).detach(), rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(r.sensitivity[name], (grads**2).mean(0), rtol=1e-3, atol=1e-6)


def test_lrp_weight_relevance_sums_to_the_layers_relevance():
    """For one sample sum_i r_i + bias share = R_out of a layer, so sum |r| >= |R_out - bias share|."""
    network = plain(bias=0.0)
    x, y = X[:1], Y[:1]
    r = score(network, [(x, y)], RelevanceOptions(), "d")
    module = NetworkModule(network)
    balance = propagate(module, x, composite(network, "epsilon"), lambda logits: y, lambda *_: None)
    for name in r.weight:
        sent = float(balance.layers[name][0].abs())
        assert r.weight[name].sum() >= 0.8 * sent


def test_softmax_is_left_out_and_targets_differ():
    with_softmax, without = plain(softmax=True), plain()
    np.testing.assert_array_equal(scored(with_softmax).weight["mid"], scored(without).weight["mid"])
    assert not np.array_equal(scored(without, target="predicted").weight["fc"], scored(without).weight["fc"])
    with pytest.raises(UsageError, match="4 classes"):
        score(without, [(X, Y + 3)], RelevanceOptions(), "d")


@pytest.mark.parametrize("make", [plain, residual])
def test_deeplift_contributions_add_up(make):
    module = explainable_module(trained(make(), 20))
    layers: dict[str, torch.Tensor] = {}
    given, difference = contributions(module, X, Y, lambda name, a, m, r: layers.update({name: r}))
    torch.testing.assert_close(given.flatten(1).sum(1).double(), difference, rtol=1e-3, atol=1e-4)
    for name in ("stem", "fc"):  # layers that everything passes through
        torch.testing.assert_close(layers[name].flatten(1).sum(1).double(), difference, rtol=1e-3, atol=1e-4)


def test_deeplift_without_nonlinearity_is_weight_times_input():
    network = plain()
    module = explainable_module(network)
    torch.testing.assert_close(module(X), NetworkModule(network)(X))
    assert scored(network, "deeplift").conservation_residual < 1e-4


def _state(module: nn.Module) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules()]
    flags = [(m.training, [p.requires_grad for p in m.parameters(recurse=False)]) for m in module.modules()]
    return [hooks, flags, [p.detach().numpy().tobytes() for p in module.parameters()]]


class Thrower(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")


@pytest.mark.parametrize("throws", [False, True])
@pytest.mark.parametrize("method", ["lrp", "deeplift"])
def test_modules_are_left_as_they_were(method, throws):
    network = residual()
    module = explainable_module(network)
    module.train()
    module.steps[0].requires_grad_(False)
    if throws:
        module.steps[-1] = Thrower()
    before = copy.deepcopy(_state(module))

    def work() -> None:
        if method == "lrp":
            propagate(module, X, composite(network, "epsilon"), lambda logits: Y, lambda *_: None)
        else:
            contributions(module, X, Y, lambda *_: None)

    if throws:
        with pytest.raises(RuntimeError, match="no"):
            work()
    else:
        work()
    assert _state(module) == before
    assert not any(p.grad is not None for p in module.parameters())


def test_bad_numbers_and_outputs_are_refused():
    network = plain()
    network.params["mid"]["weight"][0] = np.nan
    with pytest.raises(ModelError, match="finite"):
        scored(network)
    headless = plain()
    cut = type(headless)(headless.layers[:3], headless.params)
    with pytest.raises(ModelError, match="class scores"):
        scored(cut)
