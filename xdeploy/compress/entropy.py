"""Entropy-constrained assignment of weights to levels, and relevance's say in what becomes zero.

ECQ (Wiedemann et al. 2020, arXiv 2004.01077; Becking et al. 2022, arXiv 2109.04236): a weight u, in units of the step,
takes the level c with the least cost

    (u - c)^2 - lambda * log2 P_c,

P_c the share of weights at level c. How many become zero is what lambda is for, so here the share of zeros is given and
lambda follows from it: the weights whose cost at zero exceeds that of their best other level by least become zero, and
that margin, over the bits that a zero saves, is the lambda that the other levels compete with.

ECQx multiplies the cost at zero by rho * R^beta, R in 0..1 the weight's relevance over the layer's largest: with
beta = -ln rho / ln mean R the average weight keeps its cost, the more relevant are harder to zero. beta then falls
until at most a share `tolerance` of the layer's weights has come back from zero by it; the average weight keeps its
cost all the while (the factor is (R / mean R)^beta), so that beta = 0 is plain ECQ. As the share of zeros is given, as
many others become zero in their place.

What the code released with the paper does and this does not: gradients of weights at negative levels were flipped,
lambda's limit had a misplaced square and took the larger side, levels were truncated, and models were chosen on test
data. Its lambda, shared out by the numbers of weights, empties whole layers of networks whose first layer is large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xdeploy.ranking import zero_mask

HALVINGS = 12  # of beta, at most
SMOOTHING = 0.9  # of lambda over steps
LEAST_SAVED = 0.5  # bits that a zero must save for lambda to mean anything


@dataclass(frozen=True, slots=True)
class Levels:
    """What a layer's weights may become: `values` ascending (K,), in units of the step; `zero` the index of 0."""

    values: Tensor
    zero: int

    @staticmethod
    def of(values: Tensor) -> Levels | None:
        """The levels, or None if 0 is not among them or nothing else is."""
        found = (values == 0).nonzero()
        return Levels(values, int(found[0])) if len(found) and len(values) > 1 else None


def probabilities(codes: Tensor, levels: Levels) -> Tensor:
    """P_c (K,), float64: shares of the codes, each level counted with half a weight more.

    Where the levels are symmetric, c and -c share theirs evenly: else the rarer sign costs more bits, so becomes
    rarer, and dies out (measured: nine of a ResNet-20's twenty layers were left with one sign, and 76 % accuracy).
    """
    counts = torch.bincount(codes.flatten(), minlength=len(levels.values)).double() + 0.5
    if torch.equal(levels.values, -levels.values.flip(0)):
        counts = (counts + counts.flip(0)) / 2.0
    return counts / counts.sum()


def entropy(codes: Tensor, levels: int) -> float:
    """Zero-order entropy of the codes, bits per weight."""
    shares = torch.bincount(codes.flatten(), minlength=levels).double() / max(codes.numel(), 1)
    found = shares[shares > 0]
    return float(-(found * found.log2()).sum())


def nearest_costs(unit: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
    """Index (of `values`) with the least (u - value)^2 + offset for every u; of equals the larger value.

    Less u^2 the costs are straight lines in u, so the best levels are the lower envelope of K lines: found once, then
    every weight is looked up between its borders.

    Args:
        unit: any shape.
        values: (K,) ascending, distinct.
        offsets: (K,) may be infinite but not all.
    """
    kept: list[int] = []
    borders: list[float] = []
    v, b = [float(x) for x in values], [float(x) for x in offsets]
    for k in range(len(v)):
        if math.isinf(b[k]):
            continue
        while kept:
            last = kept[-1]
            border = (v[k] + v[last]) / 2.0 + (b[k] - b[last]) / (2.0 * (v[k] - v[last]))
            if not borders or border > borders[-1]:
                borders.append(border)
                break
            borders.pop()
            kept.pop()
        kept.append(k)
    found = torch.bucketize(unit, torch.tensor(borders, dtype=unit.dtype), right=True)
    return torch.tensor(kept)[found]


def relevance_power(share: Tensor, rho: float) -> float:
    """The power -ln rho / ln(mean share), at most 1: rho * mean^beta = 1 there (shares of the largest, 0..1)."""
    mean = min(float(share.mean()), 1.0 - 1e-6)
    return min(-math.log(rho) / math.log(mean), 1.0)


@dataclass(slots=True)
class Assigner:
    """Assigns one layer's weights, again and again while they move; remembers lambda and the levels' shares.

    rho: factor of the cost at zero for the largest relevance, >= 1. tolerance: see above, 0..1. part: of lambda, 0..1,
    that the levels beside zero compete with; all of it draws them together where few weights are left. per: what has
    the share of zeros, layer or row.
    """

    rho: float = 2.0
    tolerance: float = 0.1
    part: float = 1.0
    per: str = "layer"
    strength: float = 0.0  # lambda, in squared steps per bit
    shares: Tensor | None = None

    def assign(
        self,
        unit: Tensor,
        levels: Levels,
        zeros: float,
        relevance: Tensor | None = None,
        worth: Tensor | None = None,
        follow: bool = True,
    ) -> Tensor:
        """Level index of every weight.

        Args:
            unit: weights over their steps, any shape.
            levels: what they may become, at least one beside zero.
            zeros: share of the weights that become zero, 0..1; more do where zero is the nearest level of more.
            relevance: of each weight, >= 0, same shape; None: plain ECQ.
            worth: what a squared step counts, mean 1, broadcast to the weights (channels have steps of their own);
                None: the same for all.
            follow: whether lambda and shares are brought up to date by this.
        """
        if self.shares is None or len(self.shares) != len(levels.values):
            plain = torch.zeros(len(levels.values), dtype=torch.float64)
            self.shares = probabilities(nearest_costs(unit, levels.values, plain), levels)
        offsets = -self.strength * self.shares.log2()
        others = offsets.clone()
        others[levels.zero] = math.inf
        best = nearest_costs(unit, levels.values, others)
        bits, square = offsets.to(unit.dtype), unit.square()
        distance = (unit - levels.values.to(unit.dtype)[best]).square()
        wide = torch.ones((), dtype=unit.dtype) if worth is None else worth
        zero, rest = wide * (square + bits[levels.zero]), wide * (distance + bits[best])
        count = max(round(zeros * unit.numel()), int((square <= distance).sum()))
        chosen, limit = self._least(zero - rest, count)
        if relevance is not None:
            chosen = self._with_relevance(zero, rest, chosen, count, relevance)
        codes = torch.where(chosen, torch.full_like(best, levels.zero), best)
        if follow:
            self._follow(limit, codes, levels)
        return codes

    def _with_relevance(self, zero: Tensor, rest: Tensor, plain: Tensor, count: int, relevance: Tensor) -> Tensor:
        top = float(relevance.max())
        if not top > 0:
            return plain
        share = (relevance / top).clamp_min(1e-12)
        relative, beta = share / share.mean(), relevance_power(share, self.rho)
        for _ in range(HALVINGS):
            chosen, _ = self._least(relative.pow(beta) * zero - rest, count)
            if float((plain & ~chosen).double().mean()) <= self.tolerance:
                return chosen
            beta /= 2.0
        return plain

    def _follow(self, limit: float, codes: Tensor, levels: Levels) -> None:
        """Lambda is the margin at the border, without the bits in it, over the bits that a zero saves there."""
        assert self.shares is not None
        had = self._saved(self.shares, levels)
        self.shares = probabilities(codes, levels)
        saved = self._saved(self.shares, levels)
        margin = limit + self.strength * had if math.isfinite(limit) else 0.0
        now = self.part * max(margin, 0.0) / saved if saved > LEAST_SAVED else 0.0
        self.strength = SMOOTHING * self.strength + (1.0 - SMOOTHING) * now

    def _least(self, margin: Tensor, count: int) -> tuple[Tensor, float]:
        """Which are the `count` smallest (of equals the first), and the largest of them, in the middle row."""
        if count <= 0:
            return torch.zeros_like(margin, dtype=torch.bool), -math.inf
        chosen = torch.from_numpy(zero_mask(margin.numpy(), count, self.per))
        if self.per == "layer":
            return chosen, float(margin[chosen].max())
        largest = torch.where(chosen, margin, torch.full_like(margin, -math.inf)).flatten(1).amax(1)
        return chosen, float(largest.median())

    @staticmethod
    def _saved(shares: Tensor, levels: Levels) -> float:
        """Bits of the mean weight that is not zero, less those of a zero."""
        bits, weight = -shares.log2(), shares.clone()
        weight[levels.zero] = 0.0
        return float((weight * bits).sum() / weight.sum()) - float(bits[levels.zero])
