"""Rules that choose formats: paths against their definitions, budgets, the baselines' weaknesses and strengths."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from tests.compress.toynets import plain, residual
from tests.plan.test_allocate import relevance_of
from tests.plan.test_solver import problem
from xdeploy.errors import PlanError, UsageError
from xdeploy.plan.allocate import allocate
from xdeploy.plan.cost import cost_table
from xdeploy.plan.rules import PATHS, levels_of, per_weight
from xdeploy.plan.solver import Limit, solve
from xdeploy.planoptions import RULES, PlanOptions
from xdeploy.quantise import uniform_codes, weighted_error

FORMATS = ("int8", "int4", "int2")


@pytest.mark.parametrize("seed", range(12))
def test_several_limits_equal_exhaustive_search(seed):
    size, error, allowed = problem(seed, 4, 4, 0.5)
    rng = np.random.default_rng(100 + seed)
    more = (10.0 ** rng.uniform(6, 9, (2, *size.shape))).astype(np.int64)
    rows = np.arange(4)
    every = [c for c in map(list, itertools.product(range(4), repeat=4)) if allowed[rows, c].all()]
    totals = np.array([[t[rows, c].sum() for t in (size, *more)] for c in every])
    errors = np.array([error[rows, c].sum() for c in every])
    for share in (0.3, 0.5, 0.8, 1.0):
        bounds = np.quantile(totals, share, axis=0).astype(np.int64)
        fits = (totals <= bounds).all(axis=1)
        limits = [Limit(f"limit {k}", "units", more[k], int(bounds[k + 1])) for k in range(2)]
        if not fits.any():
            with pytest.raises(PlanError):
                solve(size, error, allowed, int(bounds[0]), limits)
            continue
        choice = solve(size, error, allowed, int(bounds[0]), limits)
        assert (np.array([t[rows, choice].sum() for t in (size, *more)]) <= bounds).all()
        assert error[rows, choice].sum() == pytest.approx(errors[fits].min(), rel=1e-9)


def test_a_limit_is_kept_to_the_last_unit():
    """Sums of billions, one unit too tight for the better choice: rounding inside the solver must not let it pass."""
    table = np.array([[2_000_000_001, 10**9], [3_000_000_000, 10**9]])
    size, error = np.ones((2, 2), np.int64), np.array([[0.0, 1.0], [0.0, 5.0]])
    allowed = np.ones((2, 2), bool)
    assert solve(size, error, allowed, 2, [Limit("x", "units", table, 5_000_000_001)]).tolist() == [0, 0]
    assert solve(size, error, allowed, 2, [Limit("x", "units", table, 5_000_000_000)]).tolist() == [1, 0]


def table_of(network, formats=FORMATS, fixed=None):
    return cost_table(network, relevance_of(network), formats, fixed or {}, 0.5)


@pytest.mark.parametrize("rule", PATHS)
@pytest.mark.parametrize("make", [plain, residual])
def test_paths_shrink_and_respect_pins(rule, make):
    network = make()
    table = table_of(network, fixed={"fc": "int4"})
    path = list(PATHS[rule](table, levels_of(table), relevance_of(network)))
    rows = np.arange(len(table.layers))
    sizes = [int(table.size[rows, c].sum()) for c in path]
    assert sizes == sorted(sizes, reverse=True)
    for choice in path:
        assert table.allowed[rows, choice].all()
        assert table.formats[choice[table.layers.index("fc")]] == "int4"
    if rule in ("memory-driven", "greedy"):
        assert {table.formats[j] for j in path[-1]} <= {"int2", "int4"}
        changes = [(a != b).sum() for a, b in itertools.pairwise(path)]
        assert set(changes) == {1}


def test_memory_driven_is_the_published_rule():
    network = residual()
    table = table_of(network)
    path = list(PATHS["memory-driven"](table, levels_of(table), None))
    bits = dict.fromkeys(table.layers, 8)
    for choice in path:
        assert [table.formats[j] for j in choice] == [f"int{bits[n]}" for n in table.layers]
        footprint = {n: table.at(n, f"int{bits[n]}")[0] for n in table.layers}
        share = {n: v / sum(footprint.values()) for n, v in footprint.items() if bits[n] > 2}
        if share:
            first = next(n for n in table.layers if n in share and share[n] >= max(share.values()) - 0.05)
            bits[first] //= 2


def test_greedy_lowers_the_least_relevant_first():
    network = residual()
    table, relevance = table_of(network), relevance_of(network)
    score = per_weight(table, relevance)
    path = list(PATHS["greedy"](table, levels_of(table), relevance))
    assert len(path) == 1 + 2 * len(table.layers)
    order = [int(np.flatnonzero(a != b)[0]) for a, b in itertools.pairwise(path)]
    assert order == [*np.argsort(score, kind="stable")] * 2


def test_quantiles_give_more_bits_to_higher_scores():
    network = residual()
    table, relevance = table_of(network), relevance_of(network)
    (choice,) = PATHS["quantile"](table, levels_of(table), relevance)
    bits = [int(table.formats[j][3:]) for j in choice]
    by_score = [bits[k] for k in np.argsort(per_weight(table, relevance))]
    assert by_score == sorted(by_score)
    assert set(bits) == {2, 4, 8}
    with pytest.raises(PlanError, match="relevance"):
        list(PATHS["quantile"](table, levels_of(table), None))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_meets_a_budget_and_the_ilp_is_best(rule):
    network = residual()
    relevance = relevance_of(network)
    # quantile has one plan only, so its own bytes are the budget
    flash = allocate(network, relevance, PlanOptions(formats=FORMATS, rule="quantile")).predicted["weight_bytes"][
        "value"
    ]
    plan = allocate(network, relevance, PlanOptions(formats=FORMATS, flash=flash, rule=rule))
    best = allocate(network, relevance, PlanOptions(formats=FORMATS, flash=flash))
    assert plan.predicted["weight_bytes"]["value"] <= flash
    table = table_of(network)
    lost = {
        p: sum(table.at(x.origin, x.weight_format)[1] for x in q.layers) for p, q in (("rule", plan), ("ilp", best))
    }
    assert lost["ilp"] <= lost["rule"] * (1 + 1e-9)
    assert plan.budget.get("rule", "ilp") == rule
    if rule != "ilp":
        assert all(f"the rule {rule}" in x.reason for x in plan.layers)
    with pytest.raises(PlanError):
        allocate(network, relevance, PlanOptions(formats=FORMATS, flash=300, rule=rule))


def test_hawq_is_mean_sensitivity_times_plain_error():
    network = residual()
    relevance = relevance_of(network)
    plan = allocate(network, relevance, PlanOptions(formats=("int4", "int2"), flash=750, rule="hawq"), weighting=0.0)
    cost = {}
    for x in network.weighted():
        weight, mean = network.params[x.name]["weight"], relevance.sensitivity[x.name].astype(np.float64).mean()
        from xdeploy.formats import FORMATS as ALL

        cost[x.name] = [mean * weighted_error(weight, *uniform_codes(weight, ALL[f])) for f in ("int4", "int2")]
    table = table_of(network, ("int4", "int2"))
    names = list(cost)
    fitting = [
        c for c in itertools.product((0, 1), repeat=len(names))
        if sum(table.at(n, ("int4", "int2")[k])[0] for n, k in zip(names, c, strict=True)) <= 750
    ]  # fmt: skip
    best = min(fitting, key=lambda c: sum(cost[n][k] for n, k in zip(names, c, strict=True)))
    assert [x.weight_format for x in plan.layers] == [("int4", "int2")[k] for k in best]
    with pytest.raises(PlanError, match="hessian-trace"):
        allocate(network, None, PlanOptions(rule="hawq"))


def test_rules_search_for_accuracy_too():
    network = plain()
    relevance = relevance_of(network)

    def evaluate(plan) -> float:
        return 90.0 if plan.predicted["weight_bytes"]["value"] >= 700 else 50.0

    for rule in ("greedy", "memory-driven", "uniform"):
        plan = allocate(network, relevance, PlanOptions(formats=FORMATS, rule=rule), evaluate, 90.0)
        table = table_of(network)
        rows = np.arange(len(table.layers))
        sizes = [int(table.size[rows, c].sum()) for c in PATHS[rule](table, levels_of(table), relevance)]
        assert plan.predicted["weight_bytes"]["value"] == min(s for s in sizes if s >= 700)
    with pytest.raises(PlanError, match="most accurate"):
        allocate(network, relevance, PlanOptions(rule="greedy"), lambda p: 50.0, 90.0)


# ------------------------------------------------------------------------------------------- further budgets
def test_operations_and_instructions_are_budgets(tmp_path):
    network = residual()
    relevance = relevance_of(network)
    macs = {x.name: network.macs(x.name) for x in network.weighted()}
    bops = 8 * 5 * sum(macs.values())
    plan = allocate(network, relevance, PlanOptions(formats=FORMATS, bops=bops))
    spent = sum(macs[x.origin] * int(x.weight_format[3:]) * 8 for x in plan.layers)
    assert spent == plan.predicted["bops"]["value"] <= bops
    assert any("would cost" in x.reason for x in plan.layers)
    # an imaginary target on which packed weights are slow: few instructions force int8
    file = tmp_path / "cost.json"
    slow = {n: {"int8": m, "int4": 1.5 * m, "int2": 1.6 * m} for n, m in macs.items()}
    file.write_text(json.dumps({"layers": slow}))
    options = PlanOptions(formats=FORMATS, instructions=sum(macs.values()), instruction_table=str(file))
    assert {x.weight_format for x in allocate(network, relevance, options).layers} == {"int8"}
    given = allocate(
        network, relevance, PlanOptions(formats=FORMATS, instructions=sum(macs.values())), instructions=slow
    )
    assert {x.weight_format for x in given.layers} == {"int8"}


def test_budgets_that_cannot_be_met_say_what_can():
    network = plain()
    relevance = relevance_of(network)
    least = 16 * sum(network.macs(x.name) for x in network.weighted())
    with pytest.raises(PlanError, match=rf"plan\.bops = 5 .*{least}"):
        allocate(network, relevance, PlanOptions(formats=FORMATS, bops=5))
    slow = {x.name: {"int8": 1, "int4": 10, "int2": 10} for x in network.weighted()}
    with pytest.raises(PlanError, match="meets all of") as caught:  # few bytes need few bits, few instructions int8
        allocate(network, relevance, PlanOptions(formats=FORMATS, instructions=4, flash=400), instructions=slow)
    assert "raise one" in caught.value.hint


def test_instruction_tables_are_checked(tmp_path):
    network = plain()
    with pytest.raises(UsageError, match="instruction_table"):
        allocate(network, None, PlanOptions(instructions=5))
    file = tmp_path / "t.json"
    for text, words in (("[", "readable JSON"), ("[]", "expected"), ('{"fc": {"int8": -1}}', "expected")):
        file.write_text(text)
        with pytest.raises(UsageError, match=words):
            allocate(network, None, PlanOptions(instructions=5, instruction_table=str(file)))
    with pytest.raises(PlanError, match="stem: its instructions in int8"):
        allocate(network, None, PlanOptions(instructions=5), instructions={})
