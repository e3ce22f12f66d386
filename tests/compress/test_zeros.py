"""Masks as plan lines ask for them, and what becomes of them in the integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.compress.test_compress import compressed, plan_of
from tests.compress.test_prune import numbered
from tests.compress.toynets import io_of, plain, residual, task
from xdeploy.compress.apply import compress
from xdeploy.compress.zeros import masks, with_zeros
from xdeploy.errors import PlanError, UsageError
from xdeploy.handover import CompressionPlan
from xdeploy.recipe import CompressOptions, RecoverOptions


def sparse_plan(network, density: float, zeros: str | None = None, *formats: str) -> CompressionPlan:
    lines = plan_of(network, *(formats or ("int8",))).layers
    return CompressionPlan(tuple(replace(x, density=density, zeros=zeros) for x in lines))


@pytest.mark.parametrize("order", [None, "magnitude", "magnitude/row", "relevance", "negative-first/row", "lamp"])
def test_masks_have_the_density_and_the_order(order):
    network = plain()
    relevance = numbered(network)
    found = masks(network, sparse_plan(network, 0.25, order), relevance)
    for name, mask in found.items():
        weight = network.params[name]["weight"]
        by_size = order is None or order.startswith(("magnitude", "lamp"))
        score = np.abs(weight) if by_size else relevance.weight[name]
        rows = [(score, mask)] if "/row" not in (order or "") else list(zip(score, mask, strict=True))
        assert weight.size - mask.sum() == int(0.25 * weight.size + 0.5)
        for part, gone in rows:
            assert part[gone].max(initial=-np.inf) <= part[~gone].min(initial=np.inf)
    small = with_zeros(network, found)
    for name, mask in found.items():
        np.testing.assert_array_equal(small.params[name]["weight"] == 0, mask)
        np.testing.assert_array_equal(small.params[name]["weight"][~mask], network.params[name]["weight"][~mask])
        assert small.params[name]["bias"] is network.params[name]["bias"]


def test_without_densities_nothing_changes():
    network = plain()
    assert masks(network, plan_of(network, "int8"), None) == {}
    assert with_zeros(network, {}) is network


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("formats", [("int8",), ("c2s8", "int4"), ("c1s8", "c4s8")])
def test_masked_weights_are_zero_codes(make, formats):
    network = make()
    relevance = numbered(network)
    plan = sparse_plan(network, 0.4, "relevance", *formats)
    x, _ = task(32)
    model = compress(
        network, plan, relevance, io_of(network), lambda: [x], None, None, CompressOptions(), RecoverOptions(), 0
    )
    for name, mask in masks(network, plan, relevance).items():
        assert (model.weights[name].values[mask] == 0).all()


def test_lines_that_cannot_be_honoured_are_refused():
    network = plain()
    with pytest.raises(PlanError, match="nosuch"):
        masks(network, sparse_plan(network, 0.5, "nosuch"), None)
    with pytest.raises(PlanError, match="magnitude/column"):
        masks(network, sparse_plan(network, 0.5, "magnitude/column"), None)
    with pytest.raises(UsageError, match="needs relevance"):
        masks(network, sparse_plan(network, 0.5, "relevance"), None)
    lines = tuple(replace(x, zeros="magnitude") for x in plan_of(network, "int8").layers)
    for plan, words in (
        (sparse_plan(network, 1.5), "density"),
        (sparse_plan(network, [0.5]), "density"),
        (sparse_plan(network, 0.5, 3), "no order"),
        (CompressionPlan(lines), "without a density"),
    ):
        with pytest.raises(PlanError, match=words):
            compress(network, plan, None, io_of(network), list, None, None, CompressOptions(), RecoverOptions(), 0)


def test_dense_models_are_what_they_were():
    a, b = compressed(plain(), "c3s8", "int4"), compressed(plain(), "c3s8", "int4")
    for name, w in a.weights.items():
        np.testing.assert_array_equal(w.codes, b.weights[name].codes)
