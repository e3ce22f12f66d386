"""Do explanations survive? The agreement of two networks' heat-maps over the same samples, and a check of the method.

A compressed model can keep its accuracy and still decide for other reasons. `agreement` compares the heat-maps of two
plain networks, usually the float network and a compressed model's `real_network`, sample by sample. `randomisation` is
the sanity check of Adebayo et al. 2018 (arXiv 1810.03292): heat-maps of a method that explains the network must change
when the network's weights are drawn anew, layer after layer from the output on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xdeploy.errors import UsageError
from xdeploy.model.network import Network
from xdeploy.model.spread import spread
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.heatmaps import heatmaps
from xdeploy.relevance.method import Batch, chunks

Float64 = NDArray[np.float64]
TOP = 0.1  # share of the input values that count as the most relevant


@dataclass(frozen=True, slots=True)
class Agreement:
    """Mean and standard deviation over samples; correlations in -1..1, the overlap in 0..1 (chance: 0.1).

    undefined: samples of which one map is constant, so that nothing can be correlated; they count as correlation 0.
    """

    samples: int
    pearson: float
    pearson_spread: float
    spearman: float
    spearman_spread: float
    top: float
    top_spread: float
    undefined: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def agreement(a: Network, b: Network, batches: Iterable[Batch], options: RelevanceOptions) -> Agreement:
    """Compare the heat-maps of two networks.

    The same class is explained in both: the label, or with target "predicted" the class that `a` predicts. Of images,
    a position counts the sum over its channels.

    Args:
        a: the reference, usually the float network.
        b: a network with the same inputs and classes; layers and channels may differ.
        batches: inputs and labels; at most `options.samples` samples are read, memory does not grow with them.
        options: method and its options, as for `heatmaps`.

    Raises:
        UsageError: different inputs or classes, no samples, or a method without heat-maps.
    """
    if (a.input.shape, a.output.shape) != (b.input.shape, b.output.shape):
        raise UsageError(
            f"heat-maps can be compared between networks of the same inputs and classes, got "
            f"{a.input.shape} -> {a.output.shape} and {b.input.shape} -> {b.output.shape}"
        )
    fixed = replace(options, target="label") if options.target == "predicted" else options
    rows = list(spread(lambda xy: compare(*(positions(heatmaps(n, *xy, fixed)) for n in (a, b))),
                       _labelled(a, batches, options)))  # fmt: skip
    if not rows:
        raise UsageError("comparing explanations needs at least one sample, got none")
    return summary(np.concatenate(rows))


def _labelled(network: Network, batches: Iterable[Batch], options: RelevanceOptions) -> Iterator[Batch]:
    """Pieces of the batches, with the classes that the network predicts as labels where those are explained."""
    module = NetworkModule(network).eval()
    for x, y in chunks(batches, options.samples, None):
        if options.target == "predicted":
            with torch.no_grad():
                yield x, module(x).argmax(dim=1)
        else:
            yield x, y


def positions(maps: NDArray[np.float32]) -> Float64:
    """Heat-maps (N, C, H, W) or (N, F) as (N, positions); channels are summed, unless they are all there is."""
    wide = maps.astype(np.float64)
    return (
        wide.sum(axis=1).reshape(len(maps), -1)
        if wide.ndim == 4 and wide[0, 0].size > 1
        else wide.reshape(len(maps), -1)
    )


def compare(a: Float64, b: Float64) -> Float64:
    """Pearson, Spearman, top overlap and whether they are undefined, per sample: (N, positions) twice -> (N, 4)."""
    from scipy.stats import rankdata

    constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    spearman = correlation(rankdata(a, axis=1), rankdata(b, axis=1))
    return np.stack([correlation(a, b), spearman, top_overlap(a, b), constant.astype(np.float64)], axis=1)


def correlation(a: Float64, b: Float64) -> Float64:
    """Pearson's correlation of each row, 0 where a row is constant."""
    a, b = (v - v.mean(axis=1, keepdims=True) for v in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(scale > 0, scale, 1.0))


def top_overlap(a: Float64, b: Float64, share: float = TOP) -> Float64:
    """Share of each row's most relevant positions (at least one) that are so in both; of equals the first count."""
    count = max(1, round(share * a.shape[1]))
    marks = []
    for v in (a, b):
        mark = np.zeros(v.shape, bool)
        np.put_along_axis(mark, np.argsort(-v, axis=1, kind="stable")[:, :count], True, axis=1)
        marks.append(mark)
    return np.asarray((marks[0] & marks[1]).sum(axis=1) / count)


def summary(rows: Float64) -> Agreement:
    """Mean and spread of what `compare` found."""
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    return Agreement(
        len(rows), float(mean[0]), float(spread[0]), float(mean[1]), float(spread[1]),
        float(mean[2]), float(spread[2]), int(rows[:, 3].sum()),
    )  # fmt: skip


def randomisation(
    network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int = 0
) -> list[tuple[str, Agreement]]:
    """Cascading randomisation: the agreement with the network's own heat-maps after each layer, output first.

    A layer's weights are shuffled among each other, so that their distribution stays. A method whose agreement stays
    near 1 does not look at the weights.

    Args:
        network: a trained network; not changed.
        batches: inputs and labels, gone through once for each layer.
        options: as for `agreement`.
        seed: of the shuffling.
    """
    rng, params, found = np.random.default_rng(seed), dict(network.params), []
    kept = list(chunks(batches, options.samples, None))
    for layer in reversed(network.weighted()):
        weight = params[layer.name]["weight"]
        params[layer.name] = {**params[layer.name], "weight": rng.permutation(weight.ravel()).reshape(weight.shape)}
        found.append((layer.name, agreement(network, network.with_params(dict(params)), kept, options)))
    return found
