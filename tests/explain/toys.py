"""Small networks with labelled samples, as a SourceModel."""

from __future__ import annotations

import numpy as np

from tests.compress.toynets import Builder, plain, task, trained
from xdeploy.model.data import DataSet, fingerprint
from xdeploy.model.network import Network
from xdeploy.model.source import SourceModel, assemble
from xdeploy.recipe import DataOptions

CLASSES = ("cat", "dog", "$x^2$", "<b>owl</b>")


def source(network: Network | None = None, samples: int = 120, shape: tuple[int, ...] = (2, 8, 8)) -> SourceModel:
    network = network or trained(plain(), 40)
    x, y = (t.numpy() for t in task(samples, shape))
    data = DataSet(x, y, CLASSES, True, (), (), fingerprint(x, y, CLASSES), "toy")
    return assemble("toy", network, data, None, DataOptions(), 0)


def vectors() -> SourceModel:
    """A network of feature vectors."""
    b = Builder((24,))
    b.linear("first", 12)
    b.add("act", "relu")
    b.linear("last", 4)
    rng = np.random.default_rng(0)
    y = np.arange(80) % 4
    x = (rng.normal(size=(80, 24)) + np.repeat(np.eye(4), 6, axis=1)[y]).astype(np.float32)
    data = DataSet(x, y.astype(np.int64), CLASSES, True, (), (), fingerprint(x, y, CLASSES), "toy")
    return assemble("vectors", b.network(), data, None, DataOptions(), 0)


def signals() -> SourceModel:
    """A network of one-dimensional signals of two channels."""
    b = Builder((2, 1, 40))
    b.add("flatten", "flatten")
    b.linear("last", 4)
    x, y = task(80, (2, 1, 40))
    data = DataSet(x.numpy(), y.numpy(), CLASSES, True, (), (), "print", "toy")
    return assemble("signals", b.network(), data, None, DataOptions(), 0)
