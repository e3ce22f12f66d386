"""Channel removal as the plan says, for networks and for maps that have the shapes of their weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.network import Network

Float32 = NDArray[np.float32]


def kept_channels(plan: CompressionPlan) -> dict[str, tuple[int, ...]]:
    """The lines of a plan that remove channels: layer -> output channels kept."""
    return {line.origin: line.keep for line in plan.layers if line.keep is not None}


def prune_network(network: Network, plan: CompressionPlan) -> Network:
    """The network without the removed channels; the same object when the plan keeps all.

    Raises:
        PlanError: coupled layers do not keep the same channels.
    """
    keep = kept_channels(plan)
    if not keep:
        return network
    from xdeploy.model.groups import prune

    return prune(network, keep)


def prune_relevance(network: Network, relevance: RelevanceMap, plan: CompressionPlan) -> RelevanceMap:
    """The scores of the weights and channels that are left; `network` is the one before pruning."""
    if not kept_channels(plan):
        return relevance

    def left(maps: Mapping[str, Float32], per_channel: Mapping[str, Float32]) -> Network:
        params = {n: {"weight": maps[n], "bias": per_channel[n]} for n in maps}
        return prune_network(network.with_params(params), plan)

    weight, sensitivity = left(relevance.weight, relevance.channel), left(relevance.sensitivity, relevance.channel)
    return RelevanceMap(
        relevance.method, relevance.parameters, relevance.data_fingerprint, relevance.samples,
        {n: p["weight"] for n, p in weight.params.items()}, {n: p["bias"] for n, p in weight.params.items()},
        {n: p["weight"] for n, p in sensitivity.params.items()}, relevance.conservation_residual,
    )  # fmt: skip
