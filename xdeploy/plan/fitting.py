"""Channels that go so that the arena fits: from where the memory is in use, the least relevant per byte first.

The arena is the largest of the sets of tensors that are in use together, so only channels of the largest set help. They
are removed until it fits, the network is laid out anew, and whatever is largest then is next. Codes of activations are
int8 in every format; formats differ in their kernels' scratch, so each layer counts with the format that needs least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import PlanError
from xdeploy.handover import CompressionPlan, PlanLine, RelevanceMap
from xdeploy.model.groups import Group, coupled_groups, prune
from xdeploy.model.network import Network
from xdeploy.model.removal import cut_relevance
from xdeploy.plan.channels import Keep, Removal, floor_of, group_scores, reasons, removable
from xdeploy.plan.cost import CostTable, Progress
from xdeploy.plan.device import Arena, Device
from xdeploy.planoptions import PlanOptions

STEP = 1 / 8  # of the channels that help: what is in use is only known when the network is laid out anew


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What fits: the channels that stay (None: all) and why, the network without the others, and its scores."""

    removal: Removal | None
    network: Network
    relevance: RelevanceMap | None


def narrow(
    network: Network,
    relevance: RelevanceMap | None,
    removal: Removal | None,
    options: PlanOptions,
    device: Device,
    progress: Progress | None = None,
) -> Narrowed:
    """Remove channels, beside those of `removal`, until the arena is at most `options.ram`.

    Raises:
        PlanError: with every group at its floor the arena is still larger (the message says how large).
    """
    assert options.ram is not None
    ram, keep = options.ram, dict(removal.keep) if removal else {}
    eased = eased_formats(network, options, device)

    def measure(now: Keep) -> tuple[Network, Arena]:
        small = prune(network, now) if now else network
        plan = CompressionPlan(tuple(PlanLine(n, f) for n, f in eased.items()))
        return small, device.arena(small, plan, None, ram)

    small, arena = measure(keep)
    if arena.size > ram:
        search = _search(network, relevance, options, arena, lambda k: measure(k)[1])
        words = dict(removal.reason) if removal else {}
        bound: dict[str, str] = {}
        while arena.size > ram:
            keep, lost = search.tighter(keep, small, arena)
            bound.update(dict.fromkeys(lost, f"{arena.at} runs on {arena.target}"))
            small, arena = measure(keep)
            if progress is not None:
                progress("fit arena", ram, max(arena.size, ram))
        found = reasons(network, search.groups, keep, search.relevance)
        told = {n: f"so that the arena fits plan.ram = {ram:,} bytes while {at}" for n, at in bound.items()}
        words = {n: "; ".join([w, *([told[n]] if n in told else [])]) for n, w in found.reason.items()}
        removal = Removal(keep, found.relevance, words)
    scores = cut_relevance(network, relevance, keep) if relevance is not None and keep else relevance
    return Narrowed(removal, small, scores)


def eased_formats(network: Network, options: PlanOptions, device: Device) -> dict[str, str]:
    """Weighted layer -> the format it may have whose kernels need the fewest bytes while it runs."""
    assert options.ram is not None
    names = [x.name for x in network.weighted()]
    wanted = {n: [options.fixed[n]] if n in options.fixed else list(options.formats) for n in names}
    best: dict[str, tuple[int, str]] = {}
    for fmt in dict.fromkeys(f for row in wanted.values() for f in row):
        plan = CompressionPlan(tuple(PlanLine(n, fmt if fmt in wanted[n] else wanted[n][0]) for n in names))
        needs = device.arena(network, plan, None, options.ram).needs
        for n in names:
            need = needs.get(n, 0)
            if fmt in wanted[n] and (n not in best or need < best[n][0]):
                best[n] = need, fmt
    return {n: fmt for n, (_, fmt) in best.items()}


class _Search:
    """The groups that may lose channels and what they are worth."""

    def __init__(self, network: Network, relevance: RelevanceMap, options: PlanOptions) -> None:
        assert options.ram is not None
        self.relevance, self.budget = relevance, options.ram
        self.groups: Sequence[Group] = removable(network, options)
        self.scores = [group_scores(g, relevance) for g in self.groups]
        self.low = [floor_of(g.channels, options) for g in self.groups]

    def kept(self, keep: Keep, k: int) -> NDArray[np.intp]:
        """Channels of group k that are left, the least relevant first."""
        group = self.groups[k]
        left = np.asarray(keep.get(group.layers[0], range(group.channels)), np.intp)
        return left[np.argsort(self.scores[k][left], kind="stable")]

    def at_floors(self, keep: Keep) -> Keep:
        """What is left when every group is cut to its floor."""
        return self._cut(keep, {k: len(self.kept(keep, k)) - low for k, low in enumerate(self.low)})

    def tighter(self, keep: Keep, small: Network, arena: Arena) -> tuple[Keep, set[str]]:
        """Fewer channels, at most STEP of those that help, and the layers that lost some."""
        excess, gone = arena.size - self.budget, dict[int, int]()
        bytes_of = [self._bytes_of_one(small, k, arena) for k in range(len(self.groups))]
        useful, others = list[tuple[float, int]](), list[tuple[float, int]]()
        for k, each in enumerate(bytes_of):
            left = self.kept(keep, k)
            for channel in left[: max(0, len(left) - self.low[k])]:
                score = float(self.scores[k][channel])
                (useful if each else others).append((score / (each or 1), k))
        for _, k in sorted(useful)[: max(1, int(STEP * len(useful)))]:
            gone[k] = gone.get(k, 0) + 1
            excess -= bytes_of[k]
            if excess <= 0:
                break
        if not useful:  # scratch alone is too large: any channel may make it smaller, one at a time
            gone[min(others)[1]] = 1
        return self._cut(keep, gone), {n for k in gone for n in self.groups[k].layers}

    def _cut(self, keep: Keep, gone: Mapping[int, int]) -> Keep:
        found = dict(keep)
        for k, count in gone.items():
            if count > 0:
                left = tuple(int(c) for c in np.sort(self.kept(keep, k)[count:]))
                found.update(dict.fromkeys(self.groups[k].layers, left))
        return found

    def _bytes_of_one(self, small: Network, k: int, arena: Arena) -> int:
        """Bytes that one channel of a group less takes from the tensors in use, and from scratch for its input."""
        name = self.groups[k].layers[0]
        group = next(g for g in coupled_groups(small) if name in g.layers)
        count = small[name].shape[0]
        if count < 2:
            return 0
        less = prune(small, dict.fromkeys(group.layers, tuple(range(count - 1))))
        tensors = sum(int(np.prod(small[n].shape)) - int(np.prod(less[n].shape)) for n in arena.peak)
        source = next((x.inputs[0] for x in small.layers if x.name == arena.at and x.inputs), None)
        gone = 0.0 if source is None else 1.0 - less[source].shape[0] / small[source].shape[0]
        return tensors + round(arena.scratch * gone)  # windows are gathered over all input channels


def _search(
    network: Network,
    relevance: RelevanceMap | None,
    options: PlanOptions,
    arena: Arena,
    measure: Callable[[Keep], Arena],
) -> _Search:
    """What is needed to remove channels, once it is known that the floors fit.

    Raises:
        PlanError: they do not, nothing can be removed, or there are no scores.
    """
    assert options.ram is not None
    told = (
        f"the arena takes {arena.size} bytes on {arena.target}, most while {arena.at} runs; plan.ram is {options.ram}"
    )
    if relevance is None:
        raise PlanError(
            f"{told}, and channels are ranked by relevance, which is missing", hint="score the network first"
        )
    try:
        search = _Search(network, relevance, options)
    except PlanError as error:
        raise PlanError(f"{told}; {error.message}", hint=f"raise plan.ram to {arena.size}") from None
    least = measure(search.at_floors({}))
    if least.size > options.ram:
        raise PlanError(
            f"{told}; with the fewest channels that plan.least_channels and plan.whole allow it takes {least.size}",
            hint=f"raise plan.ram to {least.size}, or lower plan.least_channels",
        )
    return search


# ------------------------------------------------------------------------------------- formats and their scratch
def within_ram(
    table: CostTable, plan_of: Callable[[int], CompressionPlan], small: Network, relevance: RelevanceMap | None,
    ram: int, device: Device,
) -> tuple[NDArray[np.bool_], dict[str, str]]:  # fmt: skip
    """Which columns a layer may have so that what is in use while it runs fits, and in words what is left out.

    A layer of which no column fits keeps its smallest: then the arena as a whole says what is wrong.
    """
    needs = np.zeros(table.allowed.shape, np.int64)
    for j in np.flatnonzero(table.allowed.any(axis=0)):
        found = device.arena(small, plan_of(int(j)), relevance, ram).needs
        needs[:, j] = [found.get(n, 0) for n in table.layers]
    fits = table.allowed & (needs <= ram)
    words: dict[str, str] = {}
    for i, layer in enumerate(table.layers):
        out = np.flatnonzero(table.allowed[i] & ~fits[i])
        if not fits[i].any():
            fits[i, int(np.where(table.allowed[i], needs[i], np.iinfo(np.int64).max).argmin())] = True
        if len(out):
            names = ", ".join(dict.fromkeys(table.formats[j] for j in out))
            words[layer] = f"the scratch of {names} does not fit plan.ram = {ram:,} bytes"
    return fits, words
