"""Which weights of each layer become zero, as the plan's lines say: how many (density), in which order (zeros)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import PlanError, UsageError
from xdeploy.handover import CompressionPlan, PlanLine, RelevanceMap
from xdeploy.model.network import Network
from xdeploy.ranking import ORDERS, SCOPES, Mask, kept_count, scores, zero_mask

Float32 = NDArray[np.float32]
DEFAULT = "magnitude"


def order_of(line: PlanLine) -> tuple[str, str]:
    """(order, scope) of a line's zeros: `magnitude` or `relevance/row` as the line has it.

    Raises:
        PlanError: neither an order nor a scope of `ranking`.
    """
    order, _, per = str(line.zeros or DEFAULT).partition("/")
    if order not in ORDERS or order == "wanda" or (per or "layer") not in SCOPES:
        allowed = ", ".join(x for x in ORDERS if x != "wanda")
        raise PlanError(
            f"plan line {line.origin}: zeros {line.zeros!r} is no order; allowed: {allowed}, each also with /row",
            hint="null takes the smallest magnitudes",
        )
    return order, per or "layer"


def masks(network: Network, plan: CompressionPlan, relevance: RelevanceMap | None) -> dict[str, Mask]:
    """Layer -> True where the weight becomes zero (weight's shape); only layers whose line has a density.

    Args:
        network: whose weights are ranked; its channels are already those the plan keeps.
        plan: one line per weighted layer.
        relevance: scores of `network`, for the orders that use them.

    Raises:
        PlanError: an unknown order. UsageError: an order needs relevance that is missing or of another network.
    """
    found: dict[str, Mask] = {}
    for line in plan.layers:
        if line.density is None:
            continue
        weight = network.params[line.origin]["weight"]
        order, per = order_of(line)
        scored = None if relevance is None else relevance.weight.get(line.origin)
        try:
            score = scores(order, weight, scored)
        except UsageError as error:
            raise UsageError(f"{line.origin}: {error.message}", hint="score this network again") from None
        found[line.origin] = zero_mask(score, weight.size - kept_count(line.density, weight.size), per)
    return found


def with_zeros(network: Network, zeros: Mapping[str, Mask]) -> Network:
    """The network with the masked weights at zero; the same object without masks."""
    if not zeros:
        return network
    params = {
        name: {**p, "weight": np.where(zeros[name], np.float32(0), p["weight"])} if name in zeros else p
        for name, p in network.params.items()
    }
    return network.with_params(params)
