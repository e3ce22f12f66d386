"""DeepLIFT, Rescale rule (Shrikumar et al. 2017), through captum: contributions relative to an all-zero input.

captum replaces the gradient of each non-linear module by its multiplier, so the gradients at the outputs of the
weighted layers are multipliers m and one pass scores all layers: r = sum over positions of w * (a - a0) * m per weight,
(z - z0) * m per channel, where a0 and z0 belong to the baseline. captum knows only torch's own non-linear modules, each
used once: max pooling and clip are rebuilt from them. It has no rule for other functions and passes the plain gradient
through a product, which breaks the sum; so both carry their own multipliers here:

* a function of one tensor: (f(x) - f(x0)) / (x - x0), the rescale rule itself;
* a product a * b: the mean of the other operand and its baseline, (b + b0) / 2 and (a + a0) / 2. Those are the Shapley
  values of the two operands (Lundberg and Lee 2017), and a * b - a0 * b0 is exactly their sum.

The contributions must add up to f(x) - f(x0); this is checked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xdeploy import ranks
from xdeploy.errors import ModelError
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import Conv, Dense, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.collect import Collector, batch_sums
from xdeploy.relevance.method import METHODS, Batch, Scores, class_weights, explained_weights, weighted_modules

TOLERANCE = 0.01  # of the explained difference; float32 sums stay far below, a wrong rule far above
NEAR = 1e-4  # inputs closer to their baseline than this take the derivative: their quotient would be mostly rounding
FAR = torch.finfo(torch.float32).min / 4  # stands for minus infinity: differences of it stay finite


class TwoReluClip(nn.Module):
    """clip(x, low, high) = low + relu(x - low) - relu(x - high), from modules captum knows.

    A limit that is infinite has no term.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.above_low, self.above_high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise clamp."""
        result = self.low + self.above_low(x - self.low) if math.isfinite(self.low) else x
        return result - self.above_high(x - self.high) if math.isfinite(self.high) else result


def _both(x: Tensor, x0: Tensor) -> Tensor:
    """One multiplier for inputs and baselines, which captum's pass holds in one batch."""
    half = (x + x0) / 2
    return torch.cat([half, half])


class _Chord(torch.autograd.Function):
    """An element-wise function whose gradient is its slope between input and baseline."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """function(x)."""
        y = function(x)
        ctx.save_for_backward(x, y)
        ctx.function = function
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient times the slope; between points (nearly) the same, the derivative in the middle."""
        x, y = ctx.saved_tensors
        middle = _both(*x.chunk(2)).requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(ctx.function(middle).sum(), middle)
        dx, dy = (torch.sub(*t.chunk(2)).repeat(2, *[1] * (t.dim() - 1)) for t in (x, y))
        near = dx.abs() < NEAR
        return grads[0] * torch.where(near, slope, dy / torch.where(near, torch.ones_like(dx), dx)), None


class _MeanProduct(torch.autograd.Function):
    """A product whose gradients are the means of the other operand and its baseline."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """The product."""
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient times those means, summed where b is one value per channel."""
        a, b = ctx.saved_tensors
        to_a, to_b = grads[0] * _both(*b.chunk(2)), grads[0] * _both(*a.chunk(2))
        return to_a, to_b.sum_to_size(*b.shape)


class Rescaled(nn.Module):
    """An element-wise function with the rescale rule as its gradient."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise."""
        result: Tensor = _Chord.apply(x, self.function)  # type: ignore[no-untyped-call]
        return result


class Product(nn.Module):
    """A product with the Shapley values of its operands as gradients."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, C, H, W) times (N, C, H, W) or (N, C, 1, 1), or of vectors."""
        result: Tensor = _MeanProduct.apply(a, b)  # type: ignore[no-untyped-call]
        return result


def _known(layer: Layer, module: nn.Module) -> nn.Module | None:
    """A module with a DeepLIFT rule, where NetworkModule's own `module` has none."""
    a = layer.attrs
    if layer.kind == "function":
        return Rescaled(module)
    if layer.kind == "mul":
        return Product()
    if layer.kind == "clip":
        return TwoReluClip(a["low"], a["high"])
    if layer.kind == "max_pool2d":
        top, left, bottom, right = a["pads"]
        pool = nn.MaxPool2d(a["kernel"], a["stride"])
        return nn.Sequential(nn.ConstantPad2d((left, right, top, bottom), FAR), pool) if any(a["pads"]) else pool
    return None


def explainable_module(network: Network) -> NetworkModule:
    """The network as a module whose every non-linear part has a DeepLIFT rule; same outputs."""
    module = NetworkModule(network).eval()
    for k, layer in enumerate(network.layers[1:]):
        replacement = _known(layer, module.steps[k])
        if replacement is not None:
            module.steps[k] = replacement.eval()
    return module


@contextmanager
def recording(modules: Mapping[str, Conv | Dense]) -> Iterator[dict[str, tuple[Tensor, Tensor, list[Tensor]]]]:
    """Record input, output and the gradient of the output of each layer while inside; hooks are removed in any case."""
    seen: dict[str, tuple[Tensor, Tensor, list[Tensor]]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            grads: list[Tensor] = []
            seen[name] = (inputs[0].detach(), output.detach(), grads)
            output.register_hook(grads.append)  # type: ignore[no-untyped-call]
            return output.clone()  # captum's own hook sits on the copy, so the gradient here is what it makes of it

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(watch(name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Weighted(nn.Module):
    """The sum of a network's logits times given weights (N, classes), one number per sample."""

    def __init__(self, module: NetworkModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """(N, ...), (N, classes) -> (N,)."""
        result: Tensor = (self.module(x) * weights).sum(dim=1)
        return result


def contributions(
    module: NetworkModule, x: Tensor, chosen: Tensor, see: Callable[[str, Tensor, Tensor, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """DeepLIFT of one logit, or weighted sum of logits, per sample against an all-zero input.

    Args:
        module: from `explainable_module`; left without hooks, also when it throws.
        x: inputs (N, ...).
        chosen: explained class (N,), or weights of the logits (N, classes).
        see: called for each weighted layer with a - a0, the multipliers m and the contributions (z - z0) * m.

    Returns:
        The contributions of the inputs (N, ...), and f(x) - f(0) (N,), float64.
    """
    from captum.attr import DeepLift

    with torch.no_grad():
        logits = module(x)
        weights = class_weights(chosen, logits)
    with recording(weighted_modules(module)) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum announces the hooks it sets and removes
        explainer = DeepLift(Weighted(module))
        given = explainer.attribute(x, torch.zeros_like(x), additional_forward_args=(weights,)).detach()
    n = len(x)
    for name, (a, z, grads) in seen.items():  # captum's pass holds inputs and baselines in one batch
        if grads:
            m = grads[0][:n].detach()
            see(name, a[:n] - a[n:], m, (z[:n] - z[n:]) * m)
    with torch.no_grad():
        difference = (logits - module(torch.zeros_like(x[:1]))).double()
    return given, (difference * weights).sum(dim=1)


@METHODS.register("deeplift")
def deeplift(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """DeepLIFT scores of weights and channels.

    Raises:
        ModelError: contributions do not add up to the explained difference.
    """
    module = explainable_module(network)
    sums = Collector(weighted_modules(module), options.aggregate)
    for x, y in ranks.share(batches):
        with torch.no_grad():
            weights = explained_weights(module(x), y, options)
        given, difference = contributions(module, x, weights, sums.add_layer)
        sums.add_balance(batch_sums(given), torch.zeros_like(difference), difference)
        sums.samples += len(x)
    sums.add_up()
    if sums.residual > TOLERANCE:
        raise ModelError(
            f"DeepLIFT contributions miss the explained difference by {sums.residual:.1%}, allowed {TOLERANCE:.1%}",
            hint="score with another method, for example relevance.method = 'lrp'",
        )
    told = {"rule": "rescale", "baseline": "zeros"}
    if any(x.kind == "mul" for x in network.layers):
        told["products"] = "Shapley values of the operands"
    return sums.scores(told)
