"""Composites: which rule stands where, and what the recipe takes."""

from __future__ import annotations

import pytest
import torch

from tests.compress.toynets import Builder, plain, residual, task
from xdeploy.errors import UsageError
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import COMPOSITES, Recipe, RelevanceOptions
from xdeploy.relevance.composites import NAMED, composite, depth_groups, rule_named, rule_names
from xdeploy.relevance.lrp import propagate, rules_of
from xdeploy.relevance.rules import bounded_rule, flat_rule, w_square_rule, z_plus_rule

GROUPS = "groups:epsilon, z+,alpha2beta1, gamma0.1"


def tower(convs: int, dense: int) -> Network:
    b = Builder((2, 4, 4))
    for k in range(convs):
        b.conv(f"c{k}", 2)
    b.add("flatten", "flatten")
    for k in range(dense):
        b.linear(f"d{k}", 4)
    return b.network()


def test_composites_choose_by_kind_and_place():
    rules = composite(plain(), "epsilon-plus-flat")
    assert rules["stem"] is flat_rule
    assert rules["dw"] is rules["mid"] is z_plus_rule
    assert rules["fc"].__qualname__.startswith("epsilon_rule")
    assert composite(plain(), "epsilon-plus")["stem"] is z_plus_rule
    assert composite(plain(), "epsilon-plus-bounded")["stem"] is bounded_rule
    assert composite(plain(), "epsilon-plus-wsquare")["stem"] is w_square_rule
    assert rule_names(plain(), "alpha2-beta1-flat") == {
        "stem": "flat", "dw": "alpha2beta1", "mid": "alpha2beta1", "fc": "epsilon",
    }  # fmt: skip
    assert set(rule_names(plain(), "gamma").values()) == {"gamma"}
    assert set(NAMED) == set(COMPOSITES)


@pytest.mark.parametrize(
    ("convs", "dense", "sizes"),
    [(13, 3, (4, 5, 4, 3)), (4, 1, (1, 2, 1, 1)), (1, 1, (1, 0, 0, 1)), (2, 1, (1, 0, 1, 1)), (0, 7, (2, 2, 2, 1))],
)
def test_depth_groups(convs, dense, sizes):
    groups = depth_groups(tower(convs, dense))
    assert tuple(list(groups.values()).count(k) for k in range(4)) == sizes
    hidden = [k for n, k in groups.items() if n.startswith("c")] or list(groups.values())
    assert hidden == sorted(hidden)


def test_groups_get_the_rules_named():
    network = tower(8, 2)
    names = rule_names(network, GROUPS)
    assert [names[x.name] for x in network.weighted()] == [
        *["epsilon"] * 2, *["z+"] * 4, *["alpha2beta1"] * 2, *["gamma0.1"] * 2,
    ]  # fmt: skip
    assert Recipe().with_options({"relevance.composite": GROUPS}).relevance.composite == GROUPS


def test_gamma_depends_on_the_kind_unless_it_is_given():
    network = plain()
    module = NetworkModule(network).double()
    fc = module.modules_by_name["fc"]
    a, r = torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    by_kind, given = (rule_named(n, k)(fc, [a], r)[0][0] for n, k in (("gamma", "linear"), ("gamma0.05", "conv2d")))
    assert torch.equal(by_kind, given)
    assert not torch.equal(by_kind, rule_named("gamma", "conv2d")(fc, [a], r)[0][0])


@pytest.mark.parametrize(
    "text",
    [
        "groups:epsilon,z+",
        "groups:epsilon,z+,z+,alpha2beta2",
        "groups:a,b,c,d",
        "epsilon-pluss",
        "groups",
        "",
        "gamma0.1",
    ],
)
def test_other_composites_are_refused(text):
    with pytest.raises(UsageError, match="composite") as caught:
        Recipe().with_options({"relevance.composite": text})
    assert "epsilon" in str(caught.value)
    with pytest.raises(UsageError, match="composite"):
        rules_of(plain(), RelevanceOptions(composite=text))


@pytest.mark.parametrize(
    ("key", "value"),
    [("stabiliser", "rms"), ("aggregate", "sum"), ("target", "loss"), ("epsilon", -1.0), ("steps", 0)],
)
def test_other_options_are_refused(key, value):
    with pytest.raises(UsageError, match=f"relevance.{key}"):
        Recipe().with_options({f"relevance.{key}": value})


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("name", [*COMPOSITES, "groups:gamma,alpha2beta1,alpha3beta2,gamma"])
def test_every_composite_conserves_without_biases(make, name):
    network = make(bias=0.0)
    module = NetworkModule(network).double()
    x, y = task(12)
    balance = propagate(module, x.double(), composite(network, name, 1e-12), lambda _: y, lambda *_: None)
    assert float(balance.absorbed.abs().max()) == 0
    lossy = {n for n, rule in rule_names(network, name).items() if rule == "z+"}
    assert all(balance.residual(n) < 1e-4 for n in balance.layers if n not in lossy)
    if not lossy:  # through z+, an output without any positive part has nowhere to send relevance
        assert balance.residual() < 1e-4
    assert torch.isfinite(balance.input_relevance).all()
