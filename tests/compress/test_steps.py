"""Which steps a plan takes: those that are not told follow what is trained, what is zero, and who chooses codes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.compress.toynets import batches, io_of, plain, task, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.steps import steps_of
from xdeploy.compress.zeros import masks
from xdeploy.handover import CompressionPlan, PlanLine
from xdeploy.recipe import CompressOptions, EcqOptions, RecoverOptions

TRAIN, CHECK = task(512, seed=1), task(256, seed=2)


def plan_at(density, fmt="int4"):
    network = plain()
    return CompressionPlan(tuple(PlanLine(x.name, fmt, density=density) for x in network.weighted()))


@pytest.mark.parametrize(("density", "epochs", "method", "told", "expected"), [
    (None, 0, "off", {}, (True, True, False)),
    (None, 2, "off", {}, (True, True, False)),
    (0.5, 0, "off", {}, (True, True, False)),
    (0.5, 2, "off", {}, (False, False, True)),  # zeros grow while it is trained
    (0.5, 2, "off", {"reconstruct": True}, (True, True, False)),  # zeros stand before
    (0.5, 2, "off", {"reconstruct": True, "batchnorm": True}, (True, False, True)),
    (0.5, 2, "off", {"batchnorm": False}, (False, False, False)),
    (0.5, 2, "ecq", {}, (False, False, True)),
    (0.5, 0, "ecqx", {}, (False, True, False)),
    (None, 0, "off", {"reconstruct": False, "restore": False}, (False, False, False)),
    (None, 2, "off", {"restore": False}, (True, False, False)),
    (None, 2, "off", {"batchnorm": True}, (True, False, True)),
])  # fmt: skip
def test_what_is_not_told_follows_the_rest(density, epochs, method, told, expected):
    options = {k: told[k] for k in ("reconstruct", "restore") if k in told}
    recover = RecoverOptions(epochs=epochs, batchnorm=told.get("batchnorm"))
    steps = steps_of(plan_at(density), CompressOptions(**options), recover, EcqOptions(method=method))
    assert (steps.reconstruct, steps.restore, steps.batchnorm) == expected
    assert steps.needs_moments == any(expected[1:])
    stand = steps.reconstruct and density is not None
    assert steps.ecq.ramp == (0.0 if stand else EcqOptions().ramp)


def test_training_keeps_zeros_that_stand():
    network, plan = trained(plain()), plan_at(0.3)
    model = compress(
        network, plan, None, io_of(network), lambda: [TRAIN[0]], lambda epoch: batches(*TRAIN),
        lambda: batches(*CHECK), CompressOptions(reconstruct=True), RecoverOptions(epochs=2, lr=0.02), 0,
    )  # fmt: skip
    assert [s["step"] for s in model.steps] == ["quantise", "reconstruct", "restore", "recover"]
    for name, zero in masks(network, plan, None).items():
        assert (model.weights[name].codes[zero] == 0).all()
        assert (model.network.params[name]["weight"][zero] == 0).all()
        assert np.abs(model.weights[name].codes[~zero]).max() > 0


@pytest.mark.parametrize(("fmt", "density", "steps"), [
    ("int8", None, ["quantise", "restore"]), ("int8", 0.5, ["quantise", "reconstruct", "restore"]),
    ("int6", None, ["quantise", "reconstruct", "restore"]),
])  # fmt: skip
def test_eight_bits_are_near_enough_without_zeros(fmt, density, steps):
    network = trained(plain(), 20)
    model = compress(
        network, plan_at(density, fmt), None, io_of(network), lambda: [TRAIN[0]], None, lambda: batches(*CHECK),
        CompressOptions(), RecoverOptions(), 0,
    )  # fmt: skip
    assert [s["step"] for s in model.steps] == steps
