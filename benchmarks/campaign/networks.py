"""The networks of compression.py: their data and float weights, trained until they are done.

A compressed network is held against the better of two float networks: the given one and the same trained on for at
least as many epochs as any compression trains. Weights and accuracies stay in the work folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from converge import Schedule, converge
from spoken_digits import prepare

from xdeploy.errors import UsageError
from xdeploy.files import replacing, sha256, write_text
from xdeploy.model.demo import demo_data, demo_source
from xdeploy.model.factory import call_factory
from xdeploy.model.source import SourceModel, load_source
from xdeploy.model.top1 import right
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import DataOptions

BATCH = 128


@dataclass(frozen=True, slots=True)
class Place:
    """Where things are: the shared folder (data/, models/) and the work folder."""

    shared: Path
    work: Path


@dataclass(frozen=True, slots=True)
class Given:
    """A float network before it is trained on, with its data; no `weights`: they are made by training afresh."""

    weights: Path | None
    data: Path
    test_data: Path | None


@dataclass(frozen=True, slots=True)
class Net:
    """One network of the benchmark: how to get it, and how it is trained (first, if nothing is given, and on)."""

    name: str
    model: str
    data: str
    given: Callable[[Place, int], Given]
    further: Schedule
    first: Schedule | None = None
    # of training, of recipes too: one where a second gains little or the machine does other work; rows depend on it
    threads: int = 2
    one_float: bool = False  # the float network of seed 0 for all seeds, where training another takes too long
    validation: float = DataOptions().validation  # share of the training data that the float network leaves out, too
    seen: bool = False  # the given weights come from elsewhere and were trained on those data


def _there(path: Path) -> Path:
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint="--shared names the folder with data/ and models/")
    return path


def _cifar(weights: str) -> Callable[[Place, int], Given]:
    def given(place: Place, seed: int) -> Given:
        data, models = place.shared / "data", place.shared / "models"
        parts = (models / weights, data / "cifar10-jpeg-train.zip", data / "cifar10-jpeg-test.zip")
        return Given(*map(_there, parts))

    return given


def _spoken(place: Place, seed: int) -> Given:
    folder = place.work / "data" / "spoken"
    train, test = folder / "train.npz", folder / "test.npz"
    if not test.exists():
        prepare(_there(place.shared / "data" / "fsdd.zip"), folder)
    return Given(None, train, test)


def _digits(place: Place, seed: int) -> Given:
    """The demo's data and weights, split as the demo does."""
    data, folder = place.work / "data" / "digits.npz", place.work / "float" / f"digits-{seed}"
    found = demo_data()
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        with replacing(data) as part, part.open("wb") as file:
            np.savez(file, x=found.samples, y=found.labels)
    if not list(folder.glob("digits-*.safetensors")):
        folder.mkdir(parents=True, exist_ok=True)
        demo_source(seed, folder)
    return Given(next(folder.glob("digits-*.safetensors")), data, None)


NETWORKS = {
    net.name: net
    for net in (
        Net(
            "digits", "xdeploy.model.zoo:digits_cnn", "scikit-learn digits", _digits,
            Schedule(25, 0.01, smoothing=0.05), threads=1,
        ),
        Net(
            "spoken", "xdeploy.model.zoo:spoken_digits_mlp", "Free Spoken Digit Dataset, MFCC", _spoken,
            Schedule(25, 0.02, smoothing=0.1, noise=0.3), Schedule(15, 0.05, smoothing=0.1, noise=0.3, fresh=True),
            threads=1,
        ),
        Net(
            "resnet20", "xdeploy.model.zoo:resnet20", "CIFAR-10 (JPEG)",
            _cifar("resnet20-cifar10-jpeg.safetensors"), Schedule(4, 0.001), threads=1, one_float=True,
            validation=0.04, seen=True,  # 2,000 images
        ),
        Net(
            "vgg16", "xdeploy.model.zoo:vgg16", "CIFAR-10 (JPEG)",
            _cifar("vgg16-cifar10-jpeg.safetensors"), Schedule(30), one_float=True, seen=True,
        ),
    )
}  # fmt: skip


class Ready:
    """One network and seed, brought up on demand: the float weights that are compressed and what they are worth."""

    def __init__(self, net: Net, place: Place, seed: int, epochs: int | None = None) -> None:
        self.net, self.place, self.seed = net, place, seed
        self.float_seed = 0 if net.one_float else seed
        self.schedule = net.further if epochs is None else replace(net.further, epochs=epochs)

    @cached_property
    def given(self) -> Given:
        """Data, and the weights there were; made where there were none."""
        found = self.net.given(self.place, self.seed)
        if found.weights is not None:
            return found
        assert self.net.first is not None, self.net.name
        return replace(found, weights=self._train(found, self.net.first, "first"))

    @cached_property
    def further(self) -> Path:
        """The weights trained on."""
        return self._train(self.given, self.schedule, f"further{self.schedule.epochs}")

    def _train(self, given: Given, schedule: Schedule, word: str) -> Path:
        target = self.place.work / "float" / f"{self.net.name}-{self.float_seed}-{word}.safetensors"
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.float_seed)
        module = call_factory(self.net.model)
        source = self._source(given, module if given.weights is None else None)
        steps = -(-len(source.train_indices) // BATCH)
        before = torch.get_num_threads()
        torch.set_num_threads(self.net.threads)
        try:
            return converge(
                module, given.weights, lambda epoch: source.train_batches(BATCH, epoch=epoch, augment=True),
                steps, schedule, self.float_seed, target,
            )  # fmt: skip
        finally:
            torch.set_num_threads(before)

    def _source(self, given: Given, module: Any = None) -> SourceModel:
        model = self.net.model if module is None else module.eval()
        options = DataOptions(validation=self.net.validation)
        return load_source(model, given.weights, given.data, given.test_data, options, self.float_seed)

    @cached_property
    def baseline(self) -> dict[str, Any]:
        """Accuracy of the given and of the further trained float network (percent), and how much training that was."""
        found = {"given": self._measured(self._given_weights), "further": self._measured(self.further)}
        return {**found, "epochs": self.schedule.epochs}

    @cached_property
    def weights(self) -> Path:
        """What is compressed: the better of the two on validation data, of equals the one trained on.

        Validation data that the given one was trained on would always be for it: then it is the one trained on here.
        """
        if self.net.seen and self.schedule.epochs:
            return self.further
        given, further = (self.baseline[k]["validation"] for k in ("given", "further"))
        return self._given_weights if given > further else self.further

    @property
    def best(self) -> float:
        """Test accuracy in percent that losses are held against: the better of the two."""
        return max(float(self.baseline[k]["test"]) for k in ("given", "further"))

    @property
    def _given_weights(self) -> Path:
        assert self.given.weights is not None
        return self.given.weights

    def _measured(self, weights: Path) -> dict[str, Any]:
        """Validation and test accuracy of float weights, kept beside the weights in the work folder."""
        known = self.place.work / "float" / "accuracy.json"
        kept: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        key = f"{self.net.name}/{self.float_seed}/{self.net.validation:g}/{sha256(weights)}"
        if key not in kept:
            source = self._source(replace(self.given, weights=weights))
            module = NetworkModule(source.network)
            parts = {"validation": source.validation_batches(250), "test": source.test_batches(250)}
            hits = {k: right(module, batches) for k, batches in parts.items()}
            kept[key] = {k: 100.0 * float(v.mean()) for k, v in hits.items()} | {"n": len(hits["test"])}
            known.parent.mkdir(parents=True, exist_ok=True)
            write_text(known, json.dumps(kept, indent=1) + "\n")
        return dict(kept[key])
