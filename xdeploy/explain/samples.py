"""Samples worth showing, what networks say of them, and their heat-maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xdeploy.model.network import Network
from xdeploy.model.source import SourceModel
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.heatmaps import MAPPERS, heatmaps

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
SHOWN = 20  # samples of a montage: two of each class up to 10 classes, one up to 20, of more classes every n-th


@dataclass(frozen=True, slots=True)
class Shown:
    """Samples, and per network its predicted classes and heat-maps.

    inputs: float32 (N, *input shape) as the model takes them. labels: (N,). predicted: (N,) for each network.
    maps: (N, *input shape) for each network, or none.
    """

    inputs: Float32
    labels: Int64
    predicted: tuple[Int64, ...]
    maps: tuple[Float32, ...]


def has_maps(method: str) -> bool:
    """Whether the method reaches the input."""
    return method in MAPPERS


def choose(source: SourceModel, count: int = SHOWN) -> Int64:
    """Test samples, up to `count`, class after class; the same ones for a seed.

    Args:
        source: its test samples are chosen from.
        count: of them, as many of each class as fit but two at most; of more classes than that every n-th.
    """
    order = np.random.default_rng([source.seed, 4]).permutation(source.test_indices)
    labels = source.test.labels[order]
    classes = np.unique(labels)
    classes = classes[np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(np.int64)]
    each = min(2, max(1, count // len(classes)))
    return np.concatenate([order[labels == c][:each] for c in classes])


def show(
    source: SourceModel, indices: Int64, networks: Sequence[Network], options: RelevanceOptions, maps: bool = True
) -> Shown:
    """What the networks make of test samples; with target "predicted", the class that the first one predicts.

    Args:
        source: gives the samples.
        indices: which of its test data.
        networks: plain networks of the same inputs and classes.
        options: method of the heat-maps.
        maps: whether the method has any.
    """
    x, y = next(iter(source.test.batches(indices, len(indices))))
    predicted = [NetworkModule(n).eval()(x).detach().flatten(1).argmax(dim=1) for n in networks]
    told = predicted[0] if options.target == "predicted" else y
    fixed = replace(options, target="label") if options.target == "predicted" else options
    found = tuple(heatmaps(n, x, told, fixed) for n in networks) if maps else ()
    return Shown(x.numpy(), y.numpy(), tuple(p.numpy() for p in predicted), found)
