"""Which channels go: ranking against brute force, budgets, floors, coupled groups, rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.compress.test_prune import masked_network
from tests.compress.toynets import Builder, plain, residual, task
from tests.plan.test_allocate import relevance_of
from xdeploy.errors import PlanError, UsageError
from xdeploy.handover import CompressionPlan
from xdeploy.model.groups import coupled_groups, prune
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.plan.allocate import allocate
from xdeploy.plan.channels import MacCount, group_scores, plan_channels, removable
from xdeploy.plan.rounds import iterate, schedule, shares
from xdeploy.planoptions import PlanOptions


def blocks(seed: int = 0) -> Network:
    """Two residual blocks of one group, one of them a single convolution that reads its own group, and a flatten."""
    b = Builder((2, 8, 8), seed)
    b.conv("stem", 8)
    top = b.add("stem_relu", "relu")
    b.conv("a1", 6)
    b.add("a1_relu", "relu")
    main = b.conv("a2", 8)
    b.add("sum1", "add", (main, top))
    first = b.add("sum1_relu", "relu")
    b.conv("dw", 8, groups=8)
    single = b.conv("single", 8)
    b.add("sum2", "add", (single, first))
    b.add("sum2_relu", "relu")
    b.conv("wide", 10, stride=2)
    b.add("wide_relu", "relu")
    b.add("flat", "flatten")
    b.linear("fc1", 12)
    b.add("fc1_relu", "relu")
    b.linear("fc2", 4)
    return b.network()


def macs_of(network: Network) -> int:
    return sum(network.macs(x.name) for x in network.layers)


def channels_of(network: Network, options: PlanOptions) -> int:
    return sum(len(network.params[n]["weight"]) for g in removable(network, options) for n in g.layers)


@pytest.mark.parametrize("make", [plain, residual, blocks])
@pytest.mark.parametrize("what", ["channels", "macs"])
@pytest.mark.parametrize("by", ["network", "network-l2", "layer"])
def test_shares_are_met_and_pruned_equals_masked(make, what, by):
    network = make()
    relevance = relevance_of(network)
    options = PlanOptions(channels=0.6, channels_of=what, channels_by=by, least_channels=0.2)
    removal = plan_channels(network, relevance, options)
    small = prune(network, removal.keep)
    if by != "layer" or what == "macs":
        measure = macs_of if what == "macs" else lambda n: channels_of(n, options)
        assert measure(small) <= 0.6 * measure(network)
    assert macs_of(small) < macs_of(network)
    for group in removable(network, options):
        assert len(removal.keep.get(group.layers[0], range(group.channels))) >= 0.2 * group.channels
        assert len({removal.keep.get(n) for n in group.layers}) == 1
    x, _ = task(8)
    a, b = NetworkModule(small).eval()(x), NetworkModule(masked_network(network, removal.keep)).eval()(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [plain, residual, blocks])
def test_mac_counts_are_those_of_the_pruned_network(make):
    network = make()
    groups = [g for g in coupled_groups(network) if g.prunable]
    count = MacCount(network, groups)
    rng = np.random.default_rng(0)
    for _ in range(10):
        kept = [int(rng.integers(1, g.channels + 1)) for g in groups]
        keep = {n: tuple(range(k)) for g, k in zip(groups, kept, strict=True) for n in g.layers}
        assert count.left(kept) == macs_of(prune(network, keep))


def test_the_least_relevant_go_first():
    network = blocks()
    relevance = relevance_of(network)
    options = PlanOptions(channels=0.7, least_channels=0.0)
    groups = removable(network, options)
    removal = plan_channels(network, relevance, options)
    gone, stay = [], []
    for group in groups:
        shares_of = np.mean([relevance.channel[n] / relevance.channel[n].sum() for n in group.layers], axis=0)
        np.testing.assert_allclose(group_scores(group, relevance), shares_of, rtol=1e-6)
        keep = removal.keep.get(group.layers[0], tuple(range(group.channels)))
        gone += [shares_of[c] for c in range(group.channels) if c not in keep]
        if len(keep) > 1:  # a last channel stays whatever its score
            stay += [shares_of[c] for c in keep]
    assert max(gone) <= min(stay)
    before = channels_of(network, options)
    after = before - sum(
        len(g.layers) * (g.channels - len(removal.keep.get(g.layers[0], range(g.channels)))) for g in groups
    )
    largest = max(len(g.layers) for g in groups)
    assert after <= 0.7 * before < after + largest


def test_layers_and_lines_say_why():
    network = residual()
    plan = allocate(network, relevance_of(network), PlanOptions(channels=0.5, flash=900, density=0.5))
    pruned = [x for x in plan.layers if x.keep is not None]
    assert pruned
    for line in pruned:
        assert f"keeps {len(line.keep)} of {len(network.params[line.origin]['weight'])} channels" in line.reason
        assert "of their relevance" in line.reason
    small = prune(network, {x.origin: x.keep for x in pruned})
    assert (
        plan.predicted["macs"]["value"] == macs_of(small) < plan.predicted["macs_before"]["value"] == macs_of(network)
    )
    assert plan.predicted["parameters"]["value"] == small.parameters()
    assert plan.predicted["weight_bytes"]["value"] <= 900


def test_whole_layers_and_floors_are_respected():
    network = blocks()
    relevance = relevance_of(network)
    options = PlanOptions(channels=0.6, whole=("a2", "wide"))
    keep = plan_channels(network, relevance, options).keep
    assert {"fc1"} <= set(keep) <= {"a1", "fc1"}
    with pytest.raises(PlanError, match="nosuch"):
        plan_channels(network, relevance, PlanOptions(channels=0.5, whole=("nosuch",)))
    with pytest.raises(PlanError, match="cannot be reached"):
        plan_channels(network, relevance, PlanOptions(channels=0.3, least_channels=0.9))
    with pytest.raises(PlanError, match="no layer's channels"):
        plan_channels(network, relevance, PlanOptions(channels=0.5, whole=tuple(x.name for x in network.weighted())))
    with pytest.raises(PlanError, match="ranked by relevance"):
        plan_channels(network, None, PlanOptions(channels=0.5))
    with pytest.raises(PlanError, match="score this network again"):
        plan_channels(network, relevance_of(plain()), PlanOptions(channels=0.5))
    with pytest.raises(UsageError, match=r"plan\.channels"):
        PlanOptions(channels=0.0)


# ------------------------------------------------------------------------------------------------------- rounds
def test_shares_fall_geometrically():
    assert shares(PlanOptions(channels=0.25, rounds=2)) == pytest.approx((0.5, 0.25))
    assert shares(PlanOptions()) == ()


@pytest.mark.parametrize("what", ["channels", "macs"])
def test_schedule_gives_nested_plans_that_end_where_asked(what):
    network = blocks()
    options = PlanOptions(channels=0.5, channels_of=what, rounds=3)
    plans = schedule(network, relevance_of(network), options)
    assert len(plans) == 3
    measure = macs_of if what == "macs" else lambda n: channels_of(n, options)
    left = []
    for before, plan in zip([None, *plans], plans, strict=False):
        assert isinstance(plan, CompressionPlan)
        for line in plan.layers:
            if before is not None and before[line.origin].keep is not None:
                assert set(line.keep) <= set(before[line.origin].keep)
        left.append(measure(prune(network, {x.origin: x.keep for x in plan.layers if x.keep is not None})))
    assert left == sorted(left, reverse=True)
    assert all(n <= s * measure(network) for n, s in zip(left, shares(options), strict=True))


def test_rounds_score_and_recover_what_is_left():
    network = blocks()
    seen: list[tuple[str, int]] = []

    def rescore(net: Network, draw: int):
        seen.append(("score", net.parameters()))
        return relevance_of(net, seed=len(seen))

    def recover(net: Network, k: int) -> Network:
        seen.append(("recover", net.parameters()))
        return net.with_params({n: {**p, "bias": p["bias"] + 1} for n, p in net.params.items()})

    options = PlanOptions(channels=0.5, rounds=2)
    small, steps = iterate(network, relevance_of(network), options, rescore, recover)
    assert [what for what, _ in seen] == ["recover", "score", "recover"]
    assert seen[0][1] == seen[1][1] > seen[2][1] == small.parameters()
    pruned = prune(network, steps[-1])
    for name, p in small.params.items():
        np.testing.assert_array_equal(p["weight"], pruned.params[name]["weight"])
        np.testing.assert_allclose(p["bias"], pruned.params[name]["bias"] + 2, rtol=1e-6)


def test_allocate_takes_the_rounds():
    network = residual()
    relevance = relevance_of(network)
    calls: list[int] = []

    def rescore(net: Network, draw: int):
        calls.append(draw)
        return relevance_of(net, seed=7)

    options = PlanOptions(channels=0.5, rounds=3)
    plan = allocate(network, relevance, options, rescore=rescore)
    assert calls == [0, 0]
    _, steps = iterate(network, relevance, options, rescore)
    assert {x.origin: x.keep for x in plan.layers if x.keep} == steps[-1]
    assert plan.budget["rounds"] == 3
    once = allocate(network, relevance, replace(options, rounds=1), rescore=rescore)
    assert len(calls) == 4
    assert "rounds" not in once.budget
