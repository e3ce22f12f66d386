"""Convolution and linear rows of plain C99 for every weight format: the portable form, for any compiler and CPU.

Convolutions run two pixels by two output channels at a time, linear layers four channels: so many sums stay in
registers, and a decoded weight serves two pixels. Weight rows lie as `formats.WeightFormat.pack` leaves them and are
decoded inside the multiply-accumulate loop, a few codes per step. The windows of the two pixels are gathered into the
workspace once for all channels, with the zero point where they leave the input, so that the inner loop knows no
borders; pointwise layers read them where they lie. Depthwise layers run four channels at a time, from weights that lie
tap by tap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Arg, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual, macs
from xdeploy.target import Target

from .cdecode import Decoder
from .conv import Shape
from .ctext import CLAMP, GATHER, REQUANTISE, SHIFT, WINDOW, fill, function, stage_scalars
from .snippets import channel_consts

_RESIDUAL = "{symbol}_clamp({symbol}_shift((add_a * code) + (add_b * r[at]) + add_const, add_shift), add_low, add_high)"
_CODE = "{symbol}_requantise(@sum@ * lift, multiplier[@channel@], out_zero, low, high)"
_LINEAR = """\
{
    const int32_t last = outputs - 1;
    int32_t o;

    for (o = 0; o < outputs; o += @channels@) {
        const int32_t rest = outputs - o;
        const int32_t valid = (rest < @channels@) ? rest : @channels@;
        const @type@ *first = &w[o * row_bytes];
        int32_t acc[@channels@];
        int32_t i;

        for (i = 0; i < @channels@; ++i) {
            const int32_t at = o + i;

            acc[i] = bias[(at < last) ? at : last];
        }
        {symbol}_dot(
            x, @rows@,
            inputs@book@, acc);
        for (i = 0; i < valid; ++i) {
            const int32_t at = o + i;
            const int32_t code = @code@;

            y[at] = (int8_t)@result@;
        }
    }
}
"""
_CONV = """\
{
    const int32_t pixels = out_height * out_width;
    const int32_t taps = kernel_y * kernel_x;
    int32_t g;

    for (g = 0; g < groups; ++g) {
        const int32_t end = (g + 1) * group_outputs;
        int32_t top = -pad_y;
        int32_t left = -pad_x;
        int32_t t;

        for (t = 0; t < pixels; t += 2) {
            const int32_t rest = pixels - t;
            const int32_t both = (rest < 2) ? rest : 2;
            const int8_t *windows[2];
            int32_t o;
            int32_t p;

            for (p = 0; p < both; ++p) {
                if (direct != 0) {
                    windows[p] = &x[(((top * width) + left) * channels) + (g * depth)];
                } else {
                    int8_t *to = &window[p * taps * depth];

                    windows[p] = to;
                    {symbol}_gather(
                        &x[g * depth], to, in_zero, top, left, height, width, channels, depth, kernel_y, kernel_x,
                        dilation_y, dilation_x);
                }
                left += stride_x;
                if (left == ((out_width * stride_x) - pad_x)) {
                    left = -pad_x;
                    top += stride_y;
                }
            }
            for (o = g * group_outputs; o < end; o += 2) {
                const int32_t channels_left = end - o;
                const int32_t pair = (channels_left < 2) ? channels_left : 2;
                const @type@ *w0 = &w[o * row_bytes];
                int32_t acc[4];
                int32_t i;

                acc[0] = bias[o];
                acc[1] = acc[0];
                acc[2] = bias[(o + pair) - 1];
                acc[3] = acc[2];
                {symbol}_dot(
                    windows[0], windows[both - 1], w0, &w0[(pair - 1) * row_bytes], taps * depth@book@, acc);
                for (i = 0; i < pair; ++i) {
                    for (p = 0; p < both; ++p) {
                        const int32_t at = ((t + p) * out_channels) + o + i;
                        const int32_t code = @code@;

                        y[at] = (int8_t)@result@;
                    }
                }
            }
        }
    }
}
"""
_DEPTHWISE = """\
{
    int32_t oy;

    for (oy = 0; oy < out_height; ++oy) {
        const int32_t top = (oy * stride_y) - pad_y;
        const int32_t ky0 = {symbol}_first(top, dilation_y);
        const int32_t ky1 = {symbol}_end(top, dilation_y, kernel_y, height);
        int32_t ox;

        for (ox = 0; ox < out_width; ++ox) {
            const int32_t left = (ox * stride_x) - pad_x;
            const int32_t kx0 = {symbol}_first(left, dilation_x);
            const int32_t kx1 = {symbol}_end(left, dilation_x, kernel_x, width);
            int32_t wide;
            int32_t g;

            for (g = 0; g < groups; g += wide) {
                int32_t o;

                wide = 1;
                if ((group_outputs == 1) && ((groups - g) >= 4)) {
                    wide = 4;
                }
                for (o = g * group_outputs; o < ((g + wide) * group_outputs); o += wide) {
                    const int32_t *b = &bias[o];
                    const int32_t next = wide / 4;
                    int32_t acc[4];
                    int32_t a0 = b[0];
                    int32_t a1 = b[next];
                    int32_t a2 = b[next * 2];
                    int32_t a3 = b[next * 3];
                    int32_t ky;
                    int32_t i;

                    for (ky = ky0; ky < ky1; ++ky) {
                        int32_t from =
                            ((((top + (ky * dilation_y)) * width) + left + (kx0 * dilation_x)) * groups) + g;
                        int32_t row = ((ky * kernel_x) + kx0) * row_bytes;
                        int32_t kx;

                        for (kx = kx0; kx < kx1; ++kx) {
                            const int8_t *c = &x[from];
                            const @type@ *k = &w[row];

                            a0 += (c[0] - in_zero) * {symbol}_weight(k, o@book@);
                            if (wide == 4) { /* channels that lie side by side */
                                a1 += (c[1] - in_zero) * {symbol}_weight(k, o + 1@book@);
                                a2 += (c[2] - in_zero) * {symbol}_weight(k, o + 2@book@);
                                a3 += (c[3] - in_zero) * {symbol}_weight(k, o + 3@book@);
                            }
                            from += dilation_x * groups;
                            row += row_bytes;
                        }
                    }
                    acc[0] = a0;
                    acc[1] = a1;
                    acc[2] = a2;
                    acc[3] = a3;
                    for (i = 0; i < wide; ++i) {
                        const int32_t at = (((oy * out_width) + ox) * out_channels) + o + i;
                        const int32_t code = @code@;

                        y[at] = (int8_t)@result@;
                    }
                }
            }
        }
    }
}
"""


PIXELS, CHANNELS = 2, 4  # pixels of a convolution's tile, channels of a linear layer's


@dataclass(frozen=True, slots=True)
class PortableRow:
    """One row: all nodes of `op` with weights of `format`; `depthwise` for one input channel per group."""

    op: str
    format: WeightFormat
    depthwise: bool = False

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Any node of this op and format, or those with one input channel per group."""
        shape = Shape.of(graph, node)
        return node.format == self.format and (not self.depthwise or shape.per_group == 1 < shape.groups)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """An upper estimate, above that of every row for the target's own instructions."""
        shape = Shape.of(graph, node)
        outputs = shape.pixels * shape.out_channels
        if self.depthwise:
            return 20.0 * macs(graph, node) + 60.0 * outputs
        return 8.0 * macs(graph, node) + (30.0 * shape.kernel[0] * shape.kernel[1] + 40.0) * outputs

    def direct(self, shape: Shape) -> bool:
        """Whether windows are read where they lie in the input."""
        return shape.kernel == (1, 1) and not any(shape.pads)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows of two pixels, where they are gathered."""
        shape = Shape.of(graph, node)
        gathered = self.op == "conv2d" and not self.depthwise and not self.direct(shape)
        return PIXELS * shape.row if gathered else 0

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weight rows (of depthwise layers one per tap), bias (folded, but for depthwise), multiplier, codebook."""
        shape = Shape.of(graph, node)
        codes = node.consts["codes"].reshape(shape.out_channels, shape.row)
        codes = np.ascontiguousarray(codes.T if self.depthwise else codes)
        consts = {"weights": codes if self.format.bits == 8 else self.format.pack(codes), **channel_consts(node)}
        if self.depthwise:
            consts["bias"] = node.consts["bias"].astype(np.int32)
        if self.format.codebook:
            consts["codebook"] = node.consts["codebook"].astype(np.int8)
        return consts

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Decoding and output stage around the loops."""
        decoder, shape, residual = Decoder(self.format), Shape.of(graph, node), has_residual(node)
        conv = self.op == "conv2d" and not self.depthwise
        helpers = [decoder.weight()]
        if not self.depthwise:
            helpers.append(decoder.dot(PIXELS, 2) if conv else decoder.dot(1, CHANNELS))
        helpers += [CLAMP, REQUANTISE, *([SHIFT] if residual else [])]
        helpers += [GATHER] * conv + [WINDOW] * self.depthwise
        pointers = {"const int8_t *x": Arg("input"), f"const {decoder.fill('@type@')} *w": Arg("const", name="weights"),
                    "const int32_t *bias": Arg("const", name="bias"),
                    "const int32_t *multiplier": Arg("const", name="multiplier")}  # fmt: skip
        if self.format.codebook:
            pointers["const int8_t *book"] = Arg("const", name="codebook")
        if residual:
            pointers["const int8_t *r"] = Arg("input", index=1)
        pointers["int8_t *y"] = Arg("output")
        if conv:
            pointers["int8_t *window"] = Arg("workspace")
        geometry = self._geometry(shape, node)
        return function(self._body(decoder, residual), pointers, {**geometry, **stage_scalars(node)}, helpers)

    def _body(self, decoder: Decoder, residual: bool) -> str:
        body, at = _LINEAR, "acc[i]"
        if self.op == "conv2d":
            body, at = (_DEPTHWISE, "acc[i]") if self.depthwise else (_CONV, f"acc[(i * {PIXELS}) + p]")
        rows = ", ".join(
            ["first", *(f"&first[{{symbol}}_clamp({c}, 0, last - o) * row_bytes]" for c in range(1, CHANNELS))]
        )
        code = fill(_CODE, sum=at, channel="o + i")
        return decoder.fill(
            fill(body, rows=rows, code=code, result=_RESIDUAL if residual else "code"), channels=CHANNELS
        )

    def _geometry(self, s: Shape, node: Node) -> dict[str, int]:
        if self.op == "linear":
            row_bytes = self.format.row_bytes(s.row)
            return {"inputs": s.channels, "outputs": s.out_channels, "row_bytes": row_bytes}
        own = {"channels": s.channels, "depth": s.per_group, "direct": int(self.direct(s))}
        return {
            "height": s.height, "width": s.width, **({} if self.depthwise else own), "in_zero": node.attrs["in_zero"],
            "out_height": s.out_height, "out_width": s.out_width, "out_channels": s.out_channels, "groups": s.groups,
            "group_outputs": s.out_channels // s.groups,
            "row_bytes": self.format.row_bytes(s.out_channels if self.depthwise else s.row),
            "kernel_y": s.kernel[0], "kernel_x": s.kernel[1], "stride_y": s.stride[0],
            "stride_x": s.stride[1], "pad_y": s.pads[0], "pad_x": s.pads[1], "dilation_y": s.dilation[0],
            "dilation_x": s.dilation[1],
        }  # fmt: skip


def _register(row: PortableRow) -> None:
    tile = "1x4" if row.op == "linear" else "dw1x4" if row.depthwise else "2x2"
    name = f"{row.op}_s8_{row.format.short}_{tile}__c99"
    KERNELS.add(
        name,
        Kernel(name, row.op, row.format.short, "c99", row.applies, row.cost, row.workspace, row.pack, row.emit),
    )


for _format in FORMATS.values():
    _register(PortableRow("conv2d", _format))
    _register(PortableRow("conv2d", _format, depthwise=True))
    _register(PortableRow("linear", _format))
