"""Scores without propagation rules, to compare with and to fall back on: each drives the plan like any other.

* `magnitude`: |w|; channels by their L1 norm; every change of a weight matters alike.
* `random`: uniform draws, the floor of any comparison.
* `lamp`: a weight's square over the sum of all squares in its layer that are not smaller (Lee et al. 2021, eq. 3): one
  threshold on it prunes each layer as far as the layer's relative distortion allows.
* `gradient`: gradient times activation of the explained logit, r = w * dlogit/dw per sample.
* `taylor`: the same of the cross entropy (Molchanov et al. 2017): first-order change of the loss.
* `fisher`: (w * dloss/dw)^2; its sensitivity is the diagonal of the empirical Fisher information.

`relevance.aggregate` is for scores that samples have: of gradient and taylor, not of the others here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy import ranks
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.collect import Collector, batch_sums
from xdeploy.relevance.method import (
    METHODS,
    Batch,
    Scores,
    explained_class,
    explained_weights,
    gradient_pass,
    weighted_modules,
)

NOT_EXPLAINED = 1.0  # residual of methods that give no part of the output to anything
NOTE = {"conservation": "not a property of this method"}

Objective = Callable[[Tensor, Tensor, RelevanceOptions], Tensor]  # logits, labels -> one number per sample (N,)


def explained(logits: Tensor, labels: Tensor, options: RelevanceOptions) -> Tensor:
    """What is explained of each sample: the logit of a class, or a difference of logits."""
    return (logits * explained_weights(logits, labels, options)).sum(dim=1)


def loss(logits: Tensor, labels: Tensor, options: RelevanceOptions) -> Tensor:
    """Cross entropy of each sample."""
    return F.cross_entropy(logits, explained_class(logits, labels, options), reduction="none")


def gradients(network: Network, batches: Iterable[Batch], options: RelevanceOptions, objective: Objective) -> Collector:
    """Collect signal = d objective / d z of every weighted layer; relevance = z * signal."""
    module = NetworkModule(network).eval()
    modules = weighted_modules(module)
    sums = Collector(modules, options.aggregate)
    for x, y in ranks.share(batches):
        found = gradient_pass(module, x, modules, lambda z, y=y: objective(z, y, options))  # type: ignore[misc]
        kept = torch.zeros(len(x), dtype=torch.float64)
        for name, s in found.at.items():
            if s is None:  # nobody reads this layer
                continue
            bias = modules[name].bias
            sums.add_layer(name, found.values[network[name].inputs[0]], s, found.values[name] * s)
            assert bias is not None
            kept += batch_sums(s * bias.reshape(-1, *[1] * (s.dim() - 2)))
        arrived = torch.zeros_like(kept) if found.at_input is None else batch_sums(x * found.at_input)
        sums.add_balance(arrived, kept, found.objective.double())
        sums.samples += len(x)
    sums.add_up()
    return sums


@METHODS.register("gradient")
def gradient(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Gradient times activation of the explained logit; conserves exactly in piecewise linear networks."""
    return gradients(network, batches, options, explained).scores({})


@METHODS.register("taylor")
def taylor(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """First-order change of the cross entropy."""
    scores = gradients(network, batches, options, loss).scores(NOTE)
    scores.conservation_residual = NOT_EXPLAINED
    return scores


@METHODS.register("fisher")
def fisher(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Empirical Fisher information of the cross entropy: weight = w^2 * mean G^2, channel = its sum over the filter."""
    scores = gradients(network, batches, options, loss).scores(NOTE)
    weight = {n: network.params[n]["weight"] ** 2 * g for n, g in scores.sensitivity.items()}
    scores.weight, scores.channel = weight, {n: _per_channel(w) for n, w in weight.items()}
    scores.conservation_residual, scores.parameters = NOT_EXPLAINED, NOTE
    return scores


@METHODS.register("magnitude")
def magnitude(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """|w|, without looking at data."""
    weight = {x.name: np.abs(network.params[x.name]["weight"]) for x in network.weighted()}
    return _data_free(network, batches, weight, {n: np.ones_like(w) for n, w in weight.items()}, NOTE)


@METHODS.register("lamp")
def lamp(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """LAMP scores of weights, and of filters by the same formula of their squared norms.

    Its sensitivity is 1 over the sum of the layer's squares: distortion relative to the layer, which LAMP bounds.
    """
    weight = {x.name: network.params[x.name]["weight"] for x in network.weighted()}
    squares = {n: w.astype(np.float64) ** 2 for n, w in weight.items()}
    scores = _data_free(network, batches, {n: lamp_scores(s) for n, s in squares.items()}, {}, NOTE)
    scores.channel = {n: lamp_scores(s.reshape(len(s), -1).sum(axis=1)) for n, s in squares.items()}
    scores.sensitivity = {n: np.full(s.shape, 1 / max(s.sum(), 1e-30), np.float32) for n, s in squares.items()}
    return scores


def lamp_scores(squares: Any) -> Any:
    """x_i over the sum of all x_j that stand at or after it in ascending order, float32; 0 where x_i is 0."""
    flat = squares.ravel()
    order = np.argsort(flat, kind="stable")
    after = np.cumsum(flat[order][::-1])[::-1]
    scores = np.zeros(flat.shape, np.float32)
    scores[order] = flat[order] / np.maximum(after, 1e-300)
    return scores.reshape(squares.shape)


@METHODS.register("random")
def random(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Uniform draws in 0..1 of a generator of its own."""
    rng = np.random.default_rng(seed)
    weight = {x.name: _draw(rng, network.params[x.name]["weight"].shape) for x in network.weighted()}
    return _data_free(network, batches, weight, weight, NOTE)


def _data_free(
    network: Network,
    batches: Iterable[Batch],
    weight: dict[str, Any],
    sensitivity: dict[str, Any],
    note: dict[str, str],
) -> Scores:
    samples = sum(len(x) for x, _ in batches)  # read, so that progress and the count are those of other methods
    channel = {n: _per_channel(w) for n, w in weight.items()}
    return Scores(weight, channel, sensitivity, note, NOT_EXPLAINED, samples)


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.random(shape, dtype=np.float32)


def _per_channel(weight: Any) -> Any:
    return weight.reshape(len(weight), -1).sum(axis=1).astype(np.float32)
