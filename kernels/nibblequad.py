"""Convolution rows for AVX2 on weights of up to 4 bits as AVX512-VNNI reads them, two in a byte.

16 bytes are eight weights of each of four channels (`nibbles`). Both halves are looked up, widened, and multiplied as
in `x86quad`, or transformed, as in `x86quadwinograd`; a library of both levels is half as large.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdeploy.formats import FORMATS, WeightFormat

from . import directrows, nibbles, packed
from .product import CHUNK
from .x86quad import QuadProduct, QuadRow
from .x86quadwinograd import QuadWinogradRow
from .x86winograd import register

_OTHERS = 5  # registers: both halves of a quad, what separates them, the table, a product


class NibbleQuadProduct(nibbles.Indexed, QuadProduct):
    """Eight codes of one pixel by four channels."""

    size, shuffled = CHUNK, "x86.ssse3.pshuf.b.128"
    unrolled = 1

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Accumulators, the codes of all pixels, and one quad's weights."""
        return 2 * pixels * groups + 2 * min(2 * groups, pixels) + _OTHERS <= free

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: expand and widen weights, broadcast codes, multiply and add."""
        return codes / self.unit * (16.0 * groups + 2.0 * pixels + 8.0 * pixels * groups)


PRODUCTS = {count: NibbleQuadProduct(count) for count in (1, 2, 4, 8)}


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
        return PRODUCTS[count]


@dataclass(frozen=True, slots=True)
class NibbleQuadRow(Packed, QuadRow):
    """The direct row of one weight format."""


@dataclass(frozen=True, slots=True)
class NibbleQuadWinogradRow(Packed, QuadWinogradRow):
    """The Winograd row of one weight format."""


_NOTES = "weights of 4 bits as AVX512-VNNI reads them, expanded in registers"
for _format in FORMATS.values():
    if _format.bits <= nibbles.BITS:
        _theirs = f"conv2d_s8_{_format.short}_packed__vnni"
        _row = NibbleQuadRow("conv2d", PRODUCTS[1], _format)
        directrows.register([directrows.kernel_of(_row, "packed", nibbles.BITS, _NOTES, _theirs)])
        _tags = {"weights_of": _theirs} | directrows.growth(_format, nibbles.BITS)
        register(NibbleQuadWinogradRow(_format), "packedwinograd", f"Winograd, {_NOTES}", _tags)
