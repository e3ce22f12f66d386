"""Channels that go in several rounds: {score, prune, recover} again and again, towards one share in the end.

Each round leaves the same fraction of what the one before left, as iterative pruning does; scores are taken anew
between rounds (`rescore`), and the network may be trained in between (`recover`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xdeploy.errors import PlanError
from xdeploy.handover import CompressionPlan, PlanLine, RelevanceMap
from xdeploy.model.groups import prune
from xdeploy.model.network import Network
from xdeploy.model.removal import cut_relevance
from xdeploy.plan.channels import Keep, MacCount, Removal, floor_of, plan_channels, reasons, removable
from xdeploy.planoptions import PlanOptions

Rescore = Callable[[Network, int], RelevanceMap]  # network, draw of samples (0: as the score stage) -> its scores
Recover = Callable[[Network, int], Network]  # network, number of the round -> the same layers, trained on
Progress = Callable[[str, int, int], None]  # what, done, total


def shares(options: PlanOptions) -> tuple[float, ...]:
    """What is left after each round, of the channels (or MACs) there were: a geometric fall to options.channels."""
    if options.channels is None:
        return ()
    return tuple(options.channels ** (k / options.rounds) for k in range(1, options.rounds + 1))


def iterate(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    rescore: Rescore | None = None,
    recover: Recover | None = None,
    progress: Progress | None = None,
) -> tuple[Network, tuple[Keep, ...]]:
    """Remove channels in `options.rounds` rounds.

    Args:
        network: the network; not changed.
        relevance: its scores.
        options: channels, rounds, floors.
        rescore: scores what a round left, from the second round on; None: the old scores of what is left.
        recover: trains what a round left; None: nothing does.
        progress: told ("remove channels", rounds done, rounds).

    Returns:
        The network after the last round, and for every round the channels kept so far, numbered as in `network`.

    Raises:
        PlanError: see `plan_channels`.
    """
    if relevance is None:
        raise PlanError("channels are ranked by relevance, which is missing", hint="score the network first")
    floors = {g.layers[0]: floor_of(g.channels, options) for g in removable(network, options)}
    whole = _measure(network, options)
    current, scores, steps = network, relevance, []
    keep: Keep = {}
    for k, share in enumerate(shares(options)):
        if k > 0 and rescore is not None:
            scores = rescore(current, 0)
        left = min(1.0, share * whole / _measure(current, options))
        found = plan_channels(current, scores, options, left, floors)
        current, scores = prune(current, found.keep), cut_relevance(current, scores, found.keep)
        if recover is not None:
            current = recover(current, k)
        keep = _composed(keep, found.keep)
        steps.append(keep)
        if progress is not None:
            progress("remove channels", k + 1, options.rounds)
    return current, tuple(steps)


def remove_channels(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    rescore: Rescore | None = None,
    progress: Progress | None = None,
) -> Removal:
    """The channels that stay after all rounds, nothing trained in between, with reasons by the first scores."""
    if options.rounds == 1 or relevance is None:
        return plan_channels(network, relevance, options)
    _, steps = iterate(network, relevance, options, rescore, None, progress)
    return reasons(network, removable(network, options), steps[-1], relevance)


def schedule(
    network: Network, relevance: RelevanceMap | None, options: PlanOptions, weight_format: str = "int8"
) -> list[CompressionPlan]:
    """The rounds as plans of the whole network, each with what is kept so far, from one map of scores.

    For a caller that prunes and trains itself. Each plan's channels are among those of the plan before it.
    """
    _, steps = iterate(network, relevance, options)
    assert relevance is not None
    plans = []
    for keep in steps:
        why = reasons(network, removable(network, options), keep, relevance).reason
        lines = (
            PlanLine(x.name, weight_format, keep=keep.get(x.name), reason=why.get(x.name, ""))
            for x in network.weighted()
        )
        plans.append(CompressionPlan(tuple(lines), {"channels": options.channels, "rounds": options.rounds}))
    return plans


def _measure(network: Network, options: PlanOptions) -> int:
    """What options.channels_of counts, in the groups that may lose channels."""
    groups = removable(network, options)
    if options.channels_of == "macs":
        return MacCount(network, groups).left([g.channels for g in groups])
    return sum(g.channels * len(g.layers) for g in groups)


def _composed(before: Keep, after: Keep) -> Keep:
    """Channels kept by two removals in a row, numbered as before the first."""
    both = dict(before)
    for name, left in after.items():
        numbers = np.asarray(before[name]) if name in before else None
        both[name] = left if numbers is None else tuple(int(c) for c in numbers[list(left)])
    return both
