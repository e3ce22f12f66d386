"""Which output channels go: coupled groups of them, ranked by their share of their layers' relevance.

LRP conserves: what arrives at a layer is shared out among its channels. So a channel's score is its part of the
layer's sum (Yeom et al. 2021), the mean of these parts over the layers of a coupled group, and channels of all layers
compete in one ranking. Coupled channels go together; every group keeps a floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xdeploy.errors import PlanError
from xdeploy.formats import Float64
from xdeploy.handover import RelevanceMap
from xdeploy.model.groups import Group, coupled_groups, inputs_from
from xdeploy.model.network import Network
from xdeploy.planoptions import PlanOptions

Keep = dict[str, tuple[int, ...]]

STEPS = 1024  # shares tried to meet a number of MACs with the same share of every group


@dataclass(frozen=True, slots=True)
class Removal:
    """What stays of the layers that lose channels, the part of their relevance that stays, and why."""

    keep: Keep
    relevance: dict[str, float]
    reason: dict[str, str]


def group_scores(group: Group, relevance: RelevanceMap) -> Float64:
    """The score of each channel of a group (channels,), >= 0, summing to 1: mean over its layers of their shares.

    Raises:
        PlanError: the map has no scores for one of its layers, or of another shape.
    """
    found = np.zeros(group.channels)
    for name in group.layers:
        score = relevance.channel.get(name)
        if score is None or score.shape != (group.channels,):
            raise PlanError(f"{name}: the relevance map has no score for each channel", hint="score this network again")
        magnitude = np.abs(np.asarray(score, np.float64))
        found += magnitude / (magnitude.sum() or 1.0)
    return found / len(group.layers)


def floor_of(channels: int, options: PlanOptions) -> int:
    """How many channels a group keeps at least."""
    return max(1, math.ceil(options.least_channels * channels - 1e-9))


def removable(network: Network, options: PlanOptions) -> tuple[Group, ...]:
    """The groups that may lose channels.

    Raises:
        PlanError: plan.whole names no weighted layer, or nothing may be removed.
    """
    names = [x.name for x in network.weighted()]
    unknown = [n for n in options.whole if n not in names]
    if unknown:
        raise PlanError(
            f"plan.whole names {unknown[0]!r}, which is no weighted layer", hint=f"layers: {', '.join(names)}"
        )
    groups = [g for g in coupled_groups(network) if g.prunable and not set(g.layers) & set(options.whole)]
    if not groups:
        raise PlanError("no layer's channels can be removed", hint="leave plan.channels out")
    return tuple(groups)


class MacCount:
    """MACs of a network by how many channels of each group are left, whichever they are."""

    def __init__(self, network: Network, groups: Sequence[Group]) -> None:
        self.groups = groups
        at = {g.layers[0]: k for k, g in enumerate(groups)}
        of = {n: k for k, g in enumerate(groups) for n in g.layers}
        read = inputs_from(network)
        # per layer: MACs now, group of its outputs (or None), and per group the part of its inputs made there
        self.layers = [
            (
                network.macs(x.name),
                of.get(x.name),
                [(at[f], k / network.params[x.name]["weight"].shape[1]) for f, k in reads.items() if f in at],
            )
            for x in network.weighted()
            for reads in (read[x.name],)
        ]

    def left(self, kept: Sequence[int]) -> int:
        """MACs when kept[k] channels of group k are left."""
        part = [count / g.channels for g, count in zip(self.groups, kept, strict=True)]
        total = 0.0
        for macs, out, reads in self.layers:
            inputs = 1.0 - sum((1.0 - part[k]) * each for k, each in reads)
            total += macs * inputs * (1.0 if out is None else part[out])
        return round(total)


def plan_channels(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    share: float | None = None,
    floors: Mapping[str, int] | None = None,
) -> Removal:
    """The channels that stay so that at most the share asked for is left.

    Args:
        network: the network.
        relevance: its scores.
        options: what to count and how to rank.
        share: of this network's removable channels, or of its MACs, to keep; None: options.channels.
        floors: first layer of a group -> channels it keeps at least; None: options.least_channels of each.

    Raises:
        PlanError: no relevance, nothing can go, or the floors keep more (with the smallest share there is).
    """
    share = options.channels if share is None else share
    if relevance is None or share is None:
        raise PlanError("channels are ranked by relevance, which is missing", hint="score the network first")
    groups = removable(network, options)
    found = [group_scores(g, relevance) for g in groups]
    if options.channels_by == "network-l2":
        found = [score / (np.linalg.norm(score) or 1.0) for score in found]
    low = [(floors or {}).get(g.layers[0], floor_of(g.channels, options)) for g in groups]
    if options.channels_by == "layer":
        kept = _alike(network, groups, low, options.channels_of, share)
    else:
        kept = _ranked(network, groups, found, low, options.channels_of, share)
    return reasons(network, groups, _kept(groups, found, kept), relevance)


def _ranked(
    network: Network, groups: Sequence[Group], found: Sequence[Float64], low: Sequence[int], what: str, share: float
) -> list[int]:
    """Channels left of each group, the least relevant gone until at most `share` is left."""
    macs = MacCount(network, groups) if what == "macs" else None
    kept = [g.channels for g in groups]
    makers = [len(g.layers) for g in groups]

    def measure() -> int:
        if macs is not None:
            return macs.left(kept)
        return sum(k * m for k, m in zip(kept, makers, strict=True))

    whole = measure()
    limit = share * whole * (1 + 1e-12)
    for k in _order(found, low):
        if measure() <= limit:
            return kept
        kept[k] -= 1
    if measure() > limit:
        raise _out_of_reach(share, measure() / whole, "channels" if macs is None else "MACs")
    return kept


def _out_of_reach(share: float, least: float, unit: str) -> PlanError:
    return PlanError(
        f"plan.channels = {share:g} cannot be reached: with the layers' floors {least:.3f} of the {unit} are left",
        hint="raise plan.channels, lower plan.least_channels, or take layers out of plan.whole",
    )


def _alike(network: Network, groups: Sequence[Group], low: Sequence[int], what: str, share: float) -> list[int]:
    """The same share of each group: of its channels, rounded half up, or the largest that keeps the MACs asked for."""

    def kept(part: float) -> list[int]:
        return [max(int(part * g.channels + 0.5), floor) for g, floor in zip(groups, low, strict=True)]

    if what == "channels":
        return kept(share)
    macs = MacCount(network, groups)
    whole = macs.left([g.channels for g in groups])
    for step in range(STEPS, -1, -1):
        found = kept(step / STEPS)
        if macs.left(found) <= share * whole * (1 + 1e-12):
            return found
    raise _out_of_reach(share, macs.left(list(low)) / whole, "MACs")


def _order(found: Sequence[Float64], low: Sequence[int]) -> list[int]:
    """The groups of the channels that may go, the least relevant channel first; equals in the groups' order."""
    rows = [
        (float(score), k, position)
        for k, scores in enumerate(found)
        for position, score in enumerate(np.sort(scores)[: len(scores) - low[k]])
    ]
    return [k for _, k, _ in sorted(rows)]


def _kept(groups: Sequence[Group], found: Sequence[Float64], counts: Sequence[int]) -> Keep:
    """The most relevant channels of each group that loses some; of equals the later ones stay."""
    keep: Keep = {}
    for group, score, count in zip(groups, found, counts, strict=True):
        if count < group.channels:
            left = np.sort(np.argsort(score, kind="stable")[group.channels - count :])
            keep.update(dict.fromkeys(group.layers, tuple(int(c) for c in left)))
    return keep


def reasons(network: Network, groups: Sequence[Group], keep: Keep, relevance: RelevanceMap) -> Removal:
    """Why these channels stay: how much of their layer's relevance they hold."""
    parts: dict[str, float] = {}
    words: dict[str, str] = {}
    for group in groups:
        for name in group.layers:
            if name not in keep:
                continue
            magnitude = np.abs(np.asarray(relevance.channel[name], np.float64))
            parts[name] = float(magnitude[list(keep[name])].sum() / (magnitude.sum() or 1.0))
            others = ", ".join(n for n in group.layers if n != name)
            count = f"keeps {len(keep[name])} of {group.channels} channels"
            same = f", the same as {others}" if others else ""
            words[name] = f"{count} with {100 * parts[name]:.1f} % of their relevance{same}"
    return Removal(keep, parts, words)
