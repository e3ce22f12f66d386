"""Statistics given back without training: hidden channels' means and deviations become those of the float network.

Rounding, zeros and removed channels shrink and shift what later layers see, more with every layer. Each layer's outputs
are normalised over calibration samples, the layers before it already mended, and that folds into scales and biases as
in `normalise`; no code changes (Jordan et al. 2022, arXiv 2211.08403; Finkelstein et al. 2019, arXiv 1906.03193 for
means alone).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from xdeploy.compress.compact import Rules
from xdeploy.compress.fakequant import FakeQuantModule
from xdeploy.compress.integer import requant_shift, stored_bias
from xdeploy.compress.model import CompressedModel
from xdeploy.compress.normalise import Moments, Norm, Tally
from xdeploy.formats import prove_accumulator
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import Conv, Dense


class Normalised(FakeQuantModule):
    """A compressed model with BatchNorm behind layers that have moments, in place of their biases.

    Args:
        compressed: the model.
        norms: the statistics that outputs are given.
    """

    def __init__(self, compressed: CompressedModel, norms: Moments) -> None:
        super().__init__(compressed)
        self.norms = nn.ModuleDict({str(k): Norm(*norms[name]) for k, name in enumerate(norms)})
        self.numbers = {name: str(k) for k, name in enumerate(norms)}  # names of modules must not have dots

    def norm(self, name: str) -> Norm:
        """Of a layer."""
        found = self.norms[self.numbers[name]]
        assert isinstance(found, Norm)
        return found

    def _layer(self, name: str, module: nn.Module, xs: list[Tensor]) -> Tensor:
        if name not in self.numbers or not isinstance(module, Conv | Dense):
            return super()._layer(name, module, xs)
        result: Tensor = self.norm(name)(module.run(xs[0], module.weight, None))
        return result


@torch.no_grad()
def restore(model: CompressedModel, norms: Moments, inputs: Iterable[Tensor], rules: Rules) -> CompressedModel:
    """The model with scales and biases that give its hidden layers' outputs the moments `norms`.

    Args:
        model: not changed.
        norms: layer -> mean and deviation (O,), of the channels it has.
        inputs: batches (N, *input shape), at least one; each should be large, as its own moments are used on the way.
        rules: what the integers keep to; with one scale for a whole layer, means alone could be kept, and nothing is.

    Raises:
        UnsupportedError: a layer does not fit into int32.
    """
    if rules.tensor or not norms:
        return model
    module = Normalised(model, norms)
    for name in norms:
        module.norm(name).tally = Tally()
    for x in inputs:
        module(x)
    weights = dict(model.weights)
    for name in norms:
        w, norm = weights[name], module.norm(name)
        norm.settle()
        source = model.activations[model.network[name].inputs[0]]
        out = model.activations[model.network.quantised(name)]
        scale, bias = norm.fold(w.scale, source, out, rules.compact, name)
        codes = stored_bias(bias, source, scale, out, rules)
        weights[name] = replace(w, scale=scale, bias=codes)
        shift = requant_shift(name, source, scale, out)
        prove_accumulator(w.values.reshape(len(w.codes), -1), codes, shift, name)
    return replace(model, weights=weights)


def behind(model: CompressedModel, before: CompressedModel) -> CompressedModel:
    """`model`, made of `before` by `restore`, with float weights that its codes and biases come from, to train on."""
    params = {name: dict(p) for name, p in model.network.params.items()}
    for name, w in model.weights.items():
        source, p = model.activations[model.network[name].inputs[0]], params[name]
        gain = (w.scale / before.weights[name].scale).reshape(-1, *[1] * (p["weight"].ndim - 1))
        p["weight"] = p["weight"] * gain
        p["bias"] = (w.bias * (w.scale.astype(np.float64) * source.scale)).astype(np.float32)
    return replace(model, network=Network(model.network.layers, params))
