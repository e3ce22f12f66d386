"""Weights and biases as the lowered graph stores them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xdeploy.formats import CODEBOOK_BITS, FORMATS, INT32_LIMIT, UNIFORM_BITS, Float64, Int8, Int32, WeightFormat
from xdeploy.lower.values import QConstant, Stop


def stored_weight(weight: QConstant) -> tuple[WeightFormat, Int8, Int8 | None]:
    """Format, codes and codebook of a weight: what the file says, else the smallest format that holds the codes.

    Raises:
        Stop: the values do not fit int8.
    """
    if weight.book is not None:
        bits = max(1, int(weight.book.size - 1).bit_length())
        if bits not in CODEBOOK_BITS:
            raise Stop(f"a codebook of {weight.book.size} entries; at most {2 ** max(CODEBOOK_BITS)}")
        book = np.zeros(2**bits, np.int8)
        book[: weight.book.size] = weight.book
        return FORMATS[f"c{bits}s8"], weight.codes.astype(np.int8), book
    low, high = int(weight.codes.min(initial=0)), int(weight.codes.max(initial=0))
    named = FORMATS.get(weight.meta.get("weight_format", ""))
    least = named.bits if named is not None and not named.codebook else weight.bits or 8
    for bits in sorted(UNIFORM_BITS):
        if bits >= least and low >= -(2 ** (bits - 1)) and high < 2 ** (bits - 1):
            return FORMATS[f"int{bits}"], weight.codes.astype(np.int8), None
    raise Stop(f"weight values {low}..{high} (zero point removed) do not fit int8", "symmetric int8 weights")


def two_parts(weight: QConstant) -> QConstant | None:
    """A uniform weight (O, I, ...) beyond int8 as the sum of two in it, (O, 2 * I, ...), for the input given twice.

    Asymmetric weights without their zero point need up to nine bits. None: it fits int8, or not even two hold it.
    """
    low, high = int(weight.codes.min(initial=0)), int(weight.codes.max(initial=0))
    if weight.book is not None or weight.codes.ndim < 2 or (low >= -128 and high <= 127) or low < -256 or high > 254:
        return None
    first = np.clip(weight.codes, -128, 127)
    return replace(weight, codes=np.concatenate([first, weight.codes - first], axis=1), bits=0, meta={})


def stored_bias(bias: Float64 | QConstant | None, scale: Float64, out_scale: float) -> Int32:
    """The bias as int32 at `scale` (O,); int32 codes that already have this scale are taken as they are.

    Raises:
        Stop: wrong size, beyond int32, or so fine that rounding it costs more than half a code at `out_scale`.
    """
    if bias is None:
        return np.zeros(scale.shape, np.int32)
    real = bias.real if isinstance(bias, QConstant) else bias
    if real.size not in (1, scale.size):
        raise Stop(f"a bias of {real.size} values for {scale.size} channels")
    codes = np.rint(np.broadcast_to(real.reshape(-1), scale.shape) / scale)
    if isinstance(bias, QConstant) and bias.codes.size == scale.size:
        given = np.broadcast_to(bias.scale.reshape(-1), scale.shape)
        codes = np.where(np.abs(given / scale - 1) < 1e-5, bias.codes.reshape(-1), codes)
    if np.abs(codes).max(initial=0) >= INT32_LIMIT:
        raise Stop("the bias does not fit int32 at scale input*weight", "a larger input or weight scale")
    lost = float((np.abs(codes * scale - np.broadcast_to(real.reshape(-1), scale.shape)) / out_scale).max(initial=0))
    if lost > 0.5:
        raise Stop(
            f"rounding its bias to int32 at scale input*weight costs {lost:.3g} output codes",
            "a smaller input or weight scale, or a larger output scale",
        )
    return codes.astype(np.int32)
