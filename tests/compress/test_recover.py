"""Fine-tuning improves a small network, keeps what was promised, and repeats exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.toynets import batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import compress
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
    quantised, _, restored, after = model.steps
    assert [x["step"] for x in model.steps] == ["quantise", "reconstruct", "restore", "recover"]
    lost = quantised["accuracy_before"] - restored["accuracy_after"]
    assert after["accuracy_after"] >= restored["accuracy_after"] + (0.4 * lost if lost > 5 else 0)
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


def test_scales_and_entries_learn_and_stay_in_bounds():
    start = recovered(trained(plain(), 20), ("int3", "c2s8"), epochs=0)
    module = TrainableModule(start)
    module(CHECK[0]).square().sum().backward()
    uniform, book = module.layer("stem"), module.layer("dw")
    assert uniform.scale.grad.abs().sum() > 0
    assert book.entries.grad.abs().sum() > 0
    assert book.scale.grad is None
    with torch.no_grad():
        uniform.scale.mul_(10.0)
        book.entries.copy_(book.entries.flip(0))
    for layer in module.layers():
        layer.bound()
    np.testing.assert_allclose(uniform.scale.detach(), start.weights["stem"].scale * SCALE_RANGE, rtol=1e-6)
    np.testing.assert_array_equal(book.book().numpy(), start.weights["dw"].codebook)


def test_gradients_are_those_of_the_papers():
    start = recovered(trained(plain(), 5), ("int3", "c2s8"), epochs=0)
    module = TrainableModule(start)
    layer, params = module.layer("stem"), start.network.params["stem"]
    layer.rounded()[0].sum().backward()  # learned step size: round(v) - v inside, the limit outside
    unit = params["weight"] / start.weights["stem"].scale[:, None, None, None]
    expected = np.where(np.abs(unit) < 3, np.rint(unit) - unit, np.sign(unit) * 3).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(layer.scale.grad, expected, rtol=1e-4, atol=1e-4)
    layer, w = module.layer("dw"), start.weights["dw"]
    layer.rounded()[0].sum().backward()  # an entry's gradient is the sum over its weights
    scale = np.broadcast_to(w.scale[:, None, None, None], w.codes.shape) / w.scale.mean()
    expected = np.bincount(w.codes.ravel(), weights=scale.ravel(), minlength=4)
    np.testing.assert_allclose(layer.entries.grad, expected, rtol=1e-4)


def test_missing_training_data_is_refused():
    network = plain()
    arguments = (network, plan_of(network, "int8"), None, io_of(network), lambda: [TRAIN[0][:64]])
    with pytest.raises(UsageError, match="training data"):
        compress(*arguments, None, None, CompressOptions(), RecoverOptions(epochs=1), 0)
    with pytest.raises(UsageError, match="got none"):
        compress(*arguments, lambda epoch: [], None, CompressOptions(), RecoverOptions(epochs=1), 0)
