"""Functions that bring the codes of windows into the workspace for the rows of cores without DSP instructions.

* Words: a word holds the codes of two pixels, one of them `LANE` bits up; two words stand side by side for every k.
  The codes of the second pixel are added to what the first one left. For Armv7-M.
* Bytes: the codes of a tile's pixels, made unsigned by adding 128, stand side by side for every k; the sum of each
  window is formed on the way, since biased weights need it. For Armv6-M.
"""

from __future__ import annotations

from .armasm import function

LANE = 23  # bits from the code of a word's first pixel to that of its second
WORD_PIXELS = 4  # pixels of a tile whose windows are words
UNROLL = 4

_WORD_STEP = 2 * WORD_PIXELS  # bytes from one k to the next


def put_words() -> tuple[str, str]:
    """(source, to, run, rows, stride, second): rows of `run` codes, `stride` bytes apart, into one lane of words."""
    first = ["ldrsb r7, [r5], #1", f"str r7, [r1], #{_WORD_STEP}"]
    second = ["ldrsb r7, [r5], #1", "ldr r12, [r1]", f"add r12, r12, r7, lsl #{LANE}", f"str r12, [r1], #{_WORD_STEP}"]
    lines = ["push {r4-r7, lr}", "ldr r4, [sp, #20]", "ldr r7, [sp, #24]", "cbnz r7, 5f"]
    lines += [*_rows(first, "1"), "pop {r4-r7, pc}", "5:", *_rows(second, "6"), "pop {r4-r7, pc}"]
    return function("putwords", "ptr, ptr, i32, i32, i32, i32", lines)


def _rows(one: list[str], label: str) -> list[str]:
    """The loops over rows and codes around the lines of one code; every row has at least one."""
    row, turn, rest, done = (f"{label}{i}" for i in range(4))
    lines = [f"{row}:", "mov r5, r0", f"subs r6, r2, #{UNROLL}", f"blt {rest}f"]
    lines += [f"{turn}:", *one * UNROLL, f"subs r6, r6, #{UNROLL}", f"bge {turn}b"]
    lines += [f"{rest}:", f"adds r6, r6, #{UNROLL}", f"beq {done}f", f"{label}9:", *one, "subs r6, r6, #1"]
    return [*lines, f"bne {label}9b", f"{done}:", "add r0, r0, r4", "subs r3, r3, #1", f"bne {row}b"]


def put_fourths() -> tuple[str, str]:
    """(source, to, run, rows, stride): as `put_words`, into every fourth byte. For Armv7-M."""
    one = ["ldrsb r7, [r5], #1", f"strb r7, [r1], #{WORD_PIXELS}"]
    lines = ["push {r4-r7, lr}", "ldr r4, [sp, #20]", *_rows(one, "1"), "pop {r4-r7, pc}"]
    return function("putfourths", "ptr, ptr, i32, i32, i32", lines)


def fill_fourths() -> tuple[str, str]:
    """(to, count, value): one value into every fourth byte. For Armv7-M."""
    lines = ["1:", f"strb r2, [r0], #{WORD_PIXELS}", "subs r1, r1, #1", "bne 1b", "bx lr"]
    return function("fillfourths", "ptr, i32, i32", lines)


def fill_words() -> tuple[str, str]:
    """(to, count, value, second): one value into a lane of `count` words."""
    lines = ["cbnz r3, 2f", "1:", f"str r2, [r0], #{_WORD_STEP}", "subs r1, r1, #1", "bne 1b", "bx lr"]
    lines += ["2:", "ldr r3, [r0]", f"add r3, r3, r2, lsl #{LANE}", f"str r3, [r0], #{_WORD_STEP}"]
    return function("fillwords", "ptr, i32, i32, i32", [*lines, "subs r1, r1, #1", "bne 2b", "bx lr"])


def put_halves() -> tuple[str, str]:
    """As `put_words` for Armv6-M: the lanes are 16 bits apart."""
    load = ["ldrsb r4, [r0, r5]", "adds r5, #1"]
    first = [*load, "str r4, [r1]", f"adds r1, #{_WORD_STEP}"]
    second = [*load, "lsls r4, r4, #16", "ldr r6, [r1]", "adds r4, r4, r6", "str r4, [r1]", f"adds r1, #{_WORD_STEP}"]
    lines = ["push {r4-r7, lr}", "ldr r4, [sp, #24]", "cmp r4, #0", "bne 5f"]
    for start, one in (("", first), ("5:", second)):
        lines += [start] * bool(start)
        lines += ["1:", "movs r5, #0", f"subs r7, r2, #{UNROLL - 1}", "ble 3f"]
        lines += ["2:", *one * UNROLL, "cmp r5, r7", "blt 2b", "b 3f", "4:", *one, "3:", "cmp r5, r2", "blt 4b"]
        lines += ["ldr r4, [sp, #20]", "adds r0, r0, r4", "subs r3, #1", "bne 1b", "pop {r4-r7, pc}"]
    return function("puthalves", "ptr, ptr, i32, i32, i32, i32", lines)


def fill_halves() -> tuple[str, str]:
    """As `fill_words` for Armv6-M: the lanes are 16 bits apart."""
    step = [f"adds r0, #{_WORD_STEP}", "subs r1, #1"]
    lines = ["cmp r3, #0", "bne 2f", "1:", "str r2, [r0]", *step, "bne 1b", "bx lr", "2:", "lsls r2, r2, #16"]
    lines += ["3:", "ldr r3, [r0]", "adds r3, r3, r2", "str r3, [r0]", *step, "bne 3b", "bx lr"]
    return function("fillhalves", "ptr, i32, i32, i32", lines)


def put_bytes(pixels: int) -> tuple[str, str]:
    """(source, to, run, rows, stride, sum): as `put_words`, biased, every `pixels`th byte; adds to `sum`."""
    # r6: 128; r5: index of the source, which ldrsb needs; r7: sum
    one = ["ldrsb r4, [r0, r5]", "adds r4, r4, r6", "adds r7, r7, r4"]
    four = [line for i in range(UNROLL) for line in (*one, f"strb r4, [r1, #{pixels * i}]", "adds r5, #1")]
    lines = ["push {r4-r7, lr}", "ldr r7, [sp, #24]", "ldr r7, [r7]", "movs r6, #128"]
    lines += ["1:", "movs r5, #0", "mov r12, r2", f"subs r2, #{UNROLL}", "blt 3f"]
    lines += ["2:", *four, f"adds r1, #{pixels * UNROLL}", "cmp r5, r2", "ble 2b"]
    lines += ["3:", "mov r2, r12", "b 5f", "4:", *one, "strb r4, [r1]", "adds r5, #1", f"adds r1, #{pixels}"]
    lines += ["5:", "cmp r5, r2", "blt 4b", "ldr r4, [sp, #20]", "adds r0, r0, r4", "subs r3, #1", "bne 1b"]
    lines += ["ldr r4, [sp, #24]", "str r7, [r4]", "pop {r4-r7, pc}"]
    return function("putbytes", "ptr, ptr, i32, i32, i32, ptr", lines)


def fill_bytes(pixels: int) -> tuple[str, str]:
    """(to, count, value, sum): one biased value into every `pixels`th byte; adds to the word at `sum`."""
    lines = ["push {r4, lr}", "adds r2, #128", "movs r4, r1", "muls r4, r2, r4", "mov r12, r4"]
    lines += ["1:", "strb r2, [r0]", f"adds r0, #{pixels}", "subs r1, #1", "bne 1b"]
    lines += ["ldr r1, [r3]", "add r1, r12", "str r1, [r3]", "pop {r4, pc}"]
    return function("fillbiased", "ptr, i32, i32, ptr", lines)


def copy_run() -> tuple[str, str]:
    """(source, to, count): copy at least one byte; by words where both are aligned, as Armv6-M knows no others."""
    lines = ["push {r4, lr}", "movs r3, r0", "orrs r3, r1", "lsls r3, r3, #30", "bne 3f"]
    lines += ["1:", "subs r2, #8", "blt 2f", "ldm r0!, {r3, r4}", "stm r1!, {r3, r4}", "b 1b", "2:", "adds r2, #8"]
    lines += ["3:", "subs r2, #4", "blt 5f"]
    lines += ["4:", *(line for i in range(4) for line in (f"ldrb r3, [r0, #{i}]", f"strb r3, [r1, #{i}]"))]
    lines += ["adds r0, #4", "adds r1, #4", "subs r2, #4", "bge 4b", "5:", "adds r2, #4", "beq 7f"]
    lines += ["6:", "subs r2, #1", "ldrb r3, [r0, r2]", "strb r3, [r1, r2]", "bne 6b", "7:", "pop {r4, pc}"]
    return function("copyrun", "ptr, ptr, i32", lines)


def fill_run() -> tuple[str, str]:
    """(to, count, value): fill at least one byte."""
    return function("fillrun", "ptr, i32, i32", ["1:", "subs r1, #1", "strb r2, [r0, r1]", "bne 1b", "bx lr"])
