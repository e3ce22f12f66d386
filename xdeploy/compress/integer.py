"""A plan line -> the final integer weights of one layer: codes, codebook, scales and int32 bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xdeploy.compress.compact import PLAIN, Rules, bias_shift, compact_bias, layer_codes
from xdeploy.compress.model import QuantisedWeight
from xdeploy.errors import UnsupportedError
from xdeploy.formats import Float64, Int32, QParams, prove_accumulator, requant, weight_format

Float32 = NDArray[np.float32]

# |bias code| stays under 2^29 >> shift: a quarter of int32, so that bias and products fit together.
BIAS_LIMIT = 2**29
ROUNDS = 4


def quantise_layer(
    origin: str,
    weight: Float32,
    bias: Float32,
    format_name: str,
    source: QParams,
    out: QParams,
    h: Float64 | None,
    rules: Rules = PLAIN,
) -> QuantisedWeight:
    """Quantise one conv2d or linear layer for good.

    Scales are raised where the int32 bias would not fit otherwise (channels of nearly no weight), and the accumulator
    is proven not to overflow.

    Args:
        origin: the layer's name, for errors.
        weight: (O, ...) float32.
        bias: (O,) float32.
        format_name: weight format.
        source: quantisation of the layer's input.
        out: quantisation of its output (after a fused activation).
        h: importance of each weight (weight's shape) or None.
        rules: what the integers keep to.

    Raises:
        UnsupportedError: weights are not finite, or no scale makes the layer fit into int32.
    """
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise UnsupportedError(f"{origin}: weights or biases are not finite")
    fmt = weight_format(format_name)
    floor = np.zeros(len(weight))
    for _ in range(ROUNDS):
        codes, book, scale = layer_codes(weight, fmt, h, floor, rules)
        shift = requant_shift(origin, source, scale, out)
        needed = np.abs(bias.astype(np.float64)) / (source.scale * (BIAS_LIMIT >> shift))
        if (scale >= needed).all():
            break
        floor = np.maximum(floor, needed * (1 + 1e-6))  # float32 must not round back under it
    codes_bias = stored_bias(bias, source, scale, out, rules)
    result = QuantisedWeight(fmt.name, codes, book, scale, codes_bias)
    prove_accumulator(result.values.reshape(len(codes), -1), codes_bias, shift, origin)
    return result


def bias_codes(bias: NDArray[np.floating], source: QParams, scale: Float32) -> Int32:
    """round(bias / (source.scale * scale[c])), saturated far inside int32."""
    step = source.scale * scale.astype(np.float64)
    return np.clip(np.rint(bias.astype(np.float64) / step), -(2**30), 2**30).astype(np.int32)


def stored_bias(bias: NDArray[np.floating], source: QParams, scale: Float32, out: QParams, rules: Rules) -> Int32:
    """The bias codes (O,) that a layer keeps: `bias_codes`, no finer than the rules ask."""
    codes = bias_codes(bias, source, scale)
    return compact_bias(codes, bias_shift(source, scale, out)) if rules.compact else codes


def requant_shift(origin: str, source: QParams, scale: Float32, out: QParams) -> int:
    """The left shift of the layer's requantisation, source.scale * scale / out.scale.

    Raises:
        UnsupportedError: that scale is out of range; names `origin`.
    """
    try:
        return requant(source.scale * scale.astype(np.float64) / out.scale, out.zero_point).shift
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{origin}: {error.message}", hint="its output is far smaller than its weights; check the calibration data"
        ) from None
