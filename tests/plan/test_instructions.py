"""plan.instructions: the table comes by itself, counted in the emulator, and sums to what the built code takes."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from tests.compress.toynets import io_of, plain, task
from tests.e2e.files import blobs, float_onnx
from tests.plan.test_allocate import relevance_of
from xdeploy.cli import main
from xdeploy.commands.options import count
from xdeploy.errors import PlanError
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.plan.allocate import allocate
from xdeploy.plan.cost import cost_table
from xdeploy.plan.device import OTHERS
from xdeploy.plan.limits import limits_of
from xdeploy.plan.solver import Limit, solve
from xdeploy.recipe import PlanOptions, Recipe
from xdeploy.request import Request, Silent, stage_keys
from xdeploy.target import load_target
from xdeploy.trial.device import TargetDevice
from xdeploy.trial.lowered import Lowering

FORMATS = ("int8", "int4")


class Counted:
    """A device of which every layer's instructions are known: MACs, more for fewer bits; 1,000 besides."""

    def __init__(self) -> None:
        self.asked = 0

    def arena(self, network, plan, relevance, ram):
        raise AssertionError("nobody asked")

    def instructions(self, network, plan, relevance):
        self.asked += 1
        more = {"int8": 1.0, "int4": 1.3}
        return {x.origin: round(more[x.weight_format] * network.macs(x.origin)) for x in plan.layers} | {OTHERS: 1000}


def test_the_plan_is_the_best_of_all_that_keep_the_limit():
    network, relevance, device = plain(), relevance_of(plain()), Counted()
    table = cost_table(network, relevance, FORMATS, {}, 0.5)
    macs = np.array([network.macs(n) for n in table.layers])
    cost = np.stack([np.round(macs * k) for k in (1.0, 1.3)], axis=1)
    rows = np.arange(len(table.layers))
    every = [np.array(c) for c in itertools.product(range(2), repeat=len(table.layers))]
    most = int(table.size[:, :2].max(axis=1).sum())
    for share in (0.1, 0.5, 0.9):
        low, high = cost.min(axis=1).sum(), cost.max(axis=1).sum()
        options = PlanOptions(
            formats=FORMATS, instructions=int(1000 + low + share * (high - low)), flash=most * 7 // 10
        )
        fits = [
            c for c in every
            if 1000 + cost[rows, c].sum() <= options.instructions and table.size[rows, c].sum() <= options.flash
        ]  # fmt: skip
        if not fits:
            with pytest.raises(PlanError):
                allocate(network, relevance, options, device=device)
            continue
        plan = allocate(network, relevance, options, device=device)
        assert plan.predicted["distortion"]["value"] == pytest.approx(
            min(table.distortion[rows, c].sum() for c in fits), rel=1e-9
        )
        found = 1000 + sum(cost[i, FORMATS.index(x.weight_format)] for i, x in enumerate(plan.layers))
        assert plan.predicted["instructions"]["value"] == found
    with pytest.raises(PlanError, match=f"the least with these formats is {1000 + macs.sum()}"):
        allocate(network, relevance, PlanOptions(formats=FORMATS, instructions=900), device=device)


def test_each_format_is_counted_once_and_a_table_that_is_given_goes_first(tmp_path):
    network, relevance, device = plain(), relevance_of(plain()), Counted()
    allocate(network, relevance, PlanOptions(formats=FORMATS, instructions=10**9), device=device)
    assert device.asked == 2
    file = tmp_path / "t.json"
    file.write_text(json.dumps({x.name: dict.fromkeys(FORMATS, 1) for x in network.weighted()} | {"": {"": 50}}))
    options = PlanOptions(formats=FORMATS, instructions=10**9, instruction_table=str(file))
    plan = allocate(network, relevance, options, device=device)
    assert device.asked == 2
    assert plan.predicted["instructions"]["value"] == 50 + len(network.weighted())
    table = cost_table(network, relevance, FORMATS, {}, 0.5)
    assert limits_of(options, table)[0].base == 50


def test_the_base_of_a_limit_counts():
    size, error, allowed = np.ones((1, 2), np.int64), np.array([[0.0, 1.0]]), np.ones((1, 2), bool)
    table = np.array([[5, 3]])
    assert solve(size, error, allowed, 9, [Limit("x", "u", table, 15, 10)]).tolist() == [0]
    assert solve(size, error, allowed, 9, [Limit("x", "u", table, 14, 10)]).tolist() == [1]
    with pytest.raises(PlanError, match="the least with these formats is 13"):
        solve(size, error, allowed, 9, [Limit("x", "u", table, 12, 10)])


@pytest.fixture
def device(tmp_path, monkeypatch):
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path / "cache"))
    network, recipe = plain(), Recipe()
    lowering = Lowering(network, io_of(network), lambda: [task(16)[0]], recipe.compress)
    return TargetDevice(lowering, [load_target("x86-64"), load_target("cortex-m4")], recipe, Silent())


def test_layers_count_the_same_alone_and_together(device):
    """A table of uniform columns can be summed for any mixture; the second time nothing is measured."""
    network = device.lowering.network
    names = [x.name for x in network.weighted()]
    columns = [
        device.instructions(network, CompressionPlan(tuple(PlanLine(n, f) for n in names)), None) for f in FORMATS
    ]
    mixed = CompressionPlan(tuple(PlanLine(n, FORMATS[i % 2]) for i, n in enumerate(names)))
    told = []
    device.progress = lambda what, done, total: told.append((what, done, total))
    found = device.instructions(network, mixed, None)
    assert found == {n: columns[i % 2][n] for i, n in enumerate(names)} | {OTHERS: columns[0][OTHERS]}
    assert told[0][0] == "count instructions"
    assert told[0][1] == told[0][2]  # all were in the cache
    assert min(found[n] for n in names) > 0
    host = TargetDevice(device.lowering, [load_target("x86-64")], Recipe(), Silent())
    with pytest.raises(PlanError, match="cannot be counted on x86-64"):
        host.instructions(network, mixed, None)


@pytest.mark.slow
def test_the_built_code_executes_what_the_plan_predicts(tmp_path, capsys):
    float_onnx(tmp_path / "net.onnx", 0)
    blobs(tmp_path / "data.npz", 0)
    where = ["--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out"), "--quiet", "--target", "cortex-m4"]
    limits = ["--instructions", "1G", "--formats", "int8,int4", "--bops", "10G", "--coded", "1M"]
    samples = ["--set", "relevance.samples=32", "--set", "plan.max_drop=100"]
    assert main(["compile", str(tmp_path / "net.onnx"), *where, *limits, *samples]) == 0
    plan = CompressionPlan.load(tmp_path / "out" / "plan.json")
    bench = json.loads((tmp_path / "out" / "cortex-m4" / "bench.json").read_text())
    built = bench["quantities"]["instructions"]["value"]
    assert plan.predicted["instructions"]["value"] == pytest.approx(built, rel=0.05)
    assert plan.predicted["instructions"]["value"] < built  # what calls the kernels comes on top
    least = ["--instructions", "10", "--formats", "int8,int4"]
    assert main(["plan", str(tmp_path / "net.onnx"), *where, *least, *samples]) == 4
    assert "the least with these formats is" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "net.onnx"), *where, "--instructions", "many"]) == 2
    assert "20M" in capsys.readouterr().err


def test_targets_and_tables_are_part_of_the_plans_key(tmp_path):
    def key(settings, *targets: str) -> str:
        return stage_keys(Request(recipe=Recipe().with_options(settings)), [load_target(t) for t in targets])["plan"]

    assert key({}, "cortex-m4") == key({}, "cortex-m7")
    for settings in ({"plan.ram": 9000}, {"plan.instructions": 9}):
        assert key(settings, "cortex-m4") != key(settings, "cortex-m7")
        assert key(settings, "cortex-m4") != key(settings | {"build.stream": "off"}, "cortex-m4")
    file = tmp_path / "t.json"
    settings = {"plan.instructions": 9, "plan.instruction_table": str(file)}
    file.write_text("{}")
    before = key(settings, "cortex-m4")
    file.write_text("[]")
    assert key(settings, "cortex-m4") != before


@pytest.mark.parametrize(("text", "value"), [("20000000", 20_000_000), ("20M", 20_000_000), ("1.5g", 1_500_000_000)])
def test_counts_are_decimal(text, value):
    assert count(text) == value
