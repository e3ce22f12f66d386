"""Top-1 accuracy of torch modules; the first of equal outputs wins, as on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xdeploy.model.spread import spread

AT_ONCE = 64  # samples in a batch: what a layer makes of them then stays within the cache

Labelled = Iterable[tuple[Tensor, Tensor]]  # inputs (N, *input shape) and class numbers (N,)


def outputs(module: nn.Module, inputs: Iterable[Tensor]) -> Iterator[Tensor]:
    """What a module makes of batches (N, *input shape), in their order; batches go side by side.

    The module is put into evaluation mode, its kernels' channels innermost, as convolutions on CPUs are faster so.
    """
    _prepare(module)
    return spread(lambda x: _run(module, x), inputs)


def right(module: nn.Module, batches: Labelled, tell: Callable[[int], None] | None = None) -> NDArray[np.bool_]:
    """Which samples a module classifies rightly; `tell` hears how many are done. The module is left as by `outputs`."""
    _prepare(module)

    def judge(batch: tuple[Tensor, Tensor]) -> NDArray[np.bool_]:
        # what is kept is made in the thread: between batches, in the calling one, it would keep their memory apart
        found: NDArray[np.bool_] = (_run(module, batch[0]).flatten(1).argmax(dim=1) == batch[1]).numpy()
        return found

    rows: list[NDArray[np.bool_]] = []
    for row in spread(judge, batches):
        rows.append(row)
        if tell:
            tell(sum(map(len, rows)))
    return np.concatenate(rows) if rows else np.zeros(0, np.bool_)


def channels_last(x: Tensor) -> Tensor:
    """Images in the layout that convolutions are fastest in (1.5 times on AVX2); everything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _prepare(module: nn.Module) -> None:
    module.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = module(channels_last(x))
    return found


def accuracy(module: nn.Module, batches: Labelled) -> tuple[float, int]:
    """Accuracy in percent and the number of samples; 0, 0 without samples."""
    found = right(module, batches)
    return (100.0 * int(found.sum()) / len(found) if found.size else 0.0), len(found)
