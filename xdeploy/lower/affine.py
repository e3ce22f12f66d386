"""Affine functions with their own gain and offset per channel or per element, as integer nodes without a new rounding.

A depthwise 1x1 convolution whose weight codes are all +-127 and whose weight scales are |gain| / 127 multiplies by the
gain exactly, since scales are real numbers; only the offset is rounded, to 1/127 of an input step.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xdeploy.formats import Float64, QParams
from xdeploy.lower.values import Codes, Pending, QConstant, Real, Stop
from xdeploy.lower.views import batched

_CODE = 127
_ACC_LIMIT = 2.0**27  # of the bias; beyond it the input's share is below a tenth of an output step, or all saturates
_ELEMENT_LIMIT = 2**16  # elements with a constant each: 9 bytes of flash per element


def affine_conv(p: Pending, codes: Codes, q: QParams) -> Pending:
    """The depthwise convolution for y = gain * x + offset on the stored codes of p's operand.

    p.attrs: gain, offset (float64, ONNX shape of the operand), order (see `views`). The result lies in `order`.

    Raises:
        Stop: too many different constants, or a gain beyond what 127 steps can hold.
    """
    order = p.attrs["order"]
    index = np.ascontiguousarray(codes.index.transpose(order))
    gain, offset = (np.ascontiguousarray(p.attrs[k].transpose(order)) for k in ("gain", "offset"))
    channels = index.shape[-1]
    if index.ndim == 3 and _per_channel(gain, channels) and _per_channel(offset, channels):
        gain, offset = gain.reshape(-1)[:channels], offset.reshape(-1)[:channels]
    else:
        if index.size > _ELEMENT_LIMIT:
            raise Stop(
                f"has {index.size} different constants on {batched(p.args[0].index.shape)}",
                f"a constant per channel, or per element on at most {_ELEMENT_LIMIT} elements",
            )
        index, gain, offset = index.reshape(1, 1, -1), gain.reshape(-1), offset.reshape(-1)
    weight, bias = _weight(gain, offset, codes.q, q)
    image = Real(replace(codes, index=index.transpose(2, 0, 1)), index.transpose(2, 0, 1))
    attrs = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": len(gain)}
    return Pending("conv2d", p.origin, (image,), attrs, weight, bias)


def _per_channel(values: Float64, channels: int) -> bool:
    rows = values.reshape(-1, channels)
    return bool((rows == rows[:1]).all())


def _weight(gain: Float64, offset: Float64, before: QParams, after: QParams) -> tuple[QConstant, Float64]:
    """Weight (O, 1, 1, 1) and bias (O,) of the convolution."""
    ratio = np.abs(gain) * before.scale / after.scale
    if not (np.isfinite(gain).all() and np.isfinite(offset).all()) or ratio.max(initial=0) >= _CODE:
        raise Stop(f"a gain of {np.abs(gain).max():g} between the scales {before.scale:g} and {after.scale:g}",
                   "scales nearer to each other")  # fmt: skip
    idle = after.scale / before.scale / 1024.0  # any scale does where the code is 0
    scale = np.where(gain == 0, idle, np.abs(gain) / _CODE)
    lost = np.abs(offset) > _ACC_LIMIT * before.scale * scale
    code = np.where(lost, 0, np.sign(gain) * _CODE).astype(np.int64)
    scale = np.where(lost, idle, scale)
    most = _ACC_LIMIT * before.scale * scale
    return QConstant(code.reshape(-1, 1, 1, 1), scale, 0), np.clip(offset, -most, most)


def scaled_weight(weight: QConstant, gain: Float64) -> QConstant:
    """The weight (O, ...) times a gain per output channel: the scales take its size, the codes its sign.

    Raises:
        Stop: a codebook whose sign would have to change.
    """
    if weight.book is not None and (gain <= 0).any():
        raise Stop("a negative or zero gain after codebook weights", "fold the gain into the weights before quantising")
    wide = (-1,) + (1,) * (weight.codes.ndim - 1)
    sign = np.sign(gain).astype(np.int64).reshape(wide)
    scale = weight.channel_scale(len(weight.codes), 0) * np.where(gain == 0, 1.0, np.abs(gain))
    codes = weight.codes if (gain > 0).all() else weight.codes * sign
    return replace(weight, codes=codes, scale=scale, axis=0)
