"""Fine-tuning improves a small network, keeps what was promised, and repeats exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.codebook import move_entries, reassign
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.trainable import SCALE_RANGE, TrainableModule
from xdeploy.errors import UsageError
from xdeploy.model.network import Layer, Network
from xdeploy.recipe import CompressOptions, RecoverOptions

TRAIN, CHECK = task(512, seed=1), task(256, seed=2)


def recovered(network: Network, formats: tuple[str, ...], epochs: int = 3, validation: bool = True) -> CompressedModel:
    options = RecoverOptions(epochs=epochs, lr=0.02, batch=64)
    return compress(
        network, plan_of(network, *formats), None, io_of(network), lambda: [TRAIN[0][:128]],
        lambda epoch: batches(*TRAIN), (lambda: batches(*CHECK)) if validation else None,
        CompressOptions(), options, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("formats", [("int2",), ("c1s8",)])
@pytest.mark.parametrize("softmax", [False, True])
def test_training_recovers_accuracy(formats, softmax):
    network = trained(residual())
    if softmax:
        last = network.output
        network = Network((*network.layers, Layer("soft", "softmax", (last.name,), last.shape)), network.params)
    model = recovered(network, formats)
    quantised, after = model.steps
    assert (quantised["step"], after["step"]) == ("quantise", "recover")
    lost = quantised["accuracy_before"] - quantised["accuracy_after"]
    assert after["accuracy_after"] >= quantised["accuracy_after"] + (0.4 * lost if lost > 5 else 0)
    assert {n: w.format_name for n, w in model.weights.items()} == {
        x.origin: x.weight_format for x in model.plan.layers
    }


def test_two_runs_give_the_same_bytes(tmp_path):
    network = trained(residual(), 20)
    for folder in ("a", "b"):
        recovered(network, ("int3", "c2s8"), epochs=2).save(tmp_path / folder)
    for file in ("compressed.safetensors", "compressed.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_frozen_model_computes_what_training_saw():
    network = trained(residual(), 20)
    model = recovered(network, ("int3", "c2s8"), epochs=1, validation=False)
    assert model.steps == ()
    module = TrainableModule(model)
    frozen = module.freeze()
    for name, w in frozen.weights.items():
        np.testing.assert_array_equal(w.codes, model.weights[name].codes)
        np.testing.assert_array_equal(w.bias, model.weights[name].bias)
        np.testing.assert_array_equal(w.scale, model.weights[name].scale)
    x = CHECK[0][:32]
    with torch.no_grad():
        torch.testing.assert_close(module(x), FakeQuantModule(model)(x), rtol=0, atol=model.io.output_q.scale * 1.01)


def test_scales_stay_in_their_range_and_learn():
    network = trained(plain(), 20)
    start = recovered(network, ("int3",), epochs=0)
    module = TrainableModule(start)
    module(CHECK[0]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.scales)
    with torch.no_grad():
        module.scales[0].mul_(10.0)
    module.bound_scales()
    np.testing.assert_allclose(module.scales[0].detach(), start.weights["stem"].scale * SCALE_RANGE, rtol=1e-6)


def test_scale_gradient_is_that_of_learned_step_size():
    start = recovered(trained(plain(), 5), ("int3",), epochs=0)
    module = TrainableModule(start)
    weight, _ = module.layer_parameters("mid", module.inner.modules_by_name["mid"])
    weight.sum().backward()
    w, s = start.network.params["mid"]["weight"], start.weights["mid"].scale[:, None, None, None]
    expected = np.where(np.abs(w / s) < 3, np.rint(w / s) - w / s, np.sign(w) * 3).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(module.scale("mid").grad, expected, rtol=1e-4, atol=1e-4)


def test_lloyd_step_never_raises_the_error_by_more_than_rounding():
    rng = np.random.default_rng(0)
    weight, h = rng.normal(size=(6, 30)).astype(np.float32), rng.gamma(1.0, size=(6, 30))
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    book = np.array([-90, -20, 30, 100], np.int8)

    def error(entries: np.ndarray) -> float:
        codes = reassign(weight, entries, scale)
        return float((h * (weight - entries[codes] * scale[:, None]) ** 2).sum())

    start = error(book)
    for _ in range(5):
        book = move_entries(weight, reassign(weight, book, scale), book, scale, h)
    assert error(book) < 0.9 * start
    assert (np.diff(book.astype(int)) >= 0).all()


def test_missing_training_data_is_refused():
    network = plain()
    arguments = (network, plan_of(network, "int8"), None, io_of(network), lambda: [TRAIN[0][:64]])
    with pytest.raises(UsageError, match="training data"):
        compress(*arguments, None, None, CompressOptions(), RecoverOptions(epochs=1), 0)
    with pytest.raises(UsageError, match="got none"):
        compress(*arguments, lambda epoch: [], None, CompressOptions(), RecoverOptions(epochs=1), 0)
