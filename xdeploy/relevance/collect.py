"""Scores of single samples -> scores of a reference set: running sums, in memory that does not grow with the samples.

With r the relevance of a weight w for one sample, G = r / w its signal, and R_c the relevance of a channel for one
sample, summed over positions, `relevance.aggregate` makes of them (means over samples):

| aggregate | weight | channel |
|---|---|---|
| magnitude | abs(r) | abs(R_c) |
| signed | r, which cancels: may be negative | R_c, may be negative |
| square | r^2 | R_c^2 |
| sensitivity | G^2, free of the factor w | the sum of G^2 over the channel's weights |

`sensitivity` is the mean of G^2 whatever the aggregate: codebooks and bits are weighed by it. Magnitude is the default:
signed sums rank weights badly without fine-tuning (and are what Becking et al. 2021 and Soroush et al. 2023 take), and
the sum of magnitudes ranked filters best where it was measured (Yeom et al. 2021; Hatefi et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from xdeploy import ranks
from xdeploy.model.torchmodule import Conv, Dense
from xdeploy.relevance.method import Float32, Scores
from xdeploy.relevance.moments import Moments, add_moments


def batch_sums(x: Tensor) -> Tensor:
    """Sum of each sample (N,), in float64."""
    return x.detach().flatten(1).double().sum(dim=1)


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Float32]:
    """The tensors as numpy float32 arrays."""
    return {k: v.detach().to(torch.float32).numpy() for k, v in tensors.items()}


@dataclass(slots=True)
class Collector:
    """Running sums over samples of each layer's weight signals and channel relevances, and of conservation."""

    modules: Mapping[str, Conv | Dense]
    aggregate: str = "magnitude"
    samples: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    channel: dict[str, Tensor] = field(default_factory=dict)
    lost: float = 0.0
    explained: float = 0.0

    def __post_init__(self) -> None:
        for name, module in self.modules.items():
            self.moments[name] = Moments.of(module.weight.detach(), signed=self.aggregate == "signed")
            self.channel[name] = torch.zeros(len(module.weight), dtype=torch.float64)

    def add_layer(self, name: str, a: Tensor, s: Tensor, r: Tensor, steps: int = 1) -> None:
        """Count one layer of one batch.

        Args:
            name: of the layer.
            a: its input (N * steps, ...); G of a sample is the sum over its steps and positions of a * s.
            s: the signal at its output (N * steps, ...).
            r: the relevance of its output (N, O, ...).
            steps: rows of `a` and `s` that belong to one sample.
        """
        with torch.no_grad():
            add_moments(self.modules[name], a, s, self.moments[name], steps)
            channel = r.reshape(*r.shape[:2], -1).sum(dim=2)
            if self.aggregate == "signed":
                self.channel[name] += channel.double().sum(dim=0)
            elif self.aggregate == "square":
                self.channel[name] += channel.double().square().sum(dim=0)
            else:
                self.channel[name] += channel.abs().double().sum(dim=0)

    def add_balance(self, arrived: Tensor, absorbed: Tensor, sent: Tensor) -> None:
        """Count conservation per sample (N,): relevance at the input, kept by biases, and sent from the output."""
        self.lost += float((arrived + absorbed - sent).abs().sum())
        self.explained += float(sent.abs().sum())

    def add_up(self) -> None:
        """Add what other processes have collected of their share of the samples."""
        totals = torch.tensor([self.samples, self.lost, self.explained], dtype=torch.float64)
        sums = [s for m in self.moments.values() for s in (m.magnitude, m.square, m.signed) if s is not None]
        ranks.add_up([totals, *sums, *self.channel.values()])
        self.samples, self.lost, self.explained = int(totals[0]), float(totals[1]), float(totals[2])

    @property
    def residual(self) -> float:
        """Mean over samples of |R_in + bias share - R_out|, relative to the mean |R_out|."""
        return self.lost / max(self.explained, 1e-30)

    def scores(self, parameters: Mapping[str, Any]) -> Scores:
        """Means over samples, as the table in the module's text says."""
        n = max(self.samples, 1)
        sensitivity = {k: m.square / n for k, m in self.moments.items()}
        weight = {k: self._weight(k, m, n) for k, m in self.moments.items()}
        channel = {k: v / n for k, v in self.channel.items()}
        if self.aggregate == "sensitivity":
            channel = {k: v.double().flatten(1).sum(dim=1) for k, v in sensitivity.items()}
        return Scores(
            as_float32(weight), as_float32(channel), as_float32(sensitivity),
            {**parameters, "aggregate": self.aggregate}, self.residual, self.samples,
        )  # fmt: skip

    def _weight(self, name: str, moments: Moments, n: int) -> Tensor:
        w = self.modules[name].weight.detach()
        if self.aggregate == "magnitude":
            return w.abs() * moments.magnitude / n
        if moments.signed is not None:
            return w * moments.signed / n
        return moments.square / n if self.aggregate == "sensitivity" else w.square() * moments.square / n
