"""A fine-tuning that is stopped and started again ends with the same bytes; the loss, rates, averages and decay."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compress.test_sparse import CHECK, TRAIN, signals, sparse_plan
from tests.compress.toynets import batches, io_of, residual, trained
from xdeploy.compress.apply import compress
from xdeploy.compress.checkpoint import Checkpoint
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.optimise import Average, Optimiser, Teacher, loss
from xdeploy.compress.trainable import TrainableModule
from xdeploy.errors import UsageError
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import CompressOptions, EcqOptions, RecoverOptions

NETWORK = trained(residual(), 20)


class Stopped(Exception):
    """The run is killed."""


def tuned(checkpoint: Checkpoint | None, stop_in: int | None = None, method: str = "ecqx", **more) -> CompressedModel:
    asked: list[int] = []

    def train(epoch: int):
        asked.append(epoch)
        if stop_in is not None and epoch >= stop_in:
            raise Stopped
        order = torch.randperm(len(TRAIN[0]), generator=torch.Generator().manual_seed(epoch))
        return batches(TRAIN[0][order], TRAIN[1][order])

    options = {"epochs": 3, "lr": 0.02, "ramp": 0.3, **more}
    ecq = EcqOptions(method, refresh=5, ramp=options.pop("ramp"))
    model = compress(
        NETWORK, sparse_plan(NETWORK, 0.3, "int4", "c3s8"), signals(NETWORK), io_of(NETWORK), lambda: [TRAIN[0][:128]],
        train, lambda: batches(*CHECK), CompressOptions(), RecoverOptions(**options), 0, signals, ecq=ecq,
        checkpoint=checkpoint, train_steps=8,
    )  # fmt: skip
    tuned.asked = asked
    return model


def saved(model: CompressedModel, folder: Path) -> bytes:
    model.save(folder)
    return b"".join((folder / f).read_bytes() for f in ("compressed.safetensors", "compressed.json"))


@pytest.mark.parametrize(
    "more",
    [
        {"optimiser": "adam", "average": 0.9},
        {"method": "ecq", "distill": 0.5},
        {"method": "off", "ramp": 0.9},
    ],
    ids=["ecqx-adam-average", "ecq-distill", "pruning"],
)
def test_stopped_and_started_again_is_as_if_never_stopped(tmp_path, more):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "key")
    with pytest.raises(Stopped):
        tuned(checkpoint, stop_in=1, **more)
    assert checkpoint.path.is_file()
    resumed = tuned(checkpoint, **more)
    assert tuned.asked == [1, 2]
    whole = tuned(None, **more)
    assert tuned.asked == [0, 1, 2]
    assert saved(resumed, tmp_path / "a") == saved(whole, tmp_path / "b")
    again = tuned(checkpoint, **more)  # killed between the last epoch and the end of the stage
    assert tuned.asked == []
    assert saved(again, tmp_path / "c") == saved(whole, tmp_path / "b")


@pytest.mark.parametrize("damage", ["other key", "cut short", "not there"])
def test_a_checkpoint_that_does_not_fit_is_ignored(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        tuned(Checkpoint(path, "key"), stop_in=1)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "not there":
        path.unlink()
    assert Checkpoint(path, "other" if damage == "other key" else "key").load() is None
    model = tuned(Checkpoint(path, "other" if damage == "other key" else "key"))
    assert tuned.asked == [0, 1, 2]
    assert saved(model, tmp_path / "a") == saved(tuned(None), tmp_path / "b")
    Checkpoint(path, "x").remove()
    assert not path.exists()


def test_only_epochs_of_full_strength_are_chosen():
    model = tuned(None, ramp=1.0)
    for name, w in model.weights.items():
        assert abs(float((w.values != 0).mean()) - 0.3) <= 1.0 / w.codes.size, name


# --------------------------------------------------------------------------------------------------------- pieces
def test_distillation_is_the_formula():
    ours, theirs = torch.tensor([[1.0, 0.0], [0.5, 2.0]]), torch.tensor([[2.0, -1.0], [0.0, 0.0]])
    y, temperature = torch.tensor([0, 1]), 2.0
    soft = hard = 0.0
    for row in range(2):
        p = [math.exp(float(v) / temperature) for v in theirs[row]]
        q = [math.exp(float(v) / temperature) for v in ours[row]]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        soft += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
        e = [math.exp(float(v)) for v in ours[row]]
        hard -= math.log(e[int(y[row])] / sum(e)) / 2
    for share in (0.0, 0.3, 1.0):
        expected = (1 - share) * hard + share * temperature**2 * soft
        assert float(loss(ours, y, theirs, share, temperature)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(ours, y, ours, 1.0, temperature)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(ours, y, None, 0.7, temperature)) == pytest.approx(hard)


def test_teacher_gives_the_logits_of_the_float_network():
    last = NETWORK.output
    soft = Network((*NETWORK.layers, Layer("soft", "softmax", (last.name,), last.shape)), NETWORK.params)
    expected = NetworkModule(NETWORK)(CHECK[0][:8]).detach()
    torch.testing.assert_close(Teacher(soft, False)(CHECK[0][:8]), expected)
    torch.testing.assert_close(Teacher(soft, True)(CHECK[0][:8]), expected, rtol=0.05, atol=0.1)


def module_of(formats: tuple[str, ...] = ("int4", "c3s8"), **more) -> TrainableModule:
    model = compress(
        NETWORK, sparse_plan(NETWORK, None, *formats), None, io_of(NETWORK), lambda: [TRAIN[0][:128]], None, None,
        CompressOptions(), RecoverOptions(), 0,
    )  # fmt: skip
    return TrainableModule(model, **more)


def test_decay_takes_its_share_of_weights_only():
    module = module_of()
    step = Optimiser(module, RecoverOptions(epochs=1, lr=0.1, decay=0.5))
    step.set_rate(0.5)  # cosine: half the rate
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step.step()
    weights = {id(layer.weight) for layer in module.layers()}
    for name, p in module.named_parameters():
        factor = 1 - 0.1 * 0.5 * 0.5 if id(p) in weights else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_average_is_the_formula_and_leaves_the_module_alone():
    module = torch.nn.Linear(1, 1, bias=False)
    average, expected = Average(module, 0.6), 0.0
    for k, value in enumerate([2.0, 4.0, 9.0, 1.0], 1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.step()
        keep = min(0.6, (k - 1) / k)
        expected = keep * expected + (1 - keep) * value
    assert float(average.values["weight"]) == pytest.approx(expected)

    def leave() -> None:
        with average.in_force():
            assert module.weight.item() == pytest.approx(expected)
            raise Stopped

    with pytest.raises(Stopped):
        leave()
    assert module.weight.item() == 1.0


def test_bfloat16_is_near_float32_and_learns():
    exact, near = module_of(), module_of(autocast=True)
    x = CHECK[0][:64]
    a, b = exact(x), near(x)
    assert b.dtype == torch.float32
    difference = (a - b).abs().mean() / a.abs().mean()
    assert 0 < difference < 0.1
    b.square().sum().backward()
    assert near.layer("stem").weight.grad.abs().sum() > 0
    low, full = (tuned(None, method="ecq", precision=p).steps[-1]["accuracy_after"] for p in ("bfloat16", "float32"))
    assert low > full - 5


@pytest.mark.parametrize(
    ("option", "value"),
    [("optimiser", "lamb"), ("precision", "half"), ("distill", 1.1), ("temperature", 0.0),
     ("average", 1.0), ("decay", -1.0), ("momentum", np.nan), ("epochs", -1), ("batch", 0)],
)  # fmt: skip
def test_wrong_options_are_refused(option, value):
    with pytest.raises(UsageError, match=f"recover.{option}"):
        RecoverOptions(**{option: value})
