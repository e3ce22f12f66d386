"""plan.ram: channels go where memory is in use until the arena fits; formats whose scratch is too large are out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.compress.toynets import Builder, io_of, plain, task
from tests.plan.test_allocate import relevance_of
from xdeploy.compress.apply import compress
from xdeploy.errors import PlanError
from xdeploy.export import export
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.lower import lower
from xdeploy.model.groups import coupled_groups, prune
from xdeploy.model.network import Network
from xdeploy.plan.allocate import allocate
from xdeploy.plan.channels import floor_of
from xdeploy.plan.device import Arena
from xdeploy.program import bind
from xdeploy.recipe import CompressOptions, PlanOptions, Recipe, RecoverOptions
from xdeploy.request import Silent
from xdeploy.target import load_target
from xdeploy.trial.device import TargetDevice
from xdeploy.trial.lowered import Lowering


class Toy:
    """While a layer runs its inputs, its output and its format's scratch are in use; nothing else ever is."""

    def __init__(self, scratch: dict[str, int] | None = None) -> None:
        self.scratch = scratch or {}

    def arena(self, network: Network, plan: CompressionPlan, relevance: RelevanceMap | None, ram: int) -> Arena:
        size = {x.name: int(np.prod(x.shape)) for x in network.layers}
        formats = {line.origin: line.weight_format for line in plan.layers}
        needs = {
            x.name: sum(size[i] for i in x.inputs) + size[x.name] + self.scratch.get(formats.get(x.name, ""), 0)
            for x in network.layers
        }
        at = max(needs, key=lambda n: needs[n])
        scratch = self.scratch.get(formats.get(at, ""), 0)
        return Arena(needs[at], needs, at, (*network[at].inputs, at), scratch, "toy")

    def instructions(self, network, plan, relevance):
        raise AssertionError("nobody asked")


def block() -> Network:
    """A residual block whose stem and second convolution are coupled."""
    b = Builder((2, 8, 8))
    b.conv("stem", 8)
    top = b.add("stem_relu", "relu")
    b.conv("a", 12)
    b.add("a_relu", "relu")
    main = b.conv("b", 8)
    b.add("sum", "add", (main, top))
    b.add("sum_relu", "relu")
    b.conv("down", 16, stride=2)
    b.add("down_relu", "relu")
    b.global_pool()
    b.linear("fc", 4)
    return b.network()


def size_of(network: Network, keep=None) -> int:
    return Toy().arena(prune(network, keep or {}), CompressionPlan(()), None, 0).size


def kept(plan: CompressionPlan):
    return {x.origin: x.keep for x in plan.layers if x.keep is not None}


@pytest.mark.parametrize("make", [plain, block])
def test_a_budget_that_fits_changes_nothing(make):
    network, relevance = make(), relevance_of(make())
    options = PlanOptions(formats=("int8", "int4"), flash=10**6, ram=size_of(network))
    with_device = allocate(network, relevance, options, device=Toy())
    assert with_device.layers == allocate(network, relevance, options).layers
    assert with_device.predicted["arena"]["value"] == size_of(network)


@pytest.mark.parametrize("make", [plain, block])
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_the_least_relevant_channels_go_until_it_fits(make, share):
    network, relevance = make(), relevance_of(make())
    ram = int(share * size_of(network))
    plan = allocate(network, relevance, PlanOptions(formats=("int8",), flash=10**6, ram=ram), device=Toy())
    assert size_of(network, kept(plan)) == plan.predicted["arena"]["value"] <= ram
    assert kept(plan)
    for group in coupled_groups(network):
        named = {n: kept(plan)[n] for n in group.layers if n in kept(plan)}
        if not named:
            continue
        assert len(set(named.values())) == 1
        assert set(named) == set(group.layers)
        parts = [np.abs(relevance.channel[n]) / np.abs(relevance.channel[n]).sum() for n in group.layers]
        score, left = np.mean(parts, axis=0), list(next(iter(named.values())))
        gone = [c for c in range(group.channels) if c not in left]
        assert score[gone].max() <= score[left].min()
        for name in group.layers:
            assert f"plan.ram = {ram:,} bytes" in plan[name].reason


def test_layers_that_are_not_in_use_at_the_peak_keep_their_channels():
    """One channel less where it counts is enough: everything else stays whole."""
    network, relevance = plain(), relevance_of(plain())
    plan = allocate(
        network, relevance, PlanOptions(formats=("int8",), flash=10**6, ram=size_of(network) - 1), device=Toy()
    )
    arena = Toy().arena(network, CompressionPlan(()), None, 0)
    short = {n: network[n].shape[0] - len(k) for n, k in kept(plan).items()}
    assert set(short.values()) == {1}
    assert set(short) in [set(g.layers) for g in coupled_groups(network)]
    before = {n: network[n].shape for n in arena.peak}
    assert any(prune(network, kept(plan))[n].shape != shape for n, shape in before.items())


@pytest.mark.parametrize("make", [plain, block])
def test_what_cannot_fit_says_the_least_there_is(make):
    network, options = make(), PlanOptions(formats=("int8",), flash=10**6, ram=5, least_channels=0.5)
    groups = [g for g in coupled_groups(network) if g.prunable]
    floors = [floor_of(g.channels, options) for g in groups]
    every = itertools.product(*(range(low, g.channels + 1) for g, low in zip(groups, floors, strict=True)))
    some = itertools.islice(every, 0, None, 7)  # counts decide, not which
    sizes = [
        size_of(network, {n: tuple(range(c)) for g, c in zip(groups, counts, strict=True) for n in g.layers})
        for counts in some
    ]
    with pytest.raises(PlanError, match=rf"most while .* runs; .* it takes {min(sizes)}") as caught:
        allocate(network, relevance_of(network), options, device=Toy())
    assert str(min(sizes)) in caught.value.hint
    with pytest.raises(PlanError, match="relevance, which is missing"):
        allocate(network, None, options, device=Toy())
    whole = tuple(x.name for x in network.weighted())
    with pytest.raises(PlanError, match="can be removed"):
        allocate(network, relevance_of(network), PlanOptions(ram=5, flash=10**6, whole=whole), device=Toy())


def test_channels_asked_for_go_first_and_more_only_where_needed():
    network, relevance = block(), relevance_of(block())
    free = allocate(network, relevance, PlanOptions(formats=("int8",), flash=10**6, channels=0.6), device=Toy())
    size = size_of(network, kept(free))
    options = PlanOptions(formats=("int8",), flash=10**6, channels=0.6, ram=size)
    assert kept(allocate(network, relevance, options, device=Toy())) == kept(free)
    tight = allocate(
        network, relevance, PlanOptions(formats=("int8",), flash=10**6, channels=0.6, ram=size - 1), device=Toy()
    )
    assert size_of(network, kept(tight)) < size
    for name, left in kept(tight).items():
        assert set(left) <= set(kept(free).get(name, range(network[name].shape[0])))


def test_formats_with_too_much_scratch_are_left_out_before_channels_are():
    network, relevance = plain(), relevance_of(plain())
    device = Toy({"int4": 100_000})
    ram = size_of(network) + 10
    plan = allocate(network, relevance, PlanOptions(formats=("int8", "int4"), flash=10**6, ram=ram), device=device)
    assert not kept(plan)
    assert {x.weight_format for x in plan.layers} == {"int8"}
    assert all("the scratch of int4 does not fit" in x.reason for x in plan.layers)
    with pytest.raises(PlanError, match="it takes 10"):  # a pinned one leaves no choice
        allocate(
            network, relevance, PlanOptions(formats=("int8",), fixed={"fc": "int4"}, flash=10**6, ram=ram),
            device=device,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_the_arena_predicted_is_that_of_the_bound_program(tmp_path, name, share):
    """Down the whole way: compressed, exported, lowered and bound by other code than the trial's."""
    network, target = block(), load_target(name)
    relevance, recipe = relevance_of(network), Recipe().with_options({"build.stream": "off"})
    x, _ = task(16)
    device = TargetDevice(
        Lowering(network, io_of(network), lambda: [x], recipe.compress), [target], recipe, Silent()
    )  # fmt: skip
    first = allocate(
        network, relevance, PlanOptions(formats=("int8",), flash=10**6, ram=10**6), device=device
    ).predicted["arena"]["value"]
    ram = int(share * first)
    options = PlanOptions(formats=("int8", "int4", "int2"), flash=10**6, ram=ram)
    plan = allocate(network, relevance, options, device=device)
    model = compress(
        network, plan, relevance, io_of(network), lambda: [x], None, None, CompressOptions(), RecoverOptions(), 0
    )
    program = bind(lower(export(model, x[:2].numpy(), tmp_path)), target, "m")
    assert program.arena == plan.predicted["arena"]["value"] <= ram
    assert bool(kept(plan)) == (share < 1.0)
