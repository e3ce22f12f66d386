"""How packed weight rows lie in flash, and the TIR expressions that decode them inside the MAC loop.

A row of K codes is cut into F segments of S = ceil(K / F) codes, F = 8 / gcd(8, bits). Code k = f*S + j is field f of
group j; a group's fields fill B = bits*F/8 bytes, little-endian. Byte b of group j stands at b*S + j, so a loop over j
reads B contiguous weight streams and F contiguous activation streams: nothing is interleaved, compilers vectorise it,
and the decode costs a shift or two. int8 is the plain row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from xdeploy.formats import Int8, UInt8, WeightFormat


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The planar layout of rows of `row` codes in `format`."""

    format: WeightFormat
    row: int

    @property
    def fields(self) -> int:
        """F: codes per group."""
        return 8 // math.gcd(8, self.format.bits)

    @property
    def planes(self) -> int:
        """B: bytes per group."""
        return self.format.bits * self.fields // 8

    @property
    def segment(self) -> int:
        """S: groups per row, and codes per segment."""
        return -(-self.row // self.fields)

    @property
    def padded(self) -> int:
        """Codes of a row with the padding of the last segment."""
        return self.fields * self.segment

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed row."""
        return self.planes * self.segment

    @property
    def dtype(self) -> str:
        """Element type of the packed rows."""
        return "int8" if self.format.bits == 8 else "uint8"

    def pack(self, codes: Int8) -> Int8 | UInt8:
        """Codes (rows, row) -> bytes (rows, row_bytes), int8 for int8, else uint8; padding holds code 0."""
        if self.format.bits == 8:
            return np.ascontiguousarray(codes)
        bits, rows = self.format.bits, len(codes)
        fields = np.zeros((rows, self.padded), np.uint8)
        fields[:, : self.row] = codes.astype(np.int64) & (2**bits - 1)
        groups = fields.reshape(rows, self.fields, self.segment).transpose(0, 2, 1)
        planes = (groups[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
        packed = np.packbits(planes.reshape(rows, self.segment, -1), axis=2, bitorder="little")
        return np.ascontiguousarray(packed.transpose(0, 2, 1).reshape(rows, self.row_bytes))

    def unpack(self, packed: Int8 | UInt8) -> Int8:
        """Invert `pack`."""
        if self.format.bits == 8:
            return packed.astype(np.int8)
        groups = packed.reshape(-1, self.planes, self.segment).transpose(0, 2, 1).reshape(-1, self.planes)
        codes = self.format.unpack(np.ascontiguousarray(groups), self.fields)
        codes = codes.reshape(len(packed), self.segment, self.fields).transpose(0, 2, 1)
        return np.ascontiguousarray(codes.reshape(len(packed), -1)[:, : self.row])

    def loads(self, buffer: str, at: str) -> list[str]:
        """Lines that load the group's bytes at row offset `at` into int8 names b0, b1, ..."""
        return [f"b{i} = {buffer}[{at} + {i * self.segment}]" for i in range(self.planes)]

    def value(self, field: int, tag: str = "", book: str = "") -> str:
        """int32 expression of the weight value in `field` of the loaded group."""
        bits = self.format.bits
        if bits == 8:
            return f'T.cast(b0{tag}, "int32")'
        byte, offset = divmod(field * bits, 8)
        if self.format.codebook:
            return f'T.cast({book}[{self._index(byte, offset, tag)}], "int32")'
        if offset + bits <= 8:
            top = _shift("T.shift_left", f"b{byte}{tag}", 8 - offset - bits)
        else:  # the field straddles two bytes: put its lower part below the upper one
            low_bits = 8 - offset
            low = f"T.shift_right(b{byte}{tag}, T.uint8({offset}))"
            whole = f"T.bitwise_or({low}, T.shift_left(b{byte + 1}{tag}, T.uint8({low_bits})))"
            top = _shift("T.shift_left", whole, 8 - bits)
        signed = f'T.reinterpret("int8", {top})'
        return f'T.cast({_shift("T.shift_right", signed, 8 - bits, "int8")}, "int32")'

    def _index(self, byte: int, offset: int, tag: str) -> str:
        """int32 expression of the unsigned code that starts at bit `offset` of byte `byte`."""
        bits, mask = self.format.bits, 2**self.format.bits - 1
        code = f'T.cast(b{byte}{tag}, "int32")'
        if offset:
            code = f"T.shift_right({code}, {offset})"
        if offset + bits > 8:
            code = f'T.bitwise_or({code}, T.shift_left(T.cast(b{byte + 1}{tag}, "int32"), {8 - offset}))'
        return code if offset + bits == 8 else f"T.bitwise_and({code}, {mask})"


def _shift(op: str, value: str, by: int, dtype: str = "uint8") -> str:
    return f"{op}({value}, T.{dtype}({by}))" if by else value
