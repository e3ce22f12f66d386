"""Plans with densities through `compress`: ECQ, ECQx and pruning, with and without training, and compact integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.compact import FINEST, SIGNIFICANT, bias_shift, compact_bias, compact_scale
from xdeploy.compress.ecq import EntropyConstraint, constraint_of
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.masks import Pruning, smallest, zeros_at
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.trainable import SCALE_RANGE, TrainableModule
from xdeploy.errors import PlanError, UsageError
from xdeploy.formats import QParams
from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.top1 import accuracy
from xdeploy.quantise import best_codebook
from xdeploy.ranking import kept_count, zero_mask
from xdeploy.recipe import CompressOptions, EcqOptions, RecoverOptions

TRAIN, CHECK = task(512, seed=1), task(256, seed=2)


def sparse_plan(network: Network, density: float | None, *formats: str, **more: object) -> CompressionPlan:
    plan = plan_of(network, *formats)
    return replace(plan, layers=tuple(replace(x, density=density, **more) for x in plan.layers))


def signals(network: Network, draw: int = 0) -> RelevanceMap:
    """Scores that depend on the network and the draw, without the cost of a method."""
    weight, sensitivity, channel = {}, {}, {}
    for k, layer in enumerate(network.weighted()):
        w = network.params[layer.name]["weight"]
        rng = np.random.default_rng([draw, k])
        sensitivity[layer.name] = rng.random(w.shape).astype(np.float32) ** 3
        weight[layer.name] = np.abs(w) * sensitivity[layer.name]
        channel[layer.name] = weight[layer.name].reshape(len(w), -1).sum(axis=1)
    return RelevanceMap("made up", {}, "", 1, weight, channel, sensitivity, 0.0)


def made(network: Network, plan: CompressionPlan, epochs: int = 0, method: str = "off", **more) -> CompressedModel:
    arguments = {
        "options": CompressOptions(), "recover": RecoverOptions(epochs=epochs, lr=0.02, batch=64), "seed": 0,
        "rescore": signals, "ecq": EcqOptions(method=method, refresh=4), **more,
    }  # fmt: skip
    return compress(
        network, plan, None, io_of(network), lambda: [TRAIN[0][:128]], lambda epoch: batches(*TRAIN),
        lambda: batches(*CHECK), **arguments,
    )  # fmt: skip


def shares(model: CompressedModel) -> dict[str, float]:
    return {name: float((w.values != 0).mean()) for name, w in model.weights.items()}


@pytest.mark.parametrize("method", ["off", "ecq", "ecqx"])
@pytest.mark.parametrize("epochs", [0, 2])
def test_layers_get_the_densities_of_the_plan(method, epochs):
    network = trained(residual(), 20)
    plan = sparse_plan(network, 0.2, "int4", "c3s8")
    model = made(
        network, replace(plan, layers=(*plan.layers[:-1], replace(plan.layers[-1], density=None))), epochs, method
    )
    for name, share in shares(model).items():
        size = model.weights[name].codes.size
        if name == "fc":
            assert share > 0.5  # no density: as it comes
        elif method == "off":
            assert share <= kept_count(0.2, size) / size + 1e-9  # a weight that is kept may still round to zero
        else:
            assert abs(share - 0.2) <= 1.0 / size + 1e-9
    assert [s["step"] for s in model.steps] == ["quantise"] + (
        ["recover"] if epochs else ["reconstruct" if method == "off" else "assign", "restore"]
    )


@pytest.mark.parametrize("method", ["ecq", "ecqx", "off"])
def test_training_brings_accuracy_back_at_a_fifth_of_the_weights(method):
    network = trained(residual())
    before = accuracy(FakeQuantModule(made(network, plan_of(network, "int8"))), batches(*CHECK))[0]
    plan = sparse_plan(network, 0.2, "int4")
    once = made(network, plan, 0, method).steps[-1]["accuracy_after"]
    tuned = made(network, plan, 8, method).steps[-1]["accuracy_after"]
    assert before > 85
    assert tuned >= max(before - 4.0, once)


def test_relevance_has_a_say():
    network = trained(residual(), 20)
    plan = sparse_plan(network, 0.2, "int4")
    a, b = (made(network, plan, 0, method) for method in ("ecq", "ecqx"))
    zeros = {n: (w.values == 0, b.weights[n].values == 0) for n, w in a.weights.items()}
    assert any((x != y).any() for x, y in zeros.values())
    for x, y in zeros.values():
        assert (x & ~y).mean() <= 0.1 + 1e-9
    with pytest.raises(UsageError, match="relevance"):
        made(network, plan, 0, "ecqx", rescore=None)


def test_relevance_is_taken_of_the_quantised_network_and_averaged():
    network = trained(residual(), 5)
    module = TrainableModule(made(network, sparse_plan(network, 0.3, "int4")))
    seen: list[tuple[Network, int]] = []

    def rescore(net: Network, draw: int) -> RelevanceMap:
        seen.append((net, draw))
        return signals(net, draw)

    constraint = EntropyConstraint(module, EcqOptions("ecqx", refresh=2, memory=0.75), rescore)
    for k in range(3):
        constraint.step(k / 10)
    assert [draw for _, draw in seen] == [1, 3]
    w = module.freeze().weights["stem"]
    values = seen[1][0].params["stem"]["weight"] / w.scale[:, None, None, None]
    np.testing.assert_allclose(values, np.rint(values), atol=1e-4)
    expected = 0.75 * np.sqrt(signals(network, 1).sensitivity["stem"])
    expected += 0.25 * np.sqrt(signals(network, 3).sensitivity["stem"])
    np.testing.assert_allclose(constraint.relevance["stem"], expected, rtol=1e-5)


def test_state_of_a_constraint_is_all_of_it():
    network = trained(residual(), 5)
    start = made(network, sparse_plan(network, 0.3, "int4", "c3s8"))
    a, b = (EntropyConstraint(TrainableModule(start), EcqOptions("ecqx", refresh=3), signals) for _ in range(2))
    for k in range(4):
        a.step(k / 10)
    b.restore({name: t.clone() for name, t in a.state().items()})
    for constraint in (a, b):
        constraint.step(0.5)
    for name in a.assigners:
        assert torch.equal(a.module.layer(name).assigned, b.module.layer(name).assigned)
        assert a.assigners[name].strength == b.assigners[name].strength


@pytest.mark.parametrize("gradient", ["straight", "scaled"])
def test_gradients_of_background_weights(gradient):
    network = trained(plain(), 5)
    module = TrainableModule(made(network, sparse_plan(network, 0.3, "int4")))
    constraint = EntropyConstraint(module, EcqOptions("ecq", gradient=gradient), None)
    constraint.settle()
    layer = module.layer("mid")
    value = layer.rounded()[0]
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    (value * direction).sum().backward()
    constraint.gradients()
    level = value.detach().abs()
    factor = torch.where(level > 0, level, torch.ones(())) if gradient == "scaled" else torch.ones_like(level)
    inside = layer.units().detach().abs() < 7
    torch.testing.assert_close(layer.weight.grad[inside], (factor * direction)[inside])
    # the scale learns from levels alone: round(u) - u where there is a level, nothing where zero was chosen
    unit = layer.units().detach().clamp(-7, 7)
    expected = torch.where(layer.assigned != 0, layer.assigned - torch.where(inside, unit, 0.0), 0.0) * direction
    torch.testing.assert_close(layer.scale.grad, expected.flatten(1).sum(1), rtol=1e-3, atol=1e-3)


def test_zero_stays_an_entry_while_entries_learn():
    network = trained(residual(), 20)
    for method in ("off", "ecq"):
        model = made(network, sparse_plan(network, 0.3, "c2s8"), 2, method, recover=RecoverOptions(epochs=2, lr=0.3))
        assert all((w.codebook == 0).any() for w in model.weights.values())


def test_pinned_codebook_is_the_best_with_a_zero():
    rng = np.random.default_rng(3)
    unit, h = rng.normal(40, 12, 400).clip(-127, 127), rng.random(400)
    free, pinned = best_codebook(unit, h, 3), best_codebook(unit, h, 3, zero=True)
    assert 0 not in free
    assert 0 in pinned

    def error(book: np.ndarray) -> float:
        return float((h * np.abs(unit[:, None] - book.astype(float)).min(axis=1) ** 2).sum())

    others = [np.array([0, a, b]) for a in range(15, 60, 3) for b in range(a + 3, 90, 3)]
    assert error(pinned) <= min(map(error, others)) + 1e-9


# ------------------------------------------------------------------------------------------------------ pruning
def test_pruned_weights_stay_zero_and_grow_with_the_cube():
    assert zeros_at(0.1, 0.9, 0.0, 0.5) == pytest.approx(0.1)
    assert zeros_at(0.1, 0.9, 0.25, 0.5) == pytest.approx(0.1 + 0.8 * (1 - 0.5**3))
    assert zeros_at(0.1, 0.9, 0.7, 0.5) == zeros_at(0.1, 0.9, 0.0, 0.0) == pytest.approx(0.9)
    network = trained(residual(), 5)
    start = made(network, sparse_plan(network, 0.2, "int4"), options=CompressOptions(reconstruct=False))
    module = TrainableModule(start)
    pruning = Pruning(module, 0.5)
    weight = module.layer("b").weight
    before = torch.zeros_like(weight, dtype=torch.bool)
    for done in (0.1, 0.3, 0.5, 0.9):
        pruning.step(done)
        zero = weight.detach() == 0
        assert int(zero.sum()) == round(zeros_at(0, weight.numel() - kept_count(0.2, weight.numel()), done, 0.5))
        assert (zero | ~before).all()
        before = zero
        weight.grad = torch.ones_like(weight)
        pruning.gradients()
        assert torch.equal(weight.grad == 0, zero)
        with torch.no_grad():
            weight.add_(0.01)  # momentum moves zeros too; the next step sets them back


@pytest.mark.parametrize("zeros", ["relevance", "relevance/row", "magnitude/row"])
def test_plans_say_what_goes_first(zeros):
    network = trained(residual(), 5)
    plan, relevance = sparse_plan(network, 0.25, "int8", zeros=zeros), signals(network)
    model = replace(made(network, plan_of(network, "int8")), plan=plan)
    if "relevance" in zeros:
        with pytest.raises(UsageError, match="relevance"):
            Pruning(TrainableModule(model), 0.0)
    pruning = Pruning(TrainableModule(model), 0.0, relevance)
    pruning.settle()
    for name, w in network.params.items():
        score = relevance.weight[name] if "relevance" in zeros else np.abs(w["weight"])
        size = w["weight"].size
        mask = zero_mask(score, size - kept_count(0.25, size), "row" if "row" in zeros else "layer")
        np.testing.assert_array_equal(pruning.module.layer(name).weight.detach().numpy() == 0, mask)


def test_fast_mask_is_the_exact_one():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, (7, 9)).astype(float)
    for count in range(64):
        np.testing.assert_array_equal(smallest(score, count), zero_mask(score, count))


def test_without_density_and_ecq_nothing_decides():
    network = plain()
    module = TrainableModule(made(network, plan_of(network, "int4")))
    assert constraint_of(module, EcqOptions(), None) is None
    assert isinstance(constraint_of(module, EcqOptions("ecq"), None), EntropyConstraint)
    assert EntropyConstraint(module, EcqOptions("ecq"), None).assigners == {}


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan"), "half", True])
def test_impossible_densities_are_refused(density):
    with pytest.raises(PlanError, match="density must be"):
        made(plain(), sparse_plan(plain(), density, "int4"))


# ----------------------------------------------------------------------------------------------- compact integers
def test_compact_scales_have_few_bits():
    scale = np.geomspace(1e-9, 3e4, 1001).astype(np.float32)
    for up in (False, True):
        found = compact_scale(scale, up)
        mantissa = np.frexp(found.astype(np.float64))[0] * 2**SIGNIFICANT
        np.testing.assert_array_equal(mantissa, np.rint(mantissa))
        assert (found >= scale).all() or not up
        assert np.abs(found / scale - 1).max() <= 2.0 ** (-SIGNIFICANT if not up else 1 - SIGNIFICANT)
        np.testing.assert_array_equal(compact_scale(found, up), found)


def test_compact_biases_are_a_sixteenth_of_a_code_off_at_most():
    rng = np.random.default_rng(0)
    scale = np.geomspace(1e-7, 1.0, 300).astype(np.float32)
    source, out = QParams(0.02, 3), QParams(0.05, -4)
    bias = rng.integers(-(2**20), 2**20, 300).astype(np.int32)
    shift = bias_shift(source, scale, out)
    codes = source.scale * scale.astype(np.float64) / out.scale  # of one of a bias
    found = compact_bias(bias, shift)
    assert (np.abs(found - bias.astype(float)) * codes)[shift > 0].max() <= 0.5 / FINEST
    assert (found % (1 << shift) == 0).all()
    finer = (2.0 ** (shift + 1) * codes)[(shift > 0) & (shift < 29)]
    assert (finer * FINEST > 1).all()  # one bit more would be too coarse
    np.testing.assert_array_equal(found[shift == 0], bias[shift == 0])


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("scale", ["channel", "tensor"])
def test_integers_keep_to_their_rules(epochs, scale):
    network = trained(residual(), 20)
    options = CompressOptions(compact=True, scale=scale)
    model = made(network, plan_of(network, "int4", "c3s8", "int8"), epochs, options=options)
    shifts = []
    for name, w in model.weights.items():
        assert len(np.unique(w.scale)) == 1 or scale == "channel"
        np.testing.assert_array_equal(compact_scale(w.scale), w.scale)
        fused = network.fused_activation(name)
        out = model.activations[name if fused is None else fused.name]
        shift = bias_shift(model.activations[network[name].inputs[0]], w.scale, out)
        assert (w.bias % (1 << shift) == 0).all()
        shifts.append(shift.max())
    assert max(shifts) > 0
    module = TrainableModule(model, replace(TrainableModule(model).rules, compact=True, tensor=scale == "tensor"))
    x = CHECK[0][:32]
    with torch.no_grad():
        torch.testing.assert_close(module(x), FakeQuantModule(module.freeze())(x), rtol=0, atol=0)
    layer = module.layer("stem")
    with torch.no_grad():
        layer.scale.mul_(10.0)
    layer.bound()
    np.testing.assert_allclose(layer.scales().detach(), model.weights["stem"].scale * SCALE_RANGE, rtol=1e-6)


def test_compact_is_on_for_sparse_plans_only():
    network = trained(residual(), 5)
    dense, sparse = made(network, plan_of(network, "int4")), made(network, sparse_plan(network, 0.5, "int4"))
    ecq = made(network, plan_of(network, "int4"), 0, "ecq")
    is_compact = [
        all((compact_scale(w.scale) == w.scale).all() for w in m.weights.values()) for m in (dense, sparse, ecq)
    ]
    assert is_compact == [False, True, True]
    off = made(network, sparse_plan(network, 0.5, "int4"), options=CompressOptions(compact=False))
    assert not all((compact_scale(w.scale) == w.scale).all() for w in off.weights.values())
