"""LRP rules against matrix algebra: each layer as a dense matrix (its Jacobian), in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.compress.toynets import Builder, plain, residual, task
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.relevance.lrp import EPSILON, composite, propagate
from xdeploy.relevance.method import weighted_modules
from xdeploy.relevance.moments import Moments, add_moments
from xdeploy.relevance.rules import (
    alpha_beta_rule,
    bounded_rule,
    epsilon_rule,
    flat_rule,
    gamma_rule,
    proportional_rule,
    route_rule,
    w_square_rule,
    z_plus_rule,
)


def conv_cases() -> dict[str, Network]:
    cases = {}
    for name, args in {
        "plain": {}, "strided": {"stride": 2, "pads": (0, 1, 1, 0)}, "dilated": {"dilation": 2, "pads": (2, 2, 2, 2)},
        "grouped": {"groups": 2}, "depthwise": {"groups": 4, "kernel": 3},
    }.items():  # fmt: skip
        b = Builder((4, 5, 5), seed=1)
        b.conv("layer", 4, **args)
        cases[name] = b.network()
    b = Builder((6,), seed=2)
    b.linear("layer", 5)
    cases["linear"] = b.network()
    return cases


CASES = conv_cases()


def layer_and_input(name: str) -> tuple[nn.Module, Tensor]:
    network = CASES[name]
    module = NetworkModule(network).double().steps[0]
    x = torch.randn(1, *network.input.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return module, x


def matrix(module: nn.Module, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """(outputs, inputs) of the layer's linear part."""
    weight = module.weight.detach() if weight is None else weight
    jacobian = torch.autograd.functional.jacobian(lambda t: module.run(t, weight, None), x)
    return jacobian.reshape(-1, x.numel())


def relevance_like(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("epsilon", [1e-9, 0.1])
def test_epsilon_rule(name, epsilon):
    module, x = layer_and_input(name)
    z = module(x).detach()
    r = relevance_like(z)
    got, kept = epsilon_rule(epsilon)(module, [x], r)
    flat_z, flat_r = z.flatten(), r.flatten()
    sign = torch.where(flat_z >= 0, 1.0, -1.0)
    s = flat_r / (flat_z + epsilon * (flat_z**2).mean().sqrt() * sign)
    expected = x.flatten() * (matrix(module, x).T @ s)
    torch.testing.assert_close(got[0].flatten(), expected)
    bias = flat_z - matrix(module, x) @ x.flatten()
    torch.testing.assert_close(kept[0], (bias * s).sum())
    if epsilon < 1e-6:
        torch.testing.assert_close(got[0].sum() + kept[0], r.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_z_plus_rule(name):
    module, x = layer_and_input(name)
    r = relevance_like(module(x).detach())
    got, kept = z_plus_rule(module, [x], r)
    parts = (matrix(module, x) * x.flatten()).clamp(min=0)
    expected = (parts / parts.sum(dim=1, keepdim=True)).nan_to_num().T @ r.flatten()
    torch.testing.assert_close(got[0].flatten(), expected)
    assert float(kept) == 0


@pytest.mark.parametrize("name", CASES)
def test_flat_rule(name):
    module, x = layer_and_input(name)
    r = relevance_like(module(x).detach())
    got, _ = flat_rule(module, [x], r)
    ones = matrix(module, x, torch.ones_like(module.weight))
    expected = (ones / ones.sum(dim=1, keepdim=True)).T @ r.flatten()
    torch.testing.assert_close(got[0].flatten(), expected)
    torch.testing.assert_close(got[0].sum(), r.sum())


def products(module: nn.Module, x: Tensor) -> Tensor:
    """a_i w_ij of every output j and input i: (outputs, inputs)."""
    return matrix(module, x) * x.flatten()


def shares(numerator: Tensor, r: Tensor) -> Tensor:
    """Each output's relevance given to the inputs in proportion to a row of the numerator."""
    return (numerator / numerator.sum(dim=1, keepdim=True)).nan_to_num().T @ r.flatten()


@pytest.mark.parametrize("name", CASES)
def test_epsilon_rule_with_an_absolute_stabiliser(name):
    module, x = layer_and_input(name)
    z = module(x).detach()
    r = relevance_like(z)
    got, _ = epsilon_rule(0.3, absolute=True)(module, [x], r)
    flat_z = z.flatten()
    s = r.flatten() / torch.where(flat_z >= 0, flat_z + 0.3, flat_z - 0.3)
    torch.testing.assert_close(got[0].flatten(), products(module, x).T @ s)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("alpha", "beta"), [(1, 0), (2, 1), (4, 3)])
def test_alpha_beta_rule(name, alpha, beta):
    module, x = layer_and_input(name)
    r = relevance_like(module(x).detach())
    got, kept = alpha_beta_rule(alpha, beta)(module, [x], r)
    parts = products(module, x)
    p, n = parts.clamp(min=0), parts.clamp(max=0)
    both = (p.sum(1) > 0) & (n.sum(1) < 0)
    assert bool(both.any())
    flat = r.flatten()
    expected = shares(p, torch.where(both, alpha * flat, flat)) - shares(n, torch.where(both, beta * flat, -flat))
    torch.testing.assert_close(got[0].flatten(), expected)
    torch.testing.assert_close(got[0].sum(), r.sum())
    assert float(kept) == 0


def test_alpha_beta_where_only_one_sign_is_there():
    b = Builder((3,), seed=1)
    b.linear("layer", 2)
    module = NetworkModule(b.network()).double().steps[0]
    module.weight.data = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -1.0, -2.0]], dtype=torch.float64)
    x, r = torch.ones(1, 3, dtype=torch.float64), torch.tensor([[6.0, 4.0]], dtype=torch.float64)
    (got,), _ = alpha_beta_rule(2, 1)(module, [x], r)
    torch.testing.assert_close(got, torch.tensor([[1.0 + 1.0, 2.0 + 1.0, 3.0 + 2.0]], dtype=torch.float64))
    with pytest.raises(ValueError, match="alpha - beta"):
        alpha_beta_rule(2, 2)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("gamma", [0.05, 0.25, 100.0])
def test_gamma_rule(name, gamma):
    module, x = layer_and_input(name)
    module.bias.data += torch.linspace(-3, 3, len(module.bias))  # biases that would drive the denominator through 0
    z = module(x).detach()
    r = relevance_like(z)
    got, kept = gamma_rule(gamma)(module, [x], r)
    parts = products(module, x)
    bias = z.flatten() - parts.sum(dim=1)
    with_bias = torch.cat([parts, bias[:, None]], dim=1)  # the bias is one more product
    own = torch.where((z.flatten() > 0)[:, None], with_bias.clamp(min=0), with_bias.clamp(max=0))
    numerator = with_bias + gamma * own
    assert bool((numerator.sum(dim=1).abs() >= z.flatten().abs()).all())
    expected = shares(numerator, r)
    torch.testing.assert_close(got[0].flatten(), expected[:-1])
    torch.testing.assert_close(kept[0], expected[-1])
    torch.testing.assert_close(got[0].sum() + kept[0], r.sum())


def test_gamma_without_gamma_is_epsilon_and_with_much_of_it_z_plus():
    module, x = layer_and_input("plain")
    r = relevance_like(module(x).detach())
    torch.testing.assert_close(gamma_rule(0.0)(module, [x], r)[0][0], epsilon_rule(0.0)(module, [x], r)[0][0])
    module.bias.data.zero_()
    r *= module(x).detach() > 0  # where z is negative, gamma favours what is negative
    torch.testing.assert_close(gamma_rule(1e9)(module, [x], r)[0][0], z_plus_rule(module, [x], r)[0][0])


@pytest.mark.parametrize("name", CASES)
def test_bounded_rule(name):
    module, x = layer_and_input(name)
    r = relevance_like(module(x).detach())
    got, kept = bounded_rule(module, [x], r)
    low, high = (f(x, tuple(range(2 if x.dim() > 2 else 1, x.dim())), keepdim=True) for f in (torch.amin, torch.amax))
    w = matrix(module, x)
    low, high = ((torch.zeros_like(x) + t).flatten() for t in (low, high))
    numerator = w * x.flatten() - w.clamp(min=0) * low - w.clamp(max=0) * high
    assert float(numerator.min()) >= -1e-12
    torch.testing.assert_close(got[0].flatten(), shares(numerator, r))
    torch.testing.assert_close(got[0].sum(), r.sum())
    assert float(kept) == 0


@pytest.mark.parametrize("name", CASES)
def test_w_square_rule(name):
    module, x = layer_and_input(name)
    r = relevance_like(module(x).detach())
    got, _ = w_square_rule(module, [x], r)
    torch.testing.assert_close(got[0].flatten(), shares(matrix(module, x) ** 2, r))
    torch.testing.assert_close(got[0].sum(), r.sum())


@pytest.mark.parametrize(
    ("rule", "bias"),
    [(alpha_beta_rule(2, 1), 0.0), *((r, b) for r in (gamma_rule(0.25), w_square_rule, flat_rule) for b in (0.0, 0.4))],
)
def test_rules_conserve_layer_by_layer(rule, bias):
    """Whatever a rule keeps for the bias, input and bias together get what the output had."""
    for network in (plain(bias=bias), residual(bias=bias)):
        module = NetworkModule(network).double()
        x, y = task(8)
        rules = composite(network, "epsilon", 1e-12) | {n: rule for n in weighted_modules(module)}
        balance = propagate(module, x.double(), rules, lambda logits, y=y: y, lambda *_: None)
        assert all(balance.residual(name) < 1e-4 for name in rules if name in weighted_modules(module))


def test_add_and_average_are_proportional():
    a, b = (relevance_like(torch.zeros(1, 2, 4, 4)) * k for k in (1.0, 0.7))
    b = b.flip(-1)
    module = NetworkModule(residual())
    r = relevance_like(a).flip(0)
    got, _ = proportional_rule(module.modules_by_name["sum"], [a, b], r)
    torch.testing.assert_close(got[0], a * r / (a + b))
    torch.testing.assert_close(got[0] + got[1], r)
    pool = nn.AvgPool2d(2)
    small = relevance_like(torch.zeros(1, 2, 2, 2))
    (back,), _ = proportional_rule(pool, [a], small)
    expected = a / 4 * (small / pool(a)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(back, expected)


def test_max_pool_gives_all_to_the_winner():
    x = torch.tensor([[[[1.0, 5.0], [3.0, 2.0]]]])
    (back,), _ = route_rule(nn.MaxPool2d(2), [x], torch.tensor([[[[7.0]]]]))
    assert back.tolist() == [[[[0.0, 7.0], [0.0, 0.0]]]]


@pytest.mark.parametrize("name", CASES)
def test_moments_equal_one_gradient_per_sample(name, monkeypatch):
    monkeypatch.setattr("xdeploy.relevance.moments.CHUNK_ELEMENTS", 500)  # several chunks
    module, _ = layer_and_input(name)
    g = torch.Generator().manual_seed(5)
    a = torch.randn(7, *CASES[name].input.shape, generator=g, dtype=torch.float64)
    s = torch.randn(module(a).shape, generator=g, dtype=torch.float64)
    found = Moments.of(module.weight.detach(), signed=True)
    with torch.no_grad():
        add_moments(module, a, s, found)
    grads = [torch.autograd.grad((module(a[k : k + 1]) * s[k : k + 1]).sum(), module.weight)[0] for k in range(7)]
    torch.testing.assert_close(found.magnitude, sum(x.abs() for x in grads))
    torch.testing.assert_close(found.square, sum(x**2 for x in grads))
    torch.testing.assert_close(found.signed, sum(grads))


@pytest.mark.parametrize("name", CASES)
def test_moments_of_samples_with_several_steps(name, monkeypatch):
    monkeypatch.setattr("xdeploy.relevance.moments.CHUNK_ELEMENTS", 2000)
    module, _ = layer_and_input(name)
    g = torch.Generator().manual_seed(6)
    a = torch.randn(5 * 3, *CASES[name].input.shape, generator=g, dtype=torch.float64)
    s = torch.randn(module(a).shape, generator=g, dtype=torch.float64)
    found = Moments.of(module.weight.detach(), signed=True)
    with torch.no_grad():
        add_moments(module, a, s, found, steps=3)
    rows = [slice(3 * k, 3 * k + 3) for k in range(5)]
    grads = [torch.autograd.grad((module(a[k]) * s[k]).sum(), module.weight)[0] for k in rows]
    torch.testing.assert_close(found.magnitude, sum(x.abs() for x in grads))
    torch.testing.assert_close(found.square, sum(x**2 for x in grads))
    torch.testing.assert_close(found.signed, sum(grads))


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("name", ["epsilon", "epsilon-plus-flat"])
def test_bias_free_networks_conserve(make, name):
    network = make(bias=0.0)
    module = NetworkModule(network).double()
    x, y = task(16)
    balance = propagate(module, x.double(), composite(network, name, 1e-9), lambda logits: y, lambda *_: None)
    assert float(balance.absorbed.abs().max()) == 0
    if name == "epsilon":
        assert balance.residual() <= 1e-4
    for layer in balance.layers:  # through z+, an activation without any positive part has nowhere to send relevance
        assert balance.residual(layer) <= 1e-4 or name != "epsilon"


@pytest.mark.parametrize("make", [plain, residual])
def test_biases_keep_their_share(make):
    network = make(bias=0.3)
    module = NetworkModule(network).double()
    x, y = task(16)
    balance = propagate(module, x.double(), composite(network, "epsilon", 1e-9), lambda logits: y, lambda *_: None)
    assert float(balance.absorbed.abs().min()) > 0
    assert balance.residual() <= 1e-4
    stable = propagate(module, x.double(), composite(network, "epsilon", EPSILON), lambda logits: y, lambda *_: None)
    assert 0.01 < stable.residual() < 1.0  # what the stabiliser takes is not hidden


def test_tiny_epsilon_is_gradient_times_activation():
    network = residual(bias=0.0)
    module = NetworkModule(network).double()
    x, y = task(8)
    leaf = x.double().requires_grad_()
    (grad,) = torch.autograd.grad(module(leaf).gather(1, y[:, None]).sum(), leaf)
    balance = propagate(module, x.double(), composite(network, "epsilon", 1e-12), lambda logits: y, lambda *_: None)
    torch.testing.assert_close(balance.input_relevance, (leaf * grad).detach(), rtol=1e-5, atol=1e-8)
