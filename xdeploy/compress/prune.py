"""Channel removal as the plan says, for networks and for maps that have the shapes of their weights."""

from __future__ import annotations

from xdeploy.handover import CompressionPlan, RelevanceMap
from xdeploy.model.network import Network


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
    from xdeploy.model.removal import cut_relevance

    return cut_relevance(network, relevance, kept_channels(plan))
