"""Heat-maps: how relevant each input value of each sample is, by the methods that reach the input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from xdeploy.errors import UsageError, choose_from
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.deeplift import contributions, explainable_module
from xdeploy.relevance.lrp import propagate, rules_of
from xdeploy.relevance.method import CHUNK, Float32, explained_weights, gradient_pass, logit_network
from xdeploy.relevance.paths import ROWS, along_path

Mapper = Callable[[NetworkModule, Tensor, Tensor, RelevanceOptions], Tensor]  # module, x, logit weights -> like x


def heatmaps(network: Network, x: Tensor, labels: Tensor, options: RelevanceOptions) -> Float32:
    """The relevance of every input value; it adds up to what is explained, less what biases and stabilisers keep.

    Args:
        network: the float network, or the real network of a compressed model; not changed. Of a final softmax or
            sigmoid the logits are explained.
        x: inputs (N, *input shape), float32.
        labels: (N,) int64; read for the targets "label" and "difference".
        options: `method` lrp, deeplift, gradient (times input) or integrated-gradients, with its own options; samples
            and aggregate do not matter.

    Returns:
        (N, *input shape), float32.

    Raises:
        UsageError: the method has no heat-maps, or inputs and labels do not fit the network.
        ModelError: the network does not end in class scores.
    """
    if options.method not in MAPPERS:
        raise choose_from("method with heat-maps", options.method, MAPPERS)
    if tuple(x.shape[1:]) != network.input.shape or len(x) != len(labels):
        raise UsageError(
            f"heat-maps of {len(x)} inputs of shape {tuple(x.shape[1:])} and {len(labels)} labels; "
            f"the network takes {network.input.shape} and one label each"
        )
    if not len(x):
        return np.zeros(x.shape, np.float32)
    rows, build, mapper = MAPPERS[options.method]
    module, parts = build(logit_network(network)), []
    for some, y in zip(torch.split(x, rows(options)), torch.split(labels, rows(options)), strict=True):
        with torch.no_grad():
            logits = module(some)
            if logits.dim() != 2:
                raise UsageError(f"{module.network.output.name}: only networks that end in class scores have heat-maps")
            weights = explained_weights(logits, y, options)
        parts.append(mapper(module, some, weights, options).detach().to(torch.float32).numpy())
    return np.concatenate(parts)


def _lrp(module: NetworkModule, x: Tensor, weights: Tensor, options: RelevanceOptions) -> Tensor:
    rules = rules_of(module.network, options)
    return propagate(module, x, rules, lambda _: weights, lambda *_: None).input_relevance


def _deeplift(module: NetworkModule, x: Tensor, weights: Tensor, options: RelevanceOptions) -> Tensor:
    return contributions(module, x, weights, lambda *_: None)[0]


def _gradient(module: NetworkModule, x: Tensor, weights: Tensor, options: RelevanceOptions) -> Tensor:
    found = gradient_pass(module, x, (), lambda logits: (logits * weights).sum(dim=1))
    return torch.zeros_like(x) if found.at_input is None else x * found.at_input


def _integrated(module: NetworkModule, x: Tensor, weights: Tensor, options: RelevanceOptions) -> Tensor:
    return along_path(module, x, weights, options.steps, (), lambda *_: None)[0]


def _plain(network: Network) -> NetworkModule:
    return NetworkModule(network).eval()


# method -> samples in one pass, the module it works on, its mapper
MAPPERS: dict[str, tuple[Callable[[RelevanceOptions], int], Callable[[Network], NetworkModule], Mapper]] = {
    "lrp": (lambda _: CHUNK, _plain, _lrp),
    "deeplift": (lambda _: CHUNK, explainable_module, _deeplift),
    "gradient": (lambda _: CHUNK, _plain, _gradient),
    "integrated-gradients": (lambda options: max(1, ROWS // (options.steps + 1)), _plain, _integrated),
}
