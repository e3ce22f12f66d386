"""Weights of up to 4 bits, two in a byte as they lie in memory, expanded to int8 in registers while they multiply.

The lower half of a byte is an index into a table of 16 int8 values, the upper half that of the same channel four codes
further on. `and` and a shift separate the halves of a whole vector, and a byte shuffle (`pshufb`) looks both up: each
then is what int8 weights would have been in memory, in the order in which codes are broadcast, so nothing else moves.
Uniform weights and codebooks differ in the table only; where sums have bits to spare, uniform weights need no table:
as the upper half of a byte they count 16 times. Half the bytes are read, for a few instructions more, which all pixels
of a tile share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8
from xdeploy.lir.graph import Node

from .product import CHUNK, Bind, Codes
from .snippets import Source
from .vectors import as_type, ramp, shuffle
from .x86 import BroadcastProduct, PairProduct, acc, intrinsic
from .x86vnni import OFFSET, ByteProduct

BITS = 4
_TABLE = 1 << BITS
_EIGHT = _TABLE // 2
QUAD = 4  # codes of one channel that meet a broadcast word
# What an instruction costs beside the direct rows': any, and one that waits for two ports. Fitted to what
# benchmarks/lowbit.py measures of convolutions whose weights are near.
_LOADS, _PORTS = 1.1, 1.65
_EXPANDING = 4  # registers: both halves, what separates them, the table
_UNIFORM = np.array([*range(_EIGHT), *range(-_EIGHT, 0)], np.int8)  # two's complement as a table


def table_of(node: Node) -> Int8:
    """The 16 values that the node's codes stand for; places that no code has are 0."""
    if node.format is None or not node.format.codebook:
        return _UNIFORM.copy()
    table = np.zeros(_TABLE, np.int8)
    book = node.consts["codebook"]
    table[: len(book)] = book
    return table


def zero_of(node: Node) -> int:
    """An index of the value 0, or 0 where a full codebook does not have it."""
    return int(np.argmax(table_of(node) == 0))


class Indexed(BroadcastProduct):
    """Weights that are looked up, two in a byte; `E` holds the table."""

    chunk = unit = 2 * QUAD
    fields = 2
    unrolled = 2
    exact = (0,)
    size: int  # bytes of weights that are expanded at a time
    shuffled: str  # the byte shuffle's name in LLVM

    def takes(self, node: Node) -> bool:
        """Whether the node's sums are exact."""
        return True

    def weights(self, node: Node) -> Int8:
        """The indices."""
        return node.consts["codes"] & (_TABLE - 1)

    def blank(self, node: Node) -> int:
        """An index of 0."""
        return zero_of(node)

    def constants(self, node: Node) -> Mapping[str, NDArray[Any]]:
        """The table."""
        return {"table": table_of(node)}

    def declare(self, source: Source, node: Node) -> None:
        """The table in every 128 bits of a vector."""
        source.const("E", "table", "int8")
        lanes = _TABLE
        source(f"table{lanes} = E[{ramp('0', lanes)}]")
        while lanes < self.size:
            half, lanes = f"table{lanes}", 2 * lanes
            source(f"table{lanes} = {shuffle([half, half], range(lanes))}")

    def pack(self, codes: Int8) -> Int8:
        """(units) x (channels of a unit's first four codes, with the other four above them)."""
        blocks, channels, row = codes.shape
        cut = codes.view(np.uint8).reshape(blocks, channels, row // self.unit, 2, QUAD).transpose(3, 0, 2, 1, 4)
        return np.ascontiguousarray(cut[0] | cut[1] << BITS).view(np.int8).reshape(blocks, -1)

    def expanded(self, bind: Bind, at: str) -> list[str]:
        """int8 weights of both halves of the vector there."""
        packed = bind(as_type(f"uint8x{self.size}", f"W[{ramp(at, self.size)}]"))
        return [bind(half) for half in self.halves(packed)]

    def halves(self, packed: str) -> tuple[str, str]:
        """The lower and the upper half's weights."""
        indices = self.every("T.bitwise_and", packed, _TABLE - 1), self.every("T.shift_right", packed, BITS)
        low, high = (intrinsic(f"int8x{self.size}", self.shuffled, f"table{self.size}", half) for half in indices)
        return low, high

    def every(self, operation: str, value: str, other: int) -> str:
        """An operation of all bytes and a number, as int8."""
        return as_type(f"int8x{self.size}", f"{operation}({value}, T.broadcast(T.uint8({other}), {self.size}))")


class NibbleProduct(Indexed):
    """Eight codes of a pixel by the channels of a vector."""

    most_groups: int

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Powers of two, with room for the codes of all pixels or the weights of all groups, and for expanding."""
        used = pixels * groups + 2 * min(pixels, groups) + _EXPANDING
        return groups in (1, 2, 4, 8) and groups <= self.most_groups and used <= free

    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Weights are expanded once for all pixels; what is less of codes and weights stays in registers."""

        def weights(group: int) -> list[str]:
            return self.expanded(bind, f"{w} + {group * self.size}")

        def add(pixel: int, group: int, values: Sequence[str], weight: Sequence[str]) -> None:
            total = acc(pixel * groups + group, self.lanes)
            s(f"{total} = {self.added(bind, total, values, weight)}")

        if pixels < groups:
            tile = [self.factors(bind, x, pixel) for pixel in range(pixels)]
            for group in range(groups):
                weight = weights(group)
                for pixel, values in enumerate(tile):
                    add(pixel, group, values, weight)
            return
        block = [weights(group) for group in range(groups)]
        for pixel in range(pixels):
            values = self.factors(bind, x, pixel)
            for group, weight in enumerate(block):
                add(pixel, group, values, weight)

    def factors(self, bind: Bind, x: Codes, pixel: int) -> list[str]:
        """A pixel's codes, broadcast, for either half."""
        words = [as_type("int32", x(pixel, at, QUAD)) for at in (0, QUAD)]
        return [bind(as_type(f"{self.dtype}x{self.size}", f"T.broadcast({word}, {self.lanes})")) for word in words]

    @abstractmethod
    def added(self, bind: Bind, total: str, values: Sequence[str], weights: Sequence[str]) -> str:
        """`total` plus the products of both halves."""


class NibbleByteProduct(NibbleProduct, ByteProduct):
    """AVX512-VNNI: `vpdpbusd` of each half."""

    most_groups, shuffled = 8, "x86.avx512.pshuf.b.512"
    size = 4 * CHUNK
    expanding = 5.0  # instructions for a vector of weights: separate, look up

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: load and expand weights; broadcast codes, multiply and add twice.

        All but loads wait for two ports. With one pixel they wait for each other anyway.
        """
        busy = self.expanding * groups + 2.0 * pixels * groups
        every = busy + groups + 2.0 * pixels
        return codes / self.unit * (every if pixels == 1 else max(every * _LOADS, busy * _PORTS))

    def added(self, bind: Bind, total: str, values: Sequence[str], weights: Sequence[str]) -> str:
        """One after the other."""
        for value, weight in zip(values, weights, strict=True):
            total = intrinsic("int32x16", "x86.avx512.vpdpbusd.512", total, value, weight)
        return total


class ShiftedByteProduct(NibbleByteProduct):
    """AVX512-VNNI, uniform weights: each half, shifted up, is 16 times the weight; so are sums, until the end."""

    expanding = 3.0
    late = True

    def takes(self, node: Node) -> bool:
        """Whether 16 times the sum of unsigned codes by weights stays within int32."""
        row = int(node.consts["codes"][0].size)
        return row * _TABLE * _EIGHT * (2 * OFFSET - 1) < 1 << 31

    def blank(self, node: Node) -> int:
        """A weight of 0."""
        return 0

    def constants(self, node: Node) -> Mapping[str, NDArray[Any]]:
        """None."""
        return {}

    def declare(self, source: Source, node: Node) -> None:
        """Nothing."""

    def sum_cost(self) -> float:
        """Shift, and add the bias."""
        return 2.0

    def sum(self, pixel: int, group: int, groups: int) -> str:
        """A 16th."""
        total = acc(pixel * groups + group, self.lanes)
        return f"T.shift_right({total}, T.broadcast({BITS}, {self.lanes}))"

    def halves(self, packed: str) -> tuple[str, str]:
        """The lower half where the upper one is, and that without the lower one."""
        return self.every("T.shift_left", packed, BITS), self.every("T.bitwise_and", packed, _TABLE - 1 << BITS)


class NibblePairProduct(NibbleProduct, PairProduct):
    """AVX2, of one pixel: `vpmaddubsw` of a code's magnitude and the weight with its sign, then sums of pairs.

    Two products of at most 128 * 127 fit into int16; so do four where weights are `small`.
    """

    dtype = "int8"
    size, most_pixels, most_groups, shuffled = 2 * CHUNK, 1, 4, "x86.avx2.pshuf.b"
    small = False

    def takes(self, node: Node) -> bool:
        """Whether no entry is -128."""
        return int(table_of(node).min()) > -OFFSET

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: broadcast them, magnitudes; load, separate, look up, sign, multiply, add."""
        return codes / self.unit * (4.0 + (13.0 if self.small else 14.0) * groups)

    def declare(self, source: Source, node: Node) -> None:
        """Also ones, which add pairs."""
        super().declare(source, node)
        source("ones = T.broadcast(T.int16(1), 16)")

    def factors(self, bind: Bind, x: Codes, pixel: int) -> list[str]:
        """Codes, then their magnitudes, 128 as the byte that it is."""
        values = super().factors(bind, x, pixel)
        return values + [bind(f"T.max({v}, T.broadcast(T.int8(0), {self.size}) - {v})") for v in values]

    def added(self, bind: Bind, total: str, values: Sequence[str], weights: Sequence[str]) -> str:
        """Sums of two products, or of four, then of twice as many."""
        sums = []
        for value, magnitude, weight in zip(values[:2], values[2:], weights, strict=True):
            signed = intrinsic("int8x32", "x86.avx2.psign.b", weight, value)
            sums.append(bind(intrinsic("int16x16", "x86.avx2.pmadd.ub.sw", magnitude, signed)))
        sums = [" + ".join(sums)] if self.small else sums
        return " + ".join([total, *(intrinsic("int32x8", "x86.avx2.pmadd.wd", v, "ones") for v in sums)])


class SmallNibblePairProduct(NibblePairProduct):
    """The same for uniform weights, none of which is beyond -8 or 7."""

    small = True
