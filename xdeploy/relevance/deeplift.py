"""DeepLIFT, Rescale rule (Shrikumar et al. 2017), through captum: contributions relative to an all-zero input.

captum replaces the gradient of each non-linear module by its multiplier, so the gradients at the outputs of the
weighted layers are multipliers m and one pass scores all layers: r = sum over positions of w * (a - a0) * m per weight,
(z - z0) * m per channel, where a0 and z0 belong to the baseline. captum knows only torch's own non-linear modules, each
used once: max pooling and clip are rebuilt from them. The contributions must add up to f(x) - f(x0); this is checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xdeploy.errors import ModelError
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import Conv, Dense, NetworkModule
from xdeploy.recipe import RelevanceOptions
from xdeploy.relevance.method import METHODS, Batch, Collector, Scores, batch_sums, explained_class, weighted_modules

TOLERANCE = 0.01  # of the explained difference; float32 sums stay far below, a wrong rule far above
FAR = torch.finfo(torch.float32).min / 4  # stands for minus infinity: differences of it stay finite


class TwoReluClip(nn.Module):
    """clip(x, low, high) = low + relu(x - low) - relu(x - high), from modules captum knows."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.above_low, self.above_high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise clamp."""
        result: Tensor = self.low + self.above_low(x - self.low) - self.above_high(x - self.high)
        return result


def _known(layer: Layer) -> nn.Module | None:
    """A module captum has a rule for, where NetworkModule uses another one."""
    a = layer.attrs
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
        replacement = _known(layer)
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


def contributions(
    module: NetworkModule, x: Tensor, classes: Tensor, see: Callable[[str, Tensor, Tensor, Tensor], None]
) -> tuple[Tensor, Tensor]:
    """DeepLIFT of one logit per sample against an all-zero input.

    Args:
        module: from `explainable_module`; left without hooks, also when it throws.
        x: inputs (N, ...).
        classes: explained class (N,).
        see: called for each weighted layer with a - a0, the multipliers m and the contributions (z - z0) * m.

    Returns:
        The contributions of the inputs (N, ...), and f(x) - f(0) (N,), float64.
    """
    from captum.attr import DeepLift

    with recording(weighted_modules(module)) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum announces the hooks it sets and removes
        given = DeepLift(module).attribute(x, baselines=torch.zeros_like(x), target=classes).detach()
    n = len(x)
    for name, (a, z, grads) in seen.items():  # captum's pass holds inputs and baselines in one batch
        if grads:
            m = grads[0][:n].detach()
            see(name, a[:n] - a[n:], m, (z[:n] - z[n:]) * m)
    with torch.no_grad():
        difference = (module(x) - module(torch.zeros_like(x[:1]))).double()
    return given, difference.gather(1, classes[:, None])[:, 0]


@METHODS.register("deeplift")
def deeplift(network: Network, batches: Iterable[Batch], options: RelevanceOptions, seed: int) -> Scores:
    """DeepLIFT scores of weights and channels.

    Raises:
        ModelError: contributions do not add up to the explained difference.
    """
    module = explainable_module(network)
    sums = Collector(weighted_modules(module))
    for x, y in batches:
        with torch.no_grad():
            classes = explained_class(module(x), y, options)
        given, difference = contributions(module, x, classes, sums.add_layer)
        sums.add_balance(batch_sums(given), torch.zeros_like(difference), difference)
        sums.samples += len(x)
    if sums.residual > TOLERANCE:
        raise ModelError(
            f"DeepLIFT contributions miss the explained difference by {sums.residual:.1%}, allowed {TOLERANCE:.1%}",
            hint="score with another method, for example relevance.method = 'lrp'",
        )
    return sums.scores({"rule": "rescale", "baseline": "zeros"})
