"""Plans that remove channels: the network shrinks, the scores shrink with it, nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import batches, io_of, plain, residual, task
from xdeploy.compress.apply import compress
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.prune import prune_network, prune_relevance
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.groups import coupled_groups
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import CompressOptions, RecoverOptions

KEEP = (0, 2, 3, 7)


def pruning_plan(network: Network, layer: str, keep: tuple[int, ...] = KEEP) -> CompressionPlan:
    lines = [replace(x, keep=keep) if x.origin == layer else x for x in plan_of(network, "int8").layers]
    return CompressionPlan(tuple(lines))


def numbered(network: Network) -> RelevanceMap:
    """Scores that tell where they were."""
    maps = {
        n: np.arange(1, p["weight"].size + 1, dtype=np.float32).reshape(p["weight"].shape)
        for n, p in network.params.items()
    }
    channel = {n: np.arange(len(m), dtype=np.float32) for n, m in maps.items()}
    return RelevanceMap("test", {}, "", 1, maps, channel, {n: m + 0.5 for n, m in maps.items()}, 0.0)


def test_pruned_equals_masked():
    network = plain()
    masked = {n: {k: v.copy() for k, v in p.items()} for n, p in network.params.items()}
    gone = [c for c in range(8) if c not in KEEP]
    masked["mid"]["weight"][gone], masked["mid"]["bias"][gone] = 0, 0
    x, _ = task(8)
    a = NetworkModule(prune_network(network, pruning_plan(network, "mid")))(x)
    torch.testing.assert_close(a, NetworkModule(network.with_params(masked))(x))
    assert prune_network(network, plan_of(network, "int8")) is network


def test_scores_follow_their_weights():
    network = plain()
    plan = pruning_plan(network, "mid")
    before, after = numbered(network), prune_relevance(network, numbered(network), plan)
    np.testing.assert_array_equal(after.weight["mid"], before.weight["mid"][list(KEEP)])
    np.testing.assert_array_equal(after.channel["mid"], before.channel["mid"][list(KEEP)])
    np.testing.assert_array_equal(after.sensitivity["fc"], before.sensitivity["fc"][:, list(KEEP)])


@pytest.mark.parametrize("make", [plain, residual])
def test_compress_prunes_first_and_scores_again_if_it_can(make):
    network = make()
    layer = "mid" if make is plain else "a"
    x, y = task(64)
    asked: list[Network] = []

    def rescore(pruned: Network, draw: int) -> RelevanceMap:
        assert draw == 0
        asked.append(pruned)
        return numbered(pruned)

    for function in (None, rescore):
        model = compress(
            network, pruning_plan(network, layer), numbered(network), io_of(network), lambda: [x], None,
            lambda: batches(x, y), CompressOptions(), RecoverOptions(), 0, rescore=function,
        )  # fmt: skip
        assert [s["step"] for s in model.steps] == ["prune", "quantise", "restore"]
        assert len(model.weights[layer].codes) == len(KEEP)
        assert model.network.parameters() < network.parameters()
    assert asked[0].parameters() == model.network.parameters()


CASES = {
    "residual": (residual, {"stem": (0, 2, 3), "a": (1, 4, 5, 7), "left": (0, 3), "right": (1, 2, 3)}),
    "depthwise": (plain, {"stem": (0, 1, 4), "dw": (0, 1, 4), "mid": (0, 2, 3, 7)}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_pruned_and_masked_are_the_same_integers(case, fmt):
    """Masked: the removed channels make zeros, and the weights that read them are zero."""
    make, wanted = CASES[case]
    network = make()
    prunable = {n for g in coupled_groups(network) if g.prunable for n in g.layers}
    keep = {n: k for n, k in wanted.items() if n in prunable}
    assert keep
    masked = masked_network(network, keep)
    plan = plan_of(network, fmt)
    lines = tuple(replace(x, keep=keep.get(x.origin)) for x in plan.layers)
    x, _ = task(64)
    # not to moments and outputs of two networks
    options = CompressOptions(activation_percentile=100.0, restore=False, reconstruct=False)

    def codes_of(net: Network, plan: CompressionPlan):
        model = compress(net, plan, None, io_of(net), lambda: [x], None, None, options, RecoverOptions(), 0)
        return model, FakeQuantModule(model).codes(x)

    small, got = codes_of(network, CompressionPlan(lines))
    _, expected = codes_of(masked, plan)
    assert small.network.parameters() < network.parameters()
    np.testing.assert_array_equal(got[network.output.name], expected[network.output.name])
    a, b = NetworkModule(small.network).eval()(x), NetworkModule(masked).eval()(x)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def masked_network(network: Network, keep: dict[str, tuple[int, ...]]) -> Network:
    params = {n: {k: v.copy() for k, v in p.items()} for n, p in network.params.items()}
    for group in coupled_groups(network):
        for name in group.layers:
            if name in keep:
                gone = [c for c in range(group.channels) if c not in keep[name]]
                params[name]["weight"][gone], params[name]["bias"][gone] = 0, 0
        if group.layers[0] in keep:
            for consumer in group.consumers:
                for c in gone:
                    params[consumer.layer]["weight"][:, list(consumer.inputs[c])] = 0
    return network.with_params(params)
