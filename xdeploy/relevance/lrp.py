"""Layer-wise relevance propagation (Bach et al. 2015) down to weights.

Per sample the explained logit is propagated back layer by layer. Each weight gets, in the epsilon form whatever rule
propagates through its layer, r = w * sum over positions of a * R / (z + epsilon * rms(z) * sign(z)) (Becking et al.
2022, arXiv 2109.04236; through z+ itself every negative weight would get exactly 0). Magnitudes are averaged over
samples: signed sums cancel and rank badly (`collect` has the other aggregates). The stabiliser of 0.1 * rms(z) is the
one measured to work on residual networks; what it takes away shows in the conservation residual. Which rule propagates
through which layer is the composite's choice, see `composites`.

Networks arrive with BatchNorm folded into the layer before it, so the published "pass" convention (BatchNorm hands
relevance on as it is, and the convolution's z is taken before it) cannot be asked for: it divides by values near zero
that folding never sees. With z+ the two were measured to rank filters alike (Spearman 0.995).

Of a product the signal takes all relevance and the gate none (Arras et al. 2017, arXiv 1706.07206): that conserves and
explains well, but says of no weight that only feeds gates whether it may be changed. Those layers, and no others, are
scored by gradient times activation of the same logit, which is in the same unit (and what the epsilon rule tends to for
small epsilon in piecewise linear networks); the map's parameters name them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xdeploy import ranks
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import Conv, Dense, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.collect import Collector, batch_sums
from xdeploy.relevance.composites import EPSILON, composite, gate_layers, rule_names
from xdeploy.relevance.method import (
    METHODS,
    Batch,
    Scores,
    class_weights,
    explained_weights,
    forward_all,
    gradient_pass,
    weighted_modules,
)
from xdeploy.relevance.rules import Rule, stabilised

__all__ = ["EPSILON", "Balance", "composite", "gate_layers", "lrp", "propagate", "rules_of"]

See = Callable[[str, Tensor, Tensor, Tensor], None]  # layer, its input, its activation z, relevance of z


@dataclass(slots=True)
class Balance:
    """Relevance sums per sample (N,), float64: of the explained logit, at the input, kept by biases; and by layer.

    `layers[name]` is (relevance of the output, of all inputs together, kept by the bias).
    """

    sent: Tensor
    arrived: Tensor
    absorbed: Tensor
    input_relevance: Tensor
    layers: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def residual(self, name: str | None = None) -> float:
        """|R_in + bias share - R_out| / |R_out|, summed over samples, of one layer or of the whole network."""
        out, into, kept = (self.sent, self.arrived, self.absorbed) if name is None else self.layers[name]
        return float((into + kept - out).abs().sum() / out.abs().sum().clamp_min(1e-30))


@torch.no_grad()
def propagate(
    module: NetworkModule, x: Tensor, rules: Mapping[str, Rule], choose: Callable[[Tensor], Tensor], see: See
) -> Balance:
    """Propagate what is explained of each sample, for example one logit, from the output to the input.

    Args:
        module: the network; only its forward passes are used, nothing on it is changed.
        x: inputs (N, ...).
        rules: of each layer.
        choose: logits (N, classes) -> class per sample (N,), or weights of the logits (N, classes): the output's
            relevance is weight * logit.
        see: called for each conv2d and linear layer.

    Returns:
        The sums that conservation is judged by.
    """
    values = forward_all(module, x)
    network, modules = module.network, module.modules_by_name
    logits = values[network.output.name]
    at_output = logits * class_weights(choose(logits), logits)
    relevance = {network.output.name: at_output}
    absorbed = torch.zeros(len(x), dtype=torch.float64)
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for layer in reversed(network.layers[1:]):
        r, z = relevance.pop(layer.name, None), values.pop(layer.name)
        if r is None:  # nobody reads this layer
            continue
        xs = [values[i] for i in layer.inputs]
        if isinstance(modules[layer.name], Conv | Dense):
            see(layer.name, xs[0], z, r)
        back, kept = rules[layer.name](modules[layer.name], xs, r)
        for name, part in zip(layer.inputs, back, strict=True):
            relevance[name] = relevance[name] + part if name in relevance else part
        found[layer.name] = (
            batch_sums(r),
            sum((batch_sums(b) for b in back), torch.zeros_like(absorbed)),
            kept.double(),
        )
        absorbed += kept
    at_input = relevance.get(network.input.name, torch.zeros_like(x))
    return Balance(batch_sums(at_output), batch_sums(at_input), absorbed, at_input, found)


def rules_of(network: Network, options: RelevanceOptions) -> dict[str, Rule]:
    """The rule of each layer as the options want it."""
    return composite(network, options.composite, options.epsilon, options.stabiliser == "absolute")


@METHODS.register("lrp")
def lrp(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """LRP with the composite, stabiliser and aggregate of the options; see the module's text."""
    module = NetworkModule(network).eval()
    rules, absolute = rules_of(network, options), options.stabiliser == "absolute"
    sums, gates = Collector(weighted_modules(module), options.aggregate), gate_layers(network)

    def see(name: str, a: Tensor, z: Tensor, r: Tensor) -> None:
        if name not in gates:
            sums.add_layer(name, a, r / stabilised(z, options.epsilon, absolute), r)

    for x, y in ranks.share(batches):
        choose = partial(explained_weights, labels=y, options=options)
        balance = propagate(module, x, rules, choose, see)
        sums.add_balance(balance.arrived, balance.absorbed, balance.sent)
        sums.samples += len(x)
        if gates:
            _score_gates(module, x, choose, gates, sums)
    sums.add_up()
    return sums.scores(_told(network, options, gates))


def _told(network: Network, options: RelevanceOptions, gates: tuple[str, ...]) -> dict[str, Any]:
    """The parameters a map records."""
    how = "epsilon" if options.stabiliser == "absolute" else "epsilon * rms per sample"
    told: dict[str, Any] = {"composite": options.composite, "epsilon": options.epsilon, "stabiliser": how}
    if options.composite.startswith("groups:"):
        told["rules"] = rule_names(network, options.composite)
    if any(x.kind == "mul" for x in network.layers):
        told |= {"products": "the signal takes all", "scored_by_gradient": list(gates)}
    return told


def _score_gates(
    module: NetworkModule, x: Tensor, choose: Callable[[Tensor], Tensor], gates: tuple[str, ...], sums: Collector
) -> None:
    """Count the layers that only feed gates, by gradient times activation of what is explained."""
    found = gradient_pass(module, x, gates, lambda logits: (logits * choose(logits)).sum(dim=1))
    for name, s in found.at.items():
        if s is not None:
            sums.add_layer(name, found.values[module.network[name].inputs[0]], s, found.values[name] * s)
