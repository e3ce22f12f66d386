"""Rows of plain C99 for zero-heavy weights: the portable form of the streams of sparsepack, two bytes per entry.

Two pixels at a time read every entry of a channel once; their windows are gathered as in the dense portable rows.
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
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .conv import Shape
from .ctext import CLAMP, GATHER, REQUANTISE, SHIFT, fill, function, stage_scalars
from .snippets import channel_consts
from .sparsepack import plain, smaller, sparse_consts
from .sparsetir import GAP_BITS, StreamRow

_RESIDUAL = "{symbol}_clamp({symbol}_shift((add_a * code) + (add_b * r[at]) + add_const, add_shift), add_low, add_high)"
_CODE = "{symbol}_requantise(@sum@ * lift, multiplier[o], out_zero, low, high)"
_LINEAR = """\
{
    const int8_t *from = w;
    int32_t o;

    for (o = 0; o < outputs; ++o) {
        const int8_t *tap = x;
        int32_t sum = bias[o];
        int32_t n;

        for (n = (int32_t)words[o]; n > 0; --n) {
            tap = &tap[(uint8_t)from[0]]; /* the distance to the next weight that is not zero */
            sum += *tap * from[1];
            tap = &tap[(uint8_t)from[2]];
            sum += *tap * from[3];
            from = &from[4];
        }
        {
            const int32_t at = o;
            const int32_t code = @code@;

            y[at] = (int8_t)@result@;
        }
    }
}
"""
_CONV = """\
{
    const int32_t row = kernel_y * kernel_x * channels;
    int32_t top = -pad_y;
    int32_t left = -pad_x;
    int32_t t;

    for (t = 0; t < pixels; t += 2) {
        const int32_t rest = pixels - t;
        const int32_t both = (rest < 2) ? rest : 2;
        const int32_t other = (both - 1) * row;
        const int8_t *from = w;
        int32_t o;
        int32_t p;

        for (p = 0; p < both; ++p) {
            {symbol}_gather(
                x, &window[p * row], in_zero, top, left, height, width, channels, channels, kernel_y, kernel_x,
                dilation_y, dilation_x);
            left += stride_x;
            if (left == ((out_width * stride_x) - pad_x)) {
                left = -pad_x;
                top += stride_y;
            }
        }
        for (o = 0; o < out_channels; ++o) {
            const int8_t *tap = window;
            int32_t sum[2];
            int32_t n;

            sum[0] = bias[o];
            sum[1] = sum[0];
            for (n = (int32_t)words[o]; n > 0; --n) {
                tap = &tap[(uint8_t)from[0]]; /* the distance to the next weight that is not zero */
                sum[0] += tap[0] * from[1];
                sum[1] += tap[other] * from[1];
                tap = &tap[(uint8_t)from[2]];
                sum[0] += tap[0] * from[3];
                sum[1] += tap[other] * from[3];
                from = &from[4];
            }
            for (p = 0; p < both; ++p) {
                const int32_t at = ((t + p) * out_channels) + o;
                const int32_t code = @code@;

                y[at] = (int8_t)@result@;
            }
        }
    }
}
"""


@dataclass(frozen=True, slots=True)
class PlainRow:
    """One row: two pixels (one of a linear layer) x 1 channel."""

    op: str
    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, and a stream smaller than the packed weights."""
        return plain(node, self.format) and smaller(node, GAP_BITS)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """An upper estimate, as those of the other portable rows are: above that of the generic sparse row."""
        rows = StreamRow(self.op, self.format, 1 if self.op == "linear" else 4)
        return 1.7 * rows.cost(graph, node, target)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The windows of two pixels; a linear layer reads its input in place."""
        return 0 if self.op == "linear" else 2 * Shape.of(graph, node).row

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Stream, words per channel, folded bias, multiplier."""
        stream = sparse_consts(node, GAP_BITS)
        weights = np.ascontiguousarray(stream["weights"]).view(np.int8)
        return {"weights": weights, "counts": stream["counts"], **channel_consts(node)}

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Entries and output stage inside the loops."""
        linear, residual = self.op == "linear", has_residual(node)
        pointers = {"const int8_t *x": Arg("input"), "const int8_t *w": Arg("const", name="weights"),
                    "const uint16_t *words": Arg("const", name="counts"),
                    "const int32_t *bias": Arg("const", name="bias"),
                    "const int32_t *multiplier": Arg("const", name="multiplier")}  # fmt: skip
        if residual:
            pointers["const int8_t *r"] = Arg("input", index=1)
        pointers["int8_t *y"] = Arg("output")
        if not linear:
            pointers["int8_t *window"] = Arg("workspace")
        text = _LINEAR if linear else _CONV
        code = fill(_CODE, sum="sum" if linear else "sum[p]")
        body = fill(text, code=code, result=_RESIDUAL if residual else "code")
        helpers = [CLAMP, REQUANTISE, *([SHIFT] if residual else []), *([] if linear else [GATHER])]
        return function(body, pointers, {**self._geometry(graph, node), **stage_scalars(node)}, helpers)

    def _geometry(self, graph: LoweredGraph, node: Node) -> dict[str, int]:
        s = Shape.of(graph, node)
        if self.op == "linear":
            return {"outputs": s.out_channels}
        return {
            "height": s.height, "width": s.width, "channels": s.channels, "in_zero": node.attrs["in_zero"],
            "pixels": s.pixels, "out_width": s.out_width, "out_channels": s.out_channels, "kernel_y": s.kernel[0],
            "kernel_x": s.kernel[1], "stride_y": s.stride[0], "stride_x": s.stride[1], "pad_y": s.pads[0],
            "pad_x": s.pads[1], "dilation_y": s.dilation[0], "dilation_x": s.dilation[1],
        }  # fmt: skip


def _register(row: PlainRow) -> None:
    short = row.format.short
    name = f"{row.op}_s8_{short}_sparse{'1x1' if row.op == 'linear' else '2x1'}__c99"
    KERNELS.add(name, Kernel(name, row.op, short, "c99", row.applies, row.cost, row.workspace, row.pack, row.emit))


for _format in FORMATS.values():
    _register(PlainRow("linear", _format))
    _register(PlainRow("conv2d", _format))
