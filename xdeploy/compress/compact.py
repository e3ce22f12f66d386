"""Layers whose other integers are small too: scales of few bits, or one for the layer, and biases no finer than needed.

In a layer of which most weights are zero, 32-bit scales and biases are a large part of the coded file. A scale of five
significant bits is within 3 % of the best one, and the codes are rounded against it, so nothing else is lost. A bias
code is far finer than the int8 output it ends in: multiples of a power of two change that by 1/16 of a code at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Float64, Int8, Int32, Int64, QParams, WeightFormat
from xdeploy.quantise import codebook_codes, uniform_codes

Float32 = NDArray[np.float32]

SIGNIFICANT = 5  # bits of a compact scale
FINEST = 8  # steps of a compact bias in one output code, at least; rounding errs by half a step
MOST_SHIFT = 29


@dataclass(frozen=True, slots=True)
class Rules:
    """What the integers of a layer have to keep to.

    compact: scales of few bits, biases in multiples of a power of two. tensor: one scale for all channels. zero: a
    codebook has an entry 0.
    """

    compact: bool = False
    tensor: bool = False
    zero: bool = False


PLAIN = Rules()


def compact_scale(scale: NDArray[np.floating], up: bool = False) -> Float32:
    """Scales (O,), > 0, with SIGNIFICANT bits: the nearest such value, or (`up`) the nearest that is not smaller."""
    mantissa, exponent = np.frexp(np.asarray(scale, np.float64))
    whole = mantissa * 2**SIGNIFICANT
    rounded = np.ceil(whole) if up else np.rint(whole)
    found: Float32 = np.ldexp(rounded / 2**SIGNIFICANT, exponent).astype(np.float32)
    return found


def bias_shift(source: QParams, scale: Float32, out: QParams) -> Int64:
    """How many low bits of each channel's bias code (O,) are zero in a compact layer, 0..29.

    It follows from the scales alone, so a coded file need not tell it: the largest k for which half of 2^k
    is at most 1/16 of an output code, of which one of a bias is source.scale * scale / out.scale.
    """
    codes = source.scale * scale.astype(np.float64) / out.scale
    exponent = np.frexp(1.0 / (FINEST * codes))[1] - 1
    found: Int64 = np.clip(exponent, 0, MOST_SHIFT).astype(np.int64)
    return found


def compact_bias(bias: Int32, shift: Int64) -> Int32:
    """Bias codes (O,) as the nearest multiples of 2^shift; of equals the larger."""
    wide = bias.astype(np.int64)
    half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
    return (((wide + half) >> shift) << shift).astype(np.int32)


def layer_codes(
    weight: Float32, fmt: WeightFormat, h: Float64 | None, floor: Float64, rules: Rules
) -> tuple[Int8, Int8 | None, Float32]:
    """Codes, codebook (None for uniform formats) and scales (O,) of a layer.

    Args:
        weight: (O, ...) finite.
        fmt: the format.
        h: importance of each weight, same shape, or None.
        floor: (O,) smallest scale of each channel.
        rules: what they keep to.
    """
    if rules.tensor:
        flat = None if h is None else h.reshape(1, -1)
        codes, book, scale = _codes(weight.reshape(1, -1), fmt, flat, floor.max(keepdims=True), rules)
        return codes.reshape(weight.shape), book, np.repeat(scale, len(weight))
    return _codes(weight, fmt, h, floor, rules)


def _codes(
    weight: Float32, fmt: WeightFormat, h: Float64 | None, floor: Float64, rules: Rules
) -> tuple[Int8, Int8 | None, Float32]:
    if fmt.codebook:
        codes, book, scale = codebook_codes(weight, fmt, h, floor, rules.zero)
        if not rules.compact:
            return codes, book, scale
        return codebook_codes(weight, fmt, h, compact_scale(scale, up=True).astype(np.float64), rules.zero)
    codes, scale = uniform_codes(weight, fmt, h, floor)
    if rules.compact:
        scale = compact_scale(scale, up=fmt.bits == 8)  # eight bits cover the whole range and should not clip it
        scale = np.where(scale < floor, compact_scale(floor, up=True), scale) if floor.any() else scale
        wide = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        codes = np.clip(np.rint(weight / wide), -fmt.limit, fmt.limit).astype(np.int8)
    return codes, None, scale
