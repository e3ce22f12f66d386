"""BatchNorm behind a layer while it is fine-tuned, folded into its scales and bias when its integers are made.

Networks come with BatchNorm folded, and train badly so: weights of different channels differ by orders of magnitude,
and where most weights become zero the signal fades layer by layer below what the activations' int8 ranges, which were
those of the dense network, can tell apart. So every layer that another one follows gets statistics of its own outputs
again. They begin as those of the float network and make no difference at first:

    y = gamma (z - mean z) / sqrt(var z + eps) + beta,   z = conv(x, codes * unit),   gamma, beta = std, mean of float y

As z's size says nothing then, all channels' weights are held in units of one step, at the size that a new network
would have (He et al. 2015, arXiv 1502.01852), so that the rates usual with BatchNorm fit every layer. Folding changes
no code (Ioffe and Szegedy 2015, arXiv 1502.03167): unit * gamma / sqrt(var + eps) is the channel's scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy import ranks
from xdeploy.compress.calibrate import watching
from xdeploy.compress.compact import compact_scale
from xdeploy.compress.integer import BIAS_LIMIT, requant_shift
from xdeploy.formats import Float64, QParams
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule

EPS = 1e-5
MOMENTUM = 0.05  # of the running statistics, which only ECQx's scoring sees: final ones are taken anew
CONSTANT = 1e-6  # of a channel's mean: what deviates by less is the rounding of one value
LEAST = 1e-3  # of gamma, to the layer's mean at first and its own later: codes could not follow a negative one

Moments = Mapping[str, tuple[Tensor, Tensor]]  # layer -> mean and standard deviation (O,) of its outputs
Float32 = NDArray[np.float32]


@torch.no_grad()
def mean_and_variance(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (O,) of a batch's channels (N, O, ...); the variance of a constant is 0."""
    over, wide = [0, *range(2, z.dim())], (-1, *[1] * (z.dim() - 2))
    z = z.float()
    mean = z.mean(over)  # twice over the values, but on all cores, unlike torch.var_mean
    var = (z - mean.view(wide)).square_().mean(over)
    return mean, torch.where(var > (CONSTANT * mean).square(), var, 0.0)


class Tally:
    """Mean and variance of channels (axis 1) over many batches."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Tensor, Tensor]] = []

    def add(self, z: Tensor) -> None:
        """Count a batch (N, O, ...)."""
        self.take(z, *mean_and_variance(z))

    def take(self, z: Tensor, mean: Tensor, var: Tensor) -> None:
        """Count a batch (N, O, ...) whose mean and variance are known."""
        self.parts.append((z.numel() // z.shape[1], mean.double(), var.double()))

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance (O,), float32; at least one batch was counted."""
        count = torch.tensor([n for n, _, _ in self.parts], dtype=torch.float64)
        share = (count / count.sum())[:, None]
        means, variances = torch.stack([m for _, m, _ in self.parts]), torch.stack([v for _, _, v in self.parts])
        mean = (share * means).sum(0)
        return mean.float(), (share * (variances + (means - mean).square())).sum(0).float()


class Norm(nn.Module):
    """BatchNorm over the channels (axis 1) of one layer's outputs.

    Args:
        mean: of the outputs that it should begin with, (O,).
        deviation: likewise.
    """

    mean: Tensor  # of z
    var: Tensor
    size: Tensor  # gamma and beta learn in this unit

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        size = deviation.clamp_min(max(LEAST * float(deviation.mean()), 1e-12))
        self.register_buffer("size", size)
        self.factor, self.offset = nn.Parameter(torch.ones_like(size)), nn.Parameter(mean / size)
        self.register_buffer("mean", torch.zeros_like(mean))
        self.register_buffer("var", torch.ones_like(mean))
        self.tally: Tally | None = None  # while statistics are taken

    @torch.no_grad()
    def begin(self, gain: Tensor, offset: Tensor) -> None:
        """Running statistics with which z is multiplied with `gain` (O,), > 0, and has `offset` (O,) added."""
        self.var.copy_((self.gamma() / gain).square() - EPS)
        self.mean.copy_((self.beta() - offset) / gain)

    def forward(self, z: Tensor) -> Tensor:
        """Normalise by the batch, or by the running statistics if the batch has but one value per channel."""
        several = z.numel() > z.shape[1]
        if self.tally is not None:
            found = mean_and_variance(z)
            self.tally.take(z, *found)
            if several and not torch.is_grad_enabled():
                return F.batch_norm(z, *found, self.gamma(), self.beta(), False, MOMENTUM, EPS)
        if ranks.is_parted() and torch.is_grad_enabled():
            return self._normalise_whole(z)
        return F.batch_norm(z, self.mean, self.var, self.gamma(), self.beta(), several, MOMENTUM, EPS)

    def _normalise_whole(self, z: Tensor) -> Tensor:
        """The same where other processes have the rest of the batch; in float64, as sums come in another order."""
        mean, var, n = ranks.whole_moments(z)
        shape = (1, -1, *[1] * (z.dim() - 2))
        if n == 1:
            mean, var = self.mean.double(), self.var.double()
        else:
            with torch.no_grad():
                self.mean.lerp_(mean.float(), MOMENTUM)
                self.var.lerp_((var * (n / (n - 1))).float(), MOMENTUM)
        gain = self.gamma() / torch.sqrt(var + EPS)
        return ((z - mean.view(shape)) * gain.view(shape) + self.beta().view(shape)).to(z.dtype)

    def gamma(self) -> Tensor:
        """Deviation of the outputs (O,), > 0."""
        return self.size * self.factor

    def beta(self) -> Tensor:
        """Mean of the outputs (O,)."""
        return self.size * self.offset

    @torch.no_grad()
    def settle(self) -> None:
        """Make what was counted the running statistics."""
        assert self.tally is not None
        mean, var = self.tally.result()
        self.mean.copy_(mean)
        self.var.copy_(var)
        self.tally = None

    @torch.no_grad()
    def bound(self) -> None:
        """Keep gamma positive."""
        self.factor.clamp_(min=LEAST)

    @torch.no_grad()
    def gain(self) -> Tensor:
        """What z is multiplied with (O,), > 0."""
        return self.gamma() / torch.sqrt(self.var + EPS)

    @torch.no_grad()
    def fold(
        self, unit: float | Float32, source: QParams, out: QParams, compact: bool, name: str
    ) -> tuple[Float32, Float64]:
        """Scales (O,) and real biases (O,) that do the same, the biases within what int32 has room for.

        A channel without spread gives beta whatever its scale; it takes the smallest of the others.

        Args:
            unit: what one step of the codes is in z, for all channels or each (O,).
            source: quantisation of the layer's input.
            out: quantisation of its output.
            compact: whether the scales have few bits.
            name: of the layer, for errors.

        Raises:
            UnsupportedError: the scales are out of the requantisation's range.
        """
        gain, alive = self.gain().double().numpy(), self.var.numpy() > 0
        if alive.any():
            gain = np.where(alive, gain, gain[alive].min())
        scale = compact_scale(unit * gain) if compact else (unit * gain).astype(np.float32)
        bias = self.beta().double().numpy() - self.mean.double().numpy() * scale / unit
        limit = BIAS_LIMIT >> requant_shift(name, source, scale, out)
        least = np.abs(bias) / (source.scale * limit) * (1 + 1e-6)
        raised = compact_scale(least, up=True) if compact else least.astype(np.float32)
        return np.where(scale < least, raised, scale), bias


def moments(network: Network, batches: Iterable[Tensor]) -> Moments:
    """Mean and deviation of every hidden layer's outputs, before any fused activation.

    Args:
        network: the float network.
        batches: inputs (N, *input shape), at least one.
    """
    tallies = {name: Tally() for name in network.hidden()}
    module = NetworkModule(network).eval()
    with torch.no_grad(), watching(module, tallies, lambda name, y: tallies[name].add(y)):
        for x in batches:
            module(x)
    results = {name: tally.result() for name, tally in tallies.items()}
    return {name: (mean, var.sqrt()) for name, (mean, var) in results.items()}
