"""The propagation rules of LRP: relevance of a layer's output -> relevance of its inputs.

A rule gets the layer's inputs and the relevance of its output and gives the relevance of each input and, per sample,
what its bias kept. Conventions: the network is BatchNorm-folded, and in the epsilon rule a bias is part of the
activation z that relevance is divided by, so it keeps its share b * R / z. The z+ and flat rules leave biases out and
pass all relevance on. Of a product the signal takes all and the gate nothing. Sources: Bach et al. 2015 (epsilon,
z+ as alpha1-beta0), Lapuschkin et al. 2019 (flat), Montavon et al. 2019 (composites), Arras et al. 2017 (products).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xdeploy.model.torchmodule import Conv, Dense

Flow = tuple[list[Tensor], Tensor]  # relevance of each input; absorbed by the bias, (N,)
Rule = Callable[[nn.Module, list[Tensor], Tensor], Flow]


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Keep z away from 0: z + epsilon * rms(z) * sign(z), sign(0) = 1; the mean runs over each sample alone."""
    rms = z.flatten(1).square().mean(dim=1).sqrt().reshape(-1, *[1] * (z.dim() - 1))
    step = (epsilon * rms).clamp_min(torch.finfo(z.dtype).tiny)
    return z + torch.where(z >= 0, step, -step)


def ratio(r: Tensor, z: Tensor) -> Tensor:
    """Divide r by z; 0 where z is 0."""
    return torch.where(z == 0, torch.zeros_like(r), r / torch.where(z == 0, torch.ones_like(z), z))


def pull(function: Callable[..., Tensor], xs: list[Tensor], signal: Tensor) -> list[Tensor]:
    """The signal times the Jacobian of `function` at `xs`, one tensor per input."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in xs]
        return list(torch.autograd.grad(function(*leaves), leaves, signal))


def epsilon_rule(epsilon: float) -> Rule:
    """R_i = sum_j a_i w_ij R_j / (z_j + epsilon * rms(z) * sign(z_j))."""

    def rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
        assert isinstance(module, Conv | Dense)
        s = r / stabilised(module(xs[0]), epsilon)
        return [xs[0] * pull(module, xs, s)[0]], bias_share(module, s)

    return rule


def z_plus_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """R_i = sum_j (a_i w_ij)^+ R_j / sum_i (a_i w_ij)^+, without bias."""
    assert isinstance(module, Conv | Dense)
    a, weight = xs[0], module.weight.detach()
    parts = [(a.clamp(min=0), weight.clamp(min=0)), (a.clamp(max=0), weight.clamp(max=0))]
    s = ratio(r, sum((module.run(x, w, None) for x, w in parts), torch.zeros_like(r)))
    back = [x * pull(lambda t, w=w: module.run(t, w, None), [x], s)[0] for x, w in parts]
    return [back[0] + back[1]], nothing(r)


def flat_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """R_i = sum_j R_j / n_j: each output's relevance is spread evenly over the n_j inputs it sees."""
    assert isinstance(module, Conv | Dense)
    ones = torch.ones_like(module.weight)

    def count(t: Tensor) -> Tensor:
        return module.run(t, ones, None)

    s = ratio(r, count(torch.ones_like(xs[0])))
    return pull(count, xs, s), nothing(r)


def proportional_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """The epsilon rule of a sum, difference or average with epsilon 0: R_i = x_i * dy/dx_i * R / y."""
    s = ratio(r, module(*xs))
    return [x * g for x, g in zip(xs, pull(module, xs, s), strict=True)], nothing(r)


def route_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """Relevance goes where the values came from: selections, moves, and the winner of max pooling."""
    return pull(module, xs, r), nothing(r)


def pass_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """Element-wise activations keep relevance as it is."""
    return [r], nothing(r)


def signal_rule(signal: int) -> Rule:
    """Of a product, operand `signal` (0 or 1) takes all relevance and the other, its gate, none (Arras et al. 2017)."""

    def rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
        back = [torch.zeros_like(x) for x in xs]
        back[signal] = r
        return back, nothing(r)

    return rule


def spread_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """For parts with no rule of their own: as it is where the shapes are equal, else in proportion to |x|."""
    x = xs[0]
    if x.shape == r.shape:
        return [r], nothing(r)
    size = x.abs().flatten(1) + torch.finfo(x.dtype).tiny  # an all-zero input shares evenly
    part = size / size.sum(dim=1, keepdim=True) * r.flatten(1).sum(dim=1, keepdim=True)
    return [part.reshape(x.shape)], nothing(r)


def nothing(r: Tensor) -> Tensor:
    """What rules without a bias absorb: 0 per sample."""
    return torch.zeros(len(r), dtype=r.dtype)


def bias_share(module: Conv | Dense, s: Tensor) -> Tensor:
    """Sum over outputs of b * s, per sample (N,)."""
    assert module.bias is not None
    bias = module.bias.detach().reshape(-1, *[1] * (s.dim() - 2))
    return (s * bias).flatten(1).sum(dim=1)


RULES: dict[str, Rule] = {
    "relu": pass_rule, "clip": pass_rule, "softmax": proportional_rule, "add": proportional_rule,
    "avg_pool2d": proportional_rule, "max_pool2d": route_rule, "concat": route_rule, "flatten": route_rule,
    "pad": route_rule, "slice": route_rule, "resize": route_rule, "rearrange": route_rule,
    "function": pass_rule, "sub": proportional_rule, "mul": signal_rule(0), "fallback": spread_rule,
}  # fmt: skip
