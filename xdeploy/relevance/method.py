"""What a relevance method is, and `score`: one method over a stream of batches -> RelevanceMap.

A method is a function of (network, batches, options, seed) in one file of this folder, registered by name. The network
is plain data and every method builds its own module from it, so nothing of the user's model is ever touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdeploy.errors import ModelError, UsageError
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import Conv, Dense, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.registry import Registry

Float32 = NDArray[np.float32]
Batch = tuple[Tensor, Tensor]  # float32 (N, *input shape), int64 (N,)
Progress = Callable[[str, int, int], None]  # what, done, total

CHUNK = 32  # samples scored at once: bounds memory whatever the caller's batches are


@dataclass(slots=True)
class Scores:
    """What a method returns: scores by layer, what it did, how well it conserves, and the samples it used."""

    weight: Mapping[str, Float32]
    channel: Mapping[str, Float32]
    sensitivity: Mapping[str, Float32]
    parameters: Mapping[str, Any]
    conservation_residual: float
    samples: int


Method = Callable[[Network, Iterable[Batch], RelevanceOptions, int], Scores]
METHODS: Registry[Method] = Registry("relevance method", "xdeploy.relevance")


def score(
    network: Network,
    batches: Iterable[Batch],
    options: RelevanceOptions,
    fingerprint: str,
    progress: Progress | None = None,
    seed: int = 0,
) -> RelevanceMap:
    """Score every weight and output channel of a network.

    Args:
        network: the float network, BatchNorm folded; not changed. Of a final softmax or sigmoid the logits are
            explained.
        batches: inputs and labels; at most `options.samples` samples are read, memory does not grow with them.
        options: method, composite, number of samples and target class.
        fingerprint: of the data, recorded in the map.
        progress: told ("score", samples done, samples wanted).
        seed: of methods that draw random numbers.

    Raises:
        UsageError: unknown method, or no samples. ModelError: scores that are not finite.
    """
    method = METHODS[options.method]
    scores = method(logit_network(network), chunks(batches, options.samples, progress), options, seed)
    if scores.samples == 0:
        raise UsageError("scoring needs at least one sample, got none")
    for name, values in scores.weight.items():
        if not (np.isfinite(values).all() and np.isfinite(scores.channel[name]).all()):
            raise ModelError(
                f"{name}: its relevance is not finite", hint="check the weights and the data for infinities"
            )
    parameters = {"target": options.target, "seed": seed, **scores.parameters}
    return RelevanceMap(
        options.method, parameters, fingerprint, scores.samples,
        scores.weight, scores.channel, scores.sensitivity, scores.conservation_residual,
    )  # fmt: skip


def logit_network(network: Network) -> Network:
    """The network without a final softmax or sigmoid."""
    last = network.output
    if last.kind == "softmax" or (last.kind == "function" and last.attrs["function"] == "sigmoid"):
        return Network(network.layers[:-1], network.params)
    return network


def chunks(batches: Iterable[Batch], samples: int, progress: Progress | None) -> Iterator[Batch]:
    """Cut batches into pieces of at most CHUNK samples and stop after `samples`."""
    done = 0
    for x, y in batches:
        wanted = min(len(x), samples - done)
        for start in range(0, wanted, CHUNK):
            stop = min(start + CHUNK, wanted)
            yield x[start:stop], y[start:stop]
            done += stop - start
            if progress is not None:
                progress("score", done, samples)
        if done >= samples:
            return


def explained_class(logits: Tensor, labels: Tensor, options: RelevanceOptions) -> Tensor:
    """The class explained for each sample (N,): its label, or the one the network predicts.

    Of "difference" it is the label, which the other classes are held against.

    Raises:
        UsageError: a label is no class of the network.
    """
    if options.target == "predicted":
        return logits.argmax(dim=1)
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise UsageError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, the network has {logits.shape[1]} classes"
        )
    return labels


def explained_weights(logits: Tensor, labels: Tensor, options: RelevanceOptions) -> Tensor:
    """What is explained of each sample, as weights v (N, classes) of its logits z: the sum of v * z.

    Of a class v is 1 for it and 0 else. Of "difference", z_label - logsumexp(z of the others), v is its gradient: 1 for
    the label, minus the softmax among the others for them; methods that look at other inputs keep v as it is at the
    sample itself, so what they explain is linear in the logits.

    Raises:
        UsageError: a label is no class of the network, or a difference is asked of a network with one class.
    """
    classes = logits.shape[1]
    chosen = torch.nn.functional.one_hot(explained_class(logits, labels, options), classes).to(logits.dtype)
    if options.target != "difference":
        return chosen
    if classes < 2:
        raise UsageError("relevance.target = 'difference' needs two classes, the network has one")
    return chosen - logits.detach().masked_fill(chosen > 0, -torch.inf).softmax(dim=1)


def class_weights(chosen: Tensor, logits: Tensor) -> Tensor:
    """Weights (N, classes) of the logits: `chosen` itself, or 1 for the class of each sample where it is (N,)."""
    return chosen if chosen.dim() == 2 else torch.nn.functional.one_hot(chosen, logits.shape[1]).to(logits.dtype)


def forward_all(module: NetworkModule, x: Tensor) -> dict[str, Tensor]:
    """Outputs of all layers by name, input included; the last one must be (N, classes).

    Raises:
        ModelError: the network does not end in one vector of logits.
    """
    layers = module.network.layers
    values = {layers[0].name: x}
    for layer, step in zip(layers[1:], module.steps, strict=True):
        values[layer.name] = step(*(values[i] for i in layer.inputs))
    if values[layers[-1].name].dim() != 2:
        raise ModelError(f"{layers[-1].name}: only networks that end in class scores can be explained")
    return values


def refuse_opaque(network: Network, values: Mapping[str, Tensor]) -> None:
    """Raise the ModelError of a float part that no gradient passes: layers before it would count as unused."""
    for layer in network.layers:
        if layer.kind == "fallback" and not values[layer.name].requires_grad:
            raise ModelError(
                f"{layer.name}: no gradient passes this float part, so the layers before it cannot be scored",
                hint="score with relevance.method = 'lrp' or 'magnitude'",
            )


@dataclass(frozen=True, slots=True)
class Gradients:
    """One gradient pass: values by layer; objective (N,); gradients at the input and at each asked layer's output.

    A gradient is None where the objective does not depend on the place.
    """

    values: Mapping[str, Tensor]
    objective: Tensor
    at_input: Tensor | None
    at: Mapping[str, Tensor | None]


def gradient_pass(
    module: NetworkModule, x: Tensor, names: Iterable[str], objective: Callable[[Tensor], Tensor]
) -> Gradients:
    """Forward, and gradients of `objective` (logits -> one number per sample) at the outputs of the named layers.

    Raises:
        ModelError: a float part has no gradient.
    """
    with torch.enable_grad():
        leaf, names = x.detach().requires_grad_(), tuple(names)
        values = forward_all(module, leaf)
        refuse_opaque(module.network, values)
        found = objective(values[module.network.output.name])
        places = [leaf, *(values[n] for n in names)]
        first, *others = torch.autograd.grad(found.sum(), places, allow_unused=True)
    at = dict(zip(names, others, strict=True))
    return Gradients({n: v.detach() for n, v in values.items()}, found.detach(), first, at)


def weighted_modules(module: NetworkModule) -> dict[str, Conv | Dense]:
    """The convolution and linear layers by name."""
    return {n: m for n, m in module.modules_by_name.items() if isinstance(m, Conv | Dense)}
