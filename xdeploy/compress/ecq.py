"""ECQ and ECQx while a compressed model is fine-tuned: after every step the weights behind the codes are assigned anew.

The float weights learn through the codes (straight-through), and `entropy` decides which level each of them takes.
Relevance (ECQx) is taken of the network as it is quantised at that moment, every `refresh` steps: of a weight its
|w| * sqrt(mean G^2), G the relevance signal that reaches it and w the float weight behind the code, so that weights
which are zero at the moment can come back (the weight relevance of a zero is zero).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdeploy.compress.entropy import Assigner, Levels, nearest_costs
from xdeploy.compress.fakequant import real_network
from xdeploy.compress.learning import TrainableLayer
from xdeploy.compress.masks import Pruning, zeros_at
from xdeploy.compress.trainable import TrainableModule
from xdeploy.compress.zeros import order_of
from xdeploy.errors import UsageError
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.ranking import Mask
from xdeploy.trainoptions import EcqOptions

Float32 = NDArray[np.float32]
Rescore = Callable[[Network, int], RelevanceMap]  # network, which draw of samples (0: as the score stage) -> scores

SETTLING = 40  # assignments of weights that do not move, until lambda stands


class Constraint(Protocol):
    """What decides about zeros and codes while a module is trained."""

    def gradients(self) -> None:
        """Change the gradients, after they were taken."""

    def step(self, done: float) -> None:
        """After a step of the optimiser; `done` 0..1 of the training is over."""

    def settle(self) -> None:
        """All at once, without training."""

    def assign(self) -> None:
        """Codes of weights that were changed otherwise; nothing is remembered of it."""

    def is_full(self, done: float) -> bool:
        """Whether the full strength is in force when `done` 0..1 of the training is over."""

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs to go on from here."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as when `state` was taken."""


def constraint_of(
    module: TrainableModule,
    options: EcqOptions | None,
    rescore: Rescore | None,
    relevance: RelevanceMap | None = None,
    standing: Mapping[str, Mask] | None = None,
) -> Constraint | None:
    """ECQ if asked for, else pruning where the plan has densities (from `standing` zeros if given), else None.

    Raises:
        UsageError: ecqx, or an order of zeros, without relevance.
    """
    if options is not None and options.method != "off":
        return EntropyConstraint(module, options, rescore)
    if module.compressed.plan.sparse:
        return Pruning(module, (options or EcqOptions()).ramp, relevance, standing)
    return None


class EntropyConstraint:
    """Keeps the codes of a module assigned; `step` after every step of the optimiser.

    Args:
        module: what is trained. Layers whose plan line has no density are left to nearness.
        options: whether relevance has a say, and how often it is taken.
        rescore: gives relevance; needed for method "ecqx".

    Raises:
        UsageError: ecqx without relevance.
    """

    def __init__(self, module: TrainableModule, options: EcqOptions, rescore: Rescore | None) -> None:
        if options.method == "ecqx" and rescore is None:
            raise UsageError("ecq.method = 'ecqx' needs relevance", hint="give data to score with, or use 'ecq'")
        self.module, self.options, self.rescore = module, options, rescore
        self.taken = 0
        self.relevance: dict[str, Tensor] = {}
        self.assigners: dict[str, Assigner] = {}
        self.zeros: dict[str, tuple[float, float]] = {}  # at the beginning, in the end
        self.share: dict[str, float] = {}  # now
        for name in module.names:
            layer, density = module.layer(name), module.compressed.plan[name].density
            levels = levels_of(layer)
            if levels is None or density is None:
                continue
            _, per = order_of(module.compressed.plan[name])
            self.assigners[name] = Assigner(options.rho, options.tolerance, options.entropy, per)
            nearest = nearest_costs(layer.units(), levels.values, torch.zeros(len(levels.values)))
            self.zeros[name] = float((nearest == levels.zero).double().mean()), 1.0 - density
            self.share[name] = self.zeros[name][0]

    @torch.no_grad()
    def gradients(self) -> None:
        """Scale the gradients of weights at a level c that is not zero by |c| (its real value), if asked for."""
        if self.options.gradient != "scaled":
            return
        for name in self.assigners:
            layer = self.module.layer(name)
            if layer.weight.grad is not None:
                level = layer.rounded()[0].abs()
                layer.weight.grad *= torch.where(level > 0, level, torch.ones_like(level))

    def step(self, done: float) -> None:
        """Assign all layers; `done` 0..1 is how much of the training is over."""
        if self.options.method == "ecqx" and self.taken % self.options.refresh == 0:
            self._score()
        self.taken += 1
        self.share = {n: zeros_at(*ends, done, self.options.ramp) for n, ends in self.zeros.items()}
        self._assign(follow=True)

    def settle(self) -> None:
        """Assign the weights as they are at full strength, until lambda stands."""
        if self.options.method == "ecqx":
            self._score()
        self.share = {n: last for n, (_, last) in self.zeros.items()}
        for _ in range(SETTLING):
            self._assign(follow=True)

    def assign(self) -> None:
        """Assign the weights as they are with lambda and relevance as they were."""
        self._assign(follow=False)

    def is_full(self, done: float) -> bool:
        """Whether the full strength is in force when `done` 0..1 of the training is over."""
        return done >= self.options.ramp

    @torch.no_grad()
    def _assign(self, follow: bool) -> None:
        for name, assigner in self.assigners.items():
            layer = self.module.layer(name)
            levels = levels_of(layer)
            if levels is None:  # all entries became zero: there is nothing to choose
                layer.assigned = None
                continue
            signal = self.relevance.get(name)
            relevance = None if signal is None else layer.real().abs() * signal
            worth = layer.steps().square()
            worth = worth / worth.mean()
            found = assigner.assign(layer.units(), levels, self.share[name], relevance, worth, follow)
            layer.assigned = codes_of(layer, found)

    def _score(self) -> None:
        assert self.rescore is not None
        frozen = self.module.freeze()
        network = real_network(frozen.network, frozen.weights, frozen.activations)
        self._mix(self.rescore(network, self.taken + 1).sensitivity)

    def _mix(self, sensitivity: Mapping[str, Float32]) -> None:
        """Exponential moving average of the root mean square signals."""
        keep = self.options.memory
        for name in self.assigners:
            now = torch.from_numpy(np.sqrt(sensitivity[name]))
            before = self.relevance.get(name)
            self.relevance[name] = now if before is None else keep * before + (1.0 - keep) * now

    def state(self) -> dict[str, Tensor]:
        """Steps taken, relevance, lambdas, shares of the levels and of zeros, and codes, as tensors by name."""
        found = {"taken": torch.tensor(self.taken)}
        found |= {f"relevance/{name}": value for name, value in self.relevance.items()}
        for name, assigner in self.assigners.items():
            found[f"strength/{name}"] = torch.tensor([assigner.strength, self.share[name]], dtype=torch.float64)
            if assigner.shares is not None:
                found[f"shares/{name}"] = assigner.shares
            codes = self.module.layer(name).assigned
            if codes is not None:
                found[f"codes/{name}"] = codes
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as when `state` was taken."""
        self.taken = int(state["taken"])
        self.relevance = {n: state[f"relevance/{n}"] for n in self.assigners if f"relevance/{n}" in state}
        for name, assigner in self.assigners.items():
            assigner.strength, self.share[name] = (float(x) for x in state[f"strength/{name}"])
            assigner.shares = state.get(f"shares/{name}")
            self.module.layer(name).assigned = state.get(f"codes/{name}")


def levels_of(layer: TrainableLayer) -> Levels | None:
    """The distinct values a layer's codes stand for, None where zero is not one of them, or the only one."""
    if layer.entries is None:
        limit = layer.start.format.limit
        return Levels.of(torch.arange(-limit, limit + 1, dtype=torch.float32))
    return Levels.of(torch.unique_consecutive(layer.book()))


def codes_of(layer: TrainableLayer, found: Tensor) -> Tensor:
    """Level indices as the layer's codes: uniform ones are the values, codebook ones index the (unmerged) book."""
    if layer.entries is None:
        return (found - layer.start.format.limit).to(layer.weight.dtype)
    book = layer.book()
    first = torch.searchsorted(book, torch.unique_consecutive(book))
    return first[found]
