"""Weight pruning inside a layer: the smallest magnitudes become zero and stay it, more and more while training.

The plan gives each layer's share of weights that are left (relevance decides it), magnitude chooses which. The share of
zeros grows with the cube of the time that is left (Zhu and Gupta 2017, arXiv 1710.01878).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdeploy.compress.trainable import TrainableModule
from xdeploy.compress.zeros import order_of
from xdeploy.handover import RelevanceMap
from xdeploy.ranking import Mask, kept_count, scores, zero_mask

Float32 = NDArray[np.float32]


def zeros_at(first: float, last: float, done: float, ramp: float) -> float:
    """The share of zeros when `done` 0..1 of the training is over: from first to last over its part `ramp`."""
    part = min(done / ramp, 1.0) if ramp > 0 else 1.0
    return first + (last - first) * (1.0 - (1.0 - part) ** 3)


def smallest(score: NDArray[np.floating], count: int) -> Mask:
    """True (score's shape) for the `count` smallest; of equals the first in C order. `ranking.zero_mask`, but fast."""
    flat = score.ravel()
    if count == 0:
        return np.zeros(score.shape, np.bool_)
    limit = np.partition(flat, count - 1)[count - 1]
    mask: Mask = flat < limit
    mask[np.flatnonzero(flat == limit)[: count - int(mask.sum())]] = True
    return mask.reshape(score.shape)


class Pruning:
    """Keeps the least weights of a module at zero while it is fine-tuned; see `ecq.Constraint`.

    Args:
        module: what is trained; layers without a density in the plan are left alone.
        ramp: share of the training over which the zeros grow to the plan's.
        relevance: scores of the network that training starts with, for plan lines whose order of zeros uses them.
        standing: layer -> True where the weight is zero already, as many as the plan has; other layers' zeros grow.

    Raises:
        PlanError, UsageError: an order of zeros is unknown, or needs relevance that is missing.
    """

    def __init__(
        self,
        module: TrainableModule,
        ramp: float,
        relevance: RelevanceMap | None = None,
        standing: Mapping[str, Mask] | None = None,
    ) -> None:
        self.module, self.ramp = module, ramp
        lines = [module.compressed.plan[name] for name in module.names]
        self.lines = {line.origin: line for line in lines if line.density is not None}
        self.fixed = {}  # scores of orders other than magnitude stay what they were
        for name, line in self.lines.items():
            order, _ = order_of(line)
            scored = None if relevance is None else relevance.weight.get(name)
            if order not in ("magnitude", "lamp"):  # which in one layer is magnitude
                self.fixed[name] = scores(order, module.layer(name).compared().numpy(), scored)
        # True where a weight is zero for good
        self.zeros = {name: torch.from_numpy(zero) for name, zero in (standing or {}).items()}

    def gradients(self) -> None:
        """Zeros have no gradient."""
        for name, zeros in self.zeros.items():
            weight = self.module.layer(name).weight
            if weight.grad is not None:
                weight.grad[zeros] = 0.0

    @torch.no_grad()
    def step(self, done: float) -> None:
        """Zero what is least; what is zero stays so."""
        for name, line in self.lines.items():
            layer, zeros = self.module.layer(name), self.zeros.get(name)
            weight = layer.weight
            if zeros is not None:
                weight[zeros] = 0.0
            last = weight.numel() - kept_count(line.density or 0.0, weight.numel())
            count = round(zeros_at(0.0, last, done, self.ramp))
            if zeros is None or int(zeros.sum()) < count:
                self.zeros[name] = torch.from_numpy(self._least(name, layer.compared().numpy(), count))
                weight[self.zeros[name]] = 0.0

    def _least(self, name: str, weight: Float32, count: int) -> Mask:
        _, per = order_of(self.lines[name])
        score = self.fixed.get(name)
        score = np.abs(weight) if score is None else score
        return smallest(score, count) if per == "layer" else zero_mask(score, count, per)

    def settle(self) -> None:
        """The full share at once, without training."""
        self.step(1.0)

    def assign(self) -> None:
        """Zero what is zero: the average of a weight's past is not."""
        for name, zeros in self.zeros.items():
            with torch.no_grad():
                self.module.layer(name).weight[zeros] = 0.0

    def is_full(self, done: float) -> bool:
        """Whether the zeros are the plan's when `done` 0..1 of the training is over."""
        return done >= self.ramp

    def state(self) -> dict[str, Tensor]:
        """Which weights are zero."""
        return dict(self.zeros)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as when `state` was taken."""
        self.zeros = dict(state)
