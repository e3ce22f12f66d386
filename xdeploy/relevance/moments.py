"""Per-sample weight gradients, summed as magnitudes and squares, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.torchmodule import Conv, Dense

CHUNK_ELEMENTS = 16 * 2**20  # of per-sample gradients and unfolded inputs alive at once: 64 MB of float32


def add_moments(module: Conv | Dense, a: Tensor, s: Tensor, magnitude: Tensor, square: Tensor) -> None:
    """Add `sum_n |G_n|` to `magnitude` and `sum_n G_n^2` to `square`, G_n = sum over positions of a * s of sample n.

    Args:
        module: the layer.
        a: its input (N, I, H, W) or (N, I).
        s: the signal at its output (N, O, OH, OW) or (N, O): a gradient, or relevance over activation.
        magnitude: accumulator of the weight's shape.
        square: accumulator of the weight's shape.
    """
    if isinstance(module, Dense):  # G_n is an outer product, so its moments are products of moments
        magnitude += s.abs().T @ a.abs()
        square += (s**2).T @ a**2
        return
    weight = module.weight
    positions = s[0, 0].numel()
    per_sample = weight.numel() + positions * weight[0].numel() * module.groups
    chunk = max(1, CHUNK_ELEMENTS // per_sample)
    for start in range(0, len(a), chunk):
        gradient = conv_weight_gradients(module, a[start : start + chunk], s[start : start + chunk])
        magnitude += gradient.abs_().sum(dim=0)
        square += gradient.square_().sum(dim=0)


def conv_weight_gradients(module: Conv, a: Tensor, s: Tensor) -> Tensor:
    """Gradient of `sum(conv(a) * s)` with respect to the weight, for each sample: (N, O, I/groups, kh, kw)."""
    top, left, bottom, right = module.pads
    stride, dilation = module.stride, module.dilation
    columns = F.unfold(F.pad(a, (left, right, top, bottom)), module.kernel_size, dilation=dilation, stride=stride)
    n, groups = len(a), module.groups
    columns = columns.view(n, groups, -1, columns.shape[-1])
    signal = s.reshape(n, groups, -1, columns.shape[-1])
    result: Tensor = torch.matmul(signal, columns.transpose(2, 3)).reshape(n, *module.weight.shape)
    return result
