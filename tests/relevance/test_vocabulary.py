"""Functions, products, differences and moves: where relevance goes, and that DeepLIFT's contributions still add up."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from captum.attr import DeepLift
from torch import Tensor, nn

from tests.compress.toynets import FUNCTION_PARAMETERS, Builder, batches, modern, task, trained
from xdeploy.errors import ModelError
from xdeploy.model.network import FUNCTIONS, Layer, Network
from xdeploy.model.torchmodule import Function, Mul, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance import METHODS, score
from xdeploy.relevance.composites import composite, gate_layers, signal_operand
from xdeploy.relevance.deeplift import Product, Rescaled, TwoReluClip, contributions, explainable_module
from xdeploy.relevance.lrp import propagate
from xdeploy.relevance.method import gradient_pass
from xdeploy.relevance.rules import RULES, signal_rule, spread_rule

X, Y = task(24)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------- LRP
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_pass_relevance_on(name):
    r = draw(2, 3, 4, 4)
    (back,), kept = RULES["function"](Function(name, 0.3, 0.5), [draw(2, 3, 4, 4, seed=1)], r)
    assert torch.equal(back, r)
    assert float(kept.abs().sum()) == 0


def test_a_difference_is_proportional():
    a, b, r = draw(2, 5, seed=1), draw(2, 5, seed=2), draw(2, 5)
    module = NetworkModule(modern()).modules_by_name["difference"]
    back, _ = RULES["sub"](module, [a, b], r)
    torch.testing.assert_close(back[0], a * r / (a - b))
    torch.testing.assert_close(back[1], -b * r / (a - b))
    torch.testing.assert_close(back[0] + back[1], r)


@pytest.mark.parametrize("signal", [0, 1])
def test_the_signal_takes_all(signal):
    r, xs = draw(2, 3, 4, 4), [draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2)]
    back, kept = signal_rule(signal)(Mul(), xs, r)
    assert torch.equal(back[signal], r)
    assert float(back[1 - signal].abs().sum() + kept.abs().sum()) == 0
    gate, _ = RULES["mul"](Mul(), [xs[0], draw(2, 3, 1, 1)], r)
    assert gate[1].shape == (2, 3, 1, 1)


def test_moves_bring_relevance_back_to_where_the_values_came_from():
    modules = NetworkModule(modern()).modules_by_name
    x, r = draw(1, 8, 4, 4, seed=1), draw(1, 8, 8, 8)
    (back,), _ = RULES["resize"](modules["grow"], [x], r)
    rows, cols = (0, 0, 1, 1, 2, 2, 3, 3), (0, 1, 1, 1, 2, 2, 3, 3)
    expected = torch.zeros_like(x)
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            expected[:, :, row, col] += r[:, :, i, j]
    torch.testing.assert_close(back, expected)
    r = draw(1, 8, 4, 4)
    (back,), _ = RULES["rearrange"](modules["shuffle"], [x], r)
    torch.testing.assert_close(back[:, [0, 4, 1, 5, 2, 6, 3, 7]], r)


def test_a_part_without_a_rule_conserves():
    x = draw(3, 4, 2, 2, seed=1)
    same, _ = spread_rule(nn.Identity(), [x], x)
    assert same[0] is x
    x[2] = 0
    r = draw(3, 5)
    (back,), kept = spread_rule(nn.Identity(), [x], r)
    torch.testing.assert_close(back.flatten(1).sum(1), r.sum(1))
    torch.testing.assert_close(back[0] / back[0].sum(), x[0].abs() / x[0].abs().sum())
    assert float(kept.abs().sum()) == 0


@pytest.mark.parametrize("functions", [True, False])
def test_every_layer_conserves(functions):
    network = modern(bias=0.2, functions=functions)
    module = NetworkModule(network).double()
    balance = propagate(module, X.double(), composite(network, "epsilon", 1e-12), lambda _: Y, lambda *_: None)
    assert set(balance.layers) == {x.name for x in network.layers[1:]}
    gated = {"se_gate", "se_up", "se_relu", "se_down", "se_pool", "sigmoid", "right"}
    for name, (out, into, _) in balance.layers.items():
        if name in gated:
            assert float(out.abs().sum() + into.abs().sum()) == 0
        else:
            assert balance.residual(name) < 1e-4
    assert balance.residual() < 1e-4


def test_which_operand_is_the_signal():
    network = modern()
    assert signal_operand(network, network["product"]) == 1  # sigmoid * tanh
    assert signal_operand(network, network["se_mul"]) == 0
    plain = modern(functions=False)
    assert signal_operand(plain, plain["product"]) == 0
    assert gate_layers(network) == ("se_down", "se_up", "right")


def test_layers_that_feed_gates_are_scored_by_gradient():
    network = modern()
    lrp = score(network, batches(X, Y), RelevanceOptions(samples=24), "d")
    gradient = score(network, batches(X, Y), RelevanceOptions(method="gradient", samples=24), "d")
    assert lrp.parameters["scored_by_gradient"] == ["se_down", "se_up", "right"]
    for name in ("se_down", "se_up", "right"):
        np.testing.assert_allclose(lrp.weight[name], gradient.weight[name], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(lrp.sensitivity[name], gradient.sensitivity[name], rtol=1e-4, atol=1e-7)
        assert lrp.channel[name].sum() > 0
    assert not np.allclose(lrp.weight["mid"], gradient.weight["mid"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_scores_every_layer(method):
    assert method in METHODS
    network = modern()
    found = score(network, batches(X, Y, 10), RelevanceOptions(method=method, samples=24), "d")
    for layer in network.weighted():
        assert found.weight[layer.name].shape == network.params[layer.name]["weight"].shape
        assert found.channel[layer.name].sum() > 0
        assert (found.sensitivity[layer.name] >= 0).all()


def test_of_a_final_sigmoid_the_logits_are_explained():
    network = modern()
    last = Layer("p", "function", ("fc",), (4,), {"function": "sigmoid", "alpha": 0.0, "beta": 0.0})
    with_sigmoid = Network((*network.layers, last), network.params)
    a, b = (score(n, batches(X, Y), RelevanceOptions(samples=24), "d") for n in (network, with_sigmoid))
    np.testing.assert_array_equal(a.weight["mid"], b.weight["mid"])


# ------------------------------------------------------------------------------------------------ DeepLIFT
def test_contributions_add_up_through_products_and_functions():
    module = explainable_module(trained(modern(), 20))
    given, difference = contributions(module, X, Y, lambda *_: None)
    torch.testing.assert_close(given.flatten(1).sum(1).double(), difference, rtol=1e-3, atol=1e-3)
    found = score(module.network, batches(X, Y), RelevanceOptions(method="deeplift", samples=24), "d")
    assert found.conservation_residual < 1e-3
    assert found.parameters["products"] == "Shapley values of the operands"


def multipliers(module: nn.Module, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """What the module's gradients are for (input, baseline) pairs, of the input half."""
    leaves = [torch.cat(p).requires_grad_() for p in pairs]
    grads = torch.autograd.grad(module(*leaves).sum(), leaves)
    return [g[: len(p[0])] for g, p in zip(grads, pairs, strict=True)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_slope_between_input_and_baseline(name):
    function = Function(name, *FUNCTION_PARAMETERS.get(name, (0.0, 0.0)))
    x, x0 = draw(4, 5) * 3, draw(4, 5, seed=1)
    (m,) = multipliers(Rescaled(function), (x, x0))
    torch.testing.assert_close(m, (function(x) - function(x0)) / (x - x0))
    smooth = name not in ("hard_sigmoid", "leaky_relu", "hard_swish")
    (m,) = multipliers(Rescaled(function), (x, x.clone()))  # no difference: the derivative
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    torch.testing.assert_close(m, slope)
    (m,) = multipliers(Rescaled(function), (x, x + 1e-5))
    torch.testing.assert_close(m, slope, rtol=1e-4 if smooth else 0.2, atol=1e-4)


def test_functions_captum_knows_get_the_same_attributions():
    class Small(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.act, self.second = nn.Linear(6, 5).double(), act, nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.act(self.first(x)))

    x, target = draw(7, 6), torch.arange(7) % 3
    known = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "elu": nn.ELU(0.7), "leaky_relu": nn.LeakyReLU(0.1)}
    for name, theirs in {**known, "softplus": nn.Softplus()}.items():
        ours = Rescaled(Function(name, *FUNCTION_PARAMETERS.get(name, (0.0, 0.0))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum announces what it does to its input
            a, b = (DeepLift(Small(m)).attribute(x, torch.zeros_like(x), target=target) for m in (ours, theirs))
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gate", [(2, 3, 4, 4), (2, 3, 1, 1)])
def test_a_product_has_the_shapley_values_of_its_operands(gate):
    a, a0, b, b0 = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1), draw(*gate, seed=2), draw(*gate, seed=3)
    of_a, of_b = multipliers(Product(), (a, a0), (b, b0))
    # an operand's Shapley value: the mean of what it adds when it comes first and when it comes second
    first = ((a * b0 - a0 * b0) + (a * b - a0 * b)) / 2
    second = ((a0 * b - a0 * b0) + (a * b - a * b0)) / 2
    torch.testing.assert_close(of_a * (a - a0), first)
    torch.testing.assert_close(of_b * (b - b0), second.sum_to_size(gate))
    torch.testing.assert_close(first + second, a * b - a0 * b0)


@pytest.mark.parametrize("limits", [(-0.5, 0.7), (-0.5, float("inf")), (float("-inf"), 0.7)])
def test_a_clip_may_have_one_limit(limits):
    clip, x = TwoReluClip(*limits), draw(50)
    torch.testing.assert_close(clip(x), x.clamp(*limits))
    b = Builder((2, 8, 8), bias=0.3)
    b.conv("conv", 4)
    b.add("clip", "clip", low=limits[0], high=limits[1])
    b.global_pool()
    b.linear("fc", 4)
    found = score(b.network(), batches(X, Y), RelevanceOptions(method="deeplift", samples=24), "d")
    assert found.conservation_residual < 1e-4


def test_a_square_is_explained_exactly():
    b = Builder((3, 4, 4))
    b.conv("a", 4)
    b.add("square", "mul", ("a", "a"))
    b.global_pool()
    b.linear("fc", 4)
    module = explainable_module(b.network())
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    given, difference = contributions(module, x, torch.zeros(5, dtype=torch.int64), lambda *_: None)
    torch.testing.assert_close(given.flatten(1).sum(1).double(), difference, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------- float parts
class Blackbox(nn.Module):
    """A float part as some other library computes it: the same numbers, no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))


def test_a_float_part_without_gradient_is_refused_by_name_not_passed_over():
    b = Builder((2, 8, 8))
    b.conv("conv", 4)
    b.layers.append(Layer("part", "fallback", ("conv",), (4, 8, 8), {"onnx": "", "ops": ("Tanh",)}))
    layers, params = b.layers, b.params
    plain = Builder((2, 8, 8))  # the module of a network without the part, to put the part's own into
    plain.conv("conv", 4)
    plain.add("part", "relu")
    plain.global_pool()
    plain.linear("fc", 4)
    module = NetworkModule(plain.network())
    module.steps[1] = Blackbox()
    module.network = Network((*layers, *plain.layers[3:]), {**plain.params, **params})
    with pytest.raises(ModelError, match="part: no gradient"):
        gradient_pass(module, X, ["conv"], lambda z: z[:, 0])
    balance = propagate(module, X, composite(module.network, "epsilon", 1e-12), lambda _: Y, lambda *_: None)
    out, into, _ = balance.layers["part"]
    torch.testing.assert_close(out, into)
    assert float(balance.layers["conv"][0].abs().sum()) > 0
