"""Wanda (Sun et al. 2024, arXiv 2306.11695): |w| times the norm of the input the weight is multiplied with.

For a convolution the norm runs over the positions the weight meets, padding as zero; sums of squares are means over
samples, so scores do not grow with their number. The sensitivity is that mean square sum: sensitivity * error^2 of the
weights, summed, is the expected squared change of the layer's output if the errors are independent. Norms of different
layers are in different units: the paper compares weights within one row (output channel) only.
`relevance.aggregate` does not apply.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from xdeploy.model.network import Network
from xdeploy.model.torchmodule import Conv, Dense, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.baselines import NOT_EXPLAINED, NOTE
from xdeploy.relevance.collect import as_float32
from xdeploy.relevance.method import METHODS, Batch, Scores, forward_all, weighted_modules


def square_sums(module: Conv | Dense, a: Tensor) -> Tensor:
    """Sum over samples and positions of the square of what each weight is multiplied with; of the weight's shape."""
    with torch.enable_grad():
        weight = torch.ones_like(module.weight, requires_grad=True)
        return torch.autograd.grad(module.run(a.detach() ** 2, weight, None).sum(), weight)[0]


@METHODS.register("wanda")
def wanda(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Weights by |w| * input norm, channels by the sum over their weights."""
    module = NetworkModule(network).eval()
    modules, samples = weighted_modules(module), 0
    sums = {n: torch.zeros(m.weight.shape, dtype=torch.float64) for n, m in modules.items()}
    for x, _ in batches:
        with torch.no_grad():
            values = forward_all(module, x)
        for name, layer in modules.items():
            sums[name] += square_sums(layer, values[network[name].inputs[0]])
        samples += len(x)
    mean = {n: s / max(samples, 1) for n, s in sums.items()}
    weight = {n: modules[n].weight.detach().abs() * s.sqrt() for n, s in mean.items()}
    channel = {n: w.flatten(1).sum(dim=1) for n, w in weight.items()}
    return Scores(as_float32(weight), as_float32(channel), as_float32(mean), NOTE, NOT_EXPLAINED, samples)
