"""Convolution and linear rows of plain C99 for every weight format: the portable form, for any compiler and CPU.

One pixel by two output channels at a time. Weight rows lie as `formats.WeightFormat.pack` leaves them and are decoded
inside the multiply-accumulate loop, a few codes per step. The input zero point is folded into the bias, and taps
outside the input read a row of zero points, so that the inner loop knows no borders; the taps of one line of a window
that lie side by side in the input are one run of it. No workspace.
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
from .ctext import CLAMP, REQUANTISE, SHIFT, WINDOW, fill, function, indent
from .snippets import channel_consts

_STORE = """\
for (i = 0; i < pair; ++i) {
    const int32_t at = @at@ + i;
    const int32_t code = {symbol}_requantise(acc[i] * lift, multiplier[o + i], out_zero, low, high);

    y[at] = (int8_t)@result@;
}"""
_RESIDUAL = "{symbol}_clamp({symbol}_shift(add_a * code + add_b * r[at] + add_const, add_shift), add_low, add_high)"
_LINEAR = """\
{
    int32_t o, i;

    for (o = 0; o < outputs; o += 2) {
        const int32_t pair = o + 1 < outputs ? 2 : 1;
        const @type@ *w0 = w + o * row_bytes;
        int32_t acc[2];

        acc[0] = bias[o];
        acc[1] = bias[o + pair - 1];
        {symbol}_dot(x, w0, w0 + (pair - 1) * row_bytes, 0, inputs@book@, acc);
@store@
    }
}
"""
_CONV = """\
{
    int32_t oy, ox, g, o, ky, kx, i;

    for (oy = 0; oy < out_height; ++oy) {
        for (ox = 0; ox < out_width; ++ox) {
            const int32_t top = oy * stride_y - pad_y, left = ox * stride_x - pad_x;
            /* the taps of one line lie side by side in the input */
            const int side_by_side = dilation_x == 1 && groups == 1 && left >= 0 && left + kernel_x <= width;

            for (g = 0; g < groups; ++g) {
                const int32_t end = (g + 1) * group_outputs;

                for (o = g * group_outputs; o < end; o += 2) {
                    const int32_t pair = o + 1 < end ? 2 : 1;
                    const @type@ *w0 = w + o * row_bytes, *w1 = w0 + (pair - 1) * row_bytes;
                    int32_t acc[2];

                    acc[0] = bias[o];
                    acc[1] = bias[o + pair - 1];
                    for (ky = 0; ky < kernel_y; ++ky) {
                        const int32_t iy = top + ky * dilation_y;
                        const int line = iy >= 0 && iy < height;
                        const int32_t taps = line && side_by_side ? kernel_x : 1;

                        for (kx = 0; kx < kernel_x; kx += taps) {
                            const int32_t ix = left + kx * dilation_x, k = (ky * kernel_x + kx) * depth;

                            if (line && ix >= 0 && ix < width) {
                                const int8_t *from = x + (iy * width + ix) * channels + g * depth;

                                {symbol}_dot(from, w0, w1, k, taps * depth@book@, acc);
                            } else {
                                {symbol}_dot(padding, w0, w1, k, depth@book@, acc);
                            }
                        }
                    }
@store@
                }
            }
        }
    }
}
"""
_DEPTHWISE = """\
{
    int32_t oy, ox, g, o, ky, kx;

    for (oy = 0; oy < out_height; ++oy) {
        const int32_t top = oy * stride_y - pad_y;
        const int32_t ky0 = {symbol}_first(top, dilation_y);
        const int32_t ky1 = {symbol}_end(top, dilation_y, kernel_y, height);

        for (ox = 0; ox < out_width; ++ox) {
            const int32_t left = ox * stride_x - pad_x;
            const int32_t kx0 = {symbol}_first(left, dilation_x);
            const int32_t kx1 = {symbol}_end(left, dilation_x, kernel_x, width);

            for (g = 0; g < groups; ++g) {
                for (o = g * group_outputs; o < (g + 1) * group_outputs; ++o) {
                    const int32_t at = (oy * out_width + ox) * out_channels + o;
                    const @type@ *row = w + o * row_bytes;
                    int32_t acc = bias[o], code;

                    for (ky = ky0; ky < ky1; ++ky) {
                        int32_t from = ((top + ky * dilation_y) * width + left + kx0 * dilation_x) * groups + g;

                        for (kx = kx0; kx < kx1; ++kx) {
                            acc += (x[from] - in_zero) * {symbol}_weight(row, ky * kernel_x + kx@book@);
                            from += dilation_x * groups;
                        }
                    }
                    code = {symbol}_requantise(acc * lift, multiplier[o], out_zero, low, high);
                    y[at] = (int8_t)@result@;
                }
            }
        }
    }
}
"""


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

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """None."""
        return 0

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weight rows, bias (folded, but for depthwise), multiplier, codebook, zero points for taps outside."""
        shape = Shape.of(graph, node)
        codes = node.consts["codes"].reshape(shape.out_channels, shape.row)
        weights = np.ascontiguousarray(codes) if self.format.bits == 8 else self.format.pack(codes)
        consts: dict[str, NDArray[Any]] = {"weights": weights, **channel_consts(node)}
        if self.depthwise:
            consts["bias"] = node.consts["bias"].astype(np.int32)
        elif self.op == "conv2d":
            consts["padding"] = np.full(shape.per_group if any(shape.pads) else 1, node.attrs["in_zero"], np.int8)
        if self.format.codebook:
            consts["codebook"] = node.consts["codebook"].astype(np.int8)
        return consts

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Decoding and output stage around the loops."""
        decoder, shape, residual = Decoder(self.format), Shape.of(graph, node), has_residual(node)
        kind, helpers = decoder.fill("@type@"), [decoder.weight()]
        if not self.depthwise:
            helpers.append(decoder.dot())
        helpers += [CLAMP, REQUANTISE, *([SHIFT] if residual else []), *([WINDOW] if self.depthwise else [])]
        pointers = {"const int8_t *x": Arg("input"), f"const {kind} *w": Arg("const", name="weights"),
                    "const int32_t *bias": Arg("const", name="bias"),
                    "const int32_t *multiplier": Arg("const", name="multiplier")}  # fmt: skip
        if self.format.codebook:
            pointers["const int8_t *book"] = Arg("const", name="codebook")
        if self.op == "conv2d" and not self.depthwise:
            pointers["const int8_t *padding"] = Arg("const", name="padding")
        if residual:
            pointers["const int8_t *r"] = Arg("input", index=1)
        pointers["int8_t *y"] = Arg("output")
        geometry = self._geometry(shape, node)
        return function(self._body(decoder, residual), pointers, {**geometry, **_stage(node)}, helpers)

    def _body(self, decoder: Decoder, residual: bool) -> str:
        result = _RESIDUAL if residual else "code"
        if self.depthwise:
            return decoder.fill(_DEPTHWISE, result=result)
        linear = self.op == "linear"
        at = "o" if linear else "(oy * out_width + ox) * out_channels + o"
        store = indent(fill(_STORE, at=at, result=result), 8 if linear else 20)
        return decoder.fill(fill(_LINEAR if linear else _CONV, store=store))

    def _geometry(self, s: Shape, node: Node) -> dict[str, int]:
        row_bytes = self.format.row_bytes(s.row)
        if self.op == "linear":
            return {"inputs": s.channels, "outputs": s.out_channels, "row_bytes": row_bytes}
        own = {"in_zero": node.attrs["in_zero"]} if self.depthwise else {"channels": s.channels, "depth": s.per_group}
        return {
            "height": s.height, "width": s.width, **own, "out_height": s.out_height, "out_width": s.out_width,
            "out_channels": s.out_channels, "groups": s.groups, "group_outputs": s.out_channels // s.groups,
            "row_bytes": row_bytes, "kernel_y": s.kernel[0], "kernel_x": s.kernel[1], "stride_y": s.stride[0],
            "stride_x": s.stride[1], "pad_y": s.pads[0], "pad_x": s.pads[1], "dilation_y": s.dilation[0],
            "dilation_x": s.dilation[1],
        }  # fmt: skip


def _stage(node: Node) -> dict[str, int]:
    """Scalars of the output stage; the accumulator is proven to fit after the shift, so `lift` may multiply it."""
    a = node.attrs
    stage = {"lift": 1 << a["shift"], "out_zero": a["out_zero"], "low": a["low"], "high": a["high"]}
    if has_residual(node):
        stage |= {f"add_{k}": a[f"add_{k}"] for k in ("a", "b", "const", "shift", "low", "high")}
    return stage


def _register(row: PortableRow) -> None:
    name = f"{row.op}_s8_{row.format.short}_{'1x1' if row.depthwise else '1x2'}__c99"
    KERNELS.add(
        name,
        Kernel(name, row.op, row.format.short, "c99", row.applies, row.cost, row.workspace, row.pack, row.emit),
    )


for _format in FORMATS.values():
    _register(PortableRow("conv2d", _format))
    _register(PortableRow("conv2d", _format, depthwise=True))
    _register(PortableRow("linear", _format))
