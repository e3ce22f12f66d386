"""Generic convolution and linear rows: any stride, padding, dilation and groups, every weight format, every target.

A tile is P output pixels of the linearised output by C output channels. The P windows are gathered into the workspace
as contiguous rows of K = kh*kw*I/groups codes (padding = in_zero); a 1x1 convolution of stride 1 and a linear layer
read their input as it lies. Then every channel's packed weight row is decoded once per tile inside the MAC loop and
multiplied with all P rows.
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

from .snippets import OutputStage, Source, weight_consts
from .weights import RowLayout


@dataclass(frozen=True, slots=True)
class Shape:
    """Geometry of a conv2d or linear node; a linear layer is a 1x1 convolution of one pixel."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def pixels(self) -> int:
        """Output pixels."""
        return self.out_height * self.out_width

    @property
    def per_group(self) -> int:
        """Input channels a window reads."""
        return self.channels // self.groups

    @property
    def row(self) -> int:
        """K: codes of one window and of one weight row."""
        return self.kernel[0] * self.kernel[1] * self.per_group

    @property
    def pointwise(self) -> bool:
        """Whether a window is a pixel of the input as it lies in memory."""
        plain = self.kernel == (1, 1) and self.stride == (1, 1) and self.pads == (0, 0, 0, 0)
        return plain and self.groups == 1

    @property
    def shrinking(self) -> bool:
        """Whether outputs, written tile by tile, never reach input pixels of later tiles: pointwise, no wider."""
        return self.pointwise and self.out_channels <= self.channels

    @staticmethod
    def of(graph: LoweredGraph, node: Node) -> Shape:
        """Read the geometry from the node's tensors and attributes."""
        given, out = graph.tensors[node.inputs[0]].shape, graph.tensors[node.output].shape
        if node.op == "linear":
            return Shape(1, 1, given[0], 1, 1, out[0], (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
        (h, w, c), (oh, ow, oc), a = given, out, node.attrs
        kh, kw = node.consts["codes"].shape[1:3]
        return Shape(h, w, c, oh, ow, oc, (kh, kw), a["stride"], a["pads"], a["dilation"], a["groups"])


def is_depthwise(graph: LoweredGraph, node: Node) -> bool:
    """Whether each output channel reads exactly the input channel of its number."""
    return node.op == "conv2d" and node.attrs["groups"] == graph.tensors[node.inputs[0]].shape[-1] == len(
        node.consts["codes"]
    )


def strain(target: Target) -> float:
    """How many times more instructions compiled rows take: Armv6-M has eight registers and no long multiplication."""
    return 2.3 if "armv6m" in target.features else 1.0


@dataclass(frozen=True, slots=True)
class DotRow:
    """One generic row: `format`, and P pixels x C channels per tile."""

    op: str
    format: WeightFormat
    pixels: int
    channels: int

    def layout(self, shape: Shape) -> RowLayout:
        """How this row's weights are packed."""
        return RowLayout(self.format, shape.row)

    def direct(self, shape: Shape) -> bool:
        """Whether windows are read in place: pointwise, and no segment reads beyond its row."""
        return shape.pointwise and self.layout(shape).padded == shape.row

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """Any node of this op and format."""
        return node.format == self.format

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Loads, decode and multiply-accumulates, plus gathering and the output stage."""
        shape = Shape.of(graph, node)
        tile = self.pixels * self.channels
        decode = {8: 0.0, 4: 1.5, 2: 1.5, 1: 1.5}.get(self.format.bits, 3.0) + (2.0 if self.format.codebook else 0.0)
        per_mac = 1.0 + (self.pixels + self.channels * (1.0 + decode)) / tile
        taps = shape.kernel[0] * shape.kernel[1]
        gather = 0.0 if self.direct(shape) else (3.0 * shape.row + 12.0 * taps) * shape.pixels * shape.groups
        return strain(target) * (per_mac * macs(graph, node) + gather + 20.0 * shape.pixels * shape.out_channels)

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """P window rows."""
        shape = Shape.of(graph, node)
        return 0 if self.direct(shape) else self.pixels * self.layout(shape).padded

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Planar weight rows, folded bias, multiplier, codebook."""
        shape = Shape.of(graph, node)
        codes = node.consts["codes"].reshape(shape.out_channels, shape.row)
        return weight_consts(node, self.layout(shape).pack(codes))

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """The tile loops around gather, MAC loop and output stage."""
        return _Writer(self, graph, node).code()


class _Writer:
    """Writes one function of a DotRow."""

    def __init__(self, row: DotRow, graph: LoweredGraph, node: Node) -> None:
        self.row, self.shape = row, Shape.of(graph, node)
        self.layout, self.direct = row.layout(self.shape), row.direct(self.shape)
        self.tile = min(row.pixels, self.shape.pixels)
        self.source = s = Source()
        s.input(0, "X")
        s.const("W", "weights", self.layout.dtype)
        s.const("B", "bias", "int32")
        s.const("M", "multiplier", "int32")
        s.output("Y")
        if row.format.codebook:
            s.const("T0", "codebook", "int8")
        self.rows = "X"
        if not self.direct:
            self.rows = s.workspace("P", "int8")
            s.integer("in_zero", node.attrs["in_zero"])
            s.local("at", 2)
            for name, value in zip(("tile", "kh", "kw"), (self.tile, *self.shape.kernel), strict=True):
                s.integer(name, value)
        self.stage = OutputStage(s, node)
        s.local("acc", self.tile * row.channels)

    def code(self) -> Code:
        s, shape = self.source, self.shape
        group_out = shape.out_channels // shape.groups
        with s.block(f"for g in range({shape.groups}):") if shape.groups > 1 else s.block("if True:"):
            if not self.direct:
                s(f"at[0] = {-shape.pads[0]}", f"at[1] = {-shape.pads[1]}")
            with s.block(f"for t in range({-(-shape.pixels // self.tile)}):"):
                if not self.direct:
                    self._gather()
                whole = group_out // self.row.channels
                if whole:
                    self._channels(f"{whole}", self.row.channels, 0)
                if group_out % self.row.channels:
                    self._channels(f"{group_out % self.row.channels}", 1, whole * self.row.channels)
        return s.code()

    @property
    def group(self) -> str:
        return "g" if self.shape.groups > 1 else "0"

    def _gather(self) -> None:
        """Copy the windows of one tile to the workspace; pixels after the last one may gather anything."""
        s, shape, pad = self.source, self.shape, self.layout.padded
        with s.block("for p in range(tile):"):
            with s.block("for ky in range(kh):"), s.block("for kx in range(kw):"):
                s(f"iy: T.let[T.int32] = at[0] + ky * {shape.dilation[0]}")
                s(f"ix: T.let[T.int32] = at[1] + kx * {shape.dilation[1]}")
                to = f"p * {pad} + (ky * {shape.kernel[1]} + kx) * {shape.per_group} + c"
                at = f"(iy * {shape.width} + ix) * {shape.channels} + {self.group} * {shape.per_group} + c"
                inside = f"iy >= 0 and iy < {shape.height} and ix >= 0 and ix < {shape.width}"
                with s.block(f"if {inside}:"), s.block(f"for c in range({shape.per_group}):"):
                    s(f"P[{to}] = X[{at}]")
                with s.block("else:"), s.block(f"for c in range({shape.per_group}):"):
                    s(f'P[{to}] = T.cast(in_zero, "int8")')
            if self.layout.padded > shape.row and self.row.format.codebook:
                for k in range(shape.row, pad):
                    s(f"P[p * {pad} + {k}] = T.int8(0)")
            s(f"at[1] = at[1] + {shape.stride[1]}")
            with s.block(f"if at[1] == {shape.out_width * shape.stride[1] - shape.pads[1]}:"):
                s(f"at[1] = {-shape.pads[1]}", f"at[0] = at[0] + {shape.stride[0]}")

    def _pixel(self, p: int) -> str:
        return f"(t * {self.tile} + {p})"

    def _row_start(self, p: int) -> str:
        if not self.direct:
            return f"{p * self.layout.padded}"
        at = self._pixel(p)
        if self.shape.pixels % self.tile:  # the tile may end after the last pixel: compute that one again
            at = f"T.min({at}, {self.shape.pixels - 1})"
        return f"{at} * {self.shape.row}"

    def _channels(self, count: str, wide: int, first: int) -> None:
        """The loop over `count` blocks of `wide` output channels, from channel `first` of the group on."""
        s, tile, layout = self.source, self.tile, self.layout
        group_out = self.shape.out_channels // self.shape.groups
        with s.block(f"for ob in range({count}):"):
            s(f"o: T.let[T.int32] = {self.group} * {group_out} + {first} + ob * {wide}")
            for c in range(wide):
                for p in range(tile):
                    s(f"acc[{c * tile + p}] = B[o + {c}]")
            with s.block(f"for j in range({layout.segment}):"):
                for c in range(wide):
                    for i in range(layout.planes):
                        s(f"b{i}_{c} = W[(o + {c}) * {layout.row_bytes} + {i * layout.segment} + j]")
                for f in range(layout.fields):
                    for c in range(wide):
                        s(f"w{f}_{c} = {layout.value(f, f'_{c}', 'T0')}")
                    for p in range(tile):
                        s(f'x{f}_{p} = T.cast({self.rows}[{self._row_start(p)} + {f * layout.segment} + j], "int32")')
                        for c in range(wide):
                            s(f"acc[{c * tile + p}] = acc[{c * tile + p}] + x{f}_{p} * w{f}_{c}")
            for c in range(wide):
                s(f"m{c} = M[o + {c}]")
                for p in range(tile):
                    self._output(p, f"acc[{c * tile + p}]", f"m{c}", f"o + {c}")

    def _output(self, p: int, acc: str, multiplier: str, channel: str) -> None:
        at = f"{self._pixel(p)} * {self.shape.out_channels} + {channel}"
        if self.shape.pixels % self.tile and p >= self.shape.pixels % self.tile:
            with self.source.block(f"if {self._pixel(p)} < {self.shape.pixels}:"):
                self.stage(self.source, acc, multiplier, at)
        else:
            self.stage(self.source, acc, multiplier, at)


def _register(op: str, name: str, pixels: int, channels: int) -> None:
    row = DotRow(op, FORMATS[name], pixels, channels)
    short = row.format.short
    KERNELS.add(
        f"{op}_s8_{short}_{pixels}x{channels}__tir",
        Kernel(
            f"{op}_s8_{short}_{pixels}x{channels}__tir", op, short, "tir",
            row.applies, row.cost, row.workspace, row.pack, row.emit,
        ),
    )  # fmt: skip


for _name in FORMATS:
    _register("conv2d", _name, 4, 1)
    _register("linear", _name, 1, 4 if FORMATS[_name].bits == 8 else 2)
