"""The fake-quantised network with float weights behind the codes, so that training sees what the device will compute.

Uniform weights: codes are the rounded quotient of float weight and scale, and the scale learns too (learned step size,
Esser et al. 2020, arXiv 1902.08153). Codebook weights: every weight takes its nearest entry again in each step, and each
entry learns from the gradients of its weights (Han et al. 2016, arXiv 1510.00149); scales stay. Gradients pass straight
through all rounding. Biases are rounded to their int32 step.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from xdeploy.compress.fakequant import FakeQuantModule, through
from xdeploy.compress.integer import BIAS_LIMIT, bias_codes, requant_shift
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.formats import QParams, prove_accumulator
from xdeploy.model.torchmodule import Conv, Dense

SCALE_RANGE = 2.0  # a scale learns within this factor of where it started, so that bias and shift stay proven


class TrainableModule(FakeQuantModule):
    """A compressed model whose float weights, biases and scales are parameters; `freeze` gives the final integers."""

    def __init__(self, compressed: CompressedModel) -> None:
        super().__init__(compressed)
        self.compressed = compressed
        self.names = {name: k for k, name in enumerate(compressed.weights)}
        self.scales = nn.ParameterList(
            nn.Parameter(torch.from_numpy(w.scale.copy()), requires_grad=w.codebook is None)
            for w in compressed.weights.values()
        )
        self.start = [p.detach().clone() for p in self.scales]
        books = {n: w for n, w in compressed.weights.items() if w.codebook is not None}
        self.units = {n: float(w.scale.mean()) for n, w in books.items()}
        self.book_names = {name: k for k, name in enumerate(books)}
        self.entries = nn.ParameterList(
            nn.Parameter(torch.from_numpy(w.codebook.astype(np.float32)) * self.units[n]) for n, w in books.items()
        )
        self.bias_limit: dict[str, int] = {}
        for name in self.names:
            self._load_float(name)

    def _load_float(self, name: str) -> None:
        module, params = self.inner.modules_by_name[name], self.network.params[name]
        assert isinstance(module, Conv | Dense)
        assert module.bias is not None
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(params["weight"]))
            module.bias.copy_(torch.from_numpy(params["bias"]))
        shift = requant_shift(name, self._source(name), self.compressed.weights[name].scale, self._out(name))
        self.bias_limit[name] = BIAS_LIMIT >> (shift + int(math.log2(SCALE_RANGE)))

    def _source(self, name: str) -> QParams:
        return self.activations[self.network[name].inputs[0]]

    def _out(self, name: str) -> QParams:
        fused = self.network.fused_activation(name)
        return self.activations[name if fused is None else fused.name]

    def scale(self, name: str) -> nn.Parameter:
        """The per-channel scale (O,) of a layer."""
        found: nn.Parameter = self.scales[self.names[name]]
        return found

    def layer_parameters(self, name: str, module: Conv | Dense) -> tuple[Tensor, Tensor]:
        """What the codes of the current weights and biases stand for, differentiable."""
        assert module.bias is not None
        scale = self.scale(name)
        wide = scale.reshape(-1, *[1] * (module.weight.dim() - 1))
        limit = self.compressed.weights[name].format.limit
        unit = module.weight / wide
        codes = self._codes(name, unit.detach())
        if name in self.book_names:
            entries = through(self.entries[self.book_names[name]] / self.units[name], self.book(name))[codes]
            rounded = through(unit.clamp(-limit, limit), entries.detach()) + (entries - entries.detach())
        else:
            rounded = through(unit.clamp(-limit, limit), codes)
        weight = rounded * wide
        step = scale.detach() * self._source(name).scale
        bias = torch.round(module.bias.detach() / step).clamp(-self.bias_limit[name], self.bias_limit[name])
        return weight, through(module.bias, bias * step)

    def _codes(self, name: str, unit: Tensor) -> Tensor:
        """Codes of weights divided by their scale; for codebooks the nearest entry, ties to the larger one."""
        if name in self.book_names:
            book = self.book(name)
            return torch.bucketize(unit, (book[1:] + book[:-1]) / 2.0, right=True)
        limit = self.compressed.weights[name].format.limit
        return torch.round(unit).clamp(-limit, limit)

    def book(self, name: str) -> Tensor:
        """The layer's int8 entries as they are now (as floats), ascending."""
        return torch.round(self.entries[self.book_names[name]].detach() / self.units[name]).clamp(-127, 127)

    @torch.no_grad()
    def balance_gradients(self) -> None:
        """Bring the gradients of scales and entries, which sum over many weights, to the size of a weight's.

        Scales by 1 / sqrt(weights * limit), as learned step sizes do; entries to the mean over their weights: larger
        steps were seen to throw entries off.
        """
        for name, weight in self.compressed.weights.items():
            scale = self.scale(name)
            if scale.grad is not None:
                scale.grad /= math.sqrt(weight.codes[0].size * weight.format.limit)
        for name, k in self.book_names.items():
            grad = self.entries[k].grad
            if grad is not None:
                grad *= len(self.entries[k]) / self.compressed.weights[name].codes.size

    @torch.no_grad()
    def bound_scales(self) -> None:
        """Bring scales back into their range after an optimiser step."""
        for scale, start in zip(self.scales, self.start, strict=True):
            scale.copy_(torch.minimum(torch.maximum(scale, start / SCALE_RANGE), start * SCALE_RANGE))
        for entries in self.entries:
            entries.copy_(entries.sort().values)

    @torch.no_grad()
    def freeze_layer(self, name: str) -> QuantisedWeight:
        """The integers of one layer as they are now.

        Raises:
            UnsupportedError: the accumulator could overflow.
        """
        module = self.inner.modules_by_name[name]
        assert isinstance(module, Conv | Dense)
        assert module.bias is not None
        old, scale = self.compressed.weights[name], self.scale(name).detach().numpy().copy()
        unit = module.weight / self.scale(name).reshape(-1, *[1] * (module.weight.dim() - 1))
        codes = self._codes(name, unit).to(torch.int8).numpy().copy()
        book = self.book(name).numpy().astype(np.int8) if name in self.book_names else None
        step = self._source(name).scale * scale.astype(np.float64)
        limit = (self.bias_limit[name] * step).astype(np.float32)
        bias = bias_codes(np.clip(module.bias.numpy(), -limit, limit), self._source(name), scale)
        result = QuantisedWeight(old.format_name, codes, book, scale, bias)
        shift = requant_shift(name, self._source(name), scale, self._out(name))
        prove_accumulator(result.values.reshape(len(codes), -1), bias, shift, name)
        return result

    def freeze(self) -> CompressedModel:
        """The compressed model as it is now: final integers, and the float weights they come from."""
        weights = {name: self.freeze_layer(name) for name in self.names}
        return replace(self.compressed, network=self.inner.to_network(), weights=weights)
