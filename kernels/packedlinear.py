"""Linear rows for x86-64 whose weights of up to 4 bits stay two in a byte, and are expanded while they multiply.

They are the direct rows with another product (`nibbles`): the same tiles, output stages and orders of channels. Behind
the codes of a layer whose inputs are no whole units stand zeros, so that it does not matter which weight they meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xdeploy.formats import FORMATS
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from . import directconv, nibbles
from .product import CHUNK
from .vectors import ramp

_LEAST = -127  # value whose products fit AVX2's sums of two
BOOKS = (nibbles.NibblePairProduct(), nibbles.NibbleByteProduct())  # of codebooks
UNIFORM = (nibbles.SmallNibblePairProduct(), nibbles.OffsetByteProduct())


@dataclass(frozen=True, slots=True)
class PackedRow(directconv.DirectRow):
    """One row: a feature level, a weight format."""

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format; with a residual whole groups of channels; for AVX2 no codebook entry of -128."""
        if not directconv.DirectRow.applies(self, graph, node, target):
            return False
        return self.product.isa != "x86" or int(nibbles.table_of(node).min()) >= _LEAST

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """Copy, then blocks of channels."""
        return _Writer(self, graph, node).code()


class _Writer(directconv.Writer):
    """Writes one function of a PackedRow."""

    def copy(self) -> None:
        """Copy the input, and zeros behind it."""
        directconv.Writer.copy(self)
        zeros = f'T.broadcast(T.cast(0, "{self.product.dtype}"), {CHUNK})'
        self.source(f"P[{ramp(str(self.shape.channels), CHUNK)}] = {zeros}")


def _rows() -> Iterator[tuple[str, Kernel]]:
    for fmt in FORMATS.values():
        if fmt.bits > nibbles.BITS:
            continue
        for product in BOOKS if fmt.codebook else UNIFORM:
            row = PackedRow("linear", product, fmt)
            name = f"linear_s8_{fmt.short}_packed__{product.isa}"
            yield name, Kernel(
                name, "linear", fmt.short, product.isa, row.applies, row.cost, row.workspace, row.pack, row.emit,
                in_place=row.in_place, tags={} if fmt.bits == nibbles.BITS else {"extra_flash": f"4/{fmt.bits}"},
                notes="weights of 4 bits, expanded in registers",
            )  # fmt: skip


for _name, _kernel in _rows():
    KERNELS.add(_name, _kernel)
