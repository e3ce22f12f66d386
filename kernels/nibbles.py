"""Weights of up to 4 bits, two in a byte as they lie in memory, expanded to int8 in registers while they multiply.

The lower half of a byte is an index into a table of 16 int8 values, the upper half that of the same channel four codes
further on. `and` and a shift separate the halves of a whole vector, and a byte shuffle (`pshufb`) looks both up: each
then is what int8 weights would have been in memory, in the order in which codes are broadcast, so nothing else moves.
Uniform weights and codebooks differ in the table only; where unsigned bytes meet signed ones, uniform weights need no
table. Half the bytes are read, for a few instructions more.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8
from xdeploy.lir.graph import Node

from .product import Bind, Codes
from .snippets import Source
from .vectors import as_type, ramp, shuffle
from .x86 import BroadcastProduct, PairProduct, acc, intrinsic
from .x86vnni import ByteProduct

BITS = 4
_TABLE = 1 << BITS
_EIGHT = _TABLE // 2
_QUAD = 4  # codes of one channel that meet a broadcast word
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


class NibbleProduct(BroadcastProduct):
    """Eight codes of the one pixel of a linear layer by the channels of a vector; `E` holds the table."""

    chunk = unit = 2 * _QUAD
    fields = 2
    unrolled = 2
    exact = (0,)
    most_pixels = 1
    most_groups: int
    shuffled: str  # the byte shuffle's name in LLVM

    @property
    def size(self) -> int:
        """Bytes of a vector."""
        return _QUAD * self.lanes

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
        source(f"once = E[{ramp('0', _TABLE)}]")
        name, lanes = "once", _TABLE
        while lanes < self.size:
            name, lanes, half = f"table{2 * lanes}", 2 * lanes, name
            source(f"{name} = {shuffle([half, half], range(lanes))}")

    def fits(self, pixels: int, groups: int, free: int) -> bool:
        """One pixel, and powers of two that leave room for what is expanded."""
        return pixels == 1 and groups in (1, 2, 4, 8) and groups <= self.most_groups

    def pack(self, codes: Int8) -> Int8:
        """(units) x (channels of a unit's first four codes, with the other four above them)."""
        blocks, channels, row = codes.shape
        cut = codes.view(np.uint8).reshape(blocks, channels, row // self.unit, 2, _QUAD).transpose(3, 0, 2, 1, 4)
        return np.ascontiguousarray(cut[0] | cut[1] << BITS).view(np.int8).reshape(blocks, -1)

    def multiply(
        self, s: Source, bind: Bind, pixels: int, groups: int, codes: int, x: Codes, w: str, slack: bool
    ) -> None:
        """Group after group: expand, multiply, add."""
        words = [as_type("int32", x(0, at, _QUAD)) for at in (0, _QUAD)]
        values = [bind(as_type(f"int8x{self.size}", f"T.broadcast({word}, {self.lanes})")) for word in words]
        factors = self.factors(s, bind, values, groups)
        for v in range(groups):
            packed = bind(as_type(f"uint8x{self.size}", f"W[{ramp(f'{w} + {v * self.size}', self.size)}]"))
            halves = (self._every("T.bitwise_and", packed, _TABLE - 1), self._every("T.shift_right", packed, BITS))
            weights = [bind(self.expanded(half)) for half in halves]
            s(f"{acc(v, self.lanes)} = {self.added(bind, acc(v, self.lanes), values, factors, weights)}")

    def _every(self, operation: str, value: str, other: int) -> str:
        """An operation of all bytes and a number, as int8."""
        return as_type(f"int8x{self.size}", f"{operation}({value}, T.broadcast(T.uint8({other}), {self.size}))")

    def expanded(self, half: str) -> str:
        """int8 weights of one half's indices."""
        return intrinsic(f"int8x{self.size}", self.shuffled, f"table{self.size}", half)

    def factors(self, s: Source, bind: Bind, values: list[str], groups: int) -> list[str]:
        """What else all groups need of the broadcast codes."""
        return values

    @abstractmethod
    def added(self, bind: Bind, total: str, values: list[str], factors: list[str], weights: list[str]) -> str:
        """`total` plus the products of both halves."""


class NibbleByteProduct(NibbleProduct, ByteProduct):
    """AVX512-VNNI: `vpdpbusd` of each half."""

    most_groups, shuffled = 8, "x86.avx512.pshuf.b.512"

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: broadcast them twice; load weights, separate, look up, multiply and add."""
        return codes / self.unit * (2.0 + 8.0 * groups)

    def added(self, bind: Bind, total: str, values: list[str], factors: list[str], weights: list[str]) -> str:
        """One after the other."""
        for value, weight in zip(factors, weights, strict=True):
            total = intrinsic("int32x16", "x86.avx512.vpdpbusd.512", total, value, weight)
        return total


class OffsetByteProduct(NibbleByteProduct):
    """AVX512-VNNI, uniform weights: halves are weights + 8, unsigned, that meet signed codes and need no table.

    One more accumulator holds 8 times the sum of the codes, which every lane's sum has too much.
    """

    dtype, offset = "int8", 0

    def weights(self, node: Node) -> Int8:
        """From 0 to 15."""
        return node.consts["codes"] + np.int8(_EIGHT)

    def blank(self, node: Node) -> int:
        """A weight of 0."""
        return _EIGHT

    def constants(self, node: Node) -> Mapping[str, NDArray[Any]]:
        """None."""
        return {}

    def declare(self, source: Source, node: Node) -> None:
        """Eights, which codes are multiplied with."""
        source(f"eights = T.broadcast(T.int8({_EIGHT}), {self.size})")

    def accumulators(self, pixels: int, groups: int) -> int:
        """One for each group and one for all."""
        return groups + 1

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """As with a table, but for two look-ups a group, and with the codes' own sum."""
        return codes / self.unit * (4.0 + 6.0 * groups)

    def clear(self, s: Source, pixels: int, groups: int, at: str) -> None:
        """The bias; nothing for the codes' own sum."""
        for v in range(groups):
            s(f"{acc(v, self.lanes)} = B[{ramp(f'{at} + {v * self.lanes}', self.lanes)}]")
        s(f"{acc(groups, self.lanes)} = T.broadcast(0, {self.lanes})")

    def sum(self, pixel: int, group: int, groups: int) -> str:
        """Without what is too much."""
        return f"({acc(group, self.lanes)} - {acc(groups, self.lanes)})"

    def expanded(self, half: str) -> str:
        """As they are."""
        return half

    def factors(self, s: Source, bind: Bind, values: list[str], groups: int) -> list[str]:
        """The codes, which are added up."""
        own = acc(groups, self.lanes)
        s(f"{own} = {self.added(bind, own, values, values, ['eights'] * len(values))}")
        return values

    def added(self, bind: Bind, total: str, values: list[str], factors: list[str], weights: list[str]) -> str:
        """Unsigned weights times signed codes."""
        return super().added(bind, total, values, weights, factors)


class NibblePairProduct(NibbleProduct, PairProduct):
    """AVX2: `vpmaddubsw` of a code's magnitude and the weight with its sign, then sums of pairs.

    Two products of at most 128 * 127 fit into int16; so do four where weights are `small`.
    """

    dtype = "int8"
    most_groups, shuffled = 4, "x86.avx2.pshuf.b"
    small = False

    def cost(self, pixels: int, groups: int, codes: int) -> float:
        """For every eight codes: broadcast them, magnitudes; load, separate, look up, sign, multiply, add."""
        return codes / self.unit * (4.0 + (13.0 if self.small else 14.0) * groups)

    def declare(self, source: Source, node: Node) -> None:
        """Also ones, which add pairs."""
        super().declare(source, node)
        source("ones = T.broadcast(T.int16(1), 16)")

    def factors(self, s: Source, bind: Bind, values: list[str], groups: int) -> list[str]:
        """Magnitudes, 128 as the byte that it is."""
        return [bind(f"T.max({v}, T.broadcast(T.int8(0), {self.size}) - {v})") for v in values]

    def added(self, bind: Bind, total: str, values: list[str], factors: list[str], weights: list[str]) -> str:
        """Sums of two products, or of four, then of twice as many."""
        sums = []
        for value, factor, weight in zip(values, factors, weights, strict=True):
            signed = intrinsic("int8x32", "x86.avx2.psign.b", weight, value)
            sums.append(bind(intrinsic("int16x16", "x86.avx2.pmadd.ub.sw", factor, signed)))
        sums = [" + ".join(sums)] if self.small else sums
        return " + ".join([total, *(intrinsic("int32x8", "x86.avx2.pmadd.wd", v, "ones") for v in sums)])


class SmallNibblePairProduct(NibblePairProduct):
    """The same for uniform weights, none of which is beyond -8 or 7."""

    small = True
