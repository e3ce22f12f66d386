"""What learns in one layer, and what it rounds to.

Uniform weights: codes are the rounded quotient of float weight and scale, and the scale learns too (learned step size,
Esser et al. 2020, arXiv 1902.08153). Codebook weights: every weight takes its nearest entry again in each step, and
each entry learns from the gradients of its weights (Han et al. 2016, arXiv 1510.00149); scales stay. Gradients pass
straight through all rounding. Biases are rounded to their int32 step. Codes may also be assigned from outside (`ecq`);
scales and biases are compact (`compact`) in training too where the final ones are. In layers with BatchNorm behind them
(`normalise`) scale and bias are what it folds into.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdeploy.compress.compact import PLAIN, Rules, bias_shift, compact_bias, compact_scale
from xdeploy.compress.fakequant import through
from xdeploy.compress.integer import stored_bias
from xdeploy.compress.model import QuantisedWeight
from xdeploy.compress.normalise import Norm
from xdeploy.formats import QParams
from xdeploy.model.torchmodule import Conv, Dense
from xdeploy.quantise import channel_scale, uniform_codes

SCALE_RANGE = 2.0  # a scale learns within this factor of where it started, so that bias and shift stay proven
BEYOND = 2.0  # times what its codes reach may a normalised weight be: it can come back, and is told from others


class TrainableLayer(nn.Module):
    """Weight, bias, and scale or codebook entries of one layer, and what they round to.

    Args:
        start: the layer's integers.
        module: its float weight and bias, shared with the network module.
        source: quantisation of its input.
        out: quantisation of its output.
        bias_limit: largest magnitude of a bias code.
        rules: what its integers keep to.
    """

    def __init__(
        self,
        start: QuantisedWeight,
        module: Conv | Dense,
        source: QParams,
        out: QParams,
        bias_limit: int,
        rules: Rules = PLAIN,
    ) -> None:
        super().__init__()
        assert module.bias is not None  # always built with one
        self.start, self.source, self.out, self.bias_limit, self.rules = start, source, out, bias_limit, rules
        self.weight, self.bias = module.weight, module.bias
        self.first_scale = torch.from_numpy(start.scale[:1].copy() if rules.tensor else start.scale.copy())
        self.scale = nn.Parameter(self.first_scale.clone(), requires_grad=start.codebook is None)
        self.entries: nn.Parameter | None = None
        self._hold_entries(float(start.scale.mean()))
        self.assigned: Tensor | None = None  # codes that were not chosen by nearness; they stay until changed

    def _hold_entries(self, unit: float) -> None:
        """Hold the codebook's entries in the unit of weights, so that rates fit both."""
        self.unit = unit
        if self.start.codebook is not None:
            self.entries = nn.Parameter(torch.from_numpy(self.start.codebook.astype(np.float32)) * unit)
            self.find_zero()

    def run(self, module: Conv | Dense, x: Tensor) -> Tensor:
        """The layer's outputs with what its codes stand for, differentiable."""
        return module.run(x, *self.rounded())

    def rounded(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that the codes stand for, differentiable."""
        scales, limit = self.scales(), self.start.format.limit
        wide = self._spread(scales)
        divisor = wide
        if self.assigned is not None:  # what was made zero says nothing about the step
            divisor = torch.where(self._is_zero(), wide.detach(), wide)
        unit = self._clamped(self.weight / divisor, limit)
        if self.entries is None:
            weight = through(unit, self.codes())
        else:
            values = through(self.entries / self.unit, self.book())[self.codes()]
            weight = through(unit, values.detach()) + (values - values.detach())
        return weight * wide, self._rounded_bias(scales)

    def _rounded_bias(self, scales: Tensor) -> Tensor | None:
        step = scales.detach() * self.source.scale
        codes = torch.round(self.bias.detach() / step).clamp(-self.bias_limit, self.bias_limit)
        return through(self.bias, self._compacted(codes, scales) * step)

    @staticmethod
    def _clamped(unit: Tensor, limit: int) -> Tensor:
        """Weights outside of what codes reach have no gradient."""
        return unit.clamp(-limit, limit)

    def scales(self) -> Tensor:
        """The scale of every channel (O,) as the integers will have it, differentiable."""
        scale = self.scale.expand(len(self.start.scale))
        return scale if not self.rules.compact else through(scale, _numpy(scale, compact_scale))

    @torch.no_grad()
    def _compacted(self, codes: Tensor, scales: Tensor) -> Tensor:
        if not self.rules.compact:
            return codes
        shift = bias_shift(self.source, scales.numpy(), self.out)
        return _numpy(codes, lambda x: compact_bias(x.astype(np.int32), shift).astype(np.float32))

    @torch.no_grad()
    def _is_zero(self) -> Tensor:
        assert self.assigned is not None
        return (self.assigned if self.entries is None else self.book()[self.assigned]) == 0

    @torch.no_grad()
    def codes(self) -> Tensor:
        """What was assigned; else rounded quotients, or indices of the nearest entries (of equals the larger one)."""
        if self.assigned is not None:
            return self.assigned
        unit = self.units()
        if self.entries is not None:
            book = self.book()
            return torch.bucketize(unit, (book[1:] + book[:-1]) / 2.0, right=True)
        limit = self.start.format.limit
        return torch.round(unit).clamp(-limit, limit)

    @torch.no_grad()
    def units(self) -> Tensor:
        """The weights over their channels' scales: what codes stand for, before rounding."""
        return self.weight / self._spread(self.scales())

    @torch.no_grad()
    def real(self) -> Tensor:
        """The weights as the network has them."""
        return self.units() * self.wide()

    @torch.no_grad()
    def compared(self) -> Tensor:
        """The weights in the measure in which those of different channels are compared."""
        return self.units() * self.steps()

    @torch.no_grad()
    def steps(self) -> Tensor:
        """What a step counts (O, 1, ...) where weights of different channels are compared."""
        return self.wide()

    @torch.no_grad()
    def book(self) -> Tensor:
        """The int8 entries as they are now (held as floats), ascending."""
        assert self.entries is not None
        return torch.round(self.entries / self.unit).clamp(-127, 127)

    @torch.no_grad()
    def balance_gradients(self) -> None:
        """Bring the gradients of scale and entries, sums over many weights, to the size of a weight's.

        Scales by 1 / sqrt(weights * limit), as learned step sizes do; entries to the mean over their weights: larger
        steps were seen to throw entries off.
        """
        codes = self.start.codes
        if self.scale.grad is not None:
            weights = codes.size if self.rules.tensor else codes[0].size
            self.scale.grad /= math.sqrt(weights * self.start.format.limit)
        if self.entries is not None and self.entries.grad is not None:
            self.entries.grad *= len(self.entries) / codes.size
            if self.rules.zero:
                self.entries.grad[self.zero] = 0.0

    @torch.no_grad()
    def bound(self) -> None:
        """Bring scales back into their range and entries into their order after an optimiser step; zero stays zero."""
        low, high = self.first_scale / SCALE_RANGE, self.first_scale * SCALE_RANGE
        self.scale.copy_(torch.minimum(torch.maximum(self.scale, low), high))
        self._order()

    @torch.no_grad()
    def _order(self) -> None:
        if self.entries is not None:
            if self.rules.zero:
                self.entries[self.zero] = 0.0
            self.entries.copy_(self.entries.sort().values)
            if self.rules.zero:
                self.find_zero()

    def find_zero(self) -> None:
        """See which entry is zero; after the entries were changed from outside."""
        assert self.entries is not None
        self.zero = int(self.entries.detach().abs().argmin())

    @torch.no_grad()
    def freeze(self) -> QuantisedWeight:
        """The integers as they are now."""
        scale = self.scales().detach().numpy().copy()
        limit = self.bias_limit * self.source.scale * scale.astype(np.float64)
        return self._integers(scale, np.clip(self.bias.detach().numpy().astype(np.float64), -limit, limit))

    @torch.no_grad()
    def _integers(self, scale: NDArray[np.float32], bias: NDArray[np.float64]) -> QuantisedWeight:
        book = None if self.entries is None else self.book().numpy().astype(np.int8)
        codes = self.codes().to(torch.int8).numpy().copy()
        whole = stored_bias(bias, self.source, scale, self.out, self.rules)
        return QuantisedWeight(self.start.format_name, codes, book, scale, whole)

    def wide(self) -> Tensor:
        """The scales (O, 1, ...) of the final integers as things are, to multiply codes with."""
        return self._spread(self.scales())

    def _spread(self, scales: Tensor) -> Tensor:
        return scales.reshape(-1, *[1] * (self.weight.dim() - 1))


class NormalisedLayer(TrainableLayer):
    """The same with BatchNorm behind it: weights in steps of one size, scales and biases by folding.

    Args:
        start: the layer's integers.
        module: its float weight and bias; given what they became by `freeze`, else left alone.
        source: quantisation of its input.
        out: quantisation of its output.
        norm: what is behind it.
        rules: what its integers keep to; not one scale for all channels.
        name: for errors.
    """

    def __init__(
        self,
        start: QuantisedWeight,
        module: Conv | Dense,
        source: QParams,
        out: QParams,
        norm: Norm,
        rules: Rules,
        name: str,
    ) -> None:
        super().__init__(start, module, source, out, 0, rules)
        self.norm, self.name = norm, name
        self.folded = module.weight, self.bias
        for parameter in (module.weight, self.bias):
            parameter.requires_grad_(False)
        first = self._first_steps()
        units = module.weight.detach() / self._spread(first)
        size = new_size(units)
        rms = float(units.square().mean().sqrt())
        self.step = size / rms if rms > 0 else size
        self.weight = nn.Parameter(units * self.step)
        self.scale = nn.Parameter(torch.full_like(self.first_scale, self.step), requires_grad=False)
        norm.begin(first / self.step, self.bias.detach())
        self._hold_entries(self.step)

    def _first_steps(self) -> Tensor:
        """Scales (O,) of the weights before any became zero: those of channels that will be empty mean nothing."""
        weight = self.weight.detach().numpy()
        if self.start.codebook is not None:
            return torch.from_numpy(channel_scale(weight))
        return torch.from_numpy(uniform_codes(weight, self.start.format)[1])

    def run(self, module: Conv | Dense, x: Tensor) -> Tensor:
        """The layer's outputs, normalised."""
        found: Tensor = self.norm(super().run(module, x))
        return found

    def scales(self) -> Tensor:
        """What a step is in the weights that learn (O,)."""
        return self.scale

    def _rounded_bias(self, scales: Tensor) -> None:
        return None

    @staticmethod
    def _clamped(unit: Tensor, limit: int) -> Tensor:
        return unit

    def wide(self) -> Tensor:
        """The scales (O, 1, ...) that folding would give now, to multiply codes with."""
        return self._spread(self.step * self.norm.gain())

    @torch.no_grad()
    def steps(self) -> Tensor:
        """The same for all channels, as BatchNorm gives each its size whatever that of its weights is.

        Magnitudes as folded were tried: they empty some channels and keep others nearly whole, and at 2 % of the
        weights of an MLP lost 4 (gains as they move) to 11 points (gains as at first) against this.
        """
        return torch.ones_like(self.wide())

    @torch.no_grad()
    def bound(self) -> None:
        """Keep weights where codes are near, entries in order, gamma positive."""
        most = BEYOND * self.start.format.limit * self.step
        self.weight.clamp_(-most, most)
        self.norm.bound()
        self._order()

    @torch.no_grad()
    def freeze(self) -> QuantisedWeight:
        """The integers as they are now; the float weight and bias that they come from are set too."""
        scale, bias = self.norm.fold(self.step, self.source, self.out, self.rules.compact, self.name)
        weight, offset = self.folded
        weight.copy_(self.units() * self._spread(torch.from_numpy(scale)))
        offset.copy_(torch.from_numpy(bias))
        return self._integers(scale, bias)


def new_size(weight: Tensor) -> float:
    """The root mean square of such weights (O, ...) in a new network (He et al. 2015, arXiv 1502.01852)."""
    return math.sqrt(2.0 * len(weight) / weight.numel())


def _numpy(x: Tensor, rule: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(rule(x.detach().contiguous().numpy()))
