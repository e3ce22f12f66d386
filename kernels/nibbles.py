"""Weights of up to 4 bits, two or four in a byte as they lie in memory, expanded to int8 in registers.

The lower half of a byte is an index into a table of 16 int8 values, the upper half that of the same channel four codes
further on. `and` and a shift separate the halves of a whole vector, and a byte shuffle (`pshufb`) looks both up: each
then is what int8 weights would have been in memory, in the order in which codes are broadcast, so nothing else moves.
A half that holds two weights of 2 bits is looked up twice: one table has the value of its lower bits at every place,
the other that of its upper ones. Uniform weights and codebooks differ in the tables only; where sums have bits to
spare, uniform weights of 4 bits need none: as the upper half of a byte they count 16 times. A half or a quarter of the
bytes is read, for a few instructions more, which all pixels of a tile share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8, WeightFormat
from xdeploy.lir.graph import Node

from .product import CHUNK, Bind, Codes
from .snippets import Source
from .vectors import as_type, ramp, shuffle
from .x86 import BroadcastProduct, PairProduct, acc, intrinsic
from .x86vnni import OFFSET, ByteProduct

HALF = 4  # bits
_TABLE = 1 << HALF
QUAD = 4  # codes of one channel that meet a broadcast word
# What an instruction costs beside the direct rows': any, and one that waits for two ports. Fitted to what
# benchmarks/lowbit.py measures of convolutions whose weights are near.
_LOADS, _PORTS = 1.1, 1.65
_EXPANDING = 3  # registers beside tables: both halves, what separates them


def stored(fmt: WeightFormat) -> int:
    """Bits that a weight of a format of up to 4 takes: 2 or 4."""
    return 2 if fmt.bits <= 2 else HALF


def values_of(node: Node, bits: int = HALF) -> Int8:
    """What each index of so many bits stands for; 0 where no code has it."""
    most = 1 << bits
    if node.format is None or not node.format.codebook:
        return np.array([*range(most // 2), *range(-most // 2, 0)], np.int8)  # two's complement
    values = np.zeros(most, np.int8)
    book = node.consts["codebook"]
    values[: len(book)] = book
    return values


def zero_of(node: Node, bits: int = HALF) -> int:
    """An index of the value 0, or 0 where a full codebook does not have it."""
    return int(np.argmax(values_of(node, bits) == 0))


class Indexed(BroadcastProduct):
    """Weights that are looked up; `E` holds the tables.

    Args:
        bits: of a weight in memory, 4 or 2.
    """

    unrolled = 2
    exact = (0,)
    size: int  # bytes of weights that are expanded at a time
    shuffled: str  # the byte shuffle's name in LLVM

    def __init__(self, bits: int = HALF) -> None:
        self.bits = bits
        self.tables = HALF // bits
        self.fields = 2 * self.tables
        self.rounds = self.tables  # in which two vectors of weights are expanded
        self.chunk = self.unit = self.fields * QUAD

    def takes(self, node: Node) -> bool:
        """Whether the node's sums are exact."""
        return True

    def weights(self, node: Node) -> Int8:
        """The indices."""
        return node.consts["codes"] & ((1 << self.bits) - 1)

    def blank(self, node: Node) -> int:
        """An index of 0."""
        return zero_of(node, self.bits)

    def constants(self, node: Node) -> Mapping[str, NDArray[Any]]:
        """The tables, one behind the other."""
        places, values = np.arange(_TABLE), values_of(node, self.bits)
        return {"table": np.concatenate([values[places >> shift & len(values) - 1] for shift in self.shifts])}

    @property
    def shifts(self) -> range:
        """The lowest bit of each weight in half a byte."""
        return range(0, HALF, self.bits)

    def declare(self, source: Source, node: Node) -> None:
        """The tables in every 128 bits of a vector."""
        source.const("E", "table", "int8")
        for k in range(self.tables):
            lanes = _TABLE
            source(f"table{k}x{lanes} = E[{ramp(str(k * _TABLE), lanes)}]")
            while lanes < self.size:
                half, lanes = f"table{k}x{lanes}", 2 * lanes
                source(f"table{k}x{lanes} = {shuffle([half, half], range(lanes))}")

    def pack(self, codes: Int8) -> Int8:
        """(units) x (channels of a unit's first four codes, with the others above them)."""
        blocks, channels, row = codes.shape
        shape = (blocks, channels, row // self.unit, self.fields, QUAD)
        cut = codes.view(np.uint8).reshape(shape).transpose(3, 0, 2, 1, 4)
        packed = sum((part << self.bits * k for k, part in enumerate(cut)), np.zeros_like(cut[0]))
        return np.ascontiguousarray(packed).view(np.int8).reshape(blocks, -1)

    def expanded(self, bind: Bind, at: str, turn: int) -> list[str]:
        """int8 weights of the vector there, of two quads of codes."""
        packed = bind(as_type(f"uint8x{self.size}", f"W[{ramp(at, self.size)}]"))
        return [bind(part) for part in self.parts(packed, turn)]

    def parts(self, packed: str, turn: int) -> tuple[str, str]:
        """The weights of both halves; with two tables those of one half."""
        low, high = self.every("T.bitwise_and", packed, _TABLE - 1), self.every("T.shift_right", packed, HALF)
        if self.tables == 1:
            return self.found(low, 0), self.found(high, 0)
        half = high if turn else low
        return self.found(half, 0), self.found(half, 1)

    def found(self, indices: str, table: int) -> str:
        """What a table has."""
        return intrinsic(f"int8x{self.size}", self.shuffled, f"table{table}x{self.size}", indices)

    def every(self, operation: str, value: str, other: int) -> str:
        """An operation of all bytes and a number, as int8."""
        return as_type(f"int8x{self.size}", f"{operation}({value}, T.broadcast(T.uint8({other}), {self.size}))")


class NibbleProduct(Indexed):
    """Eight codes of a pixel at a time by the channels of a vector."""

    most_groups: int

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """Powers of two, with room for the codes of all pixels or the weights of all groups, and for expanding."""
        used = pixels * groups + 2 * min(pixels, groups) + _EXPANDING + self.tables
        return groups in (1, 2, 4, 8) and groups <= self.most_groups and used <= free

    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Weights are expanded once for all pixels; what is less of codes and weights stays in registers."""
        for turn in range(self.rounds):
            self._turn(s, bind, pixels, groups, x, w, turn)

    def _turn(self, s: Source, bind: Bind, pixels: int, groups: int, x: Codes, w: str, turn: int) -> None:
        """Two quads of codes."""

        def weights(group: int) -> list[str]:
            return self.expanded(bind, f"{w} + {group * self.size}", turn)

        def add(pixel: int, group: int, values: Sequence[str], weight: Sequence[str]) -> None:
            total = acc(pixel * groups + group, self.lanes)
            s(f"{total} = {self.added(bind, total, values, weight)}")

        if pixels < groups:
            tile = [self.factors(bind, x, pixel, turn) for pixel in range(pixels)]
            for group in range(groups):
                weight = weights(group)
                for pixel, values in enumerate(tile):
                    add(pixel, group, values, weight)
            return
        block = [weights(group) for group in range(groups)]
        for pixel in range(pixels):
            values = self.factors(bind, x, pixel, turn)
            for group, weight in enumerate(block):
                add(pixel, group, values, weight)

    def factors(self, bind: Bind, x: Codes, pixel: int, turn: int) -> list[str]:
        """Two quads of a pixel's codes, broadcast."""
        words = [as_type("int32", x(pixel, (2 * turn + second) * QUAD, QUAD)) for second in (0, 1)]
        return [bind(as_type(f"{self.dtype}x{self.size}", f"T.broadcast({word}, {self.lanes})")) for word in words]

    @abstractmethod
    def added(self, bind: Bind, total: str, values: Sequence[str], weights: Sequence[str]) -> str:
        """`total` plus the products of both quads."""


class NibbleByteProduct(NibbleProduct, ByteProduct):
    """AVX512-VNNI: `vpdpbusd` of each quad."""

    most_groups, shuffled = 8, "x86.avx512.pshuf.b.512"
    size = 4 * CHUNK

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: load and expand weights; broadcast codes, multiply and add twice.

        All but loads wait for two ports. With one pixel they wait for each other anyway.
        """
        busy = self.expanding * groups + 2.0 * pixels * groups
        every = busy + groups / self.rounds + 2.0 * pixels
        return codes / (2 * QUAD) * (every if pixels == 1 else max(every * _LOADS, busy * _PORTS))

    @property
    def expanding(self) -> float:
        """Instructions for two vectors of weights: separate, look up."""
        return 5.0 if self.tables == 1 else 3.5

    def added(self, bind: Bind, total: str, values: Sequence[str], weights: Sequence[str]) -> str:
        """One after the other."""
        for value, weight in zip(values, weights, strict=True):
            total = intrinsic("int32x16", "x86.avx512.vpdpbusd.512", total, value, weight)
        return total


class ShiftedByteProduct(NibbleByteProduct):
    """AVX512-VNNI, uniform weights of 4 bits: a half shifted up is 16 times the weight; so are sums, until the end."""

    late = True

    @property
    def expanding(self) -> float:
        """Instructions for two vectors of weights: separate."""
        return 3.0

    def takes(self, node: Node) -> bool:
        """Whether 16 times the sum of unsigned codes by weights stays within int32."""
        row = int(node.consts["codes"][0].size)
        return row * _TABLE * (_TABLE // 2) * (2 * OFFSET - 1) < 1 << 31

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
        return f"T.shift_right({total}, T.broadcast({HALF}, {self.lanes}))"

    def parts(self, packed: str, turn: int) -> tuple[str, str]:
        """The lower half where the upper one is, and that without the lower one."""
        return self.every("T.shift_left", packed, HALF), self.every("T.bitwise_and", packed, _TABLE - 1 << HALF)


class NibblePairProduct(NibbleProduct, PairProduct):
    """AVX2, of one pixel: `vpmaddubsw` of a code's magnitude and the weight with its sign, then sums of pairs.

    Two products of at most 128 * 127 fit into int16; so do four where weights are `small`.
    """

    dtype = "int8"
    size, most_pixels, most_groups, shuffled = 2 * CHUNK, 1, 4, "x86.avx2.pshuf.b"
    small = False

    def takes(self, node: Node) -> bool:
        """Whether no entry is -128."""
        return int(values_of(node).min()) > -OFFSET

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: broadcast them, magnitudes; load, separate, look up, sign, multiply, add."""
        each = (13.0 if self.small else 14.0) - 1.5 * (self.tables - 1)
        return codes / (2 * QUAD) * (4.0 + each * groups)

    def declare(self, source: Source, node: Node) -> None:
        """Also ones, which add pairs."""
        super().declare(source, node)
        source("ones = T.broadcast(T.int16(1), 16)")

    def factors(self, bind: Bind, x: Codes, pixel: int, turn: int) -> list[str]:
        """Codes, then their magnitudes, 128 as the byte that it is."""
        values = super().factors(bind, x, pixel, turn)
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
