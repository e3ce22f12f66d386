"""Relevance maps of a network whose channels are removed: their scores go where the weights go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xdeploy.handover import RelevanceMap
from xdeploy.model.groups import prune
from xdeploy.model.network import Network

Float32 = NDArray[np.float32]


def cut_relevance(network: Network, relevance: RelevanceMap, keep: Mapping[str, tuple[int, ...]]) -> RelevanceMap:
    """The scores of the weights and channels that are left.

    Args:
        network: the one before the removal.
        relevance: its scores; other methods of the same shape may come as well.
        keep: layer -> output channels kept, as `model.groups.prune` takes it.

    Raises:
        PlanError: coupled layers do not keep the same channels.
    """
    if not keep:
        return relevance

    def left(maps: Mapping[str, Float32]) -> Mapping[str, Mapping[str, Float32]]:
        params = {n: {"weight": maps[n], "bias": relevance.channel[n]} for n in maps}
        return prune(network.with_params(params), keep).params

    weight, sensitivity = left(relevance.weight), left(relevance.sensitivity)
    return replace(
        relevance,
        weight={n: p["weight"] for n, p in weight.items()},
        channel={n: p["bias"] for n, p in weight.items()},
        sensitivity={n: p["weight"] for n, p in sensitivity.items()},
    )
