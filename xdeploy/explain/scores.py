"""The scores as a small table: per layer its shares and rank correlation, per filter its score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.relevance.agreement import correlation

SCHEMA = "xdeploy.scores/1"


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Spearman's correlation of two arrays of one shape; None where one of them is constant."""
    from scipy.stats import rankdata

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(correlation(*(rankdata(v, axis=None).reshape(1, -1) for v in (a, b)))[0])


def scores(network: Network, relevance: RelevanceMap) -> dict[str, Any]:
    """The document of scores.json.

    Shares are of the whole network, in 0..1: of relevance (magnitudes of the channels' scores), weights and MACs.
    `rank_correlation` is Spearman's, of the layer's |score| with |weight|, None where undefined; `unscored` counts
    weights of score 0. `filters` are the scores of the output channels, in their order.
    """
    share = relevance.share()
    sizes = {n: network.params[n]["weight"].size for n in relevance.channel}
    macs = {n: network.macs(n) for n in relevance.channel}
    rows = [
        {
            "origin": name,
            "op": network[name].kind,
            "weights": sizes[name],
            "weight_share": sizes[name] / sum(sizes.values()),
            "macs": macs[name],
            "mac_share": macs[name] / max(1, sum(macs.values())),
            "relevance_share": share[name],
            "rank_correlation": rank_correlation(
                np.abs(network.params[name]["weight"]), np.abs(relevance.weight[name])
            ),
            "unscored": int((relevance.weight[name] == 0).sum()),
            "filters": [float(v) for v in relevance.channel[name]],
        }
        for name in relevance.channel
    ]
    return {**head(relevance), "layers": rows}


def head(relevance: RelevanceMap) -> Mapping[str, Any]:
    """What the scores are of."""
    return {
        "schema": SCHEMA,
        "method": relevance.method,
        "parameters": dict(relevance.parameters),
        "samples": relevance.samples,
        "data_fingerprint": relevance.data_fingerprint,
        "conservation_residual": relevance.conservation_residual,
    }
