"""C99 text that decodes packed weight rows inside the multiply-accumulate loop, one text per weight format.

Rows lie as `formats.WeightFormat.pack` leaves them: codes little-endian, the first in the lowest bits, rows on bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdeploy.formats import WeightFormat

from .ctext import fill, indent

_UNIFORM = """\
/* The weight in the lowest @bits@ bits of `code`. */
static int32_t {symbol}_value(uint32_t code)
{
    const uint32_t lifted = (code & @mask@U) ^ @half@U;

    return (int32_t)lifted - @half@;
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
    const uint32_t bit = (uint32_t)k * @bits@U;
    const uint32_t offset = bit & 7U;
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
/* Adds the sum over k < n of x[k] * (weight k of w), for every x and w. */
static void {symbol}_dot(
    @pointers@, int32_t n@book_parameter@, int32_t *acc)
{
@locals@
    int32_t left;
    int32_t k;

    for (left = n; left >= @step@; left -= @step@) {
@group@
@advance@
    }
    for (k = 0; k < left; ++k) {
@rest@
    }
@store@
}
"""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The C text that reads one weight format."""

    format: WeightFormat

    @property
    def step(self) -> int:
        """Codes decoded per turn of the inner loop."""
        return 8

    def fill(self, text: str, **values: object) -> str:
        """Replace the format's keys, and others, in a text."""
        f, book = self.format, self.format.codebook
        return fill(
            text, **values, bits=f.bits, mask=2**f.bits - 1, half=2 ** (f.bits - 1), step=self.step,
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

    def dot(self, pixels: int, channels: int) -> str:
        """{symbol}_dot, which multiplies `pixels` runs of codes with `channels` rows of weights, sums in registers.

        Its arguments: pointers to the runs and to the rows, the codes of a run, the codebook if there is one, and
        int32 acc[channels * pixels] to add to, the pixels of a channel side by side.
        """
        runs, rows = range(pixels), range(channels)
        sums = [f"a{c}{p}" for c in rows for p in runs]
        names = [f"const int8_t *x{p} = run{p};" for p in runs] + [f"const @type@ *w{c} = row{c};" for c in rows]
        names += [f"int32_t {a} = acc[{i}];" for i, a in enumerate(sums)]
        names += [f"int32_t v{c};" for c in rows] * (pixels > 1)
        advance = [f"x{p} = &x{p}[{self.step}];" for p in runs]
        advance += [f"w{c} = &w{c}[{self.step * self.format.bits // 8}];" for c in rows]
        one = [line for c in rows for line in _products(c, f"{{symbol}}_weight(w{c}, k@book@)", "k", pixels)]
        pointers = [f"const int8_t *run{p}" for p in runs] + [f"const @type@ *row{c}" for c in rows]
        text = fill(
            _DOT, pointers=", ".join(pointers), locals=indent("\n".join(names), 4),
            group=_lines(self._turn(pixels, channels)),
            advance=_lines(advance), rest=_lines(one),
            store="\n".join(f"    acc[{i}] = {a};" for i, a in enumerate(sums)),
        )  # fmt: skip
        return self.fill(text)

    def _turn(self, pixels: int, channels: int) -> list[str]:
        """One turn of the inner loop; bytes are loaded where they are first needed, which spares registers."""
        lines: list[str] = []
        bits = self.format.bits
        for i in range(self.step):
            for c in range(channels):
                if bits < 8:
                    fresh = range((i * bits - 1) // 8 + 1, ((i + 1) * bits - 1) // 8 + 1)
                    lines += [f"const uint32_t b{c}{n} = w{c}[{n}];" for n in fresh]
                lines += _products(c, self._field(f"w{c}", f"b{c}", i), str(i), pixels)
        return lines

    def _field(self, row: str, name: str, index: int) -> str:
        bits = self.format.bits
        if bits == 8:
            return f"{row}[{index}]"
        byte, offset = divmod(index * bits, 8)
        code = f"{name}{byte} >> {offset}" if offset else f"{name}{byte}"
        if offset + bits > 8:
            code = f"({code}) | ({name}{byte + 1} << {8 - offset})"
        return f"{{symbol}}_value({code}@book@)"


def _products(channel: int, weight: str, at: str, pixels: int) -> list[str]:
    """Multiply one weight with a code of every pixel."""
    if pixels == 1:
        return [f"a{channel}0 += x0[{at}] * {weight};"]
    lines = [f"v{channel} = {weight};"]
    return lines + [f"a{channel}{p} += x{p}[{at}] * v{channel};" for p in range(pixels)]


def _lines(lines: list[str]) -> str:
    return indent("\n".join(lines), 8)
