"""Which weights matter least: scores, shares of layers and masks, in plain numpy.

The plan asks how many weights each layer keeps, `compress` which ones; both ask here, so that the prediction is the
deed. A score is an array of the weight's shape: the smaller, the sooner its weight becomes zero. Of equal scores the
first in C order goes first, so that equal inputs give equal masks on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UsageError, choose_from
from xdeploy.formats import Float64

AnyFloat = NDArray[np.floating]
Mask = NDArray[np.bool_]  # True: this weight becomes zero

# what decides which weights of a layer become zero
ORDERS: dict[str, str] = {
    "magnitude": "smallest |w| first",
    "relevance": "relevance nearest to zero first (Hatefi et al. 2024)",
    "negative-first": "lowest signed relevance first (Soroush et al. 2023: R <= 0 goes)",
    "wanda": "smallest |w| times the norm of its input first (Sun et al. 2023)",
    "lamp": "smallest LAMP score first, which inside one layer is the order of |w|",
}
SCOPES = ("layer", "row")  # what each has its own share of zeros: the layer, or each of its output channels


def lamp(weight: AnyFloat) -> Float64:
    """LAMP scores (Lee et al. 2021, arXiv 2010.07611, eq. 3), same shape, in 0..1.

    w[u]^2 over the sum of w[v]^2 of all weights v that come no earlier in rising order of magnitude; equal magnitudes
    are in C order. One threshold for all layers then cuts where the loss of a layer's norm is least.
    """
    square = np.asarray(weight, np.float64).ravel() ** 2
    order = np.argsort(square, kind="stable")
    rest = np.cumsum(square[order][::-1])[::-1]
    score = np.empty_like(square)
    score[order] = square[order] / np.where(rest > 0, rest, 1.0)
    return score.reshape(weight.shape)


def wanda(weight: AnyFloat, input_norm: AnyFloat) -> Float64:
    """|w| times the norm of what it multiplies (Sun et al. 2023, arXiv 2306.11695, eq. 1).

    Args:
        weight: (O, I, ...).
        input_norm: (I,), or (I, ...) with one for each position of the kernel: the L2 norm over samples.
    """
    norm = np.asarray(input_norm, np.float64)
    wide = norm.reshape(1, *norm.shape, *[1] * (weight.ndim - 1 - norm.ndim))
    score: Float64 = np.abs(np.asarray(weight, np.float64)) * wide
    return score


def scores(
    order: str, weight: AnyFloat, relevance: AnyFloat | None = None, input_norm: AnyFloat | None = None
) -> Float64:
    """The score of every weight of a layer in one of ORDERS (weight's shape).

    Args:
        order: a name in ORDERS.
        weight: the layer's weights.
        relevance: of each weight, signed where the method gives signs; for `relevance` and `negative-first`.
        input_norm: of `wanda`.

    Raises:
        UsageError: an unknown order, or what it needs is missing or of another shape.
    """
    if order not in ORDERS:
        raise choose_from("order of zeros", order, ORDERS)
    if order == "magnitude":
        return np.abs(np.asarray(weight, np.float64))
    if order == "lamp":
        return lamp(weight)
    if order == "wanda":
        if input_norm is None:
            raise UsageError("the order wanda needs the norms of the layer's inputs", hint="use relevance or magnitude")
        return wanda(weight, input_norm)
    if relevance is None or relevance.shape != weight.shape:
        given = "none" if relevance is None else f"shape {relevance.shape}"
        raise UsageError(f"the order {order} needs relevance of shape {weight.shape}, got {given}")
    signed = np.asarray(relevance, np.float64)
    return np.abs(signed) if order == "relevance" else signed


def kept_count(density: float, size: int) -> int:
    """How many of `size` weights a density in 0..1 keeps, rounded half up."""
    return min(int(density * size + 0.5), size)


def zero_mask(score: AnyFloat, zeros: int, per: str = "layer") -> Mask:
    """The `zeros` weights of least score (score's shape).

    Args:
        score: (O, ...), of each weight.
        zeros: how many, 0..size.
        per: "layer", or "row": every output channel has as many; where they do not divide evenly, one more goes in the
            rows whose next score is least.

    Raises:
        UsageError: an unknown scope or an impossible number.
    """
    if per not in SCOPES:
        raise choose_from("scope of zeros", per, SCOPES)
    if not 0 <= zeros <= score.size:
        raise UsageError(f"{zeros} of {score.size} weights cannot become zero")
    if per == "layer":
        return _smallest(score.ravel(), zeros).reshape(score.shape)
    rows = score.reshape(len(score), -1)
    each, more = divmod(zeros, len(rows))
    mask = np.stack([_smallest(row, each) for row in rows])
    if more:
        following = np.where(mask, np.inf, rows).min(axis=1)
        for r in np.argsort(following, kind="stable")[:more]:
            mask[r] = _smallest(rows[r], each + 1)
    return mask.reshape(score.shape)


def _smallest(score: AnyFloat, count: int) -> Mask:
    if count == 0:
        return np.zeros(len(score), bool)
    limit = np.partition(score, count - 1)[count - 1]
    mask: Mask = score < limit
    mask[np.flatnonzero(score == limit)[: count - int(mask.sum())]] = True
    return mask


def shared_out(by_layer: Mapping[str, AnyFloat], kept: int, least: Mapping[str, int]) -> dict[str, int]:
    """How many weights each layer keeps under one threshold for all: the `kept` largest scores of the network.

    Every layer first keeps its own `least` largest. So the sum of the kept scores is the largest there is with these
    floors. Of equal scores the later one in the mapping's order is kept.

    Args:
        by_layer: layer -> scores, any shape.
        kept: of all weights, at least the sum of `least` and at most all.
        least: layer -> its floor.

    Raises:
        UsageError: `kept` is out of that range.
    """
    names = list(by_layer)
    low, high = sum(least.values()), sum(by_layer[n].size for n in names)
    if not low <= kept <= high:
        raise UsageError(f"{kept} weights cannot be kept: the layers' floors need {low}, and there are {high}")
    free, owner = [], []
    for k, name in enumerate(names):
        score = np.asarray(by_layer[name]).ravel()
        rest = np.sort(score)[: score.size - least[name]]
        free.append(rest)
        owner.append(np.full(len(rest), k))
    order = np.argsort(np.concatenate(free), kind="stable")
    taken = np.concatenate(owner)[order[len(order) - (kept - low) :]]
    counts = np.bincount(taken, minlength=len(names))
    return {name: least[name] + int(counts[k]) for k, name in enumerate(names)}
