"""The propagation rules of LRP: relevance of a layer's output -> relevance of its inputs.

A rule gets the layer's inputs and the relevance of its output and gives the relevance of each input and, per sample,
what its bias kept. Conventions: the network is BatchNorm-folded, and in the epsilon and gamma rules a bias is part of
the activation z that relevance is divided by, so it keeps its share. The other rules leave biases out and pass all
relevance on. Of a product the signal takes all and the gate nothing. Sources: Bach et al. 2015 (epsilon, alpha-beta;
z+ is alpha1-beta0), Montavon et al. 2017 (w-square, bounded), Lapuschkin et al. 2019 (flat), Montavon et al. 2019
(gamma, composites), Andeol et al. 2021 (gamma for inputs of both signs), Arras et al. 2017 (products).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from xdeploy.model.torchmodule import Conv, Dense

Flow = tuple[list[Tensor], Tensor]  # relevance of each input; absorbed by the bias, (N,)
Rule = Callable[[nn.Module, list[Tensor], Tensor], Flow]


def stabilised(z: Tensor, epsilon: float, absolute: bool = False) -> Tensor:
    """Keep z away from 0: z + epsilon * rms(z) * sign(z), sign(0) = 1; the mean runs over each sample alone.

    The absolute form, z + epsilon * sign(z), is the one of Bach et al. 2015, eq. 58: its strength depends on the scale
    of the layer.
    """
    if absolute:
        return z + torch.where(z >= 0, 1.0, -1.0) * max(epsilon, torch.finfo(z.dtype).tiny)
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


def epsilon_rule(epsilon: float, absolute: bool = False) -> Rule:
    """R_i = sum_j a_i w_ij R_j / (z_j + epsilon * rms(z) * sign(z_j)), or without rms(z)."""

    def rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
        assert isinstance(module, Conv | Dense)
        s = r / stabilised(module(xs[0]), epsilon, absolute)
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


def parts_of(module: Conv | Dense, a: Tensor, positive: bool) -> tuple[tuple[Tensor, Tensor], ...]:
    """Two (input, weight) pairs whose products are the positive, or the negative, ones among a_i w_ij."""
    weight = module.weight.detach()
    first, second = (
        (weight.clamp(min=0), weight.clamp(max=0)) if positive else (weight.clamp(max=0), weight.clamp(min=0))
    )
    return (a.clamp(min=0), first), (a.clamp(max=0), second)


def total(module: Conv | Dense, parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The layer's linear part, summed over (input, weight) pairs."""
    x, *others = [module.run(x, w, None) for x, w in parts]
    return sum(others, x)


def flow_back(module: Conv | Dense, parts: Iterable[tuple[Tensor, Tensor]], s: Tensor) -> Tensor:
    """What each input's products get: the sum over (input, weight) pairs of x_i * sum_j w_ij s_j."""
    x, *others = [x * pull(lambda t, w=w: module.run(t, w, None), [x], s)[0] for x, w in parts]
    return sum(others, x)


def alpha_beta_rule(alpha: float, beta: float) -> Rule:
    """R_i = sum_j (alpha p_ij / sum_i p_ij - beta n_ij / sum_i n_ij) R_j; p, n: positive and negative among a_i w_ij.

    alpha - beta = 1. An output that has products of one sign only gives them all of R_j, so that nothing is lost or
    made from nothing (Bach et al. 2015, eq. 60, leaves this case open). One without any, moved by its bias alone, gives
    nothing on.
    """
    if alpha - beta != 1 or beta < 0:
        raise ValueError(f"alpha - beta must be 1 and beta >= 0, got {alpha} and {beta}")

    def rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
        assert isinstance(module, Conv | Dense)
        positive, negative = (parts_of(module, xs[0], sign) for sign in (True, False))
        p, n = total(module, positive), total(module, negative)
        one = torch.ones_like(r)
        for_p, for_n = torch.where(n == 0, one, one * alpha), torch.where(p == 0, one, -one * beta)
        return [
            flow_back(module, positive, ratio(for_p * r, p)) + flow_back(module, negative, ratio(for_n * r, n))
        ], nothing(r)

    return rule


def gamma_rule(gamma: float) -> Rule:
    """R_i = sum_j (a_i w_ij + gamma [a_i w_ij]^s) R_j / (z_j + gamma z_j^s), []^s: the parts of z_j's own sign s.

    The bias is one of the parts and keeps its share. z_j^s, the sum of those parts, is never smaller than z_j in
    magnitude and of its sign, so the denominator cannot cross 0; it does where biases are left out of it.
    """

    def rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
        assert isinstance(module, Conv | Dense)
        assert module.bias is not None
        a, z, bias = xs[0], module(xs[0]), module.bias.detach().reshape(-1, *[1] * (r.dim() - 2))
        result, kept = torch.zeros_like(a), torch.zeros_like(r)
        for sign, chosen in ((True, z > 0), (False, z < 0)):
            favoured = bias.clamp(min=0) if sign else bias.clamp(max=0)
            parts = parts_of(module, a, sign)
            s = ratio(r * chosen, z + gamma * (total(module, parts) + favoured))
            result += flow_back(module, [(a, module.weight.detach())], s) + gamma * flow_back(module, parts, s)
            kept += s * (bias + gamma * favoured)
        return [result], kept.flatten(1).sum(dim=1)

    return rule


def bounded_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """R_i = sum_j (a_i w_ij - l_i w_ij^+ - h_i w_ij^-) R_j / sum_i of the same, for inputs within l..h (z-box).

    The bounds are the least and largest value of each sample, per channel of an image.
    """
    assert isinstance(module, Conv | Dense)
    a, weight = xs[0], module.weight.detach()
    axes = tuple(range(2 if a.dim() > 2 else 1, a.dim()))
    low, high = (torch.zeros_like(a) + f(a, axes, keepdim=True) for f in (torch.amin, torch.amax))
    parts = [(a, weight), (low, -weight.clamp(min=0)), (high, -weight.clamp(max=0))]
    return [flow_back(module, parts, ratio(r, total(module, parts).clamp(min=0)))], nothing(r)


def w_square_rule(module: nn.Module, xs: list[Tensor], r: Tensor) -> Flow:
    """R_i = sum_j w_ij^2 R_j / sum_i w_ij^2: whatever the input is (Montavon et al. 2017, eq. 12)."""
    assert isinstance(module, Conv | Dense)
    parts = [(torch.ones_like(xs[0]), module.weight.detach() ** 2)]
    return [flow_back(module, parts, ratio(r, total(module, parts)))], nothing(r)


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
