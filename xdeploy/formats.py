"""Number formats and the one rounding rule, in exact numpy integers.

Activations are int8, per tensor, asymmetric: real = scale * (code - zero_point).
Weights are per output channel symmetric, real = scale[c] * value, where value is

* `int{8,6,5,4,3,2}`: the code itself, in [-(2^(b-1)-1), 2^(b-1)-1];
* `c{1..6}s8`: `codebook[code]`, an int8 entry of a table of at most 2^bits, shared by the layer.

Requantisation (design rule, one rounding): `y = clamp(zp + ((acc * m + 2^31) >> 32))`, with the int32
multiplier `m = 2 * round(scale * 2^31)`. It needs scale < 0.5; a larger one shifts acc left first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError, choose_from

Int8 = NDArray[np.int8]
UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

INT32_LIMIT = 2**31
UNIFORM_BITS = (2, 3, 4, 5, 6, 8)
CODEBOOK_BITS = (1, 2, 3, 4, 5, 6)


def saturate(values: NDArray[Any], low: int = -128, high: int = 127) -> Int8:
    """Clamp to [low, high], within int8, and cast."""
    result: Int8 = np.clip(values, low, high).astype(np.int8)
    return result


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How one layer's weights are stored: `bits` per code, with or without a codebook of int8 entries."""

    name: str
    bits: int
    codebook: bool

    @property
    def short(self) -> str:
        """The name inside kernel names: s8, s4, c4s8."""
        return self.name if self.codebook else f"s{self.bits}"

    @property
    def limit(self) -> int:
        """Largest magnitude of a value (the int8 entry of a codebook, or the code of a uniform format)."""
        return 127 if self.codebook else 2 ** (self.bits - 1) - 1

    def row_bytes(self, row: int) -> int:
        """Bytes of one packed row of `row` codes (rows start on a byte)."""
        return (row * self.bits + 7) // 8

    def packed_bytes(self, channels: int, row: int) -> int:
        """Bytes of the packed codes and the codebook (without scales and bias)."""
        return channels * self.row_bytes(row) + (2**self.bits if self.codebook else 0)

    def pack(self, codes: NDArray[np.integer]) -> UInt8:
        """Pack codes (channels, row) little-endian within each row: code 0 in the lowest bits.

        Uniform codes are two's complement of `bits` bits, codebook codes unsigned indices.
        Returns uint8 (channels, row_bytes).
        """
        if codes.ndim != 2:
            raise ValueError(f"pack wants (channels, row), got {codes.shape}")
        fields = (codes.astype(np.int64) & (2**self.bits - 1)).astype(np.uint8)
        planes = (fields[:, :, None] >> np.arange(self.bits, dtype=np.uint8)) & 1
        return np.packbits(planes.reshape(len(codes), -1), axis=1, bitorder="little")

    def unpack(self, packed: UInt8, row: int) -> Int8:
        """Invert `pack`: int8 codes (channels, row), sign-extended for uniform formats."""
        planes = np.unpackbits(packed, axis=1, bitorder="little")[:, : row * self.bits]
        planes = planes.reshape(len(packed), row, self.bits).astype(np.int64)
        codes = (planes << np.arange(self.bits)).sum(axis=2)
        if not self.codebook:
            codes = np.where(codes >= 2 ** (self.bits - 1), codes - 2**self.bits, codes)
        return saturate(codes)

    def values(self, codes: Int8, codebook: Int8 | None) -> Int8:
        """The int8 values the codes stand for, same shape as `codes`."""
        if not self.codebook:
            return codes
        if codebook is None:
            raise ValueError(f"{self.name} needs a codebook")
        return codebook[codes.astype(np.intp)]


FORMATS: dict[str, WeightFormat] = {
    **{f"int{b}": WeightFormat(f"int{b}", b, False) for b in UNIFORM_BITS},
    **{f"c{b}s8": WeightFormat(f"c{b}s8", b, True) for b in CODEBOOK_BITS},
}


def weight_format(name: str) -> WeightFormat:
    """Look a weight format up by name (`int8`, `int4`, `c4s8`, ...).

    Raises:
        UsageError: unknown name, with the allowed and the close ones.
    """
    if name not in FORMATS:
        raise choose_from("weight format", name, FORMATS)
    return FORMATS[name]


@dataclass(frozen=True, slots=True)
class QParams:
    """Per-tensor int8 quantisation: real = scale * (code - zero_point); scale is exact in float32."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"activation scale must be finite and > 0, got {self.scale}")
        if not -128 <= self.zero_point <= 127:
            raise ValueError(f"zero point must be in -128..127, got {self.zero_point}")

    def quantise(self, real: NDArray[np.floating]) -> Int8:
        """Round half to even in float32, as ONNX QuantizeLinear does, and saturate to int8."""
        scaled = np.rint(real.astype(np.float32) / np.float32(self.scale))
        return saturate(scaled + self.zero_point)

    def dequantise(self, codes: Int8) -> NDArray[np.float32]:
        """Real values (float32) of int8 codes."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)

    @staticmethod
    def from_range(low: float, high: float) -> QParams:
        """The asymmetric parameters that cover [low, high] and hold 0 exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32(max((high - low) / 255.0, 1e-8)))
        return QParams(scale, int(np.clip(round(-128 - low / scale), -128, 127)))


@dataclass(frozen=True, slots=True)
class Requant:
    """int32 accumulator -> int8 code: multiplier (one per channel, even, < 2^31), left shift, zero point, clamp."""

    multiplier: Int32
    shift: int
    zero_point: int
    low: int
    high: int

    def apply(self, acc: Int64) -> Int8:
        """Requantise: y = clamp(zp + (((acc << shift) * m + 2^31) >> 32)); channels are acc's last axis."""
        product = (acc.astype(np.int64) << self.shift) * self.multiplier.astype(np.int64)
        code = self.zero_point + ((product + (1 << 31)) >> 32)
        return saturate(code, self.low, self.high)


def requant(scale: Float64 | float, zero_point: int, low: int = -128, high: int = 127) -> Requant:
    """Choose the multipliers for real scale(s) = s_in * s_weight / s_out, once for all targets.

    Raises:
        UnsupportedError: a scale is not finite, not positive, or >= 2^15.
    """
    scales = np.atleast_1d(np.asarray(scale, dtype=np.float64))
    if not (np.isfinite(scales).all() and (scales > 0).all() and (scales < 2.0**15).all()):
        raise UnsupportedError(
            f"requantisation scale must be finite and in (0, 32768), got {scales.min():g}..{scales.max():g}"
        )
    shift = max(0, int(np.floor(np.log2(scales.max() * 2.0))) + 1)
    multiplier = 2 * np.rint(scales / 2.0**shift * 2.0**31).astype(np.int64)
    if multiplier.max() >= INT32_LIMIT:  # a scale a hair under 0.5 that rounds up
        shift += 1
        multiplier = 2 * np.rint(scales / 2.0**shift * 2.0**31).astype(np.int64)
    return Requant(multiplier.astype(np.int32), shift, zero_point, low, high)


def prove_accumulator(values: Int8, bias: Int32, shift: int, origin: str) -> int:
    """Prove sum|w| * 128 + |bias| stays inside int32 after the shift; values is (channels, row).

    Both the plain accumulator (codes times values) and the one with the zero point folded into the bias are
    covered, since |code - zero_point| <= 255 is bounded by the doubled term.

    Returns the bound. Raises UnsupportedError naming `origin`.
    """
    weight = np.abs(values.astype(np.int64)).sum(axis=1)
    bound = int((weight * 255 + np.abs(bias.astype(np.int64))).max(initial=0)) << shift
    if bound >= INT32_LIMIT:
        raise UnsupportedError(
            f"{origin}: the int32 accumulator could overflow (bound {bound}, limit {INT32_LIMIT - 1})",
            hint="split the layer or give its weights fewer bits",
        )
    return bound


def is_identifier(name: str) -> bool:
    """Whether `name` is safe as a C symbol part, a file name and a CMake word."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", name) is not None
