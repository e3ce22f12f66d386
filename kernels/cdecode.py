"""C99 text that decodes packed weight rows inside the multiply-accumulate loop, one text per weight format.

Rows lie as `formats.WeightFormat.pack` leaves them: codes little-endian, the first in the lowest bits, rows on bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xdeploy.formats import WeightFormat

from .ctext import fill, indent

_UNIFORM = """\
/* The weight in the lowest @bits@ bits of `code`. */
static int32_t {symbol}_value(uint32_t code)
{
    return (int32_t)((code & @mask@U) ^ @half@U) - @half@;
}
"""
_CODEBOOK = """\
/* The weight that the lowest @bits@ bits of `code` stand for. */
static int32_t {symbol}_value(uint32_t code, const int8_t *book)
{
    return book[code & @mask@U];
}
"""
_WEIGHT_8 = """\
/* Weight k of a row. */
static int32_t {symbol}_weight(const int8_t *row, int32_t k)
{
    return row[k];
}
"""
_WEIGHT = """\
/* Weight k of a row. */
static int32_t {symbol}_weight(const uint8_t *row, int32_t k@book_parameter@)
{
    const uint32_t bit = (uint32_t)k * @bits@U, offset = bit & 7U;
    @const@uint32_t code = (uint32_t)row[bit >> 3] >> offset;
@straddle@
    return {symbol}_value(code@book@);
}
"""
_STRADDLE = """
    if (offset > @last@U) { /* its upper part is in the next byte */
        code |= (uint32_t)row[(bit >> 3) + 1U] << (8U - offset);
    }
"""
_DOT = """\
/* acc[0] += sum over i < n of x[i] * (weight k + i of row w0), and acc[1] likewise of row w1. */
static void {symbol}_dot(
    const int8_t *x, const @type@ *w0, const @type@ *w1, int32_t k, int32_t n@book_parameter@, int32_t *acc)
{
    int32_t a0 = acc[0], a1 = acc[1];
@align@
    for (; n >= @step@; n -= @step@) {
@group@
        x += @step@;
        w0 += @bytes@;
        w1 += @bytes@;
    }
    for (k = 0; k < n; ++k) {
        a0 += x[k] * {symbol}_weight(w0, k@book@);
        a1 += x[k] * {symbol}_weight(w1, k@book@);
    }
    acc[0] = a0;
    acc[1] = a1;
}
"""
_ALIGN_8 = """
    w0 += k;
    w1 += k;"""
_ALIGN = """
    for (; n > 0 && k % @fields@ != 0; --n, ++k, ++x) { /* up to a code that begins a byte */
        a0 += *x * {symbol}_weight(w0, k@book@);
        a1 += *x * {symbol}_weight(w1, k@book@);
    }
    w0 += k / @fields@ * @planes@;
    w1 += k / @fields@ * @planes@;"""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The C text that reads one weight format."""

    format: WeightFormat

    @property
    def fields(self) -> int:
        """Codes from one byte boundary to the next."""
        return 8 // math.gcd(8, self.format.bits)

    @property
    def step(self) -> int:
        """Codes decoded per turn of the inner loop."""
        return 8

    def fill(self, text: str, **values: object) -> str:
        """Replace the format's keys, and others, in a text."""
        f, book = self.format, self.format.codebook
        return fill(
            text, **values, bits=f.bits, mask=2**f.bits - 1, half=2 ** (f.bits - 1), fields=self.fields,
            planes=self.fields * f.bits // 8, step=self.step, bytes=self.step * f.bits // 8,
            type="int8_t" if f.bits == 8 else "uint8_t", book=", book" if book else "",
            book_parameter=", const int8_t *book" if book else "",
        )  # fmt: skip

    def weight(self) -> str:
        """{symbol}_weight, which reads any single weight."""
        bits = self.format.bits
        if bits == 8:
            return _WEIGHT_8
        straddles = bool(8 % bits)
        inner = fill(_STRADDLE, last=8 - bits) if straddles else ""
        value = _CODEBOOK if self.format.codebook else _UNIFORM
        return self.fill(value + _WEIGHT, straddle=inner.rstrip(), const="" if straddles else "const ")

    def dot(self) -> str:
        """{symbol}_dot, which reads runs of weights."""
        wide = self.step * self.format.bits // 8
        lines = []
        if self.format.bits < 8:
            for name, row in (("p", "w0"), ("q", "w1")):
                loads = ", ".join(f"{name}{i} = {row}[{i}]" for i in range(wide))
                lines.append(f"const uint32_t {loads};")
            lines.append("")
        for i in range(self.step):
            lines += [f"a0 += x[{i}] * {self._field('w0', 'p', i)};", f"a1 += x[{i}] * {self._field('w1', 'q', i)};"]
        align = _ALIGN_8 if self.format.bits == 8 else _ALIGN
        return self.fill(fill(_DOT, align=align, group=indent("\n".join(lines), 8)))

    def _field(self, row: str, name: str, index: int) -> str:
        bits = self.format.bits
        if bits == 8:
            return f"{row}[{index}]"
        byte, offset = divmod(index * bits, 8)
        code = f"{name}{byte} >> {offset}" if offset else f"{name}{byte}"
        if offset + bits > 8:
            code = f"({code}) | ({name}{byte + 1} << {8 - offset})"
        return f"{{symbol}}_value({code}@book@)"
