"""Convolution and linear rows for x86-64 whose weights of 4 or 2 bits stay so, expanded as they multiply.

They are the direct rows with another product (`nibbles`): the same tiles, output stages and orders of channels. With
AVX2 convolutions read what AVX512-VNNI packs, as in `x86quad`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdeploy.formats import FORMATS, WeightFormat
from xdeploy.kernel import Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from . import directconv, directrows, nibbles
from .conv import Shape
from .product import CHUNK
from .tiling import Runs
from .vectors import ramp


def product_of(isa: str, fmt: WeightFormat) -> nibbles.NibbleProduct:
    """What multiplies weights of a format at a feature level."""
    bits = nibbles.stored(fmt)
    if isa == "x86":
        return nibbles.NibblePairProduct(bits) if fmt.codebook else nibbles.SmallNibblePairProduct(bits)
    return nibbles.NibbleByteProduct(bits) if fmt.codebook or bits < nibbles.HALF else nibbles.ShiftedByteProduct()


def told(fmt: WeightFormat) -> str:
    """What such rows say in the support matrix."""
    return f"weights of {nibbles.stored(fmt)} bits, expanded in registers"


@dataclass(frozen=True, slots=True)
class PackedRow(directconv.DirectRow):
    """One row: an operation, a feature level, a weight format."""

    product: nibbles.NibbleProduct

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, no groups, exact sums; with a residual whole groups of channels; a 0 where windows need one."""
        fits = directconv.DirectRow.applies(self, graph, node, target) and self.product.takes(node)
        return fits and (node.op == "linear" or self._padded(graph, node))

    def _padded(self, graph: LoweredGraph, node: Node) -> bool:
        """Whether what follows the runs of a window meets weights of 0, or nothing."""
        whole = Runs.of(Shape.of(graph, node), True).codes % self.product.unit == 0
        return whole or int(nibbles.values_of(node, self.product.bits)[self.product.blank(node)]) == 0

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels."""
        return _Writer(self, graph, node).code()


class _Writer(directconv.Writer):
    """Writes one function of a PackedRow."""

    def copy(self) -> None:
        """Copy the input; of a linear layer zeros behind it, so that it does not matter which weight they meet."""
        directconv.Writer.copy(self)
        if self.shape.pixels == 1 and self.shape.pointwise:
            zeros = f'T.broadcast(T.cast(0, "{self.product.dtype}"), {CHUNK})'
            self.source(f"P[{ramp(str(self.shape.channels), CHUNK)}] = {zeros}")


def _rows() -> Iterator[Kernel]:
    for fmt in FORMATS.values():
        if fmt.bits > nibbles.HALF:
            continue
        for op, isa in (("conv2d", "vnni"), ("linear", "vnni"), ("linear", "x86")):
            row = PackedRow(op, product_of(isa, fmt), fmt)
            yield directrows.kernel_of(row, "packed", nibbles.stored(fmt), told(fmt))


directrows.register(_rows())
