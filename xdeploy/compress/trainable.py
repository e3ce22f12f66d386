"""The fake-quantised network with float weights behind the codes, so that training sees what the device will compute.

Uniform weights: codes are the rounded quotient of float weight and scale, and the scale learns too (learned step size,
Esser et al. 2020, arXiv 1902.08153). Codebook weights: every weight takes its nearest entry again in each step, and
each entry learns from the gradients of its weights (Han et al. 2016, arXiv 1510.00149); scales stay. Gradients pass
straight through all rounding. Biases are rounded to their int32 step. Codes may also be assigned from outside (`ecq`);
scales and biases are compact (`compact`) in training too where the final ones are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdeploy.compress.compact import PLAIN, Rules, bias_shift, compact_bias, compact_scale
from xdeploy.compress.fakequant import FakeQuantModule, through
from xdeploy.compress.integer import BIAS_LIMIT, bias_codes, requant_shift
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.formats import QParams, prove_accumulator
from xdeploy.model.torchmodule import Conv, Dense

SCALE_RANGE = 2.0  # a scale learns within this factor of where it started, so that bias and shift stay proven


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
        self.unit = float(start.scale.mean())  # entries are held in the unit of weights, so that rates fit both
        self.entries: nn.Parameter | None = None
        if start.codebook is not None:
            self.entries = nn.Parameter(torch.from_numpy(start.codebook.astype(np.float32)) * self.unit)
            self.find_zero()
        self.assigned: Tensor | None = None  # codes that were not chosen by nearness; they stay until changed

    def rounded(self) -> tuple[Tensor, Tensor]:
        """The weight and bias that the codes stand for, differentiable."""
        scales, limit = self.scales(), self.start.format.limit
        wide = self._spread(scales)
        divisor = wide
        if self.assigned is not None:  # what was made zero says nothing about the step
            divisor = torch.where(self._is_zero(), wide.detach(), wide)
        unit = (self.weight / divisor).clamp(-limit, limit)
        if self.entries is None:
            weight = through(unit, self.codes())
        else:
            values = through(self.entries / self.unit, self.book())[self.codes()]
            weight = through(unit, values.detach()) + (values - values.detach())
        step = scales.detach() * self.source.scale
        codes = torch.round(self.bias.detach() / step).clamp(-self.bias_limit, self.bias_limit)
        return weight * wide, through(self.bias, self._compacted(codes, scales) * step)

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
        return self.weight / self.wide()

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
        bias = np.clip(self.bias.detach().numpy().astype(np.float64), -limit, limit)
        book = None if self.entries is None else self.book().numpy().astype(np.int8)
        codes = self.codes().to(torch.int8).numpy().copy()
        whole = bias_codes(bias, self.source, scale)
        if self.rules.compact:
            whole = compact_bias(whole, bias_shift(self.source, scale, self.out))
        return QuantisedWeight(self.start.format_name, codes, book, scale, whole)

    def wide(self) -> Tensor:
        """The scales (O, 1, ...), to multiply codes with."""
        return self._spread(self.scales())

    def _spread(self, scales: Tensor) -> Tensor:
        return scales.reshape(-1, *[1] * (self.weight.dim() - 1))


def _numpy(x: Tensor, rule: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(rule(x.detach().contiguous().numpy()))


class TrainableModule(FakeQuantModule):
    """A compressed model whose float weights, biases, scales and codebooks learn; `freeze` gives the final integers.

    Args:
        compressed: where to start.
        rules: what its integers keep to; in layers whose plan line has a density, codebooks also keep their zero.
        autocast: convolutions and products in bfloat16, everything else in float32.
    """

    def __init__(self, compressed: CompressedModel, rules: Rules = PLAIN, autocast: bool = False) -> None:
        super().__init__(compressed)
        self.compressed, self.rules, self.autocast = compressed, rules, autocast
        self.names = {name: k for k, name in enumerate(compressed.weights)}
        self.trained = nn.ModuleList(self._layer_of(name) for name in self.names)

    def _layer_of(self, name: str) -> TrainableLayer:
        module, params = self.inner.modules_by_name[name], self.network.params[name]
        assert isinstance(module, Conv | Dense)
        assert module.bias is not None
        with torch.no_grad():  # the float weights the codes came from, in place of what the codes stand for
            module.weight.copy_(torch.from_numpy(params["weight"]))
            module.bias.copy_(torch.from_numpy(params["bias"]))
        start, source = self.compressed.weights[name], self._source(name)
        shift = requant_shift(name, source, start.scale, self._out(name)) + int(math.log2(SCALE_RANGE))
        rules = replace(self.rules, zero=self.compressed.plan[name].density is not None)
        return TrainableLayer(start, module, source, self._out(name), BIAS_LIMIT >> shift, rules)

    def _source(self, name: str) -> QParams:
        return self.activations[self.network[name].inputs[0]]

    def _out(self, name: str) -> QParams:
        fused = self.network.fused_activation(name)
        return self.activations[name if fused is None else fused.name]

    def layer(self, name: str) -> TrainableLayer:
        """What learns in a layer."""
        found = self.trained[self.names[name]]
        assert isinstance(found, TrainableLayer)
        return found

    def layers(self) -> Iterator[TrainableLayer]:
        """All layers that learn."""
        return (self.layer(name) for name in self.names)

    def layer_parameters(self, name: str, module: Conv | Dense) -> tuple[Tensor, Tensor]:
        """What the codes of the current weights and biases stand for, differentiable."""
        return self.layer(name).rounded()

    def _layer(self, name: str, module: nn.Module, xs: list[Tensor]) -> Tensor:
        if not self.autocast:
            return super()._layer(name, module, xs)
        with torch.autocast("cpu", torch.bfloat16):
            return super()._layer(name, module, xs).float()

    def freeze(self) -> CompressedModel:
        """The compressed model as it is now: final integers, and the float weights they come from.

        Raises:
            UnsupportedError: an accumulator could overflow.
        """
        weights = {name: self.layer(name).freeze() for name in self.names}
        for name, w in weights.items():
            shift = requant_shift(name, self._source(name), w.scale, self._out(name))
            prove_accumulator(w.values.reshape(len(w.codes), -1), w.bias, shift, name)
        return replace(self.compressed, network=self.inner.to_network(), weights=weights)
