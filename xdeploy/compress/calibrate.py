"""Activation ranges from calibration batches, in flat memory, and the int8 parameters chosen from them.

Tensors that only move or select data share the parameters of their input, so codes pass through them unchanged; a
concatenation binds all its inputs. A relu or clip behind a conv2d, linear or add is fused:
only its output is quantised. Sigmoids have the range they cannot leave, 0 to 1, so that no input saturates a gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xdeploy.errors import ModelError, UnsupportedError, UsageError
from xdeploy.formats import QParams
from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule

BINS = 4096  # even; a bin is at most 1/1024 of the largest magnitude, finer than any int8 step
MOVERS = ("relu", "clip", "max_pool2d", "flatten", "pad", "slice", "concat", "resize", "rearrange")
SOFTMAX = QParams(1.0 / 256.0, -128)
FIXED_RANGES = {"sigmoid": (0.0, 1.0), "hard_sigmoid": (0.0, 1.0)}  # by function

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Range:
    """Exact minimum and maximum and a histogram of everything seen so far.

    Bins have a power-of-two width and are aligned at 0; when a larger value comes, neighbouring bins are merged. So the
    result does not depend on how the values were cut into batches, nor on their order.
    """

    low: float = np.inf
    high: float = -np.inf
    exponent: int | None = None  # of the bin width
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Tensor) -> None:
        """Count the values of a tensor of any shape.

        Raises:
            ModelError: a value is not finite.
        """
        flat = values.detach().flatten()
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ModelError("an activation is not finite on the calibration data")
        self.low, self.high = min(self.low, low), max(self.high, high)
        top = max(-low, high)
        if top > 0:
            self._widen(math.frexp(top)[1] + 1 - (BINS.bit_length() - 1))
        width = 2.0 ** (self.exponent if self.exponent is not None else 0)
        cells = torch.floor(flat / width).to(torch.int64) + BINS // 2
        self.counts += torch.bincount(cells.clamp_(0, BINS - 1), minlength=BINS).numpy()

    def _widen(self, exponent: int) -> None:
        """Make bins at least 2^exponent wide, merging pairs; bin k starts at (k - BINS/2) * width."""
        if self.exponent is None:
            zeros = self.counts.sum()  # only zeros were seen so far
            self.counts[:] = 0
            self.counts[BINS // 2], self.exponent = zeros, exponent
        while self.exponent < exponent:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.exponent += 1

    def clipped(self, percentile: float) -> tuple[float, float]:
        """The range that holds `percentile` % of the values on either side; 100 gives minimum and maximum."""
        if percentile >= 100 or self.exponent is None:
            return self.low, self.high
        total = int(self.counts.sum())
        inside = np.ceil(total * percentile / 100.0)
        width = 2.0**self.exponent
        up = int(np.searchsorted(np.cumsum(self.counts), inside))
        down = BINS - 1 - int(np.searchsorted(np.cumsum(self.counts[::-1]), inside))
        high, low = (up + 1 - BINS // 2) * width, (down - BINS // 2) * width
        return max(low, self.low), min(high, self.high)


def quantised_tensors(network: Network) -> tuple[str, ...]:
    """Names of the layers whose output has int8 parameters: all but those with a fused activation."""
    return tuple(x.name for x in network.layers if network.fused_activation(x.name) is None)


def shared_groups(network: Network) -> dict[str, str]:
    """Quantised tensor -> the name that stands for its group (the earliest tensor that shares its parameters)."""
    parent = {name: name for name in quantised_tensors(network)}
    order = {name: k for k, name in enumerate(parent)}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for layer in network.layers:
        if layer.kind not in MOVERS or network.fused_activation(layer.inputs[0]) is layer:
            continue
        for source in layer.inputs:
            a, b = sorted((find(layer.name), find(source)), key=order.__getitem__)
            parent[b] = a
    return {name: find(name) for name in parent}


@contextmanager
def watching(module: NetworkModule, names: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(layer, output)` for the named layers while inside; the hooks are removed in any case."""
    by_name = module.modules_by_name
    handles = []
    try:
        for name in names:
            handles.append(by_name[name].register_forward_hook(lambda m, i, y, name=name: see(name, y)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect_ranges(network: Network, batches: Iterable[Tensor], progress: Progress | None = None) -> dict[str, Range]:
    """The Range of every tensor that holds new values, over batches (N, *input shape) through the float network.

    Tensors that only move or select data are left out.

    Raises:
        UsageError: no batch. ModelError: an activation is not finite.
    """
    groups = shared_groups(network)
    fused = {layer.name for x in network.layers if (layer := network.fused_activation(x.name)) is not None}
    names = [n for n in groups if network[n].kind not in MOVERS or n in fused]
    ranges = {name: Range() for name in names}
    module = NetworkModule(network).eval()
    watched = [n for n in names if n != network.input.name]
    done = 0
    with torch.no_grad(), watching(module, watched, lambda name, y: ranges[name].add(y)):
        for x in batches:
            ranges[network.input.name].add(x)
            module(x)
            done += len(x)
            if progress is not None:
                progress(done, 0)
    if done == 0:
        raise UsageError("calibration needs at least one sample, got none")
    return ranges


def calibrate(
    network: Network, batches: Iterable[Tensor], percentile: float, progress: Progress | None = None
) -> dict[str, QParams]:
    """Choose the int8 parameters of every quantised tensor.

    Args:
        network: the float network.
        batches: float32 tensors (N, *input shape).
        percentile: share of the values, in percent, kept on either side of each range; 100: minimum and maximum.
        progress: told (samples done, 0) after each batch.

    Returns:
        QParams by layer name, in execution order; tensors of one group hold equal parameters.

    Raises:
        UsageError: no batch. ModelError: an activation is not finite.
        UnsupportedError: a softmax output is concatenated with other tensors.
    """
    ranges = collect_ranges(network, batches, progress)
    groups = shared_groups(network)
    members: dict[str, list[str]] = {}
    for name in ranges:
        members.setdefault(groups[name], []).append(name)
    chosen = {root: _group_params(network, ranges, names, percentile) for root, names in members.items()}
    _resolve_products(network, groups, chosen)
    return {name: chosen[root] for name, root in groups.items()}


def _resolve_products(network: Network, groups: dict[str, str], chosen: dict[str, QParams]) -> None:
    """Give no product a finer step than its operands' codes can tell apart, s_a * s_b.

    A finer one says nothing more, and (a product that is nearly always 0) may be out of the requantisation's range.
    """
    products = [x for x in network.layers if x.kind == "mul"]
    changed = True
    while changed:  # an output that shares its scale may be the operand of an earlier product
        changed = False
        for layer in products:
            root = groups[layer.name]
            unit = float(np.float32(chosen[groups[layer.inputs[0]]].scale * chosen[groups[layer.inputs[1]]].scale))
            if chosen[root].scale < unit:
                chosen[root], changed = QParams(unit, chosen[root].zero_point), True


def _group_params(network: Network, ranges: dict[str, Range], names: list[str], percentile: float) -> QParams:
    soft = [n for n in names if network[n].kind == "softmax"]
    if soft:
        if len(names) > 1:
            raise UnsupportedError(
                f"{soft[0]}: a softmax output shares its scale with {', '.join(n for n in names if n not in soft)}",
                hint="its scale is fixed at 1/256; do not concatenate it with other tensors",
            )
        return SOFTMAX
    clipped = [_limits(network, ranges, n, percentile) for n in names]
    return QParams.from_range(min(low for low, _ in clipped), max(high for _, high in clipped))


def _limits(network: Network, ranges: dict[str, Range], name: str, percentile: float) -> tuple[float, float]:
    layer = network[name]
    fixed = FIXED_RANGES.get(layer.attrs["function"]) if layer.kind == "function" else None
    return ranges[name].clipped(percentile) if fixed is None else fixed
