"""Layer-wise relevance propagation (Bach et al. 2015) down to weights.

Per sample the explained logit is propagated back layer by layer. Each weight gets, in the epsilon form whatever rule
propagates through its layer, r = w * sum over positions of a * R / (z + epsilon * rms(z) * sign(z)) (Becking et al.
2022, arXiv 2109.04236; through z+ itself every negative weight would get exactly 0). Magnitudes are averaged over
samples: signed sums cancel and rank badly. The stabiliser of 0.1 * rms(z) is the one measured to work on residual
networks; what it takes away shows in the conservation residual. Composites:

* `epsilon`: the epsilon rule in every weighted layer;
* `epsilon-plus-flat`: flat in the first weighted layer, z+ in the other convolutions, epsilon in linear layers.

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

from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import Conv, Dense, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.method import (
    METHODS,
    Batch,
    Collector,
    Scores,
    batch_sums,
    explained_class,
    forward_all,
    gradient_pass,
    weighted_modules,
)
from xdeploy.relevance.rules import RULES, Rule, epsilon_rule, flat_rule, signal_rule, stabilised, z_plus_rule

EPSILON = 0.1  # of the root mean square of a layer's activations
GATES = ("sigmoid", "hard_sigmoid")  # what they give lies in 0..1: a share of the other operand

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


def composite(network: Network, name: str, epsilon: float = EPSILON) -> dict[str, Rule]:
    """The rule of each layer by name, for `epsilon` or `epsilon-plus-flat`."""
    rules = {x.name: RULES.get(x.kind, epsilon_rule(epsilon)) for x in network.layers[1:]}
    rules.update({x.name: signal_rule(signal_operand(network, x)) for x in network.layers if x.kind == "mul"})
    weighted = network.weighted()
    if name == "epsilon-plus-flat" and weighted:
        rules.update({x.name: z_plus_rule for x in weighted if x.kind == "conv2d"})
        rules[weighted[0].name] = flat_rule
    return rules


def signal_operand(network: Network, product: Layer) -> int:
    """Which operand of a product is the signal: the first, unless it alone is a sigmoid, of the second's shape."""
    first, second = (network[i] for i in product.inputs)
    gates = [x.kind == "function" and x.attrs["function"] in GATES for x in (first, second)]
    return 1 if gates == [True, False] and first.shape == second.shape else 0


def gate_layers(network: Network) -> tuple[str, ...]:
    """The weighted layers that reach the output through gates only, where no relevance goes."""
    reached = {network.output.name}
    for layer in reversed(network.layers):
        if layer.name in reached:
            signal = layer.kind == "mul" and layer.inputs[signal_operand(network, layer)]
            reached.update((signal,) if signal else layer.inputs)
    return tuple(x.name for x in network.weighted() if x.name not in reached)


@torch.no_grad()
def propagate(
    module: NetworkModule, x: Tensor, rules: Mapping[str, Rule], choose: Callable[[Tensor], Tensor], see: See
) -> Balance:
    """Propagate one logit per sample from the output to the input.

    Args:
        module: the network; only its forward passes are used, nothing on it is changed.
        x: inputs (N, ...).
        rules: of each layer.
        choose: logits (N, classes) -> class per sample (N,).
        see: called for each conv2d and linear layer.

    Returns:
        The sums that conservation is judged by.
    """
    values = forward_all(module, x)
    network, modules = module.network, module.modules_by_name
    logits = values[network.output.name]
    chosen = torch.nn.functional.one_hot(choose(logits), logits.shape[1])
    relevance = {network.output.name: logits * chosen}
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
    return Balance(batch_sums(logits * chosen), batch_sums(at_input), absorbed, at_input, found)


@METHODS.register("lrp")
def lrp(
    network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int, epsilon: float = EPSILON
) -> Scores:
    """LRP with the composite of the options; see the module's text."""
    module = NetworkModule(network).eval()
    rules = composite(network, options.composite, epsilon)
    sums, gates = Collector(weighted_modules(module)), gate_layers(network)

    def see(name: str, a: Tensor, z: Tensor, r: Tensor) -> None:
        if name not in gates:
            sums.add_layer(name, a, r / stabilised(z, epsilon), r)

    for x, y in batches:
        choose = partial(explained_class, labels=y, options=options)
        balance = propagate(module, x, rules, choose, see)
        sums.add_balance(balance.arrived, balance.absorbed, balance.sent)
        sums.samples += len(x)
        if gates:
            _score_gates(module, x, choose, gates, sums)
    how = "epsilon * rms per sample"
    told: dict[str, Any] = {"composite": options.composite, "epsilon": epsilon, "stabiliser": how}
    if any(x.kind == "mul" for x in network.layers):
        told |= {"products": "the signal takes all", "scored_by_gradient": list(gates)}
    return sums.scores(told)


def _score_gates(
    module: NetworkModule, x: Tensor, choose: Callable[[Tensor], Tensor], gates: tuple[str, ...], sums: Collector
) -> None:
    """Count the layers that only feed gates, by gradient times activation of the explained logit."""
    found = gradient_pass(module, x, gates, lambda logits: logits.gather(1, choose(logits)[:, None])[:, 0])
    for name, s in found.at.items():
        if s is not None:
            sums.add_layer(name, found.values[module.network[name].inputs[0]], s, found.values[name] * s)
