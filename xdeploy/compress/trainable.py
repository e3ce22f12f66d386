"""The fake-quantised network with float weights behind its codes: training sees what the device will compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.compress.compact import PLAIN, Rules
from xdeploy.compress.fakequant import FakeQuantModule, fake_quantise, laid_out_as, through
from xdeploy.compress.integer import BIAS_LIMIT, requant_shift
from xdeploy.compress.learning import SCALE_RANGE, NormalisedLayer, TrainableLayer
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.normalise import Moments, Norm, Tally
from xdeploy.formats import QParams, prove_accumulator
from xdeploy.model.torchmodule import Conv, Dense


class Rounded(torch.autograd.Function):
    """Fake quantisation of activations in few passes over memory; the gradient passes inside the range.

    It differs from the exact one (`fakequant`) only where a quotient is within a rounding error of a half.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, q: QParams) -> Tensor:
        """Clamp and round."""
        ctx.save_for_backward(x)
        ctx.range = (-128 - q.zero_point) * q.scale, (127 - q.zero_point) * q.scale
        return F.hardtanh(x, *ctx.range).mul_(1.0 / q.scale).round_().mul_(q.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient where x is inside."""
        (x,) = ctx.saved_tensors
        grad = laid_out_as(grads[0], x)  # a slice's has channels first, and all layers before would wait for that
        found: Tensor = torch.ops.aten.hardtanh_backward(grad, x, *ctx.range)
        return found, None


class TrainableModule(FakeQuantModule):
    """A compressed model whose float weights, biases, scales and codebooks learn; `freeze` gives the final integers.

    Args:
        compressed: where to start.
        rules: what its integers keep to; in layers whose plan line has a density, codebooks also keep their zero.
        autocast: convolutions and products in bfloat16, everything else in float32.
        norms: of the float network's layers that get BatchNorm behind them while training; not where one scale is all.
    """

    def __init__(
        self,
        compressed: CompressedModel,
        rules: Rules = PLAIN,
        autocast: bool = False,
        norms: Moments | None = None,
    ) -> None:
        super().__init__(compressed)
        self.compressed, self.rules, self.autocast = compressed, rules, autocast
        self.norms: Moments = {} if norms is None or rules.tensor else norms
        fused = (compressed.network.fused_activation(x.name) for x in compressed.network.layers)
        # what quantisation clamps at 0 anyway
        self.clamped = {
            x.name for x in fused if x is not None and x.kind == "relu" and self.activations[x.name].zero_point == -128
        }
        self.followed = compressed.network.followed()
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
        rules = replace(self.rules, zero=self.compressed.plan[name].density is not None)
        if name in self.norms:
            return NormalisedLayer(start, module, source, self._out(name), Norm(*self.norms[name]), rules, name)
        shift = requant_shift(name, source, start.scale, self._out(name)) + int(math.log2(SCALE_RANGE))
        return TrainableLayer(start, module, source, self._out(name), BIAS_LIMIT >> shift, rules)

    def _source(self, name: str) -> QParams:
        return self.activations[self.network[name].inputs[0]]

    def _out(self, name: str) -> QParams:
        return self.activations[self.network.quantised(name)]

    def layer(self, name: str) -> TrainableLayer:
        """What learns in a layer."""
        found = self.trained[self.names[name]]
        assert isinstance(found, TrainableLayer)
        return found

    def layers(self) -> Iterator[TrainableLayer]:
        """All layers that learn."""
        return (self.layer(name) for name in self.names)

    def _layer(self, name: str, module: nn.Module, xs: list[Tensor]) -> Tensor:
        if name in self.clamped and torch.is_grad_enabled():
            return xs[0]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if isinstance(module, Conv | Dense):
                return self.layer(name).run(module, xs[0]).float()
            return super()._layer(name, module, xs).float()

    def _fake_quantise(self, name: str, y: Tensor, q: QParams) -> Tensor:
        if not (torch.is_grad_enabled() and y.requires_grad):
            return fake_quantise(y, q)
        if name not in self.followed:  # a class whose score is below the range must be able to come back
            return through(y, fake_quantise(y.detach(), q))
        result: Tensor = Rounded.apply(y, q)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def settle(self, batches: Iterable[Tensor]) -> None:
        """Take the statistics of all BatchNorms anew, with the codes as they are, over inputs (N, *input shape)."""
        norms = [layer.norm for layer in self.layers() if isinstance(layer, NormalisedLayer)]
        for norm in norms:
            norm.tally = Tally()
        for x in batches if norms else ():
            self(x)
        for norm in norms:
            norm.settle()

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
