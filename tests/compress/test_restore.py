"""Moments given back: hidden channels have the float network's mean and deviation again, and no code has changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.compress.test_compress import plan_of
from tests.compress.test_normalise import deep
from tests.compress.toynets import batches, io_of, plain, residual, task, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.compact import PLAIN, Rules
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.normalise import moments
from xdeploy.compress.restore import behind, restore
from xdeploy.compress.trainable import TrainableModule
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.recipe import CompressOptions, RecoverOptions

TRAIN, CHECK = task(512, seed=1), task(256, seed=2)


def made(network, plan, restored, compact=None, inputs=TRAIN[0]):
    options = CompressOptions(restore=restored, compact=compact, reconstruct=False)
    return compress(
        network, plan, None, io_of(network), lambda: [inputs], None, lambda: batches(*CHECK), options,
        RecoverOptions(), 0,
    )  # fmt: skip


def outputs(model, names, x):
    """What the named layers give before any activation or rounding, as the device would compute it."""
    module, found = FakeQuantModule(model), {}
    for name in names:
        module.inner.modules_by_name[name].register_forward_hook(lambda m, i, y, name=name: found.update({name: y}))
    with torch.no_grad():
        module(x)
    return found


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize("formats", [("int3",), ("int4", "c2s8")])
def test_outputs_have_the_moments_of_the_float_network(make, formats):
    network = trained(make())
    wanted = moments(network, [TRAIN[0]])
    codes = {}
    for restored in (False, True):
        model = made(network, plan_of(network, *formats), restored)
        codes[restored] = {n: w.codes for n, w in model.weights.items()}
        got = outputs(model, network.hidden(), TRAIN[0])
        off = []
        for name, (mean, deviation) in wanted.items():
            axes = (0, *range(2, got[name].dim()))
            off.append(float(((got[name].mean(axes) - mean) / deviation).abs().max()))
            off.append(float((got[name].std(axes, correction=0) / deviation - 1).abs().max()))
        assert (max(off) < 0.02) == restored, off
    for name, expected in codes[False].items():
        np.testing.assert_array_equal(codes[True][name], expected)


def test_it_brings_accuracy_back_without_training():
    network = trained(deep(), 60)
    plan = CompressionPlan(tuple(PlanLine(x.name, "int4", density=0.15) for x in network.weighted()))
    before, after = (made(network, plan, restored).steps[-1] for restored in (False, True))
    assert after["step"] == "restore"
    assert after["accuracy_after"] > before["accuracy_after"] + 10


def test_channels_that_are_left_get_the_moments_they_had():
    network = trained(plain(), 20)
    lines = [PlanLine(x.name, "int8") for x in network.weighted()]
    lines[2] = PlanLine("mid", "int8", keep=(0, 3, 5))
    model = made(network, CompressionPlan(tuple(lines)), True)
    mean, deviation = moments(network, [TRAIN[0]])["mid"]
    got = outputs(model, ["mid"], TRAIN[0])["mid"]
    torch.testing.assert_close(got.mean((0, 2, 3)), mean[[0, 3, 5]], atol=0.02, rtol=0.02)
    torch.testing.assert_close(got.std((0, 2, 3), correction=0), deviation[[0, 3, 5]], atol=0.02, rtol=0.02)


def test_integers_keep_to_their_rules():
    network = trained(plain(), 20)
    model = made(network, plan_of(network, "int4"), True, compact=True)
    for w in model.weights.values():
        mantissa, _ = np.frexp(w.scale.astype(np.float64))
        np.testing.assert_array_equal(mantissa * 32, np.rint(mantissa * 32))
    same = made(network, plan_of(network, "int4"), False)
    assert restore(same, moments(network, [TRAIN[0]]), [TRAIN[0]], Rules(tensor=True)) is same
    assert restore(same, {}, [TRAIN[0]], PLAIN) is same


@pytest.mark.parametrize("make", [plain, residual])
@pytest.mark.parametrize(("formats", "compact"), [(("int3",), False), (("int4", "c2s8"), False), (("int2",), True)])
def test_training_can_begin_where_it_ends(make, formats, compact):
    """The float weights behind restored codes round to those codes, and give what the device computes."""
    network = trained(make())
    before = made(network, plan_of(network, *formats), False, compact)
    rules = Rules(compact=compact)
    model = restore(before, moments(network, [TRAIN[0]]), [TRAIN[0]], rules)
    begun = behind(model, before)
    module = TrainableModule(begun, rules)
    for name, w in model.weights.items():
        np.testing.assert_array_equal(module.layer(name).codes().numpy(), w.codes)
    with torch.no_grad():
        torch.testing.assert_close(module(CHECK[0]), FakeQuantModule(model)(CHECK[0]))
    assert begun.weights == model.weights
    np.testing.assert_array_equal(before.network.params["stem"]["weight"], network.params["stem"]["weight"])


@pytest.mark.parametrize(("density", "batchnorm", "steps"), [
    (None, None, ["quantise", "reconstruct", "restore", "recover"]),
    (None, True, ["quantise", "reconstruct", "recover"]),
    (0.5, None, ["quantise", "recover"]),
    (0.5, False, ["quantise", "recover"]),
])  # fmt: skip
def test_what_training_begins_with(density, batchnorm, steps):
    """BatchNorm where weights become zero, else moments given back; without either where zeros grow only then."""
    network = trained(plain(), 20)
    plan = CompressionPlan(tuple(PlanLine(x.name, "int3", density=density) for x in network.weighted()))
    model = compress(
        network, plan, None, io_of(network), lambda: [TRAIN[0]], lambda epoch: batches(*TRAIN),
        lambda: batches(*CHECK), CompressOptions(), RecoverOptions(epochs=1, batchnorm=batchnorm), 0,
    )  # fmt: skip
    assert [s["step"] for s in model.steps] == steps
    if "restore" in steps:
        assert model.steps[-1]["accuracy_after"] >= model.steps[-1]["accuracy_before"]
