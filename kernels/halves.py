"""Averages exactly half way between two codes (`xdeploy.lir.average`), for the rows of average pooling.

Only elements that are exactly half way come here, so that the rest of the pooling is as fast as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .snippets import Source, clamp

# ------------------------------------------------------------------------------------------------------- plain C
TIE = """\
/* v with 24 significant bits, halves to even, as float32 keeps it; |v| < 2^53 */
static int64_t {symbol}_single(int64_t v)
{
    const int64_t distance = (v < 0) ? -v : v;
    uint64_t size = (uint64_t)distance;
    uint32_t n = 0U;
    int64_t kept;

    while ((size >> n) >= UINT64_C(0x1000000)) {
        ++n;
    }
    if (n > 0U) {
        size = (size + (UINT64_C(1) << (n - 1U)) + ((size >> n) & 1U)) - 1U;
        size = (size >> n) << n;
    }
    kept = (int64_t)size;
    return (v < 0) ? -kept : kept;
}
/* The code of the average sum / count, which may lie half way: then the window is summed again as float32 does. */
static int32_t {symbol}_average(
    const int8_t *x, int32_t from, int32_t rows, int32_t columns, int32_t line, int32_t step, int32_t in_zero,
    int32_t mantissa, int32_t sum, int32_t count, int32_t lift, int32_t multiplier, int32_t zero, int32_t low,
    int32_t high)
{
    const int64_t unit = (int64_t)count * mantissa;
    const int32_t scaled = sum * lift;
    const int64_t lifted = ((int64_t)scaled * multiplier) + INT64_C(0x4000000000000000);
    const uint32_t top = (uint32_t)((uint64_t)lifted >> 32);
    const int32_t below = (int32_t)top - 0x40000000;
    const int32_t twice = (2 * below) + 1;
    int32_t code = zero + below;

    if ((2 * sum) != (twice * count)) {
        code = {symbol}_requantise(scaled, multiplier, zero, low, high);
    } else {
        uint64_t band = (uint64_t)unit;
        int64_t total = 0;
        int32_t odd;
        int32_t i;
        uint32_t n = 25U;

        for (i = 0; i < rows; ++i) {
            int32_t k;

            for (k = 0; k < columns; ++k) {
                const int32_t tap = x[from + (i * line) + (k * step)] - in_zero;

                total = {symbol}_single(total + {symbol}_single((int64_t)mantissa * tap));
            }
        }
        for (odd = (twice < 0) ? -twice : twice; odd > 0; odd /= 2) {
            --n;
        }
        band >>= n;
        total = (2 * total) - (twice * unit);
        if ((total > (int64_t)band) || ((total >= -(int64_t)band) && ((below % 2) != 0))) {
            ++code;
        }
        code = {symbol}_clamp(code, low, high);
    }
    return code;
}
"""
TIED = """{symbol}_average(
                    x, ((((top + ky0) * width) + left + kx0) * channels) + c, ky1 - ky0, kx1 - kx0, width * channels,
                    channels, in_zero, mantissa, sum, count, lift, multiplier[count - 1], out_zero, low, high)"""


# ----------------------------------------------------------------------------------------------------------- TIR
def settle(s: Source, average: str, at: str, a: Mapping[str, Any], pitch: tuple[int, int], bits: int) -> None:
    """Lines that give Y the code of one average half way between two: in the loops over pixels and channel `c`.

    They use what the row has declared: S[c] (the centred sum), m (the multiplier), divisor, mantissa, in_zero,
    out_zero, y0, y1, x0, x1, and the int64 locals E.

    Args:
        s: the function's text.
        average: int64 expression of the scaled sum, 32 fractional bits.
        at: index of the output element.
        a: the node's attributes.
        pitch: elements from one row of the input to the next, from one pixel to the next.
        bits: that hold every partial sum.
    """
    s(f'below: T.let[T.int32] = T.cast(T.shift_right({average}, T.int64(32)), "int32")')
    with s.block("if S[c] * 2 == (below * 2 + 1) * divisor:"):
        s("E[0] = T.int64(0)")
        with s.block("for y in range(y1 - y0):"), s.block("for x in range(x1 - x0):"):
            value = f'T.cast(X[(y0 + y) * {pitch[0]} + (x0 + x) * {pitch[1]} + c], "int64") - T.cast(in_zero, "int64")'
            s(f'E[1] = ({value}) * T.cast(mantissa, "int64")')
            _single(s, 1, 33)
            s("E[0] = E[0] + E[1]")
            _single(s, 0, bits)
        s('E[1] = T.cast(below * 2 + 1, "int64")', 'E[2] = T.cast(divisor, "int64") * T.cast(mantissa, "int64")')
        s("E[0] = E[0] * T.int64(2) - E[1] * E[2]", "E[1] = T.max(E[1], T.int64(0) - E[1])", "E[3] = T.int64(25)")
        with s.block("for j in range(9):"):
            s("E[3] = E[3] - T.Select(T.shift_right(E[1], T.int64(j)) > T.int64(0), T.int64(1), T.int64(0))")
        s("E[2] = T.shift_right(E[2], E[3])")
        odd = "T.bitwise_and(below, 1) == 1"
        up = f"E[0] > E[2] or (E[0] + E[2] >= T.int64(0) and {odd})"
        s(f"Y[{at}] = {clamp(f'below + out_zero + T.Select({up}, 1, 0)', a['low'], a['high'])}")


def _single(s: Source, k: int, bits: int) -> None:
    """E[k] with 24 significant bits, halves to even."""
    s(f"E[2] = T.max(E[{k}], T.int64(0) - E[{k}])", "E[3] = T.int64(0)")
    with s.block(f"for j in range({bits - 24}):"):
        s("E[3] = E[3] + T.Select(T.shift_right(E[2], T.int64(j) + T.int64(24)) > T.int64(0), T.int64(1), T.int64(0))")
    with s.block("if E[3] > T.int64(0):"):
        s("E[2] = E[2] + T.bitwise_and(T.shift_right(E[2], E[3]), T.int64(1)) - T.int64(1)")
        s("E[2] = E[2] + T.shift_left(T.int64(1), E[3] - T.int64(1))")
        s("E[2] = T.shift_left(T.shift_right(E[2], E[3]), E[3])")
        s(f"E[{k}] = T.Select(E[{k}] < T.int64(0), T.int64(0) - E[2], E[2])")
