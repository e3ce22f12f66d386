"""How many weights each layer keeps, and what the plan's lines say about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.compress.toynets import io_of, plain, residual, task
from tests.plan.test_allocate import relevance_of
from xdeploy.compress.apply import compress
from xdeploy.errors import PlanError, UsageError
from xdeploy.handover import CompressionPlan
from xdeploy.plan.allocate import allocate
from xdeploy.plan.cost import coded_bytes
from xdeploy.plan.density import share_out
from xdeploy.planoptions import PlanOptions
from xdeploy.ranking import lamp
from xdeploy.recipe import CompressOptions, RecoverOptions


def sizes(network) -> dict[str, int]:
    return {x.name: network.params[x.name]["weight"].size for x in network.weighted()}


@pytest.mark.parametrize("by", ["relevance", "magnitude", "lamp"])
def test_one_threshold_decides_the_layers_shares(by):
    network = residual()
    relevance = relevance_of(network)
    score = {
        "relevance": relevance.weight.__getitem__,
        "magnitude": lambda n: np.abs(network.params[n]["weight"]),
        "lamp": lambda n: lamp(network.params[n]["weight"]),
    }[by]
    (found,) = share_out(network, relevance, PlanOptions(density=0.4, density_by=by, least_density=0.0))
    total = sum(sizes(network).values())
    assert sum(found.kept.values()) == int(0.4 * total + 0.5)
    every = np.sort(np.concatenate([score(n).ravel() for n in sizes(network)]))
    limit = every[total - int(0.4 * total + 0.5)]
    least_one = {n: max(1, int((score(n) >= limit).sum())) for n in sizes(network)}
    assert sum(abs(found.kept[n] - least_one[n]) for n in least_one) <= 2  # a floor of one weight may cost others
    for name, mask in found.masks.items():  # magnitude chooses inside
        size = np.abs(network.params[name]["weight"])
        for weights, gone in zip(size, mask, strict=True) if name == "fc" else ((size, mask),):  # each class its own
            assert weights[gone].max(initial=0) <= weights[~gone].min()
        part = relevance.weight[name][~mask].sum() / relevance.weight[name].sum()
        assert found.relevance[name] == pytest.approx(part, rel=1e-5)


def test_floors_hold():
    network = residual()
    base = relevance_of(network)
    maps = {n: m * (1e6 if n == "b" else 1e-6) for n, m in base.weight.items()}
    relevance = replace(base, weight=maps)
    (found,) = share_out(network, relevance, PlanOptions(density=0.2, least_density=0.15))
    for name, size in sizes(network).items():
        assert found.kept[name] >= 0.15 * size
    others = [n for n in found.kept if n != "b"]
    assert all(found.kept[n] == -(-15 * sizes(network)[n] // 100) for n in others)
    with pytest.raises(PlanError, match="least_density"):
        share_out(network, relevance, PlanOptions(density=0.1, least_density=0.15))


def test_uniform_and_row():
    network = plain()
    (uniform,) = share_out(network, None, PlanOptions(density=0.5, density_by="uniform"))
    assert all(abs(k - 0.5 * n) <= 0.5 for k, n in zip(uniform.kept.values(), sizes(network).values(), strict=True))
    (row,) = share_out(network, None, PlanOptions(density=0.5, density_by="row", zeros_per="row"))
    for mask in row.masks.values():
        kept = (~mask).reshape(len(mask), -1).sum(axis=1)
        assert (kept == int(0.5 * mask[0].size + 0.5)).all()


def test_positive_drops_what_soroush_drops():
    network = plain()
    base = relevance_of(network)
    rng = np.random.default_rng(3)
    signed = {n: (m * np.where(rng.random(m.shape) < 0.6, 1, -1)).astype(np.float32) for n, m in base.weight.items()}
    relevance = replace(base, weight=signed)
    (found,) = share_out(network, relevance, PlanOptions(density_by="positive", zeros="negative-first"))
    for name, mask in found.masks.items():
        np.testing.assert_array_equal(mask, signed[name] <= 0)


def test_missing_relevance_is_told():
    with pytest.raises(PlanError, match="density_by = 'relevance'"):
        share_out(plain(), None, PlanOptions(density=0.5))
    with pytest.raises(PlanError, match="zeros = 'relevance'"):
        share_out(plain(), None, PlanOptions(density=0.5, density_by="uniform", zeros="relevance"))
    assert share_out(plain(), None, PlanOptions()) == ()


@pytest.mark.parametrize("value", [0.0, 1.5, (), (0.3, 0.3), (0.2, 2.0)])
def test_impossible_densities_are_refused(value):
    with pytest.raises(UsageError, match=r"plan\.density"):
        PlanOptions(density=value)


def test_the_plan_says_what_compress_does(tmp_path):
    network = residual()
    relevance = relevance_of(network)
    options = PlanOptions(formats=("int4", "c3s8", "int8"), flash=1500, density=0.3, zeros="relevance")
    plan = allocate(network, relevance, options)
    x, _ = task(16)
    given = CompressOptions(compact=False, reconstruct=False)
    model = compress(network, plan, relevance, io_of(network), lambda: [x], None, None, given, RecoverOptions(), 0)
    coded = 0
    for name, w in model.weights.items():
        line = plan[name]
        assert (w.values != 0).sum() <= int(line.density * w.codes.size + 0.5)
        assert "one threshold on relevance" in line.reason
        assert line.zeros == ("relevance/row" if name == "fc" else "relevance")
        coded += coded_bytes(w.codes, w.format)
    assert plan.predicted["coded_bytes"]["value"] == coded
    assert plan.predicted["density"]["value"] == pytest.approx(0.3, abs=0.001)
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json") == plan


def test_plans_without_density_name_no_zeros(tmp_path):
    allocate(plain(), None, PlanOptions()).save(tmp_path / "plan.json")
    assert "zeros" not in (tmp_path / "plan.json").read_text()


def test_coded_bytes_are_the_entropy():
    from xdeploy.formats import FORMATS

    codes = np.array([[0, 0, 0, 1], [0, 0, 0, -1]], np.int8)  # 6/8, 1/8, 1/8
    bits = 8 * (0.75 * np.log2(4 / 3) + 2 * 0.125 * 3)
    assert coded_bytes(codes, FORMATS["int4"]) == int(np.ceil(bits / 8)) + 16
    assert coded_bytes(np.zeros((3, 5), np.int8), FORMATS["c2s8"]) == 4 + 24


def test_a_coded_budget_chooses_among_densities():
    network = residual()
    relevance = relevance_of(network)
    free = allocate(network, relevance, PlanOptions(formats=("int4",), density=(0.2, 0.5, 1.0), coded=10**6))
    assert min(x.density for x in free.layers) > 0.95  # what rounds to zero anyhow may go
    most = free.predicted["coded_bytes"]["value"]
    tight = allocate(network, relevance, PlanOptions(formats=("int4",), density=(0.2, 0.5, 1.0), coded=most * 8 // 10))
    assert tight.predicted["coded_bytes"]["value"] <= most * 8 // 10
    assert len({x.density for x in tight.layers}) > 1
    assert any("would cost" in x.reason and "at density" in x.reason for x in tight.layers)
    with pytest.raises(PlanError, match=r"plan\.coded"):
        allocate(network, relevance, PlanOptions(formats=("int4",), density=(0.2, 0.5), coded=100))
    with pytest.raises(PlanError, match=r"one plan\.density"):
        allocate(network, relevance, PlanOptions(density=(0.2, 0.5), rule="greedy"))
