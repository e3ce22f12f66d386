"""Per-sample weight gradients, summed as magnitudes, squares and as they are, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

from xdeploy.model.torchmodule import Conv, Dense

CHUNK_ELEMENTS = 16 * 2**20  # of per-sample gradients and unfolded inputs alive at once: 64 MB of float32


@dataclass(slots=True)
class Moments:
    """Sums over samples of |G|, G^2 and, where it is asked for, G; each of the weight's shape."""

    magnitude: Tensor
    square: Tensor
    signed: Tensor | None = None

    @staticmethod
    def of(weight: Tensor, signed: bool = False) -> Moments:
        """All zero."""
        return Moments(torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros_like(weight) if signed else None)

    def add(self, gradients: Tensor) -> None:
        """Count G (N, *weight.shape), which is overwritten."""
        if self.signed is not None:
            self.signed += gradients.sum(dim=0)
        self.magnitude += gradients.abs_().sum(dim=0)
        self.square += gradients.square_().sum(dim=0)


def add_moments(module: Conv | Dense, a: Tensor, s: Tensor, moments: Moments, steps: int = 1) -> None:
    """Add the samples' G_n = sum over positions and steps of a * s to the moments.

    Args:
        module: the layer.
        a: its input (N * steps, I, H, W) or (N * steps, I), the steps of a sample one after another.
        s: the signal at its output (N * steps, O, OH, OW) or (N * steps, O): a gradient, or relevance over activation.
        moments: the sums.
        steps: rows that make up one sample.
    """
    if isinstance(module, Dense) and steps == 1:  # G_n is an outer product, so its moments are products of moments
        moments.magnitude += s.abs().T @ a.abs()
        moments.square += (s**2).T @ a**2
        if moments.signed is not None:
            moments.signed += s.T @ a
        return
    weight = module.weight
    unfolded = a[0].numel() if isinstance(module, Dense) else s[0, 0].numel() * weight[0].numel() * module.groups
    chunk = steps * max(1, CHUNK_ELEMENTS // (weight.numel() + steps * unfolded))
    for start in range(0, len(a), chunk):
        moments.add(weight_gradients(module, a[start : start + chunk], s[start : start + chunk], steps))


def weight_gradients(module: Conv | Dense, a: Tensor, s: Tensor, steps: int = 1) -> Tensor:
    """Gradient of `sum(layer(a) * s)` with respect to the weight, for each sample: (N, *weight.shape)."""
    n = len(a) // steps
    if isinstance(module, Dense):
        return torch.matmul(s.view(n, steps, -1).transpose(1, 2), a.view(n, steps, -1))
    top, left, bottom, right = module.pads
    stride, dilation = module.stride, module.dilation
    columns = F.unfold(F.pad(a, (left, right, top, bottom)), module.kernel_size, dilation=dilation, stride=stride)
    rows, positions = (n * steps, module.groups, -1), columns.shape[-1]
    signal, columns = s.reshape(*rows, positions), columns.view(*rows, positions)
    if steps > 1:  # the positions of all steps in one row
        signal, columns = (t.reshape(n, steps, *t.shape[1:]).movedim(1, 3).flatten(3) for t in (signal, columns))
    result: Tensor = torch.matmul(signal, columns.transpose(2, 3)).reshape(n, *module.weight.shape)
    return result
