"""Convolution rows for AVX2 on weights of 4 or 2 bits as AVX512-VNNI reads them, two or four in a byte.

16 bytes are eight or 16 weights of each of four channels (`nibbles`). They are looked up, widened, and multiplied as in
`x86quad`, or transformed, as in `x86quadwinograd`; a library of both levels is a half or a quarter as large.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdeploy.formats import FORMATS, WeightFormat

from . import directrows, nibbles, packed
from .product import CHUNK
from .x86quad import QuadProduct, QuadRow
from .x86quadwinograd import QuadWinogradRow
from .x86winograd import register

_OTHERS = 4  # registers beside tables: both halves of a quad, what separates them, a product


class NibbleQuadProduct(nibbles.Indexed, QuadProduct):
    """Eight codes of one pixel at a time by four channels.

    Args:
        packed: groups of 16 channels that stand together in a block.
        bits: of a weight in memory, 4 or 2.
    """

    size, shuffled = CHUNK, "x86.ssse3.pshuf.b.128"
    unrolled = 1

    def __init__(self, packed: int, bits: int) -> None:
        nibbles.Indexed.__init__(self, bits)
        self.packed = packed

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Accumulators, the codes of all pixels, and one quad's weights."""
        return 2 * pixels * groups + 2 * min(2 * groups, pixels) + _OTHERS + self.tables <= free

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: expand and widen weights, broadcast codes, multiply and add."""
        return codes / (2 * nibbles.QUAD) * (16.0 * groups + 2.0 * pixels + 8.0 * pixels * groups)


PRODUCTS = {(count, bits): NibbleQuadProduct(count, bits) for count in (1, 2, 4, 8) for bits in (2, nibbles.HALF)}


class Packed:
    """What both rows of a weight format read."""

    __slots__ = ()
    format: WeightFormat

    @property
    def theirs(self) -> packed.PackedRow:
        """The row whose weights are read."""
        return packed.PackedRow("conv2d", packed.product_of("vnni", self.format), self.format)

    def reader(self, count: int) -> QuadProduct:
        """What knows weights of which `count` groups of 16 channels stand together."""
        return PRODUCTS[count, nibbles.stored(self.format)]


@dataclass(frozen=True, slots=True)
class NibbleQuadRow(Packed, QuadRow):
    """The direct row of one weight format."""


@dataclass(frozen=True, slots=True)
class NibbleQuadWinogradRow(Packed, QuadWinogradRow):
    """The Winograd row of one weight format."""


for _format in FORMATS.values():
    if _format.bits <= nibbles.HALF:
        _theirs, _stored = f"conv2d_s8_{_format.short}_packed__vnni", nibbles.stored(_format)
        _notes = f"{packed.told(_format)}, as AVX512-VNNI reads them"
        _row = NibbleQuadRow("conv2d", PRODUCTS[1, _stored], _format)
        directrows.register([directrows.kernel_of(_row, "packed", _stored, _notes, _theirs)])
        _tags = {"weights_of": _theirs} | directrows.growth(_format, _stored)
        register(NibbleQuadWinogradRow(_format), "packedwinograd", f"Winograd, {_notes}", _tags)
