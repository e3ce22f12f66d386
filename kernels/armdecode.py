"""How the armv7em tiles turn packed weights into pairs of int16: one form per way of decoding.

A step takes a quad of k (four of them) of two channels, in two halves: k 1 and 3 first, then k 0 and 2. Each half needs
the pair of channel 0 and the pair of channel 1. The codes of a quad follow each other without gaps, lowest bits first,
in the order in which they are used: half, channel, k.

* `wide`: bytes, or fields used as the top bits of bytes, widened by SXTB16; both halves at once;
* `pairs`: a pair of codes is an index into a table of 2^(2 bits) words;
* `quads`: both channels' pairs are one index into a table of 2^(4 bits) double words;
* `fields`: signed fields are cut out and packed;
* `lookup`: unsigned fields are cut out, looked up in the codebook itself, and packed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8, WeightFormat

Form = Literal["wide", "pairs", "quads", "fields", "lookup"]
CHANNELS = 2
TABLED: tuple[Form, ...] = ("pairs", "quads")


def interleave(fmt: WeightFormat, form: Form, codes: Int8) -> NDArray[np.int8] | NDArray[np.uint8]:
    """Codes (O, K) in the order the tile reads them; channels and k are filled up with code 0."""
    channels, row = codes.shape
    quads = -(-row // 4)
    front = quads % 2 if form == "wide" and fmt.bits == 2 else 0  # two quads share a word, and the last one must end it
    padded = np.zeros((-(-channels // CHANNELS) * CHANNELS, 4 * (quads + front)), np.int64)
    padded[:channels, 4 * front : 4 * front + row] = codes
    # pair of channels, quad, half, first or second of the half, channel
    order = padded.reshape(-1, CHANNELS, quads + front, 2, 2).transpose(0, 2, 4, 3, 1)
    if form != "wide":
        return _stream(fmt, order[:, :, ::-1].transpose(0, 1, 2, 4, 3))
    if fmt.bits == 8:
        return np.ascontiguousarray(order.astype(np.int8))
    fields = (order & (2**fmt.bits - 1)).reshape(len(order), -1, 8 // fmt.bits, 2, CHANNELS)
    shifts = np.arange(8 - fmt.bits, -1, -fmt.bits).reshape(-1, 1, 1)
    return np.ascontiguousarray((fields << shifts).sum(axis=2).astype(np.uint8))


def _stream(fmt: WeightFormat, order: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Quads of eight codes as `bits` bytes each; three bytes at the end let the last word be loaded whole."""
    codes = (order & (2**fmt.bits - 1)).reshape(-1, 8, 1)
    bits = (codes >> np.arange(fmt.bits)) & 1
    packed = np.packbits(bits.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")
    return np.concatenate([packed.reshape(-1), np.zeros(0 if fmt.bits == 4 else 3, np.uint8)])


def entries(fmt: WeightFormat, codebook: Int8 | None) -> Int8:
    """The value of every code; of a uniform format the signed number itself."""
    book = np.zeros(2**fmt.bits, np.int8)
    if codebook is not None:
        book[: len(codebook)] = codebook
        return book
    codes = np.arange(2**fmt.bits)
    return np.where(codes >= 2 ** (fmt.bits - 1), codes - 2**fmt.bits, codes).astype(np.int8)


def table_bytes(form: Form, bits: int) -> int:
    """Bytes of the table in the workspace."""
    return {"pairs": 4 << 2 * bits, "quads": 8 << 4 * bits}.get(form, 0)


def half(form: Form, bits: int, second: bool, w: str, table: str, b: tuple[str, str], spare: str) -> list[str]:
    """Lines that bring the pairs of both channels into `b`; all have four bytes. `spare` may be overwritten.

    The weights' pointer moves on so that after both halves it stands on the next quad.
    """
    b0, b1 = b
    if form == "pairs" and bits == 4:
        lines = [f"ldrb.w {r}, [{w}], #1" for r in b]
        return [*lines, *(f"ldr.w {r}, [{table}, {r}, lsl #2]" for r in b)]
    if form == "quads":
        return [*_index(bits, second, w, b1), f"add.w {b1}, {table}, {b1}, lsl #3", f"ldrd {b0}, {b1}, [{b1}]"]
    behind, start = divmod(4 * bits, 8)
    at = start if second else 0
    lines = [f"ldr.w {b1}, [{w}], #{bits - behind if second else behind}"]
    if form == "pairs":
        lines += [f"ubfx {b0}, {b1}, #{at}, #{2 * bits}", f"ubfx {b1}, {b1}, #{at + 2 * bits}, #{2 * bits}"]
        return [*lines, *(f"ldr.w {r}, [{table}, {r}, lsl #2]" for r in b)]

    def field(register: str, number: int) -> list[str]:
        cut = f"{'ubfx' if form == 'lookup' else 'sbfx'} {register}, {b1}, #{at + number * bits}, #{bits}"
        return [cut, f"ldrsb.w {register}, [{table}, {register}]"] if form == "lookup" else [cut]

    lines += [*field(b0, 0), *field(spare, 1), f"pkhbt {b0}, {b0}, {spare}, lsl #16"]
    return [*lines, *field(spare, 3), *field(b1, 2), f"pkhbt {b1}, {b1}, {spare}, lsl #16"]


def _index(bits: int, second: bool, w: str, to: str) -> list[str]:
    if bits == 2:
        return [f"ldrb.w {to}, [{w}], #1"]
    if second:
        return [f"ldrb.w {to}, [{w}], #1", f"lsr.w {to}, {to}, #4"]
    return [f"ldrb.w {to}, [{w}]", f"and {to}, {to}, #15"]
