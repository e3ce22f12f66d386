"""Integrated gradients and conductance: gradients along the straight path from an all-zero input to the sample.

Integrated gradients (Sundararajan et al. 2017) give input i the part x_i * mean over the path of dF/dx_i; the parts add
up to F(x) - F(0), which is checked. Conductance (Dhamdhere et al. 2018) carries that inside the network: neuron j gets
the integral of dF/dz_j * dz_j along the path, and because dz_j = sum w_ij da_i, weight w_ij gets
w_ij * integral of dF/dz_j * da_i, summed over positions; a bias does not change along the path and gets nothing. Every
set of neurons that all paths pass through adds up to the same difference. The path is cut into `relevance.steps`
pieces: differences of a and z over a piece times the mean gradient at its ends.

* `integrated-gradients`: a channel's score is of its conductance summed over positions, as in the other methods;
* `conductance`: a channel's score sums the magnitudes of its neurons (positions) instead (with the signed aggregate the
  two are the same). Weights have the same scores in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from xdeploy import ranks
from xdeploy.errors import ModelError
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.collect import Collector, batch_sums
from xdeploy.relevance.method import METHODS, Batch, Scores, explained_weights, gradient_pass, weighted_modules

TOLERANCE = 0.25  # of the explained difference: beyond it the pieces are too long to say anything
ROWS = 64  # inputs in one pass: bounds memory whatever the number of steps

See = Callable[[str, Tensor, Tensor, Tensor], None]


def along_path(
    module: NetworkModule, x: Tensor, weights: Tensor, steps: int, names: Iterable[str], see: See
) -> tuple[Tensor, Tensor]:
    """Integrated gradients of a weighted sum of logits, from an all-zero input.

    Args:
        module: the network; not changed.
        x: inputs (N, ...).
        weights: of the logits (N, classes).
        steps: pieces of the path.
        names: weighted layers that `see` is called for, with the differences of its input over each piece
            (N * steps, ...), the mean gradients at its output (N * steps, ...), and its conductance (N, ...).
        see: called for each of them that the output depends on.

    Returns:
        The parts of the inputs (N, ...) and F(x) - F(0) (N,), float64.
    """
    n, points = len(x), steps + 1
    at = torch.linspace(0.0, 1.0, points, dtype=x.dtype).reshape(points, *[1] * (x.dim() - 1))
    rows = (x[:, None] * at).flatten(0, 1)
    repeated = weights.repeat_interleave(points, dim=0)
    found = gradient_pass(module, rows, names, lambda logits: (logits * repeated).sum(dim=1))

    def pieces(values: Tensor) -> Tensor:
        return torch.diff(values.reshape(n, points, *values.shape[1:]), dim=1)

    def means(values: Tensor) -> Tensor:
        each = values.reshape(n, points, *values.shape[1:])
        return (each[:, 1:] + each[:, :-1]) / 2

    for name, gradient in found.at.items():
        if gradient is not None:
            s, layer = means(gradient), module.network[name]
            r = (s * pieces(found.values[name])).sum(dim=1)
            see(name, pieces(found.values[layer.inputs[0]]).flatten(0, 1), s.flatten(0, 1), r)
    ends = found.objective.double().reshape(n, points)
    given = torch.zeros_like(x) if found.at_input is None else x * means(found.at_input).mean(dim=1)
    return given, ends[:, -1] - ends[:, 0]


def _score(network: Network, batches: Iterable[Batch], options: RelevanceOptions, neurons: bool) -> Scores:
    module = NetworkModule(network).eval()
    modules, rows = weighted_modules(module), max(1, ROWS // (options.steps + 1))
    sums = Collector(modules, options.aggregate)

    def see(name: str, a: Tensor, s: Tensor, r: Tensor) -> None:
        per_neuron = neurons and options.aggregate != "signed"
        sums.add_layer(name, a, s, r.abs() if per_neuron else r, options.steps)

    for batch, labels in ranks.share(batches):
        for x, y in zip(torch.split(batch, rows), torch.split(labels, rows), strict=True):
            with torch.no_grad():
                weights = explained_weights(module(x), y, options)
            given, difference = along_path(module, x, weights, options.steps, modules, see)
            sums.add_balance(batch_sums(given), torch.zeros_like(difference), difference)
            sums.samples += len(x)
    sums.add_up()
    if sums.residual > TOLERANCE:
        raise ModelError(
            f"integrated gradients with relevance.steps = {options.steps} miss the explained difference by "
            f"{sums.residual:.1%}, allowed {TOLERANCE:.0%}",
            hint=f"take more steps, for example relevance.steps = {4 * options.steps}",
        )
    return sums.scores({"steps": options.steps, "baseline": "zeros"})


@METHODS.register("integrated-gradients")
def integrated_gradients(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Integrated gradients, carried to weights and channels by conductance.

    Raises:
        ModelError: the parts miss F(x) - F(0) by far; the residual is what they miss it by.
    """
    return _score(network, batches, options, neurons=False)


@METHODS.register("conductance")
def conductance(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Layer conductance, channels by the magnitudes of their neurons.

    Raises:
        ModelError: as integrated gradients.
    """
    return _score(network, batches, options, neurons=True)
