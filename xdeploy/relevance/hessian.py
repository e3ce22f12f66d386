"""Hessian trace (HAWQ-V2 and -V3: Dong et al. 2020, arXiv 1911.03852; Yao et al. 2021, arXiv 2011.10680).

How fast the cross entropy rises around the trained weights: the sensitivity of every weight of a layer is the layer's
mean diagonal, Tr(H_l) / n_l, so that `sensitivity * (weight error)^2` is HAWQ's Omega up to its factor 1/2; weight =
w^2 * sensitivity, the saliency of Optimal Brain Damage with the layer's mean curvature; channel = its sum over the
filter. Traces are Hutchinson's estimates: the mean of v' H v over vectors v of random signs, for which one product
H v (two backward passes) serves all layers. A trace that comes out negative (far from a minimum, or too few draws)
counts with its magnitude; the map's parameters hold each trace and its standard error.
`relevance.aggregate` does not apply: curvature is of the mean loss, not of single samples.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.baselines import NOT_EXPLAINED, NOTE, loss
from xdeploy.relevance.method import METHODS, Batch, Scores, forward_all, refuse_opaque, weighted_modules

DRAWS = 4  # random vectors per batch of at most 32 samples


class Traces:
    """Hutchinson's estimates of one network: `values[layer]` has one v' H v of the mean loss per (batch, draw)."""

    def __init__(self, network: Network, draws: int, seed: int) -> None:
        self.module, self.draws = NetworkModule(network).eval(), draws
        self.weights = {n: m.weight for n, m in weighted_modules(self.module).items()}
        self.random = torch.Generator().manual_seed(seed)
        self.values: dict[str, list[float]] = {n: [] for n in self.weights}
        self.sizes: list[int] = []
        self.samples = 0

    def add(self, x: Tensor, y: Tensor, options: RelevanceOptions) -> None:
        """Count one batch.

        Raises:
            ModelError: a float part has no gradient.
        """
        self.samples += len(x)
        with torch.enable_grad():
            values = forward_all(self.module, x)
            refuse_opaque(self.module.network, values)
            mean = loss(values[self.module.network.output.name], y, options).mean()
            found = torch.autograd.grad(mean, list(self.weights.values()), create_graph=True, allow_unused=True)
            gradients = {n: g for n, g in zip(self.weights, found, strict=True) if g is not None}
            for _ in range(self.draws):
                self._draw(gradients, len(x))

    def _draw(self, gradients: dict[str, Tensor], size: int) -> None:
        signs = {n: self._signs(g) for n, g in gradients.items()}
        weights = [self.weights[n] for n in gradients]
        along = torch.stack([(g * signs[n]).sum() for n, g in gradients.items()]).sum()
        products = torch.autograd.grad(along, weights, retain_graph=True, allow_unused=True)
        self.sizes.append(size)
        for name, product in zip(gradients, products, strict=True):
            self.values[name].append(
                0.0 if product is None else float((signs[name] * product).sum(dtype=torch.float64))
            )

    def _signs(self, like: Tensor) -> Tensor:
        return torch.randint(0, 2, like.shape, generator=self.random).to(like.dtype) * 2 - 1

    def traces(self) -> dict[str, tuple[float, float]]:
        """Trace of each layer's block of the Hessian, and the standard error of that mean; 0 where nobody reads."""
        share = np.array(self.sizes) / max(sum(self.sizes), 1)
        found = {}
        for name, values in self.values.items():
            v = np.array(values)
            mean = float(share @ v) if len(v) else 0.0
            spread = float(np.sqrt((share**2 * (v - mean) ** 2).sum() * len(v) / (len(v) - 1))) if len(v) > 1 else 0.0
            found[name] = mean, spread
        return found


@METHODS.register("hessian-trace")
def hessian_trace(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """Mean diagonal of each layer's Hessian as the sensitivity of all its weights.

    Raises:
        ModelError: a float part has no gradient.
    """
    estimate = Traces(network, DRAWS, seed)
    for x, y in batches:
        estimate.add(x, y, options)
    traces = estimate.traces()
    weight, sensitivity = {}, {}
    for name, (trace, _) in traces.items():
        w = network.params[name]["weight"]
        sensitivity[name] = np.full(w.shape, abs(trace) / w.size, np.float32)
        weight[name] = w**2 * sensitivity[name]
    channel = {n: w.reshape(len(w), -1).sum(axis=1) for n, w in weight.items()}
    told = {**NOTE, "draws": DRAWS, "trace": {n: list(t) for n, t in traces.items()}}
    return Scores(weight, channel, sensitivity, told, NOT_EXPLAINED, estimate.samples)
