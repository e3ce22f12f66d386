"""Codes chosen for a layer's outputs: the rule derived a second way, what stays as it was, what it buys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.compress.test_compress import plan_of
from tests.compress.toynets import Builder, batches, io_of, plain, residual, task, trained
from tests.conftest import seed
from xdeploy.compress import reconstruct as module
from xdeploy.compress.apply import compress
from xdeploy.compress.compact import PLAIN, Rules, bias_shift, compact_bias
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.reconstruct import DAMPING, POSITIONS, reconstruct, rounded, windows
from xdeploy.compress.trainable import TrainableModule
from xdeploy.compress.zeros import masks
from xdeploy.errors import UnsupportedError, UsageError
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.model.torchmodule import Dense, NetworkModule
from xdeploy.recipe import CompressOptions, Recipe, RecoverOptions

TRAIN, CHECK = task(512, seed=1), task(256, seed=2)


def made(network, plan, rebuilt, restored=False, recover=None):
    options = CompressOptions(restore=restored, reconstruct=rebuilt)
    return compress(
        network, plan, None, io_of(network), lambda: [TRAIN[0]], lambda epoch: batches(*TRAIN),
        lambda: batches(*CHECK), options, recover or RecoverOptions(), 0,
    )  # fmt: skip


def apart(network, model):
    """Mean square of the logits' differences from the float network's."""
    with torch.no_grad():
        return float((NetworkModule(network).eval()(CHECK[0]) - FakeQuantModule(model)(CHECK[0])).square().mean())


def one_by_one(weight, covariance, values, zero):
    """What `rounded` does, by definition: with some errors fixed, the other weights go where the output errs least."""
    spread = covariance + DAMPING * np.diag(covariance).mean() * np.eye(len(covariance))
    order, index = np.argsort(-np.diag(covariance), kind="stable"), np.zeros(weight.shape, int)
    for row, w in enumerate(weight):
        done, errors = [int(k) for k in np.flatnonzero(zero[row])], [-w[k] for k in np.flatnonzero(zero[row])]
        for k in (k for k in order if not zero[row, k]):
            moved = w[k]
            if done:
                rest = [j for j in order if j not in done]
                right = -spread[np.ix_(rest, done)] @ np.array(errors)
                moved = w[k] + np.linalg.solve(spread[np.ix_(rest, rest)], right)[0]
            index[row, k] = np.abs(values - moved).argmin()
            done.append(k)
            errors.append(values[index[row, k]] - w[k])
    return index


@pytest.mark.parametrize("size", [1, 7, 90])  # more than a block, too
def test_it_is_what_its_definition_says(size):
    rng = np.random.default_rng([seed(), size])
    samples = rng.normal(size=(300, size)) @ rng.normal(size=(size, size))
    covariance, values = samples.T @ samples / 300, np.sort(rng.normal(size=5))
    weight, zero = rng.normal(size=(3, size)), rng.random((3, size)) < 0.3
    expected = one_by_one(weight, covariance, values, zero)
    found = rounded(weight, covariance, values, zero)
    np.testing.assert_array_equal(np.where(zero, 0, found), expected)


def test_zeros_of_large_layers_are_taken_like_codes(monkeypatch):
    """One inverse for all rows then: worse than one for each, and better than none."""
    rng = np.random.default_rng(seed())
    samples = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 90)) + 0.1 * rng.normal(size=(500, 90))
    covariance, values, weight = samples.T @ samples / 500, np.arange(-3.0, 4), rng.normal(size=(20, 90))
    zero = np.abs(weight) < 0.5

    def error(index):
        d = np.where(zero, 0.0, values[index]) - weight
        return np.einsum("ok,kl,ol->", d, covariance, d)

    own, near = rounded(weight, covariance, values, zero), np.abs(weight[:, :, None] - values).argmin(2)
    monkeypatch.setattr(module, "STEPS", 1000.0)
    shared = rounded(weight, covariance, values, zero)
    assert error(own) < error(shared) < error(near)


def test_inputs_that_do_not_go_together_leave_nearness():
    rng = np.random.default_rng(seed())
    weight, values = rng.normal(size=(9, 70)), np.array([-1.0, -0.25, 0.5, 2.0])
    found = rounded(weight, np.diag(rng.random(70)), values, np.zeros(weight.shape, bool))
    np.testing.assert_array_equal(found, np.abs(weight[:, :, None] - values).argmin(2))
    still = rounded(weight, np.zeros((70, 70)), values, np.zeros(weight.shape, bool))
    np.testing.assert_array_equal(still, found)


def test_outputs_err_less_than_with_the_nearest():
    rng = np.random.default_rng(seed())
    samples = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 30)) + 0.1 * rng.normal(size=(500, 30))
    covariance, values, weight = samples.T @ samples / 500, np.arange(-3.0, 4), rng.normal(size=(40, 30))
    near = values[np.abs(weight[:, :, None] - values).argmin(2)]
    ours = values[rounded(weight, covariance, values, np.zeros(weight.shape, bool))]
    before, after = (np.einsum("ok,kl,ol->", d, covariance, d) for d in (near - weight, ours - weight))
    assert after < 0.3 * before


@pytest.mark.parametrize(("groups", "stride", "dilation", "pads"), [
    (1, 1, 1, (1, 1, 1, 1)), (2, 2, 1, (0, 1, 2, 0)), (4, 1, 2, (2, 2, 2, 2)),
])  # fmt: skip
def test_windows_are_what_a_convolution_multiplies(groups, stride, dilation, pads):
    b = Builder((4, 9, 7))
    b.conv("c", 8, 3, stride, pads, groups, dilation)
    conv = NetworkModule(b.network()).modules_by_name["c"]
    x = torch.randn(5, 4, 9, 7)
    top, left, bottom, right = pads
    unfolded = F.unfold(F.pad(x, (left, right, top, bottom)), 3, dilation, 0, stride)
    parts = unfolded.reshape(5, groups, -1, unfolded.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
    torch.testing.assert_close(torch.cat(list(windows(conv, x)), 1), parts, atol=0, rtol=0)
    many = torch.cat(list(windows(conv, x.repeat(2000, 1, 1, 1))), 1)
    assert 0.4 * POSITIONS < many.shape[1] <= POSITIONS


def test_windows_of_a_linear_layer_are_its_inputs():
    x = torch.randn(9, 5)
    (found,) = windows(Dense(torch.ones(2, 5), torch.ones(2)), x)
    torch.testing.assert_close(found, x[None], atol=0, rtol=0)


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("formats", [("int3",), ("int4", "c2s8"), ("int2",)])
def test_logits_come_closer_and_the_rest_stays(make, formats):
    network = trained(make())
    before, after = (made(network, plan_of(network, *formats), rebuilt) for rebuilt in (False, True))
    assert [s["step"] for s in after.steps] == ["quantise", "reconstruct"]
    assert apart(network, after) < apart(network, before)
    for name, old in before.weights.items():
        new = after.weights[name]
        assert (new.format_name, new.packed_bytes) == (old.format_name, old.packed_bytes)
        np.testing.assert_array_equal(new.scale, old.scale)
        assert new.codebook is old.codebook or (new.codebook == old.codebook).all()
        assert np.abs(new.values.astype(int)).max() <= new.format.limit


@pytest.mark.parametrize("restored", [False, True])
def test_training_can_begin_with_it(restored):
    """The float weights round to the codes; training keeps them, and what it begins with is not lost."""
    network = trained(plain())
    plan = plan_of(network, "int3", "c2s8")
    model = made(network, plan, True, restored, RecoverOptions(epochs=1, lr=1e-6))
    assert model.steps[-1]["accuracy_after"] >= model.steps[-1]["accuracy_before"]
    begun = made(network, plan, True)
    layers = TrainableModule(begun)
    for name, w in begun.weights.items():
        np.testing.assert_array_equal(layers.layer(name).codes().numpy(), w.codes)
    with torch.no_grad():
        torch.testing.assert_close(layers(CHECK[0]), FakeQuantModule(begun)(CHECK[0]))


def test_zeros_of_the_plan_stay_and_the_others_make_up_for_them():
    network = trained(plain())
    plan = CompressionPlan(tuple(PlanLine(x.name, "int4", density=0.5) for x in network.weighted()))
    before, after = (made(network, plan, rebuilt) for rebuilt in (False, True))
    zeros = masks(network, plan, None)
    for name, old in before.weights.items():
        zero = zeros[name]
        assert zero.sum() == zero.size // 2
        assert (old.codes[zero] == 0).all()
        assert (after.weights[name].codes[zero] == 0).all()
    assert apart(network, after) < apart(network, before)


def test_same_inputs_same_bytes_and_nothing_else_changes():
    network = trained(plain(), 20)
    base = made(network, plan_of(network, "int3"), False)
    kept = {n: (w.codes.copy(), base.network.params[n]["weight"].copy()) for n, w in base.weights.items()}
    first, second = (reconstruct(base, iter([TRAIN[0][:100], TRAIN[0][100:]]), PLAIN, {}) for _ in range(2))
    for name, (codes, weight) in kept.items():
        np.testing.assert_array_equal(base.weights[name].codes, codes)
        np.testing.assert_array_equal(base.network.params[name]["weight"], weight)
        np.testing.assert_array_equal(first.weights[name].codes, second.weights[name].codes)
        np.testing.assert_array_equal(first.weights[name].bias, second.weights[name].bias)
    assert any((first.weights[n].codes != c).any() for n, (c, _) in kept.items())


def test_biases_keep_to_their_rules():
    network = trained(plain(), 20)
    base = made(network, plan_of(network, "int4"), False)
    found = reconstruct(base, [TRAIN[0]], Rules(compact=True), {})
    for name, w in found.weights.items():
        source, out = (found.activations[n] for n in (network[name].inputs[0], network.quantised(name)))
        np.testing.assert_array_equal(compact_bias(w.bias, bias_shift(source, w.scale, out)), w.bias)


def test_no_more_samples_are_taken_than_memory_allows(monkeypatch):
    network = trained(plain(), 20)
    base = made(network, plan_of(network, "int3"), False)
    monkeypatch.setattr(module, "VALUES", 70 * max(int(np.prod(x.shape)) for x in network.layers))

    def inputs():
        yield TRAIN[0][:50]
        yield TRAIN[0][50:100]
        raise AssertionError("more than 70 samples")

    found, same = (reconstruct(base, x, PLAIN, {}) for x in (inputs(), [TRAIN[0][:70]]))
    for name, w in found.weights.items():
        np.testing.assert_array_equal(w.codes, same.weights[name].codes)


def test_ecq_chooses_codes_itself():
    with pytest.raises(UsageError, match=r"'compress.reconstruct' and 'ecq.method' = 'ecqx': both"):
        Recipe().with_options({"compress.reconstruct": True, "ecq.method": "ecqx"})


def test_a_layer_that_would_overflow_keeps_its_codes(monkeypatch):
    network = trained(plain(), 20)
    base = made(network, plan_of(network, "int3"), False)

    def refuse(values, bias, shift, origin):
        if origin == "mid":
            raise UnsupportedError("mid: too large")

    monkeypatch.setattr(module, "prove_accumulator", refuse)
    found = reconstruct(base, [TRAIN[0]], PLAIN, {})
    assert found.weights["mid"] is base.weights["mid"]
    assert (found.weights["stem"].codes != base.weights["stem"].codes).any()
