"""How many weights each layer keeps: relevance decides each layer's share, something else which of its weights.

Measured without fine-tuning, one threshold on LRP's per-weight scores shared out the zeros better than magnitude,
Fisher information or LAMP, if magnitude then chose inside each layer; the scores' own order inside a layer lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from xdeploy.errors import PlanError
from xdeploy.formats import Float64
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.planoptions import PlanOptions
from xdeploy.ranking import Mask, kept_count, lamp, scores, shared_out, zero_mask

WORDS = {
    "relevance": "one threshold on relevance",
    "magnitude": "one threshold on magnitude",
    "lamp": "one threshold on LAMP scores",
    "uniform": "the same share of every layer",
    "row": "the same share of every output channel",
    "positive": "weights of positive relevance",
}


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a density of the whole network (0..1) is shared out: weights kept of each layer, and which become zero."""

    density: float
    kept: dict[str, int]
    masks: dict[str, Mask]
    relevance: dict[str, float]  # share of each layer's summed |relevance| that is kept; empty without relevance


def share_out(network: Network, relevance: RelevanceMap | None, options: PlanOptions) -> tuple[Sharing, ...]:
    """One sharing for each candidate of `options.density`, rising; none if no weights become zero on purpose.

    Raises:
        PlanError: a density is under the layers' floor, or relevance is needed and missing or of another network.
    """
    return tuple(_share_out(network, relevance, options, density) for density in options.densities)


def _share_out(network: Network, relevance: RelevanceMap | None, options: PlanOptions, density: float) -> Sharing:
    if options.density is not None and density < options.least_density:
        raise PlanError(
            f"plan.density = {density:g} is less than every layer must keep, plan.least_density = "
            f"{options.least_density:g}",
            hint=f"set plan.least_density to {density:g} or less",
        )
    sizes = {x.name: network.params[x.name]["weight"].size for x in network.weighted()}
    kept = _counts(network, relevance, options, density, sizes)
    found: dict[str, Mask] = {}
    left: dict[str, float] = {}
    for name, size in sizes.items():
        weight, scored = network.params[name]["weight"], _scored(relevance, name)
        if scored is None and options.zeros in ("relevance", "negative-first"):
            raise _missing(name, f"plan.zeros = {options.zeros!r}")
        found[name] = zero_mask(scores(options.zeros, weight, scored), size - kept[name], scope(network, options, name))
        if scored is not None:
            total = float(np.abs(scored).sum(dtype=np.float64))
            left[name] = float(np.abs(scored)[~found[name]].sum(dtype=np.float64)) / total if total else 0.0
    return Sharing(density, kept, found, left)


def scope(network: Network, options: PlanOptions, name: str) -> str:
    """What has its own share of zeros in a layer: every class of a last layer, as one without weights is never found.

    Below such a layer a channel without weights only means that it is not needed. Where all that is not positive goes,
    nothing is shared out.
    """
    return options.zeros_per if options.density_by == "positive" or name in network.hidden() else "row"


def _counts(
    network: Network, relevance: RelevanceMap | None, options: PlanOptions, density: float, sizes: dict[str, int]
) -> dict[str, int]:
    least = {n: max(1, math.ceil(options.least_density * size - 1e-9)) for n, size in sizes.items()}
    if options.density_by == "uniform":
        return {n: max(kept_count(density, size), least[n]) for n, size in sizes.items()}
    if options.density_by == "row":
        rows = {n: len(network.params[n]["weight"]) for n in sizes}
        each = {n: max(kept_count(density, size // rows[n]), -(-least[n] // rows[n])) for n, size in sizes.items()}
        return {n: rows[n] * each[n] for n in sizes}
    by_layer = {n: _ranked(network, relevance, options.density_by, n) for n in sizes}
    if options.density_by == "positive":
        positive = {n: int((s > 0).sum()) for n, s in by_layer.items()}
        if density >= 1.0:
            return {n: max(positive[n], least[n]) for n in sizes}
    total = sum(sizes.values())
    return shared_out(by_layer, max(kept_count(density, total), sum(least.values())), least)


def _ranked(network: Network, relevance: RelevanceMap | None, by: str, name: str) -> Float64:
    weight = network.params[name]["weight"]
    if by == "magnitude":
        return np.abs(np.asarray(weight, np.float64))
    if by == "lamp":
        return lamp(weight)
    scored = _scored(relevance, name)
    if scored is None or scored.shape != weight.shape:
        raise _missing(name, f"plan.density_by = {by!r}")
    signed = np.asarray(scored, np.float64)
    return signed if by == "positive" else np.abs(signed)


def _scored(relevance: RelevanceMap | None, name: str) -> Float64 | None:
    found = None if relevance is None else relevance.weight.get(name)
    return None if found is None else np.asarray(found, np.float64)


def _missing(name: str, key: str) -> PlanError:
    return PlanError(
        f"{name}: {key} needs relevance of every weight, which the map does not have",
        hint="score this network, or set plan.density_by to magnitude, lamp, uniform or row",
    )
