"""Accuracy, counted the same way everywhere: the first of equal outputs wins, as on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8
from xdeploy.handover import IoSpec, quantity
from xdeploy.request import Progress

if TYPE_CHECKING:
    from xdeploy.model.source import SourceModel

_BATCH = 500


def right(module: Any, batches: Iterable[Any], tell: Callable[[int], None] | None = None) -> NDArray[np.bool_]:
    """Which samples a torch module classifies rightly; `tell` hears how many are done."""
    import torch

    rows: list[NDArray[np.bool_]] = []
    module.eval()
    with torch.inference_mode():
        for x, y in batches:
            rows.append((module(x).flatten(1).argmax(1) == y).numpy())
            if tell:
                tell(sum(map(len, rows)))
    return np.concatenate(rows)


def deployed(run: Callable[[Int8], Int8], io: IoSpec, source: SourceModel, progress: Progress) -> dict[str, Any]:
    """Accuracy in percent of the integer code itself on the whole test set; `run` maps input to output codes."""
    hits = n = 0
    for x, y in source.test_batches(_BATCH):
        codes = run(io.to_codes(x.numpy()))
        hits += int((codes.reshape(len(codes), -1).argmax(axis=1) == y.numpy()).sum())
        n += len(codes)
        progress("accuracy, deployed code", n, source.test_count)
    return quantity(100 * hits / n, "%", "measured", n=n)
