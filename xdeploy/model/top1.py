"""Top-1 accuracy of torch modules; the first of equal outputs wins, as on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdeploy.model.spread import spread

AT_ONCE = 64  # samples in a batch: what a layer makes of them then stays within the cache

Labelled = Iterable[tuple[Tensor, Tensor]]  # inputs (N, *input shape) and class numbers (N,)


def right(module: nn.Module, batches: Labelled, tell: Callable[[int], None] | None = None) -> NDArray[np.bool_]:
    """Which samples a module classifies rightly; `tell` hears how many are done.

    The module is put into evaluation mode, its kernels' channels innermost, as convolutions on CPUs are faster so.
    """
    module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def judge(batch: tuple[Tensor, Tensor]) -> NDArray[np.bool_]:
        x, y = batch
        with torch.inference_mode():
            images = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
            found: NDArray[np.bool_] = (module(images).flatten(1).argmax(dim=1) == y).numpy()
        return found

    rows: list[NDArray[np.bool_]] = []
    for row in spread(judge, batches):
        rows.append(row)
        if tell:
            tell(sum(map(len, rows)))
    return np.concatenate(rows) if rows else np.zeros(0, np.bool_)


def accuracy(module: nn.Module, batches: Labelled) -> tuple[float, int]:
    """Accuracy in percent and the number of samples; 0, 0 without samples."""
    found = right(module, batches)
    return (100.0 * int(found.sum()) / len(found) if found.size else 0.0), len(found)
