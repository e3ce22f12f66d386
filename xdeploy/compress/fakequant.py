"""The compressed network in torch: float32 arithmetic on exactly the values that the integer codes stand for.

Every quantised tensor is rounded (half to even) and clamped to its int8 range right where the device does it: after a
fused relu or clip, at the input, and at every layer that computes new values. Layers that only move or select data
keep codes as they are. Rounding passes gradients straight through inside the range, so the same module trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xdeploy.compress.calibrate import MOVERS
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.formats import QParams
from xdeploy.model.network import Network
from xdeploy.model.top1 import channels_last
from xdeploy.model.torchmodule import NetworkModule


class Replace(torch.autograd.Function):
    """Forward: the second tensor, exactly. Backward: the gradient goes to the first.

    The straight-through estimator of Bengio et al. 2013 (arXiv 1308.3432).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        """Give `value`."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient to `x`."""
        return grads[0], None


def laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    """`x` in memory as `other` is, where that has channels last; values stay."""
    last = other.dim() == 4 and other.is_contiguous(memory_format=torch.channels_last)
    return channels_last(x) if last else x


def through(x: Tensor, value: Tensor) -> Tensor:
    """`value` in the forward pass, `x` in the backward pass."""
    result: Tensor = Replace.apply(x, value)  # type: ignore[no-untyped-call]
    return result


def to_codes(x: Tensor, q: QParams) -> Tensor:
    """Int8 codes (as float32) of real values: round half to even, add the zero point, saturate."""
    return (torch.round(x / q.scale) + q.zero_point).clamp(-128, 127)


def fake_quantise(x: Tensor, q: QParams) -> Tensor:
    """Real values (float32) of the codes of `x`; gradients pass where x is inside the representable range."""
    steps = x.detach() / q.scale  # a tensor of its own: from here on in place, as memory is what this waits for
    value = steps.round_().clamp_(-128 - q.zero_point, 127 - q.zero_point).mul_(q.scale)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    low, high = (-128 - q.zero_point) * q.scale, (127 - q.zero_point) * q.scale
    return through(x.clamp(low, high), value)


def _clamps_at_zero(q: QParams) -> bool:
    """Whether quantising does what a relu before it would; its gradient at zero is another."""
    return q.zero_point == -128 and not torch.is_grad_enabled()


def real_params(weight: QuantisedWeight, source: QParams) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The float32 weight and bias that the codes of one layer stand for; `source` is its input's quantisation."""
    wide = weight.scale.reshape(-1, *[1] * (weight.codes.ndim - 1))
    bias = weight.bias.astype(np.float64) * (source.scale * weight.scale.astype(np.float64))
    return {"weight": weight.values.astype(np.float32) * wide, "bias": bias.astype(np.float32)}


def real_network(
    network: Network, weights: Mapping[str, QuantisedWeight], activations: Mapping[str, QParams]
) -> Network:
    """The network with every layer's parameters replaced by what its codes stand for."""
    params = {n: real_params(w, activations[network[n].inputs[0]]) for n, w in weights.items()}
    return network.with_params(params)


class FakeQuantModule(nn.Module):
    """Runs a compressed model on real values; the output is exactly scale * (code - zero point)."""

    def __init__(self, compressed: CompressedModel) -> None:
        super().__init__()
        self.network = compressed.network
        self.activations = dict(compressed.activations)
        self.inner = NetworkModule(real_network(compressed.network, compressed.weights, compressed.activations))
        self.eval()

    def _layer(self, name: str, module: nn.Module, xs: list[Tensor]) -> Tensor:
        result: Tensor = module(*xs)
        return result

    def _fake_quantise(self, name: str, y: Tensor, q: QParams) -> Tensor:
        return fake_quantise(y, q)

    def values(self, x: Tensor, keep: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Real values by layer name for the layers in `keep` (None: all quantised ones), and the network's output."""
        network, modules = self.network, self.inner.modules_by_name
        wanted = set(self.activations if keep is None else keep) | {network.output.name}
        last = {i: k for k, layer in enumerate(network.layers) for i in layer.inputs}
        live: dict[str, Tensor] = {}
        for k, layer in enumerate(network.layers):
            q = self.activations.get(layer.name)
            moved = layer.kind in MOVERS and layer.kind != "clip" and self._keeps_codes(layer.inputs)
            if layer.kind == "input":
                y = x
            elif layer.kind == "relu" and not moved and q is not None and _clamps_at_zero(q):
                y = live[layer.inputs[0]]  # what is below zero is clamped to it anyway
            else:
                y = self._layer(layer.name, modules[layer.name], [live[i] for i in layer.inputs])
            live[layer.name] = y if q is None or moved else self._fake_quantise(layer.name, y, q)
            for name in set(layer.inputs) - wanted:
                if last[name] == k:
                    del live[name]
        return {name: value for name, value in live.items() if name in wanted}

    def _keeps_codes(self, inputs: tuple[str, ...]) -> bool:
        return all(i in self.activations for i in inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, *input shape) -> (N, *output shape), real values of the output codes."""
        return self.values(x, ())[self.network.output.name]

    @torch.no_grad()
    def codes(self, x: Tensor, keep: Iterable[str] | None = None) -> dict[str, np.ndarray[Any, np.dtype[np.int8]]]:
        """Int8 codes by layer name, in the model's own layout (N, C, H, W) or (N, F)."""
        found = self.values(x, keep)
        return {n: to_codes(v, self.activations[n]).to(torch.int8).numpy() for n, v in found.items()}
