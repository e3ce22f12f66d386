"""Budgets, pins, the accuracy search, and the bytes it predicts."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compress.toynets import io_of, plain, residual, task
from xdeploy.compress.apply import compress
from xdeploy.errors import PlanError
from xdeploy.formats import FORMATS
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.network import Network
from xdeploy.plan.allocate import allocate
from xdeploy.plan.cost import cost_table, distortion, plan_bytes
from xdeploy.recipe import CompressOptions, PlanOptions, RecoverOptions


def relevance_of(network: Network, seed: int = 0) -> RelevanceMap:
    rng = np.random.default_rng(seed)
    maps = {
        x.name: (10.0 ** rng.uniform(-3, 2) * rng.gamma(0.5, size=network.params[x.name]["weight"].shape)).astype(
            np.float32
        )
        for x in network.weighted()
    }
    channel = {n: m.reshape(len(m), -1).sum(axis=1) for n, m in maps.items()}
    return RelevanceMap("test", {}, "", 1, maps, channel, maps, 0.0)


@pytest.mark.parametrize("make", [plain, residual])
def test_budget_is_met_and_bytes_are_those_of_the_compressed_model(make):
    network = make()
    relevance = relevance_of(network)
    formats = {x.name: "int8" for x in network.weighted()}
    flash = int(0.6 * plan_bytes(network, formats))
    plan = allocate(network, relevance, PlanOptions(formats=tuple(FORMATS), flash=flash))
    x, _ = task(16)
    model = compress(
        network, plan, relevance, io_of(network), lambda: [x], None, None, CompressOptions(), RecoverOptions(), 0
    )
    packed = sum(w.packed_bytes for w in model.weights.values())
    assert plan.predicted["weight_bytes"]["value"] == packed <= flash
    assert plan.predicted["macs"]["value"] == sum(network.macs(x.name) for x in network.layers)


def test_predicted_distortion_is_that_of_the_final_weights():
    network = plain()
    relevance = relevance_of(network)
    plan = allocate(network, relevance, PlanOptions(formats=("int4", "c3s8"), flash=10**6))
    x, _ = task(16)
    options = CompressOptions(restore=False, reconstruct=False)  # the nearest codes
    model = compress(network, plan, relevance, io_of(network), lambda: [x], None, None, options, RecoverOptions(), 0)
    for name, w in model.weights.items():
        real = w.values * w.scale.astype(np.float64).reshape(-1, *[1] * (w.codes.ndim - 1))
        h = np.maximum(relevance.sensitivity[name], 1e-3 * relevance.sensitivity[name].mean())
        expected = (h * (network.params[name]["weight"] - real) ** 2).sum()
        got = distortion(
            network.params[name]["weight"], w.format, relevance.sensitivity[name], options.codebook_weighting
        )
        assert got == pytest.approx(expected, rel=1e-4)


def test_every_line_has_a_reason_and_saves(tmp_path):
    network = residual()
    plan = allocate(network, relevance_of(network), PlanOptions(flash=1200, fixed={"fc": "int8"}))
    assert [x.origin for x in plan.layers] == [x.name for x in network.weighted()]
    assert "pinned" in plan["fc"].reason
    assert plan["fc"].weight_format == "int8"
    for line in plan.layers:
        assert "relevance" in line.reason
        assert "distortion" in line.reason
        assert line.keep is None
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json") == plan


def test_relevant_layers_get_the_bits():
    network = residual()
    base = relevance_of(network)

    def with_focus(layer: str) -> CompressionPlan:
        maps = {n: np.full_like(m, 100.0 if n == layer else 0.01) for n, m in base.sensitivity.items()}
        relevance = RelevanceMap("test", {}, "", 1, maps, base.channel, maps, 0.0)
        return allocate(network, relevance, PlanOptions(formats=("int8", "int4"), flash=1400))

    assert with_focus("a")["a"].weight_format == "int8"
    assert with_focus("right")["right"].weight_format == "int8"
    assert with_focus("b")["b"].weight_format == "int8"
    assert with_focus("b")["right"].weight_format == "int4"


def test_infeasible_budgets_name_the_least_bytes():
    network = plain()
    least = plan_bytes(network, {x.name: "int2" for x in network.weighted()})
    options = {"formats": ("int8", "int2")}
    assert allocate(network, None, PlanOptions(flash=least, **options)).predicted["weight_bytes"]["value"] == least
    with pytest.raises(PlanError, match=str(least)) as caught:
        allocate(network, None, PlanOptions(flash=least - 1, **options))
    assert "raise plan.flash" in caught.value.hint


def test_accuracy_search_finds_the_smallest_passing_plan():
    network = plain()
    relevance = relevance_of(network)
    calls: list[float] = []

    def evaluate(plan: CompressionPlan) -> float:
        calls.append(plan.predicted["weight_bytes"]["value"])
        return 90.0 if calls[-1] >= 700 else 50.0

    plan = allocate(network, relevance, PlanOptions(max_drop=1.0), evaluate, float_accuracy=90.5)
    assert len(calls) <= 8
    found = plan.predicted["weight_bytes"]["value"]
    assert found >= 700
    for flash in range(700, found - 10, 6):  # no smaller budget (up to the last halving) has a passing plan
        assert allocate(network, relevance, PlanOptions(flash=flash)).predicted["weight_bytes"]["value"] < 700
    assert plan.budget["accuracy_floor"] == 89.5
    assert plan.budget["accuracy"] == 90.0
    with pytest.raises(PlanError, match="most accurate"):
        allocate(network, relevance, PlanOptions(max_drop=1.0), lambda p: 50.0, float_accuracy=90.0)
    smallest = allocate(network, relevance, PlanOptions(), lambda p: 90.0)
    assert smallest.predicted["weight_bytes"]["value"] == plan_bytes(
        network, {x.name: "int2" for x in network.weighted()}
    )


def test_without_any_goal_the_least_distortion_wins():
    plan = allocate(plain(), None, PlanOptions(formats=("int2", "int8", "int4")))
    assert {x.weight_format for x in plan.layers} == {"int8"}


def test_wrong_inputs_are_refused():
    network = plain()
    with pytest.raises(PlanError, match="nosuch"):
        allocate(network, None, PlanOptions(fixed={"nosuch": "int8"}))
    with pytest.raises(PlanError, match="score this network again"):
        allocate(network, relevance_of(residual()), PlanOptions())
    with pytest.raises(PlanError, match="empty"):
        allocate(network, None, PlanOptions(formats=()))


def test_table_holds_int8_as_the_reference():
    table = cost_table(plain(), None, ("c2s8",), {"fc": "int4"}, 0.5)
    assert set(table.formats) == {"c2s8", "int4", "int8"}
    assert table.allowed.sum(axis=1).tolist() == [1] * len(table.layers)
    assert table.allowed[table.layers.index("fc"), table.formats.index("int4")]
