"""What a name in the ONNX graph stands for while it is lowered.

An activation is a `Codes` (int8 tensor of the lowered graph) or a `Real` (float value not quantised yet). Both carry
`index`: for every element of the ONNX tensor (per sample, so without the batch axis) the flat position in the stored
tensor. Transpose, Reshape, Flatten, Squeeze and Unsqueeze only rearrange `index`; data moves when a reader insists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Float64, Int8, QParams
from xdeploy.onnxfile import Constant, Obstacle, OnnxNode

Index = NDArray[np.int64]


class Stop(Exception):  # noqa: N818 (a reason on its way to the list of obstacles, not an error of its own)
    """Lowering of one node stops for a reason; `rewrite` is the nearest thing that works, `attribute` is to blame."""

    def __init__(self, reason: str, rewrite: str = "", attribute: str = "") -> None:
        super().__init__(reason)
        self.reason, self.rewrite, self.attribute = reason, rewrite, attribute


@dataclass(frozen=True, slots=True)
class QConstant:
    """A dequantised constant kept as integers: real = scale * (book[codes] or codes), zero point already removed."""

    codes: NDArray[np.int64]
    scale: Float64  # (), or one per slice of `axis`
    axis: int
    bits: int = 0  # packed width in the file, 0 if not packed
    book: Int8 | None = None
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> NDArray[np.int64]:
        """Integers the codes stand for."""
        return self.codes if self.book is None else self.book[self.codes].astype(np.int64)

    @property
    def real(self) -> Float64:
        """Real values (float64)."""
        wide = (
            self.scale.reshape([-1 if k == self.axis else 1 for k in range(self.codes.ndim)])
            if self.scale.ndim
            else self.scale
        )
        return self.values * wide

    def transposed(self, perm: tuple[int, ...]) -> QConstant:
        """The same constant with permuted axes."""
        return replace(self, codes=self.codes.transpose(perm), axis=perm.index(self.axis) if self.scale.ndim else 0)

    def channel_scale(self, channels: int, axis: int) -> Float64:
        """One scale per output channel.

        Raises:
            Stop: the scales lie along another axis or are not positive.
        """
        if self.scale.ndim and self.scale.size > 1 and (self.axis != axis or self.scale.size != channels):
            raise Stop("weight scales do not lie along the output channels", "per-tensor or per-output-channel scales")
        scale = np.broadcast_to(self.scale.reshape(-1), (channels,)).astype(np.float64)
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise Stop(f"weight scales must be finite and positive, the smallest is {scale.min():g}")
        return scale


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantised activation: tensor of the lowered graph, arrangement, and whether ONNX holds it as uint8."""

    tensor: str
    q: QParams
    index: Index
    unsigned: bool = False


@dataclass(frozen=True, slots=True)
class InputPort:
    """The float input before its QuantizeLinear."""

    name: str


@dataclass(frozen=True, slots=True)
class Pending:
    """A float operation waiting for the QuantizeLinear that gives its output a scale.

    op is an op of `lir.ops`; args are its operands as the rule for that op wants them, `weight` and `bias` those of
    conv2d and linear (weight as (O, kh, kw, I/groups) or (O, I) is arranged when it is emitted).
    """

    op: str
    origin: str
    args: tuple[Real, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    weight: QConstant | None = None
    bias: Float64 | QConstant | None = None


@dataclass(frozen=True, slots=True)
class Real:
    """A float activation: a source, an arrangement, a clamp, or the table of any other element-wise function.

    The table holds the function's value for each of the 256 codes of the source, from -128 up.
    """

    source: Codes | InputPort | Pending
    index: Index
    low: float = -np.inf
    high: float = np.inf
    table: Float64 | None = None
    origin: str = ""  # of the last element-wise operation

    def clamped(self, low: float, high: float, origin: str) -> Real:
        """After a Relu or Clip."""
        if self.table is not None:
            return replace(self, table=np.clip(self.table, low, high), origin=origin)
        bounds = (float(np.clip(bound, low, high)) for bound in (self.low, self.high))
        return replace(self, low=next(bounds), high=next(bounds), origin=origin)

    def tabulated(self) -> Float64:
        """Real values for all 256 codes of the source.

        Raises:
            Stop: the source is not quantised.
        """
        if self.table is not None:
            return self.table
        if not isinstance(self.source, Codes):
            raise Stop("needs a quantised input", "QuantizeLinear and DequantizeLinear before it")
        every = np.arange(-128, 128, dtype=np.int64).astype(np.int8)
        return np.clip(self.source.q.dequantise(every).astype(np.float64), self.low, self.high)

    @property
    def untouched(self) -> bool:
        """No clamp and no function after the source."""
        return self.table is None and self.low == -np.inf and self.high == np.inf


class Poison:
    """Output of a node that could not be lowered; its readers are skipped."""


Value = Constant | QConstant | Codes | Real | Poison


def arranged(value: Codes | Real, index: Index) -> Codes | Real:
    """The value with another arrangement."""
    return replace(value, index=index)


def obstacle(node: OnnxNode, stop: Stop) -> Obstacle:
    """The list entry for a stop at a node."""
    return Obstacle(node.name, node.op, stop.reason, stop.rewrite)
