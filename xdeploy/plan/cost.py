"""What a weight format costs a layer: bytes on the device and after coding, operations, and distortion of its weights.

Distortion is `sum sensitivity * (w - w_quantised)^2`: to second order the change of the explained output, in one unit
for all layers, so that layers can be traded against each other. The quantisers are those `compress` uses, and weights
that become zero on purpose are zero before they are quantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import PlanError
from xdeploy.formats import Float64, Int8, WeightFormat, weight_format
from xdeploy.handover import RelevanceMap
from xdeploy.model.network import Network
from xdeploy.plan.density import Sharing
from xdeploy.quantise import codebook_codes, importance, uniform_codes, weighted_error
from xdeploy.ranking import Mask

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # what, done, total

CHANNEL_BYTES = 8  # int32 multiplier and int32 bias
SENSITIVITY_FLOOR = 1e-3  # of the layer's mean, so that weights no sample used are not free to change
ACTIVATION_BITS = 8


@dataclass(frozen=True, slots=True)
class CostTable:
    """What each layer costs in each column: arrays (layers, columns); a column is a format, at one density each.

    Without densities there is one column for each format.
    """

    layers: tuple[str, ...]
    formats: tuple[str, ...]  # of the columns
    size: Int64  # bytes on the device
    distortion: Float64
    allowed: NDArray[np.bool_]  # what the options permit each layer
    coded: Int64  # bytes after entropy coding, by the zero-order entropy of the codes
    operations: Int64  # MACs times weight bits times activation bits
    sharings: tuple[Sharing | None, ...]  # of the columns

    def at(self, layer: str, fmt: str) -> tuple[int, float]:
        """(bytes, distortion) of one cell, of the first column in this format."""
        i, j = self.layers.index(layer), self.formats.index(fmt)
        return int(self.size[i, j]), float(self.distortion[i, j])

    def density(self, layer: str, column: int) -> float | None:
        """Share of the layer's weights that are kept in a column; None where none become zero on purpose."""
        sharing = self.sharings[column]
        return None if sharing is None else sharing.kept[layer] / sharing.masks[layer].size

    @property
    def is_sparse(self) -> bool:
        """Whether weights become zero on purpose."""
        return any(x is not None for x in self.sharings)


def layer_bytes(shape: Sequence[int], fmt: WeightFormat) -> int:
    """Bytes of a layer on the device: packed code rows, codebook, and multiplier and bias of each channel."""
    row = int(np.prod(shape[1:], dtype=np.int64))
    return fmt.packed_bytes(shape[0], row) + CHANNEL_BYTES * shape[0]


def plan_bytes(network: Network, formats: Mapping[str, str]) -> int:
    """Weight bytes of a whole network, given each weighted layer's format."""
    shapes = {x.name: network.params[x.name]["weight"].shape for x in network.weighted()}
    return sum(layer_bytes(shapes[n], weight_format(f)) for n, f in formats.items())


def coded_bytes(codes: Int8, fmt: WeightFormat) -> int:
    """Bytes of a layer after entropy coding: zero-order entropy of its codes, codebook, multipliers and biases.

    A coder's table of the codes' shares, some bytes a layer, is not in it, nor what contexts may gain.
    """
    counts = np.bincount(codes.ravel().astype(np.int64) + 128)
    shares = counts[counts > 0] / codes.size
    bits = float(-(shares * np.log2(shares)).sum()) * codes.size
    return math.ceil(bits / 8.0) + (2**fmt.bits if fmt.codebook else 0) + CHANNEL_BYTES * len(codes)


def distortion(
    weight: Float32, fmt: WeightFormat, sensitivity: Float32 | None, weighting: float, zeros: Mask | None = None
) -> float:
    """`sum sensitivity * (w - w_q)^2` of a layer in a format, quantised the way `compress` does it.

    Args:
        weight: (O, ...) float32.
        fmt: the format.
        sensitivity: same shape, or None for all 1.
        weighting: exponent of the sensitivity inside the quantiser (CompressOptions.codebook_weighting).
        zeros: True where the weight is made zero first; None: nowhere.
    """
    return _priced(weight, fmt, sensitivity, weighting, zeros)[0]


def _priced(
    weight: Float32, fmt: WeightFormat, sensitivity: Float32 | None, weighting: float, zeros: Mask | None
) -> tuple[float, int]:
    """(distortion, coded bytes)."""
    h = importance(sensitivity, weighting)
    given = weight if zeros is None else np.where(zeros, np.float32(0), weight)
    if fmt.codebook:
        codes, book, scale = codebook_codes(given, fmt, h, zero=zeros is not None)
        values = fmt.values(codes, book)
    else:
        values, scale = uniform_codes(given, fmt, h)
        codes = values
    size = coded_bytes(codes, fmt)
    if sensitivity is None:
        return weighted_error(weight, values, scale), size
    measured = np.asarray(sensitivity, np.float64)
    return weighted_error(weight, values, scale, np.maximum(measured, SENSITIVITY_FLOOR * measured.mean())), size


def cost_table(
    network: Network,
    relevance: RelevanceMap | None,
    formats: Sequence[str],
    fixed: Mapping[str, str],
    weighting: float,
    progress: Progress | None = None,
    sharings: Sequence[Sharing] = (),
) -> CostTable:
    """Price every layer in every format (those of the options, int8 as the reference, and the pinned ones).

    With `sharings` each format has one column for each of them.

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
    columns = [(name, sharing) for sharing in (sharings or (None,)) for name in names]
    shape = (len(layers), len(columns))
    size, coded, operations = (np.zeros(shape, np.int64) for _ in range(3))
    error, allowed = np.zeros(shape), np.zeros(shape, bool)
    for i, layer in enumerate(layers):
        weight = network.params[layer]["weight"]
        scores = _sensitivity(relevance, layer, weight)
        for j, (name, sharing) in enumerate(columns):
            fmt, zeros = weight_format(name), None if sharing is None else sharing.masks[layer]
            size[i, j] = layer_bytes(weight.shape, fmt)
            error[i, j], coded[i, j] = _priced(weight, fmt, scores, weighting, zeros)
            operations[i, j] = network.macs(layer) * fmt.bits * ACTIVATION_BITS
            allowed[i, j] = name == fixed.get(layer, name) and (layer in fixed or name in formats)
        if progress is not None:
            progress("price formats", i + 1, len(layers))
    named = tuple(name for name, _ in columns)
    return CostTable(layers, named, size, error, allowed, coded, operations, tuple(s for _, s in columns))


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
