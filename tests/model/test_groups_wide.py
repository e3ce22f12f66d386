"""Coupled channels through functions, gates, differences, resizing and rearrangements: pruned = masked, or a reason."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.test_groups import conv, half, masked, sample
from tests.model.test_trace_ops import Calls
from xdeploy.errors import PlanError
from xdeploy.model.groups import coupled_groups, prune
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace

Forward = Callable[[nn.Module, Tensor], Tensor]


def modules() -> dict[str, nn.Module]:
    return {
        "a": conv(3, 8),
        "b": conv(8, 5),
        "g": conv(8, 8, 1),
        "d": conv(8, 8, groups=8),
        "s": conv(2, 5),
        "down": nn.Linear(8, 4),
        "up": nn.Linear(4, 8),
        "fc": nn.Linear(8, 3),
        "fc_image": nn.Linear(8 * 36, 3),
        "seq": nn.Conv1d(8, 5, 3),
        "t": nn.ConvTranspose2d(8, 4, 2, 2),
        "b4": conv(4, 5),
    }


def excite(m: nn.Module, x: Tensor) -> Tensor:
    x = m.a(x)
    gate = F.hardsigmoid(m.up(m.down(x.mean((2, 3))).relu()))
    return m.b(x * gate[:, :, None, None])


# name: forward, the groups that can be pruned, by their first layer; words of the others' reasons
CASES: dict[str, tuple[Forward, set[str], tuple[str, ...]]] = {
    "functions with f(0) = 0": (lambda m, x: m.b(F.gelu(F.hardswish(F.silu(m.a(x).tanh())))), {"a"}, ()),
    "slopes": (lambda m, x: m.b(F.elu(F.leaky_relu(m.a(x)))), {"a"}, ()),
    "sigmoid": (
        lambda m, x: m.b(m.a(x).sigmoid()),
        set(),
        ("sigmoid (sigmoid) gives something else than 0 at 0, which b reads",),
    ),
    "hard sigmoid": (lambda m, x: m.b(F.hardsigmoid(m.a(x))), set(), ("hard_sigmoid (hard_sigmoid) gives",)),
    "softplus, then zero again": (lambda m, x: m.b(F.softplus(m.a(x)).tanh()), set(), ("gives something else",)),
    "clip that leaves zero out": (lambda m, x: m.b(m.a(x).clamp(0.5, 2.0)), set(), ("gives something else",)),
    "sigmoid before a depthwise": (lambda m, x: m.b(m.d(m.a(x).sigmoid())), {"a"}, ()),
    "sigmoid flattened": (lambda m, x: m.fc_image(m.a(x).sigmoid().flatten(1)), set(), ("fc_image reads",)),
    "gate": (lambda m, x: m.b((y := m.a(x)) * m.g(y).sigmoid()), {"a"}, ()),
    "two gates": (lambda m, x: m.b(m.a(x).sigmoid() * m.g(m.a(x)).sigmoid()), {"a_1"}, ("gives something else",)),
    "squeeze and excite": (excite, {"a", "down"}, ()),
    "swish by hand": (lambda m, x: m.b((y := m.a(x)) * torch.sigmoid(y * 1.5)), {"a"}, ()),
    "difference": (lambda m, x: m.b((y := m.a(x)) - m.g(y).relu()), {"a"}, ()),
    "scale": (lambda m, x: m.b((m.a(x).relu() * 3).abs()), {"a"}, ()),
    "shift": (lambda m, x: m.b(m.a(x).relu() + 3), {"a"}, ()),
    "resize": (lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2.0)), {"a"}, ()),
    "rows only": (lambda m, x: m.seq(m.a(x).flatten(2)), {"a"}, ()),
    "turned": (lambda m, x: m.b(m.a(x).transpose(2, 3)), {"a"}, ()),
    "flattened channels last": (lambda m, x: m.fc_image(m.a(x).permute(0, 2, 3, 1).flatten(1)), {"a"}, ()),
    "features to pixels": (
        lambda m, x: m.b(m.up(m.down(x.mean((2, 3)).repeat_interleave(3, 1)[:, :8]))[:, :, None, None]),
        {"down", "up"},
        (),
    ),
    "pixel shuffle": (lambda m, x: m.s(F.pixel_shuffle(m.a(x), 2)), set(), ("mixes channels and pixels",)),
    "channel shuffle": (lambda m, x: m.b(F.channel_shuffle(m.a(x), 2)), set(), ("mixes channels and pixels",)),
    "transposed": (lambda m, x: m.b4(m.t(m.a(x))), {"a"}, ("mixes channels and pixels",)),
}


def network(forward: Forward) -> Network:
    torch.manual_seed(3)
    found = trace(Calls(forward, **modules()), (3, 6, 6))
    rng = np.random.default_rng(0)
    return found.with_params(
        {
            n: {"weight": p["weight"], "bias": rng.uniform(0.5, 1, len(p["bias"])).astype(np.float32)}
            for n, p in found.params.items()
        }
    )


@pytest.mark.parametrize("case", CASES)
def test_pruned_is_masked_or_says_why_not(case: str) -> None:
    forward, prunable, words = CASES[case]
    net = network(forward)
    groups = coupled_groups(net)
    assert {g.layers[0] for g in groups if g.prunable} == prunable, [(g.layers, g.reason) for g in groups]
    reasons = " | ".join(g.reason for g in groups)
    assert not [w for w in words if w not in reasons], reasons
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        keep = {n: kept for g in groups if g.prunable for kept in [half(g, rng)] for n in g.layers}
        small = prune(net, keep)
        removed = {n: [c for c in range(net[n].shape[0]) if c not in kept] for n, kept in keep.items()}
        with torch.no_grad():
            want, got = (NetworkModule(n)(sample(net)) for n in (masked(net, removed), small))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("case", [c for c, (_, prunable, _) in CASES.items() if not prunable])
def test_blocked_groups_differ_when_masked(case: str) -> None:
    """The blocks are needed: a zeroed channel is seen by somebody, or the layer cannot lose it."""
    net = network(CASES[case][0])
    blocked = next(g for g in coupled_groups(net) if "a" in g.layers)
    with pytest.raises(PlanError, match="cannot be removed"):
        prune(net, {n: (0, 1) for n in blocked.layers})


def test_parts_in_float_block_their_neighbours() -> None:
    layers = (
        Layer("input", "input", (), (3, 4, 4)),
        Layer(
            "a",
            "conv2d",
            ("input",),
            (5, 4, 4),
            {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1},
        ),
        Layer("part", "fallback", ("a",), (5, 4, 4), {"onnx": "", "ops": ("Erf",)}),
        Layer(
            "b",
            "conv2d",
            ("part",),
            (2, 4, 4),
            {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1},
        ),
    )
    params = {
        n: {"weight": np.ones((o, i, 1, 1), np.float32), "bias": np.zeros(o, np.float32)}
        for n, o, i in (("a", 5, 3), ("b", 2, 5))
    }
    first, second = coupled_groups(Network(layers, params))
    assert first.reason == "part is a part in float, which stays as it is"
    assert not first.prunable
    assert second.layers == ("b",)
