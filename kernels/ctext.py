"""Pieces of C99 text that the portable rows share: the call, the two rounding rules, the bounds of a window.

Strict C99: no extensions, no undefined behaviour, nothing left to the implementation. A right shift never sees a
negative number, yet compilers turn each of the helpers into one or two instructions (`asr`; `smmlar`, `smlal`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from xdeploy.kernel import Arg, Code
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

CLAMP = """\
static int32_t {symbol}_clamp(int32_t v, int32_t low, int32_t high)
{
    return v < low ? low : (v > high ? high : v);
}
"""
SHIFT = """\
/* floor(v / 2^n) */
static int32_t {symbol}_shift(int32_t v, int32_t n)
{
    return v < 0 ? ~(~v >> n) : v >> n;
}
"""
# |acc * multiplier| < 2^62: with 2^62 added no negative number is shifted
REQUANTISE = """\
/* zero + round(acc * multiplier / 2^32), halves upwards, clamped */
static int32_t {symbol}_requantise(int32_t acc, int32_t multiplier, int32_t zero, int32_t low, int32_t high)
{
    const int64_t sum = (int64_t)acc * multiplier + INT64_C(0x4000000080000000);

    return {symbol}_clamp((int32_t)(sum >> 32) - 0x40000000 + zero, low, high);
}
"""
WINDOW = """\
/* The first tap of a window from `at` on that is not before the input. */
static int32_t {symbol}_first(int32_t at, int32_t dilation)
{
    int32_t tap = 0;

    while (at + tap * dilation < 0) {
        ++tap;
    }
    return tap;
}
/* The tap after the last one that is not behind the input. */
static int32_t {symbol}_end(int32_t at, int32_t dilation, int32_t taps, int32_t size)
{
    while (taps > 0 && at + (taps - 1) * dilation >= size) {
        --taps;
    }
    return taps;
}
"""
GATHER = """\
/* Copies n codes. */
static void {symbol}_copy(const int8_t *from, int8_t *to, int32_t n)
{
    for (; n >= 4; n -= 4, from += 4, to += 4) {
        const int8_t a = from[0], b = from[1], c = from[2], d = from[3];

        to[0] = a;
        to[1] = b;
        to[2] = c;
        to[3] = d;
    }
    for (; n > 0; --n) {
        *to++ = *from++;
    }
}
/* Copies a window whose first tap is (top, left), `depth` codes per tap; taps outside the input become `zero`. */
static void {symbol}_gather(
    const int8_t *x, int8_t *to, int32_t zero, int32_t top, int32_t left, int32_t height, int32_t width,
    int32_t channels, int32_t depth, int32_t kernel_y, int32_t kernel_x, int32_t dilation_y, int32_t dilation_x)
{
    /* the taps of one line lie side by side in the input */
    const int32_t whole = dilation_x == 1 && depth == channels && left >= 0 && left + kernel_x <= width;
    int32_t ky, kx, i;

    for (ky = 0; ky < kernel_y; ++ky) {
        const int32_t iy = top + ky * dilation_y, line = iy >= 0 && iy < height;
        const int32_t taps = line && whole ? kernel_x : 1;

        for (kx = 0; kx < kernel_x; kx += taps, to += taps * depth) {
            const int32_t ix = left + kx * dilation_x;

            if (line && ix >= 0 && ix < width) {
                {symbol}_copy(x + (iy * width + ix) * channels, to, taps * depth);
            } else {
                for (i = 0; i < depth; ++i) {
                    to[i] = (int8_t)zero;
                }
            }
        }
    }
}
"""


def fill(text: str, **values: object) -> str:
    """Replace every @key@ in the text."""
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text


def function(body: str, pointers: Mapping[str, Arg], integers: Mapping[str, int], helpers: Sequence[str] = ()) -> Code:
    """A kernel of plain C.

    Args:
        body: from the opening to the closing brace.
        pointers: declaration (`const int8_t *x`) -> what is passed.
        integers: name -> value of int32 parameters after the pointers; layers that differ only here share the function.
        helpers: functions before it, with names that begin with `{symbol}_`.
    """
    # wrapped for the reader, between parameters only
    words = [p.replace(" ", "\0") for p in (*pointers, *(f"int32_t {name}" for name in integers))]
    lines = textwrap.wrap(", ".join(words), 110, initial_indent="    ", subsequent_indent="    ")
    wrapped = "\n".join(lines).replace("\0", " ")
    text = "#include <stdint.h>\n" + "".join(helpers) + f"static void {{symbol}}(\n{wrapped})\n{body}"
    return Code("c99", text, (*pointers.values(), *(Arg("int", value=int(v)) for v in integers.values())))


def indent(text: str, depth: int) -> str:
    """The lines that are not empty, `depth` columns further right."""
    return "\n".join(" " * depth + line if line else line for line in text.splitlines())


def stage_scalars(node: Node) -> dict[str, int]:
    """Scalars of the output stage; the accumulator is proven to fit after the shift, so `lift` may multiply it."""
    a = node.attrs
    stage = {"lift": 1 << a["shift"], "out_zero": a["out_zero"], "low": a["low"], "high": a["high"]}
    if has_residual(node):
        stage |= {f"add_{k}": a[f"add_{k}"] for k in ("a", "b", "const", "shift", "low", "high")}
    return stage
