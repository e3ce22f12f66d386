"""The SourceModel: the user's network with its data, split into training, validation and test samples.

Saved as `source.json` (layers, data by path and fingerprint) and `source.safetensors` (float parameters).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from xdeploy.errors import UnsupportedError, UsageError
from xdeploy.files import read_json, replacing, write_json
from xdeploy.handover import IoSpec, quantity
from xdeploy.model.bars import Progress
from xdeploy.model.data import DataSet, check_classes, load_data
from xdeploy.model.factory import Declared
from xdeploy.model.frontend import Given, front_end, load_network
from xdeploy.model.network import Network
from xdeploy.recipe import DataOptions

__all__ = ["SourceModel", "load_network", "load_source"]

DEMO = "scikit-learn digits"  # stands for the path of the digits inside scikit-learn
_TEST_SHARE = 0.1  # held out as test data when there is none and no validation share tells otherwise
_AUGMENT_FROM = 16  # pixels of height and width
Int64 = NDArray[np.int64]
Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class SourceModel:
    """A captured float network and its data.

    `train` and `test` are the same object when the test samples are held out of the training data. Batches are model
    inputs float32 (N, *io.input_shape) and labels int64 (N,).
    """

    name: str
    network: Network
    io: IoSpec
    train: DataSet
    train_indices: Int64
    validation_indices: Int64
    test: DataSet
    test_indices: Int64
    test_from: str  # where the test samples are from, in words
    validation_share: float
    seed: int

    @property
    def sha256(self) -> str:
        """Hash of layers and parameters."""
        digest = hashlib.sha256(self.network.to_json().encode())
        for name, array in sorted(self.network.tensors().items()):
            digest.update(name.encode())
            digest.update(array.data)
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hash of the training data."""
        return self.train.fingerprint

    @property
    def test_count(self) -> int:
        """Number of test samples."""
        return len(self.test_indices)

    # ---------------------------------------------------------------------------------------------- samples
    def train_batches(
        self, size: int, *, limit: int | None = None, epoch: int | None = None, augment: bool = False
    ) -> Batches:
        """Training samples in a random order.

        Args:
            size: samples per batch; the last may be smaller.
            limit: only so many, the same ones each time.
            epoch: reshuffled for each number; None: one fixed order.
            augment: random crops and flips, for images of 16 pixels and more.
        """
        order = np.random.default_rng([self.seed, 1]).permutation(self.train_indices)[:limit]
        rng = np.random.default_rng([self.seed, 2, epoch or 0])
        if epoch is not None:
            order = rng.permutation(order)
        large = len(self.train.shape) == 3 and min(self.train.shape[1:]) >= _AUGMENT_FROM
        return self.train.batches(order, size, rng if augment and large else None)

    def validation_batches(self, size: int, *, limit: int | None = None) -> Batches:
        """Validation samples, in a fixed random order."""
        order = np.random.default_rng([self.seed, 3]).permutation(self.validation_indices)[:limit]
        return self.train.batches(order, size)

    def test_batches(self, size: int) -> Batches:
        """All test samples."""
        return self.test.batches(self.test_indices, size)

    def golden_inputs(self, count: int) -> NDArray[np.float32]:
        """A few validation samples as model inputs, (count, *input_shape)."""
        return self.check_inputs(count)

    def check_inputs(self, count: int) -> NDArray[np.float32]:
        """Up to `count` validation samples as model inputs, (N, *input_shape)."""
        return next(iter(self.validation_batches(count)))[0].numpy()

    # ----------------------------------------------------------------------------------------------- saving
    def save(self, folder: Path) -> None:
        """Write source.json and source.safetensors."""
        from safetensors.numpy import save

        with replacing(folder / "source.safetensors") as part:
            part.write_bytes(save(self.network.tensors()))
        write_json(folder / "source.json", self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The content of source.json."""
        net = self.network
        count = net.parameters()
        return {
            "schema": "xdeploy.source/1",
            "model": {
                "name": self.name, "sha256": self.sha256, "parameters": count,
                "macs": sum(net.macs(x.name) for x in net.layers),
                "float_bytes": quantity(4 * count, "byte", "modelled", note="parameters as float32"),
            },
            "data": {
                "name": Path(_absolute(self.train)).name, "fingerprint": self.fingerprint,
                "train": len(self.train_indices), "validation": len(self.validation_indices), "test": self.test_count,
                "test_from": self.test_from, "path": _absolute(self.train),
                "test_path": None if self.test is self.train else _absolute(self.test),
                "test_fingerprint": self.test.fingerprint,
                "validation_share": self.validation_share, "seed": self.seed,
                "mean": list(self.train.mean), "std": list(self.train.std),
            },
            "io": self.io.to_dict(),
            "layers": json.loads(net.to_json())["layers"],
        }  # fmt: skip

    @staticmethod
    def load(folder: Path) -> SourceModel:
        """Read what `save` wrote; the data is read again from its path and must be unchanged.

        Raises:
            UsageError: files are missing or damaged, or the data has changed.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        head = read_json(folder / "source.json", "xdeploy.source/1")
        try:
            tensors = load_file(folder / "source.safetensors")
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{folder / 'source.safetensors'}: {error}") from None
        network = Network.load(json.dumps({"layers": head["layers"]}), tensors)
        io = IoSpec.from_dict(head["io"])
        train, test = _load_again(head["data"], io)
        options = DataOptions(validation=head["data"]["validation_share"])
        ports = (io.input_name, io.output_name)
        return assemble(head["model"]["name"], network, train, test, options, head["data"]["seed"], ports)


def _absolute(data: DataSet) -> str:
    """The data's path, to be found again from any folder."""
    return DEMO if data.path == DEMO else str(Path(data.path).resolve())


def load_source(
    model: str | nn.Module | None,
    weights: Path | None,
    data: Path | None,
    test_data: Path | None,
    options: DataOptions,
    seed: int,
    progress: Progress | None = None,
    fallback: Collection[str] = (),
) -> SourceModel:
    """Read and check the user's model and data; without a model, the bundled demo.

    Mean and std of `options` go before those that the module declares. Without test data, a share of the training data
    as large as the validation share is held out.

    Raises:
        UsageError, ModelError, UnsupportedError: what is wrong, by name.
    """
    if model is None:
        from xdeploy.model.demo import demo_source

        if weights or data or test_data:
            raise UsageError("--weights and --data need a MODEL", hint="without MODEL the bundled demo is built")
        return demo_source(seed, validation=options.validation, progress=progress)
    given = front_end(model, weights, fallback)
    if data is None:
        raise UsageError(
            f"{given.where} needs samples to be scored, calibrated and tested", hint="give --data FOLDER, .zip or .npz"
        )
    declared = given.declared
    network = given.network(None) if declared.shape or given.program else None
    train = _read(data, given, network, options, progress)
    network = network or given.network(train.shape)
    train = train.fitted(network.input.shape)
    test = _read(test_data, given, network, options, progress) if test_data else None
    return assemble(given.name, network, train, test, options, seed, given.ports)


def _read(
    path: Path, given: Given, network: Network | None, options: DataOptions, progress: Progress | None
) -> DataSet:
    """Data as the model wants it."""
    shape = network.input.shape if network else given.declared.shape
    normal: Declared | DataOptions = options if options.mean or options.std else given.declared
    channels = shape[0] if shape and len(shape) == 3 else None
    found = load_data(path, mean=normal.mean, std=normal.std, channels=channels, shape=shape, progress=progress)
    if shape and found.shape != shape:
        raise UsageError(
            f"{given.where} takes samples of {shape}, but those of {path} are {found.shape}",
            hint="scale the images to the model's input size, or export the model for this size",
        )
    return found


def assemble(
    name: str,
    network: Network,
    train: DataSet,
    test: DataSet | None,
    options: DataOptions,
    seed: int,
    ports: tuple[str, str] | None = None,
) -> SourceModel:
    """Check data against network and split it; `ports` name input and output, without them the layers do."""
    outputs = network.output.shape
    if len(outputs) != 1:
        raise UnsupportedError(f"{name} gives {outputs} per sample; one score per class (F,) is supported")
    check_classes(train, outputs[0])
    if test is not None and test.named and train.named and test.classes != train.classes:
        only = sorted(set(train.classes) ^ set(test.classes))
        raise UsageError(f"{train.path} and {test.path} have different classes: {', '.join(only[:8])} in one only")
    if test is not None:
        check_classes(test, outputs[0])
    parts = _split(train, test, options.validation, seed)
    labels = train.classes if len(train.classes) == outputs[0] else tuple(map(str, range(outputs[0])))
    first, last = ports or (network.input.name, network.output.name)
    io = IoSpec(first, network.input.shape, last, outputs, train.mean, train.std, labels)
    return SourceModel(
        name, network, io, train, parts["train"], parts["validation"], test or train, parts["test"],
        _words(train, test, len(parts["test"])), options.validation, seed,
    )  # fmt: skip


def _split(train: DataSet, test: DataSet | None, validation: float, seed: int) -> Mapping[str, Int64]:
    """Indices of the three parts; the share of validation samples is of the whole training data."""
    held_out = 0.0 if test else (validation or _TEST_SHARE)
    if validation + held_out >= 1.0:
        raise UsageError(
            f"data.validation = {validation} leaves nothing to train with, since as much is held out as test data",
            hint="give --test-data, or a share below 0.5",
        )
    rest, last = train.split(held_out, seed)
    if test is not None:
        last = np.arange(len(test), dtype=np.int64)
    kept, selected = train.split(validation / (1.0 - held_out), seed + 1, among=rest)
    for what, part in (("training", kept), ("validation", selected), ("test", last)):
        if not len(part):
            raise UsageError(
                f"{train.path}: {len(train)} samples and data.validation = {validation} leave no {what} samples",
                hint="give more samples, or a data.validation above 0",
            )
    return {"train": kept, "validation": selected, "test": last}


def _words(train: DataSet, test: DataSet | None, count: int) -> str:
    if test is not None:
        return f"{Path(test.path).name}, all {count} samples"
    share = 100 * count / len(train)
    return f"held out of {Path(train.path).name}: {count} samples ({share:.1f} %), the same share of each class"


def _load_again(data: Mapping[str, Any], io: IoSpec) -> tuple[DataSet, DataSet | None]:
    if data["path"] == DEMO:
        from xdeploy.model.demo import demo_data

        return demo_data(), None
    channels = io.input_shape[0] if len(io.input_shape) == 3 else None
    found: list[DataSet | None] = []
    for key, mark in (("path", "fingerprint"), ("test_path", "test_fingerprint")):
        if data[key] is None:
            found.append(None)
            continue
        mean, std = tuple(data["mean"]), tuple(data["std"])
        part = load_data(Path(data[key]), mean=mean, std=std, channels=channels, shape=io.input_shape)
        if part.fingerprint != data[mark]:
            raise UsageError(f"data {data[key]} has changed since the run began", hint="run the build again")
        found.append(part)
    train = found[0]
    assert train is not None
    return train, found[1]
