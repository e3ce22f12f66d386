"""Heat-maps, the agreement of two networks' heat-maps, and the sanity check by randomisation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats

from tests.compress.toynets import Builder, batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.fakequant import real_network
from xdeploy.errors import UsageError
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import CompressOptions, RecoverOptions, RelevanceOptions
from xdeploy.relevance import score
from xdeploy.relevance.agreement import agreement, compare, positions, randomisation, top_overlap
from xdeploy.relevance.heatmaps import MAPPERS, heatmaps

X, Y = task(40)


def options(**more: object) -> RelevanceOptions:
    return RelevanceOptions(**{"samples": 40, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", sorted(MAPPERS))
@pytest.mark.parametrize("target", ["label", "predicted", "difference"])
def test_heatmaps_add_up_without_biases(method, target):
    network = trained(residual(), 20)
    network = network.with_params({n: {**p, "bias": p["bias"] * 0} for n, p in network.params.items()})
    found = heatmaps(network, X, Y, options(method=method, target=target, epsilon=1e-9, steps=64))
    assert found.shape == X.shape
    assert found.dtype == np.float32
    logits = NetworkModule(network)(X).detach()
    own = torch.nn.functional.one_hot(logits.argmax(1) if target == "predicted" else Y, 4).bool()
    explained = logits[own]
    if target == "difference":
        explained = explained - (logits.masked_fill(own, -torch.inf).softmax(1) * logits).sum(1)
    # without biases an all-zero input gives zero logits, so all four methods explain the logits themselves
    missed = np.abs(found.reshape(40, -1).sum(1) - explained.numpy()).sum() / explained.abs().sum()
    assert missed < (0.02 if method == "integrated-gradients" else 1e-3)


def test_heatmaps_do_not_depend_on_company():
    network = trained(residual(), 20)
    for method in MAPPERS:
        all_of_them, alone = (heatmaps(network, X[:n], Y[:n], options(method=method)) for n in (40, 3))
        np.testing.assert_allclose(all_of_them[:3], alone, rtol=1e-3, atol=1e-5)
    assert heatmaps(network, X[:0], Y[:0], options()).shape == (0, 2, 8, 8)


def test_heatmaps_refuse_what_has_none():
    with pytest.raises(UsageError, match="allowed: deeplift, gradient"):
        heatmaps(plain(), X, Y, options(method="fisher"))
    with pytest.raises(UsageError, match=r"\(2, 4, 8\)"):
        heatmaps(plain(), X[:, :, :4], Y, options())
    with pytest.raises(UsageError, match="39 labels"):
        heatmaps(plain(), X, Y[:39], options())
    headless = plain()
    with pytest.raises(UsageError, match="class scores"):
        heatmaps(type(headless)(headless.layers[:3], headless.params), X, Y, options())


def test_compare_against_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 50)), rng.normal(size=(6, 50))
    a[:, ::3] = 0  # ties
    b[:, ::4] = 0
    found = compare(a, b)
    for k in range(6):
        assert found[k, 0] == pytest.approx(stats.pearsonr(a[k], b[k]).statistic)
        assert found[k, 1] == pytest.approx(stats.spearmanr(a[k], b[k]).statistic)
        top = set(np.argsort(-a[k])[:5]) & set(np.argsort(-b[k])[:5])
        assert found[k, 2] == len(top) / 5
    assert compare(a, np.zeros_like(a))[:, [0, 1, 3]].tolist() == [[0.0, 0.0, 1.0]] * 6
    assert top_overlap(np.eye(3), np.eye(3)[::-1]).tolist() == [0.0, 1.0, 0.0]


def test_channels_of_images_are_summed():
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    assert positions(maps).tolist() == [[12, 15, 18, 21]]
    assert positions(maps.reshape(2, 6, 1, 1)).shape == (2, 6)
    assert positions(maps.reshape(2, 6)).shape == (2, 6)


def rounded(network, bits: int):
    def grid(w: np.ndarray) -> np.ndarray:
        step = np.abs(w).max() / (2 ** (bits - 1) - 1)
        return (np.round(w / step) * step).astype(np.float32)

    return network.with_params({n: {**p, "weight": grid(p["weight"])} for n, p in network.params.items()})


@pytest.mark.parametrize("method", sorted(MAPPERS))
def test_agreement_falls_with_the_bits(method):
    network = trained(plain(), 40)
    o = options(method=method)
    same, eight, three, other = (
        agreement(network, n, batches(X, Y, 16), o)
        for n in (network, rounded(network, 8), rounded(network, 3), plain(9))
    )
    assert (same.pearson, same.spearman, same.top) == (pytest.approx(1), pytest.approx(1), 1.0)
    assert same.samples == 40
    assert same.undefined == 0
    assert 1 > eight.pearson > three.pearson > other.pearson
    assert eight.spearman > three.spearman
    assert eight.top > other.top
    assert 0 < eight.pearson_spread < three.pearson_spread
    assert json.loads(json.dumps(eight.to_dict()))["samples"] == 40


def test_agreement_explains_the_class_that_the_reference_predicts():
    network, other = trained(plain(), 40), plain(5)
    classes = NetworkModule(network)(X).argmax(1)
    predicted = agreement(network, other, batches(X, Y, 16), options(target="predicted"))
    assert predicted == agreement(network, other, batches(X, classes, 16), options())


def test_agreement_of_networks_that_cannot_be_compared():
    b = Builder((2, 8, 8))
    b.global_pool()
    b.linear("fc", 3)
    with pytest.raises(UsageError, match="same inputs"):
        agreement(plain(), b.network(), batches(X, Y), options())
    with pytest.raises(UsageError, match="at least one"):
        agreement(plain(), plain(), [], options())
    dead = plain()
    dead = dead.with_params({n: {k: v * 0 for k, v in p.items()} for n, p in dead.params.items()})
    found = agreement(plain(), dead, batches(X, Y), options())
    assert (found.undefined, found.pearson, found.spearman) == (40, 0.0, 0.0)


@pytest.mark.parametrize("method", ["lrp", "gradient", "integrated-gradients"])
def test_randomised_weights_change_the_heatmaps(method):
    """Adebayo et al. 2018: layer after layer from the output on."""
    network = trained(residual(), 60)
    before = {k: v.tobytes() for k, v in network.tensors().items()}
    found = randomisation(network, batches(X, Y, 16), options(method=method, steps=8), seed=1)
    assert {k: v.tobytes() for k, v in network.tensors().items()} == before
    assert [name for name, _ in found] == [x.name for x in reversed(network.weighted())]
    ranks = [a.spearman for _, a in found]
    assert ranks[0] < 0.9
    assert ranks[-1] < 0.3
    assert ranks[-1] < ranks[0]


def test_agreement_with_a_compressed_model_whose_channels_went():
    network = trained(plain(), 40)
    scores = score(network, batches(X, Y, 16), options(), "d")
    formats = {"stem": "int8", "dw": "int8", "mid": "int4", "fc": "int8"}
    found = []
    for keep in (None, (0, 1, 2, 5)):
        plan = CompressionPlan(tuple(PlanLine(n, f, keep=keep if n == "mid" else None) for n, f in formats.items()))
        model = compress(
            network, plan, scores, io_of(network), lambda: [X], None, lambda: batches(X, Y), CompressOptions(),
            RecoverOptions(), 0,
        )  # fmt: skip
        real = real_network(model.network, model.weights, model.activations)
        found.append(agreement(network, real, batches(X, Y, 16), options()))
    assert found[0].pearson > 0.95
    assert found[0].pearson > found[1].pearson > 0.1
