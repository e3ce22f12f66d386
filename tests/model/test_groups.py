"""Coupled channels: found again by running the network with channels set to zero, and pruned = masked."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.test_trace_ops import Calls
from xdeploy.errors import PlanError
from xdeploy.model import zoo
from xdeploy.model.groups import Group, coupled_groups, prune
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace


def conv(i: int, o: int, k: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


def inverted(m: nn.Module, x: Tensor) -> Tensor:
    """An inverted residual (MobileNetV2) between two convolutions."""
    x = m.stem(x)
    x = x + m.project(F.relu6(m.depthwise(F.relu6(m.expand(x)))))
    return m.fc(x.mean((2, 3)))


def dense(m: nn.Module, x: Tensor) -> Tensor:
    """Concatenations read by convolutions, by a pre-activation norm and, flattened, by a linear layer."""
    a = m.a(x).relu()
    b = m.b(torch.cat([x, a], 1)).relu()
    both = torch.cat([a, b, a], 1)
    c = m.c(m.norm(both).relu())
    return m.fc(F.max_pool2d(torch.cat([c, b], 1), 2).flatten(1))


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "digits": (zoo.digits_cnn(), (1, 8, 8)),
    "resnet": (zoo.CifarResNet(1), (3, 16, 16)),
    "ds-cnn": (zoo.DsCnn(width=8), (1, 49, 10)),
    "mlp": (nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (9,)),
    "inverted": (
        Calls(
            inverted, stem=conv(3, 5), expand=conv(5, 12, 1), depthwise=conv(12, 12, groups=12), project=conv(12, 5, 1),
            fc=nn.Linear(5, 4),
        ),
        (3, 6, 6),
    ),
    "dense": (
        Calls(dense, a=conv(3, 4), b=conv(7, 5), c=conv(13, 6), norm=nn.BatchNorm2d(13), fc=nn.Linear(99, 3)), (3, 6, 6)
    ),
}  # fmt: skip


@functools.cache
def network(name: str) -> Network:
    """The net with small random weights, and biases large enough that no ReLU is dead."""
    module, shape = NETS[name]
    torch.manual_seed(3)
    found = trace(module, shape)
    rng = np.random.default_rng(0)
    return found.with_params(
        {
            n: {"weight": p["weight"] * np.float32(0.1), "bias": rng.uniform(2, 3, len(p["bias"])).astype(np.float32)}
            for n, p in found.params.items()
        }
    )


def masked(net: Network, removed: Mapping[str, list[int]]) -> Network:
    """Weights and biases of the removed channels set to zero."""
    params = {n: {k: a.copy() for k, a in p.items()} for n, p in net.params.items()}
    for name, channels in removed.items():
        for array in params[name].values():
            array[channels] = 0
    return net.with_params(params)


def sample(net: Network, n: int = 4) -> Tensor:
    return torch.randn((n, *net.input.shape), generator=torch.Generator().manual_seed(5))


def read_by(net: Network, layer: str) -> Tensor:
    """What the named layer reads in a run."""
    module, seen = NetworkModule(net), []
    module.modules_by_name[layer].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        module(sample(net))
    return seen[0]


# ------------------------------------------------------------------------------------------------------- groups
@pytest.mark.parametrize("name", NETS)
def test_every_weighted_layer_is_in_one_group(name: str) -> None:
    net = network(name)
    members = [n for g in coupled_groups(net) for n in g.layers]
    assert sorted(members) == sorted(x.name for x in net.weighted())


@pytest.mark.parametrize("name", NETS)
def test_consumers_read_zeros_where_the_group_says(name: str) -> None:
    """Channel c of all layers of a group is set to zero: exactly the listed inputs of its consumers become zero."""
    net = network(name)
    for group in (g for g in coupled_groups(net) if g.prunable):
        c = group.channels - 2
        zeroed = masked(net, {n: [c] for n in group.layers})
        for consumer in group.consumers:
            x = read_by(zeroed, consumer.layer).transpose(0, 1).flatten(1)
            zero = [i for i, row in enumerate(x) if not row.any()]
            assert zero == list(consumer.inputs[c]), (group.layers, consumer.layer)


def test_groups_of_the_cifar_resnet() -> None:
    found = coupled_groups(network("resnet"))
    inner = [g for g in found if g.prunable]
    assert [g.layers for g in inner] == [(f"layer{i}.0.conv1",) for i in (1, 2, 3)]
    assert [c.layer for g in inner for c in g.consumers] == [f"layer{i}.0.conv2" for i in (1, 2, 3)]
    trunk = next(g for g in found if "conv1" in g.layers)
    assert trunk.layers == ("conv1", *(f"layer{i}.0.conv2" for i in (1, 2, 3)))
    assert "layer2.0.shortcut.pad pads channels" in trunk.reason
    assert next(g for g in found if "linear" in g.layers).reason == "linear is the network's output"


def test_groups_of_inverted_residuals() -> None:
    stem, expand, fc = coupled_groups(network("inverted"))
    assert (stem.layers, expand.layers, fc.layers) == (("stem", "project"), ("expand", "depthwise"), ("fc",))
    assert [c.layer for c in stem.consumers] == ["expand", "fc"]
    assert stem.prunable
    assert expand.prunable


def test_concatenation_shifts_and_flattening_fans_out() -> None:
    groups = {g.layers[0]: g for g in coupled_groups(network("dense"))}
    assert groups["a"].reason == "norm is a depthwise convolution over joined or shifted channels"
    assert groups["c"].prunable
    # the linear layer reads 3x3 pixels of each of 6 + 5 channels
    assert groups["c"].consumers[0].inputs[1] == tuple(range(9, 18))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda m, x: m.b(m.a(x)).relu(), "output"),
        (lambda m, x: m.b(m.a(x)[:, :4]), "selects channels"),
        (lambda m, x: m.c(m.a(x)), "2 groups"),
        (lambda m, x: m.b((y := m.a(x))[:, 2:6] + y[:, 4:]), "selects channels"),
        (lambda m, x: m.b(torch.cat([m.d(x), m.e(x)], 1)[:, :4] + m.d(x)), "selects channels"),
        (lambda m, x: m.f(torch.cat([m.d(x), m.e(x)], 1) + m.a(x)), "different positions"),
        (lambda m, x: m.d(x + m.g(x)), "input channels"),
    ],
)
def test_reasons(function: object, words: str) -> None:
    modules = {
        "a": conv(3, 8), "b": conv(4 if words == "selects channels" else 8, 5), "c": conv(8, 8, groups=2),
        "d": conv(3, 4), "e": conv(3, 4), "f": conv(8, 2), "g": conv(3, 3),
    }  # fmt: skip
    module = Calls(function, **modules)  # type: ignore[arg-type]
    groups = coupled_groups(trace(module, (3, 6, 6)))
    assert any(words in g.reason for g in groups), [g.reason for g in groups]
    assert all(bool(g.reason) != g.prunable for g in groups)


# ------------------------------------------------------------------------------------------------------- pruning
def half(group: Group, rng: np.random.Generator) -> tuple[int, ...]:
    count = max(1, group.channels // 2)
    return tuple(int(c) for c in np.sort(rng.permutation(group.channels)[:count]))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETS)
def test_pruned_is_masked(name: str, seed: int) -> None:
    net, rng = network(name), np.random.default_rng(seed)
    groups = [g for g in coupled_groups(net) if g.prunable]
    keep = {n: kept for g in groups for kept in [half(g, rng)] for n in g.layers}
    small = prune(net, keep)
    removed = {n: [c for c in range(net[n].shape[0]) if c not in kept] for n, kept in keep.items()}
    with torch.no_grad():
        want, got = (NetworkModule(n)(sample(net)) for n in (masked(net, removed), small))
    assert float((want - got).abs().max()) <= 1e-5 * float(want.abs().max())
    assert all(len(small.params[n]["bias"]) == small[n].shape[0] == len(kept) for n, kept in keep.items())
    assert small.parameters() < net.parameters()
    with torch.no_grad():  # the shapes that the layers state are those that appear
        module, shapes = NetworkModule(small), {}
        for n, m in module.modules_by_name.items():
            m.register_forward_hook(lambda m, a, y, n=n: shapes.update({n: tuple(y.shape[1:])}))
        module(sample(small))
    assert shapes == {x.name: x.shape for x in small.layers[1:]}


def test_depthwise_follows_unasked() -> None:
    net = network("inverted")
    keep = (0, 3, 4, 7)
    asked, followed = (prune(net, dict.fromkeys(n, keep)) for n in (("expand", "depthwise"), ("expand",)))
    assert asked.layers == followed.layers
    assert followed["depthwise"].attrs["groups"] == 4
    assert followed.params["project"]["weight"].shape == (5, 4, 1, 1)


def test_keeping_everything_changes_nothing() -> None:
    net = network("resnet")
    assert prune(net, {}) is net
    assert prune(net, {x.name: tuple(range(x.shape[0])) for x in net.weighted()}) is net


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"nowhere": (0,)}, "no such convolution"),
        ({"expnd": (0,)}, "did you mean 'expand'"),
        ({"expand": ()}, r"at least one; got \[\]"),
        ({"expand": (3, 3)}, "rising"),
        ({"expand": (5, 1)}, "rising"),
        ({"expand": (0, 12)}, r"0\.\.11"),
        ({"fc": (0, 1)}, "fc is the network's output"),
        ({"stem": (0, 1, 2)}, r"(?s)stem keeps 3.*project keeps 5.*nearest choice for all of them: \[0, 1, 2\]"),
        ({"stem": (0, 1, 2), "project": (1, 2, 4)}, r"(?s)stem keeps 3.*project keeps 3.*\[1, 2\]"),
        ({"expand": (0, 1), "depthwise": (2, 3)}, "no channel in common"),
    ],
)
def test_plans_that_cannot_be_honoured(keep: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        prune(network("inverted"), keep)
