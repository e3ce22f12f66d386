"""Plans that remove channels: the network shrinks, the scores shrink with it, nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import batches, io_of, plain, residual, task
from xdeploy.compress.apply import compress
from xdeploy.compress.prune import prune_network, prune_relevance
from xdeploy.handover import CompressionPlan, RelevanceMap
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

    def rescore(pruned: Network) -> RelevanceMap:
        asked.append(pruned)
        return numbered(pruned)

    for function in (None, rescore):
        model = compress(
            network, pruning_plan(network, layer), numbered(network), io_of(network), lambda: [x], None,
            lambda: batches(x, y), CompressOptions(), RecoverOptions(), 0, rescore=function,
        )  # fmt: skip
        assert [s["step"] for s in model.steps] == ["prune", "quantise"]
        assert len(model.weights[layer].codes) == len(KEEP)
        assert model.network.parameters() < network.parameters()
    assert asked[0].parameters() == model.network.parameters()
