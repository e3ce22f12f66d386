"""What a weight format costs a layer: bytes on the device, and relevance-weighted distortion of its weights.

Distortion is `sum sensitivity * (w - w_quantised)^2`: to second order the change of the explained output, in one unit
for all layers, so that layers can be traded against each other. The quantisers are those `compress` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import PlanError
from xdeploy.formats import Float64, WeightFormat, weight_format
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.quantise import codebook_codes, importance, uniform_codes, weighted_error

Float32 = NDArray[np.float32]
Progress = Callable[[str, int, int], None]  # what, done, total

CHANNEL_BYTES = 8  # int32 multiplier and int32 bias
SENSITIVITY_FLOOR = 1e-3  # of the layer's mean, so that weights no sample used are not free to change


@dataclass(frozen=True, slots=True)
class CostTable:
    """Bytes and distortion of each layer in each format: arrays (layers, formats)."""

    layers: tuple[str, ...]
    formats: tuple[str, ...]
    size: NDArray[np.int64]
    distortion: Float64
    allowed: NDArray[np.bool_]  # what the options permit each layer

    def at(self, layer: str, fmt: str) -> tuple[int, float]:
        """(bytes, distortion) of one cell."""
        i, j = self.layers.index(layer), self.formats.index(fmt)
        return int(self.size[i, j]), float(self.distortion[i, j])


def layer_bytes(shape: Sequence[int], fmt: WeightFormat) -> int:
    """Bytes of a layer on the device: packed code rows, codebook, and multiplier and bias of each channel."""
    row = int(np.prod(shape[1:], dtype=np.int64))
    return fmt.packed_bytes(shape[0], row) + CHANNEL_BYTES * shape[0]


def plan_bytes(network: Network, formats: Mapping[str, str]) -> int:
    """Weight bytes of a whole network, given each weighted layer's format."""
    shapes = {x.name: network.params[x.name]["weight"].shape for x in network.weighted()}
    return sum(layer_bytes(shapes[n], weight_format(f)) for n, f in formats.items())


def distortion(weight: Float32, fmt: WeightFormat, sensitivity: Float32 | None, weighting: float) -> float:
    """`sum sensitivity * (w - w_q)^2` of a layer in a format, quantised the way `compress` does it.

    Args:
        weight: (O, ...) float32.
        fmt: the format.
        sensitivity: same shape, or None for all 1.
        weighting: exponent of the sensitivity inside the quantiser (CompressOptions.codebook_weighting).
    """
    h = importance(sensitivity, weighting)
    if fmt.codebook:
        codes, book, scale = codebook_codes(weight, fmt, h)
        values = fmt.values(codes, book)
    else:
        values, scale = uniform_codes(weight, fmt, h)
    if sensitivity is None:
        return weighted_error(weight, values, scale)
    measured = np.asarray(sensitivity, np.float64)
    return weighted_error(weight, values, scale, np.maximum(measured, SENSITIVITY_FLOOR * measured.mean()))


def cost_table(
    network: Network,
    relevance: RelevanceMap | None,
    formats: Sequence[str],
    fixed: Mapping[str, str],
    weighting: float,
    progress: Progress | None = None,
) -> CostTable:
    """Price every layer in every format (those of the options, int8 as the reference, and the pinned ones).

    Raises:
        PlanError: a pinned layer does not exist, no format is allowed, or the relevance map belongs to another network.
    """
    layers = tuple(x.name for x in network.weighted())
    if not layers:
        raise PlanError("the network has no conv2d or linear layer to plan")
    if not formats:
        raise PlanError("plan.formats is empty", hint="allow at least int8")
    unknown = [n for n in fixed if n not in layers]
    if unknown:
        raise PlanError(
            f"plan.fixed names {unknown[0]!r}, which is no weighted layer", hint=f"layers: {', '.join(layers)}"
        )
    names = tuple(dict.fromkeys([*formats, *fixed.values(), "int8"]))
    size = np.zeros((len(layers), len(names)), np.int64)
    error = np.zeros(size.shape)
    allowed = np.zeros(size.shape, bool)
    for i, layer in enumerate(layers):
        weight = network.params[layer]["weight"]
        scores = _sensitivity(relevance, layer, weight)
        for j, name in enumerate(names):
            size[i, j] = layer_bytes(weight.shape, weight_format(name))
            error[i, j] = distortion(weight, weight_format(name), scores, weighting)
            allowed[i, j] = name == fixed.get(layer, name) and (layer in fixed or name in formats)
        if progress is not None:
            progress("price formats", i + 1, len(layers))
    return CostTable(layers, names, size, error, allowed)


def _sensitivity(relevance: RelevanceMap | None, layer: str, weight: Float32) -> Float32 | None:
    if relevance is None:
        return None
    found = relevance.sensitivity.get(layer)
    if found is None or found.shape != weight.shape:
        raise PlanError(
            f"{layer}: the relevance map has {'no scores' if found is None else f'shape {found.shape}'}, "
            f"the layer's weight has shape {weight.shape}",
            hint="score this network again",
        )
    return found
