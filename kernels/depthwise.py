"""Generic depthwise convolution: one filter per channel, vectorised over channels, every weight format.

With padding, the kh input rows of one output row are first copied into the workspace with their borders filled, so the
inner loop has no conditions. Weights lie tap by tap, channels contiguous; packed formats are decoded into the workspace
once per call, which costs one decode per weight against `pixels` uses of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import macs
from xdeploy.target import Target

from .conv import Shape, is_depthwise, strain
from .snippets import OutputStage, Source, weight_consts
from .weights import RowLayout

# Up to this many taps are written out, which lets compilers vectorise over channels; more become a loop.
UNROLLED_TAPS = 25


@dataclass(frozen=True, slots=True)
class DepthwiseRow:
    """The generic depthwise row of one weight format."""

    format: WeightFormat

    def layout(self, shape: Shape) -> RowLayout:
        """Rows of one tap: a code per channel."""
        return RowLayout(self.format, shape.channels)

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Depthwise convolutions with multiplier 1 in this format."""
        return node.format == self.format and is_depthwise(graph, node)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Two loads and a multiply-accumulate per tap, and the output stage."""
        return strain(target) * (3.5 * macs(graph, node) + 25.0 * graph.tensors[node.output].size)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """Padded rows, then decoded weights."""
        shape = Shape.of(graph, node)
        taps = shape.kernel[0] * shape.kernel[1]
        return _rows_bytes(shape) + (0 if self.format.bits == 8 else taps * shape.channels)

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights (taps, C) in planar rows, folded bias, multiplier, codebook."""
        shape = Shape.of(graph, node)
        codes = node.consts["codes"].reshape(shape.channels, -1).T
        return weight_consts(node, self.layout(shape).pack(codes))

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Rows, then pixels, then channels."""
        return _Writer(self, graph, node).code()


def _padded_width(shape: Shape) -> int:
    return shape.width + shape.pads[1] + shape.pads[3]


def _rows_bytes(shape: Shape) -> int:
    return shape.kernel[0] * _padded_width(shape) * shape.channels if any(shape.pads) else 0


class _Writer:
    """Writes one function of a DepthwiseRow."""

    def __init__(self, row: DepthwiseRow, graph: LoweredGraph, node: Node) -> None:
        self.shape, self.layout = Shape.of(graph, node), row.layout(Shape.of(graph, node))
        self.copied, self.packed = any(self.shape.pads), row.format.bits != 8
        self.source = s = Source()
        s.input(0, "X")
        s.const("W", "weights", self.layout.dtype)
        s.const("B", "bias", "int32")
        s.const("M", "multiplier", "int32")
        s.output("Y")
        if row.format.codebook:
            s.const("T0", "codebook", "int8")
        if self.copied or self.packed:
            s.workspace("P", "int8")
        if self.copied:
            s.integer("in_zero", node.attrs["in_zero"])
        s.integer("kh", self.shape.kernel[0])
        s.integer("kw", self.shape.kernel[1])
        self.stage = OutputStage(s, node)
        s.local("acc", 1)

    def code(self) -> Code:
        s, shape = self.source, self.shape
        if self.packed:
            self._decode()
        with s.block(f"for oy in range({shape.out_height}):"):
            if self.copied:
                self._copy_rows()
            with s.block(f"for ox in range({shape.out_width}):"), s.block(f"for c in range({shape.channels}):"):
                self._output()
        return s.code()

    def _decode(self) -> None:
        s, c, layout = self.source, self.shape.channels, self.layout
        start = _rows_bytes(self.shape)
        with s.block("for tap in range(kh * kw):"), s.block(f"for j in range({layout.segment}):"):
            for i in range(layout.planes):
                s(f"b{i} = W[tap * {layout.row_bytes} + {i * layout.segment} + j]")
            for f in range(layout.fields):
                store = (
                    f'P[{start} + tap * {c} + {f * layout.segment} + j] = T.cast({layout.value(f, "", "T0")}, "int8")'
                )
                if (f + 1) * layout.segment > c:
                    with s.block(f"if {f * layout.segment} + j < {c}:"):
                        s(store)
                else:
                    s(store)

    def _copy_rows(self) -> None:
        s, shape, c = self.source, self.shape, self.shape.channels
        top, left, _, right = shape.pads
        wide = _padded_width(shape) * c
        with s.block("for ky in range(kh):"):
            s(f"iy: T.let[T.int32] = oy * {shape.stride[0]} + ky * {shape.dilation[0]} - {top}")
            with s.block(f"if iy >= 0 and iy < {shape.height}:"):
                for start, count in ((0, left * c), (wide - right * c, right * c)):
                    if count:
                        with s.block(f"for i in range({count}):"):
                            s(f'P[ky * {wide} + {start} + i] = T.cast(in_zero, "int8")')
                with s.block(f"for i in range({shape.width * c}):"):
                    s(f"P[ky * {wide} + {left * c} + i] = X[iy * {shape.width * c} + i]")
            with s.block("else:"), s.block(f"for i in range({wide}):"):
                s(f'P[ky * {wide} + i] = T.cast(in_zero, "int8")')

    def _tap(self, ky: str, kx: str) -> str:
        """Product of one tap: ky and kx are expressions."""
        shape, c = self.shape, self.shape.channels
        x_at = f"(ox * {shape.stride[1]} + {kx} * {shape.dilation[1]}) * {c} + c"
        if self.copied:
            value = f"P[{ky} * {_padded_width(shape) * c} + {x_at}]"
        else:
            value = f"X[(oy * {shape.stride[0]} + {ky} * {shape.dilation[0]}) * {shape.width * c} + {x_at}]"
        tap = f"({ky} * {shape.kernel[1]} + {kx}) * {c} + c"
        weight = f"P[{_rows_bytes(shape)} + {tap}]" if self.packed else f"W[{tap}]"
        return f'T.cast({value}, "int32") * T.cast({weight}, "int32")'

    def _output(self) -> None:
        s, (kh, kw) = self.source, self.shape.kernel
        if kh * kw <= UNROLLED_TAPS:
            s("a0 = B[c]")
            taps = [self._tap(str(ky), str(kx)) for ky in range(kh) for kx in range(kw)]
            for i, tap in enumerate(taps):
                s(f"a{i + 1} = a{i} + {tap}")
            acc = f"a{len(taps)}"
        else:
            s("acc[0] = B[c]")
            with s.block("for ky in range(kh):"), s.block("for kx in range(kw):"):
                s(f"acc[0] = acc[0] + {self._tap('ky', 'kx')}")
            acc = "acc[0]"
        self.stage(s, acc, "M[c]", f"(oy * {self.shape.out_width} + ox) * {self.shape.channels} + c")


for _name, _format in FORMATS.items():
    _row, _kernel = DepthwiseRow(_format), f"conv2d_s8_{_format.short}_dw1x1__tir"
    KERNELS.add(
        _kernel,
        Kernel(
            _kernel, "conv2d", _format.short, "tir", _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
            notes="depthwise",
        ),
    )  # fmt: skip
