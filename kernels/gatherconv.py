"""Convolution rows for AArch64 whose windows are gathered, where the runs of a window are short.

Vectors would mostly multiply padding there, as with few input channels. Some rows of the output at a time, the windows
are copied side by side into the workspace, from the padded image; `directconv` then sees a pointwise convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from . import a64
from .conv import Shape
from .directconv import DirectRow, Writer
from .imagecopy import SLACK, copy_cost, copy_image, image_codes, row_codes
from .product import CHUNK
from .tiling import Runs
from .vectors import ramp

_MOST = 1 << 14  # bytes of windows at a time, unless one row has more
_SHORT = 48  # codes of a run: longer ones are read where they lie


@dataclass(frozen=True, slots=True)
class GatherRow(DirectRow):
    """One row: a feature level, a weight format."""

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """As the direct rows, with windows of several short runs."""
        if node.op != "conv2d" or not DirectRow.applies(self, graph, node, target):
            return False
        runs = Runs.of(Shape.of(graph, node), True)
        return runs.count > 1 and runs.codes <= _SHORT

    def copied(self, shape: Shape) -> bool:
        """Always: windows are read where they may be read beyond."""
        return True

    def step(self, shape: Shape) -> int:
        """Codes from a window to the next."""
        return self.product.rounded(shape.row)

    def rows(self, shape: Shape) -> int:
        """Rows of the output at a time: the most that divide all."""
        fitting = [n for n in range(1, shape.out_height + 1)
                   if shape.out_height % n == 0 and n * shape.out_width * self.step(shape) <= _MOST]  # fmt: skip
        return max(fitting, default=1)

    def seen(self, shape: Shape) -> Shape:
        """A pointwise convolution of the windows of some rows."""
        width, codes = self.rows(shape) * shape.out_width, self.step(shape)
        return Shape(1, width, codes, 1, width, shape.out_channels, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions of the tilings, gathering, and copying."""
        shape = Shape.of(graph, node)
        runs, strips = Runs.of(shape, True), shape.out_height // self.rows(shape)
        gather = shape.pixels * (6.0 + runs.count * (1.0 + 2.0 * len(_moves(runs.codes))))
        return strips * self.tiling(shape, node).cost + gather + copy_cost(shape) + 60

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """The padded image, and the windows of some rows."""
        shape = Shape.of(graph, node)
        return windows_at(shape) + self.rows(shape) * shape.out_width * self.step(shape) + SLACK

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then strip by strip."""
        return _Writer(self, graph, node).code()


def windows_at(shape: Shape) -> int:
    """Byte of the workspace where the windows begin."""
    return -(-image_codes(shape) // 64) * 64


def _moves(codes: int) -> list[tuple[int, int]]:
    """(offset, size) of vectors that copy a run; the last may copy more."""
    whole, rest = divmod(codes, CHUNK)
    moves = [(i * CHUNK, CHUNK) for i in range(whole)]
    return moves + ([(whole * CHUNK, next(n for n in (4, 8, CHUNK) if n >= rest))] if rest else [])


class _Writer(Writer):
    """Writes one function of a GatherRow."""

    def __init__(self, row: GatherRow, graph: LoweredGraph, node: Node) -> None:
        super().__init__(row, graph, node)
        self.given = Shape.of(graph, node)
        self.rows = row.rows(self.given)

    def code(self) -> Code:
        """The whole function."""
        s, given = self.source, self.given
        copy_image(s, given)
        with s.block(f"for y in range({s.turns(given.out_height // self.rows)}):"):
            with s.block(f"for row in range({s.turns(self.rows)}):"), s.block(
                f"for column in range({s.turns(given.out_width)}):"
            ):  # fmt: skip
                self._gather()
            self.blocks()
        return s.code()

    def block(self, o: str, groups: int, tiles: tuple[tuple[int, int], ...], channels: int) -> None:
        """The pixels of one strip."""
        self.row(o, groups, tiles, channels, self.shape.out_width)

    def base(self, column: str) -> str:
        """Where a window begins."""
        return f"{windows_at(self.given)} + {column} * {self.shape.channels}"

    def _gather(self) -> None:
        """Copy the runs of one window, one behind the other; what a run copies too much is written later."""
        s, given, runs = self.source, self.given, Runs.of(self.given, True)
        row = given.stride[0] * row_codes(given, True)
        source = s.let(f"(y * {self.rows} + row) * {row} + column * {given.stride[1] * given.channels}")
        to = s.let(f"{windows_at(given)} + (row * {given.out_width} + column) * {self.shape.channels}")
        for r in range(runs.count):
            at = r // runs.columns * runs.row_step + r % runs.columns * runs.column_step
            for offset, size in _moves(runs.codes):
                index = [ramp(f"{start} + {k + offset}", size) for start, k in ((to, r * runs.codes), (source, at))]
                s(f"P[{index[0]}] = P[{index[1]}]")


for _product in a64.PRODUCTS:
    # Armv8.0 has rows that look 4-bit weights up while they multiply
    for _format in FORMATS.values() if _product.isa != "neon" else (FORMATS["int8"],):
        _row = GatherRow("conv2d", _product, _format)
        _name = f"conv2d_s8_{_format.short}_gathered__{_product.isa}"
        _tags = {} if _format.bits == 8 else {"extra_flash": f"8/{_format.bits}"}
        KERNELS.add(
            _name,
            Kernel(
                _name, "conv2d", _format.short, _product.isa, _row.applies, _row.cost, _row.workspace, _row.pack,
                _row.emit, in_place=_row.in_place, notes="" if _format.bits == 8 else "weights expanded to int8",
                tags=_tags,
            ),
        )  # fmt: skip
