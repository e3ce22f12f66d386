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
    return (v < low) ? low : ((v > high) ? high : v);
}
"""
SHIFT = """\
/* floor(v / 2^n); what is shifted is never negative */
static int32_t {symbol}_shift(int32_t v, int32_t n)
{
    return (v < 0) ? ~(~v >> n) : (v >> n);
}
"""
# |acc * multiplier| < 2^62: with 2^62 added no negative number is shifted
REQUANTISE = """\
/* zero + round(acc * multiplier / 2^32), halves upwards, clamped */
static int32_t {symbol}_requantise(int32_t acc, int32_t multiplier, int32_t zero, int32_t low, int32_t high)
{
    const int64_t sum = ((int64_t)acc * multiplier) + INT64_C(0x4000000080000000);
    const uint32_t top = (uint32_t)((uint64_t)sum >> 32);

    return {symbol}_clamp(((int32_t)top - 0x40000000) + zero, low, high);
}
"""
WINDOW = """\
/* The first tap of a window from `at` on that is not before the input. */
static int32_t {symbol}_first(int32_t at, int32_t dilation)
{
    int32_t tap = 0;

    while ((at + (tap * dilation)) < 0) {
        ++tap;
    }
    return tap;
}
/* The tap after the last one that is not behind the input. */
static int32_t {symbol}_end(int32_t at, int32_t dilation, int32_t taps, int32_t size)
{
    int32_t tap = taps;

    while ((tap > 0) && ((at + ((tap - 1) * dilation)) >= size)) {
        --tap;
    }
    return tap;
}
"""
GATHER = """\
/* Copies n codes. */
static void {symbol}_copy(const int8_t *from, int8_t *to, int32_t n)
{
    const int8_t *source = from;
    int8_t *target = to;
    int32_t left;

    for (left = n; left >= 4; left -= 4) {
        const int8_t a = source[0];
        const int8_t b = source[1];
        const int8_t c = source[2];
        const int8_t d = source[3];

        target[0] = a;
        target[1] = b;
        target[2] = c;
        target[3] = d;
        source = &source[4];
        target = &target[4];
    }
    while (left > 0) {
        *target = *source;
        ++target;
        ++source;
        --left;
    }
}
/* Copies a window whose first tap is (top, left), `depth` codes per tap; taps outside the input become `zero`. */
static void {symbol}_gather(
    const int8_t *x, int8_t *to, int32_t zero, int32_t top, int32_t left, int32_t height, int32_t width,
    int32_t channels, int32_t depth, int32_t kernel_y, int32_t kernel_x, int32_t dilation_y, int32_t dilation_x)
{
    int8_t *target = to;
    int32_t together = 1; /* the taps of one line that lie side by side in the input */
    int32_t ky;

    if ((dilation_x == 1) && (depth == channels) && (left >= 0) && ((left + kernel_x) <= width)) {
        together = kernel_x;
    }
    for (ky = 0; ky < kernel_y; ++ky) {
        const int32_t iy = top + (ky * dilation_y);
        int32_t first = -1; /* pixel of the input where the line begins */
        int32_t taps = 1;
        int32_t kx;

        if ((iy >= 0) && (iy < height)) {
            first = iy * width;
            taps = together;
        }
        for (kx = 0; kx < kernel_x; kx += taps) {
            const int32_t ix = left + (kx * dilation_x);

            if ((first >= 0) && (ix >= 0) && (ix < width)) {
                {symbol}_copy(&x[(first + ix) * channels], target, taps * depth);
            } else {
                int32_t i;

                for (i = 0; i < depth; ++i) {
                    target[i] = (int8_t)zero;
                }
            }
            target = &target[taps * depth];
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


def nested(names: Sequence[str], heads: Sequence[str], index: str) -> str:
    """Loops inside one another that fill y in its order from x[index]."""
    lines = ["{", "    int32_t to = 0;", *(f"    int32_t {name};" for name in names), ""]
    lines += ["    " * (d + 1) + head for d, head in enumerate(heads)]
    inner = "    " * (len(heads) + 1)
    lines += [f"{inner}y[to] = x[{index}];", f"{inner}++to;"]
    return "\n".join([*lines, *("    " * (d + 1) + "}" for d in reversed(range(len(heads)))), "}", ""])


def stage_scalars(node: Node) -> dict[str, int]:
    """Scalars of the output stage; the accumulator is proven to fit after the shift, so `lift` may multiply it."""
    a = node.attrs
    stage = {"lift": 1 << a["shift"], "out_zero": a["out_zero"], "low": a["low"], "high": a["high"]}
    if has_residual(node):
        stage |= {f"add_{k}": a[f"add_{k}"] for k in ("a", "b", "const", "shift", "low", "high")}
    return stage
