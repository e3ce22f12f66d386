"""Composites: which LRP rule each layer gets, by what the layer is and where it stands.

| name | first weighted layer | other convolutions | linear layers |
|---|---|---|---|
| epsilon | epsilon | epsilon | epsilon |
| epsilon-plus, -plus-flat, -plus-bounded, -plus-wsquare | z+, flat, bounded, w-square | z+ | epsilon |
| alpha2-beta1, alpha2-beta1-flat | alpha2-beta1, flat | alpha2-beta1 | epsilon |
| gamma, gamma-flat, gamma-bounded | gamma, flat, bounded | gamma 0.25 | gamma 0.05 |

"groups:A,B,C,D" gives the first quarter of the hidden layers rule A, the middle ones B, the last quarter C and the
fully connected layers D (Hatefi et al. 2024, arXiv 2408.12568); hidden layers are the convolutions, or in a network
without any all linear layers but the last. Sources: Montavon et al. 2019, Kohlbrenner et al. 2020 (which composite
where), Hatefi et al. 2024 (gamma 0.25 in convolutions, 0.05 in linear layers).
"""

from __future__ import annotations

import re

from xdeploy.model.network import Layer, Network
from xdeploy.recipe import RULE, RelevanceOptions, check_composite
from xdeploy.relevance.rules import (
    RULES,
    Rule,
    alpha_beta_rule,
    bounded_rule,
    epsilon_rule,
    flat_rule,
    gamma_rule,
    signal_rule,
    w_square_rule,
    z_plus_rule,
)

EPSILON = RelevanceOptions().epsilon
GATES = ("sigmoid", "hard_sigmoid")  # what they give lies in 0..1: a share of the other operand
GAMMA_CONV, GAMMA_LINEAR = 0.25, 0.05

# name -> rules of the first weighted layer ("": as its kind), of convolutions, of linear layers
NAMED: dict[str, tuple[str, str, str]] = {
    "epsilon": ("", "epsilon", "epsilon"),
    "epsilon-plus": ("", "z+", "epsilon"),
    "epsilon-plus-flat": ("flat", "z+", "epsilon"),
    "epsilon-plus-bounded": ("bounded", "z+", "epsilon"),
    "epsilon-plus-wsquare": ("wsquare", "z+", "epsilon"),
    "alpha2-beta1": ("", "alpha2beta1", "epsilon"),
    "alpha2-beta1-flat": ("flat", "alpha2beta1", "epsilon"),
    "gamma": ("", "gamma", "gamma"),
    "gamma-flat": ("flat", "gamma", "gamma"),
    "gamma-bounded": ("bounded", "gamma", "gamma"),
}


def composite(network: Network, name: str, epsilon: float = EPSILON, absolute: bool = False) -> dict[str, Rule]:
    """The rule of each layer by name.

    Args:
        network: whose layers.
        name: a row of the table above, or "groups:" and four rules.
        epsilon: of the epsilon rule.
        absolute: whether epsilon is not relative to the root mean square of z.

    Raises:
        UsageError: no such composite.
    """
    check_composite(name)
    rules = {x.name: RULES[x.kind] for x in network.layers[1:] if x.kind in RULES}
    rules.update({x.name: signal_rule(signal_operand(network, x)) for x in network.layers if x.kind == "mul"})
    for layer, rule in rule_names(network, name).items():
        rules[layer] = rule_named(rule, network[layer].kind, epsilon, absolute)
    return rules


def rule_names(network: Network, name: str) -> dict[str, str]:
    """The name of the rule of each weighted layer."""
    weighted = network.weighted()
    if name.startswith("groups:"):
        names = [x.strip() for x in name.removeprefix("groups:").split(",")]
        return {x: names[k] for x, k in depth_groups(network).items()}
    first, conv, linear = NAMED[name]
    found = {x.name: conv if x.kind == "conv2d" else linear for x in weighted}
    return found | {x.name: first for x in weighted[:1] if first}


def depth_groups(network: Network) -> dict[str, int]:
    """Each weighted layer's group: 0 first quarter of the hidden ones, 1 middle, 2 last quarter, 3 fully connected.

    Quarters are rounded up: 13 convolutions fall into 4, 5 and 4, as in the authors' VGG16.
    """
    weighted = network.weighted()
    hidden = [x.name for x in weighted if x.kind == "conv2d"] or [x.name for x in weighted[:-1]]
    edge = -(-len(hidden) // 4)
    groups = {x.name: 3 for x in weighted}
    for k, name in enumerate(hidden):
        groups[name] = 0 if k < edge else 2 if k >= len(hidden) - edge else 1
    return groups


def rule_named(name: str, kind: str, epsilon: float = EPSILON, absolute: bool = False) -> Rule:
    """The rule of a name of the recipe's grammar, for a layer of `kind` conv2d or linear."""
    if name == "epsilon":
        return epsilon_rule(epsilon, absolute)
    found = re.fullmatch(RULE, name)
    assert found is not None
    if found["alpha"]:
        return alpha_beta_rule(int(found["alpha"]), int(found["beta"]))
    if name.startswith("gamma"):
        return gamma_rule(float(found["gamma"] or (GAMMA_CONV if kind == "conv2d" else GAMMA_LINEAR)))
    return {"z+": z_plus_rule, "flat": flat_rule, "wsquare": w_square_rule, "bounded": bounded_rule}[name]


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
