"""Codes for a layer's outputs instead of its weights: what rounding one weight does is made up for by the next ones.

The nearest code of every weight is not the best code of a layer, as inputs go together: with errors d of a row of
weights, the row's output errs by d' S d, S the covariance of its inputs. Weights are rounded one after the other, those
of the largest inputs first, and each one's error is taken back by those still to come, as far as S lets it:

    w[k+1:] += (code[k] - w[k]) / U[k, k] * U[k, k+1:],   U' U = inverse of S, U upper triangular

(OBQ in the order of GPTQ: Frantar et al. 2023, arXiv 2210.17323, algorithm 1; act-order is the released program's).
The plan's zeros come first: all the weights that are left make up for them, which takes an inverse for each row; in
layers too large for that, zeros are taken like other codes. Scales, codebooks and zeros stay. Inputs are those that the
layers before give with their new codes. The mean error of each output, which the covariance leaves out, goes into the
bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.compress.compact import Rules
from xdeploy.compress.fakequant import FakeQuantModule, real_params
from xdeploy.compress.integer import requant_shift, stored_bias
from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.errors import UnsupportedError
from xdeploy.formats import Float64, Int8, prove_accumulator
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import Conv, Dense
from xdeploy.ranking import Mask

NEAR_ENOUGH = 8  # bits, of which the nearest codes are taken
SAMPLES = 512
TRIAL_SAMPLES = 128  # while a plan is tried
VALUES = 1 << 26  # of float32 in the largest tensor, over all samples: 256 MiB
POSITIONS = 1 << 14  # of windows that a covariance is taken of
CHUNK = 1 << 12  # of them at once
DAMPING = 0.01  # of the mean variance, added to all: few samples must not decide
TINY = 1e-30  # for inputs that never change
BLOCK = 64  # weights of a row between two updates of all later ones
STEPS = 1e11  # of the sum of cubes of the rows' weights that are left, up to which each row has an inverse of its own


def gains(model: CompressedModel, zeros: Mapping[str, Mask]) -> bool:
    """Whether there are layers that `reconstruct` changes: with zeros, or of few bits."""
    return any(name in zeros or w.format.bits < NEAR_ENOUGH for name, w in model.weights.items())


@torch.no_grad()
def reconstruct(
    model: CompressedModel,
    inputs: Iterable[Tensor],
    rules: Rules,
    zeros: Mapping[str, Mask],
    samples: int = SAMPLES,
) -> CompressedModel:
    """The model with codes and biases chosen for its layers' outputs over a sample of inputs.

    Where a code is not the nearest one of its float weight, the float weight becomes what the code stands for, so that
    training goes on from there. A layer whose accumulator could overflow then keeps its codes.

    Args:
        model: of codes that nearness chose; not changed.
        inputs: batches (N, *input shape), at least one.
        rules: what the integers keep to.
        zeros: layer -> True where the weight is zero and stays so (weight's shape); layers without are dense.
        samples: of the inputs, how many are taken at most; fewer where a layer's values would not fit VALUES.
    """
    largest = max(int(np.prod(layer.shape)) for layer in model.network.layers)
    module = _Reconstruction(model, rules, zeros)
    module(_first(inputs, min(samples, max(1, VALUES // largest))))
    return replace(model, weights=module.weights, network=Network(model.network.layers, module.params))


def _first(inputs: Iterable[Tensor], count: int) -> Tensor:
    taken: list[Tensor] = []
    for x in inputs:
        taken.append(x[:count])
        count -= len(taken[-1])
        if count == 0:
            break
    return torch.cat(taken)


class _Reconstruction(FakeQuantModule):
    """Gives each layer its new codes when its input is known, right before it is run with them."""

    def __init__(self, compressed: CompressedModel, rules: Rules, zeros: Mapping[str, Mask]) -> None:
        super().__init__(compressed)
        self.rules, self.zeros = rules, zeros
        self.weights = dict(compressed.weights)
        self.params = {name: dict(p) for name, p in compressed.network.params.items()}

    def _layer(self, name: str, module: nn.Module, xs: list[Tensor]) -> Tensor:
        if isinstance(module, Conv | Dense) and (name in self.zeros or self.weights[name].format.bits < NEAR_ENOUGH):
            self._choose(name, module, xs[0])
            source = self.activations[self.network[name].inputs[0]]
            for key, value in real_params(self.weights[name], source).items():
                getattr(module, key).copy_(torch.from_numpy(value))
        return super()._layer(name, module, xs)

    def _choose(self, name: str, module: Conv | Dense, x: Tensor) -> None:
        old, params = self.weights[name], self.params[name]
        shape = (len(old.codes), -1)
        scale = old.scale.astype(np.float64)[:, None]
        weight = params["weight"].astype(np.float64).reshape(shape) / scale
        zero = self.zeros[name].reshape(shape) if name in self.zeros else np.zeros(weight.shape, np.bool_)
        codes, shift = _codes(weight, old, module, x, zero)
        chosen = replace(old, codes=codes.reshape(old.codes.shape))
        moved = codes != old.codes.reshape(shape)
        bias = params["bias"] + scale[:, 0] * shift
        weight = np.where(zero, 0.0, np.where(moved, chosen.values.reshape(shape), weight)) * scale
        if self._took(name, chosen, bias):
            self.params[name] |= {
                "weight": weight.reshape(params["weight"].shape).astype(np.float32), "bias": bias.astype(np.float32)
            }  # fmt: skip

    def _took(self, name: str, chosen: QuantisedWeight, bias: Float64) -> bool:
        """Take the codes, with this float bias, if their sums fit into int32; whether they did."""
        source = self.activations[self.network[name].inputs[0]]
        out = self.activations[self.network.quantised(name)]
        stored = stored_bias(bias, source, chosen.scale, out, self.rules)
        shift = requant_shift(name, source, chosen.scale, out)
        try:
            prove_accumulator(chosen.values.reshape(len(stored), -1), stored, shift, name)
        except UnsupportedError:
            return False
        self.weights[name] = replace(chosen, bias=stored)
        return True


def windows(module: Conv | Dense, x: Tensor) -> Iterator[Tensor]:
    """What a layer's rows of weights are multiplied with: (groups, positions, row), about POSITIONS in all."""
    if isinstance(module, Dense):
        yield from (part[None] for part in torch.split(x.reshape(-1, x.shape[-1])[:POSITIONS], CHUNK))
        return
    top, left, bottom, right = module.pads
    (kh, kw), (sy, sx), (dy, dx) = module.kernel_size, module.stride, module.dilation
    x = F.pad(x, (left, right, top, bottom))
    height, width = (x.shape[2] - dy * (kh - 1) - 1) // sy + 1, (x.shape[3] - dx * (kw - 1) - 1) // sx + 1
    total = len(x) * height * width
    step = -(-total // POSITIONS)
    while math.gcd(step, height * width) > 1:  # all rows and columns should be seen alike
        step += 1
    for at in torch.split(torch.arange(0, total, step), CHUNK):
        image, row, column = at // (height * width), at // width % height * sy, at % width * sx
        # each (positions, channels)
        taps = [x[image, :, row + j * dy, column + i * dx] for j in range(kh) for i in range(kw)]
        yield torch.stack(taps, 2).reshape(len(at), module.groups, -1).transpose(0, 1)


def _moments(module: Conv | Dense, x: Tensor) -> tuple[Float64, Float64]:
    """Mean (groups, row) and covariance (groups, row, row) of `windows`, multiplied in float32 a chunk at a time."""
    groups, row = getattr(module, "groups", 1), module.weight[0].numel()
    count, total, square = 0, np.zeros((groups, row)), np.zeros((groups, row, row))
    for part in windows(module, x):
        count += part.shape[1]
        total += part.sum(1, dtype=torch.float64).numpy()
        if groups == 1:
            values = part[0].numpy()
            square[0] += values.T @ values  # of the same array: half the work
        else:
            square += (part.transpose(1, 2) @ part).numpy()
    mean = total / count
    return mean, square / count - mean[:, :, None] * mean[:, None, :]


def _codes(weight: Float64, old: QuantisedWeight, module: Conv | Dense, x: Tensor, zero: Mask) -> tuple[Int8, Float64]:
    """Codes (O, row), and what all errors of a row shift its output's mean by (O,), in steps.

    Args:
        weight: (O, row) in steps.
        old: its codes as they are.
        module: the layer.
        x: its inputs.
        zero: (O, row) whose codes stay, as they stand for 0.
    """
    fmt = old.format
    codes = np.arange(2**fmt.bits) if fmt.codebook else np.arange(-fmt.limit, fmt.limit + 1)
    values = fmt.values(codes.astype(np.int8), old.codebook).astype(np.float64)
    order = np.argsort(values, kind="stable")
    codes, values = codes[order], values[order]
    mean, covariance = _moments(module, x)
    found, shift = old.codes.reshape(weight.shape).copy(), np.empty(len(weight))
    for rows, m, c in zip(np.array_split(np.arange(len(weight)), len(mean)), mean, covariance, strict=True):
        index = rounded(weight[rows], c, values, zero[rows])
        found[rows] = np.where(zero[rows], found[rows], codes[index])
        shift[rows] = (weight[rows] - np.where(zero[rows], 0.0, values[index])) @ m
    return found, shift


def rounded(weight: Float64, covariance: Float64, values: Float64, zero: Mask) -> NDArray[np.intp]:
    """Which of `values` each weight becomes: (O, row) indices.

    Args:
        weight: (O, row).
        covariance: of the row's inputs, (row, row), positive semi-definite.
        values: what weights can become, ascending.
        zero: (O, row) of weights that become 0 whatever they are; their index says nothing.
    """
    order = np.argsort(-np.diag(covariance), kind="stable")
    spread = covariance[np.ix_(order, order)]
    spread[np.diag_indices(len(order))] += DAMPING * float(np.diag(spread).mean()) + TINY
    w, zeros, index = weight[:, order], zero[:, order], np.zeros(weight.shape, np.intp)
    if not zeros.any() or float(((~zeros).sum(1).astype(np.float64) ** 3).sum()) > STEPS:
        index[:, order] = _in_turn(w, spread, values, zeros)
        return index
    for row, kept in enumerate(~zeros):
        if kept.any():
            inner = spread[np.ix_(kept, kept)]
            made_up = np.linalg.solve(inner, spread[kept] @ w[row])
            index[row, order[kept]] = _in_turn(made_up[None], inner, values, np.zeros((1, len(inner)), np.bool_))[0]
    return index


def _in_turn(weight: Float64, spread: Float64, values: Float64, zero: Mask) -> NDArray[np.intp]:
    """Indices (O, row) of weights that are rounded from the first to the last; `spread` is positive definite."""
    size = len(spread)
    upper = np.linalg.cholesky(np.linalg.inv(spread)).T
    middle = (values[1:] + values[:-1]) / 2
    w, index = weight.copy(), np.empty(weight.shape, np.intp)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.empty((len(w), stop - start))
        for k in range(start, stop):
            index[:, k] = found = np.searchsorted(middle, w[:, k])
            error = (w[:, k] - np.where(zero[:, k], 0.0, values[found])) / upper[k, k]
            w[:, k + 1 : stop] -= error[:, None] * upper[k, k + 1 : stop]
            errors[:, k - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return index
