"""Thumb-2 functions that bring windows into the workspace, and widen them to int16 for the armv7em rows.

Widened activations of P pixels stand interleaved by quads of k: per quad and pixel four int16 in the order 0, 2, 1, 3,
which is what SXTB16 makes of four bytes.
"""

from __future__ import annotations

from .armasm import function


def _widen_quad(pixels: int, source: str, to: str) -> list[str]:
    step = f"strd lr, r12, [{to}], #{8 * pixels}"
    return [f"ldr r12, [{source}], #4", "sxtb16 lr, r12", "sxtb16 r12, r12, ror #8", step]


def widen(pixels: int) -> tuple[str, str]:
    """(source, to, quads, rows, stride): int8 -> int16 quads, `pixels` * 8 bytes apart, of rows `stride` bytes apart.

    The source may be unaligned.
    """
    one = _widen_quad(pixels, "r5", "r1")
    lines = ["push {r4-r6, lr}", "ldr r4, [sp, #16]", "1:", "mov r5, r0", "mov r6, r2"]
    lines += ["2:", "subs r6, r6, #4", "blt 3f", *one * 4, "b 2b", "3:", "adds r6, r6, #4", "beq 5f"]
    lines += ["4:", *one, "subs r6, r6, #1", "bne 4b", "5:", "add r0, r0, r4", "subs r3, r3, #1", "bne 1b"]
    return function("widen", "ptr, ptr, i32, i32, i32", [*lines, "pop {r4-r6, pc}"])


def spread(pixels: int) -> tuple[str, str]:
    """(to, quads, pair): fill quads with one pair of int16, for padding."""
    lines = ["1:", f"strd r2, r2, [r0], #{8 * pixels}", "subs r1, r1, #1", "bne 1b", "bx lr"]
    return function("spread", "ptr, i32, i32", lines)


def copy_rows() -> tuple[str, str]:
    """(source, to, run, rows, stride): copy rows of `run` bytes, `stride` bytes apart, to one contiguous place."""
    lines = ["push {r4-r6, lr}", "ldr r4, [sp, #16]", "1:", "mov r5, r0", "mov r6, r2"]
    lines += _copy("r5", "r1", "r6")
    return function(
        "copyrows",
        "ptr, ptr, i32, i32, i32",
        [*lines, "add r0, r0, r4", "subs r3, r3, #1", "bne 1b", "pop {r4-r6, pc}"],
    )


def _copy(source: str, to: str, left: str) -> list[str]:
    """Copy `left` bytes, unaligned, by words and then by bytes."""
    lines = ["2:", f"subs {left}, {left}, #8", "blt 3f"]
    lines += [f"ldr r12, [{source}], #4", f"ldr lr, [{source}], #4", f"str r12, [{to}], #4", f"str lr, [{to}], #4"]
    lines += ["b 2b", "3:", f"adds {left}, {left}, #4", "blt 3f", f"ldr r12, [{source}], #4", f"str r12, [{to}], #4"]
    lines += [f"subs {left}, {left}, #4", "3:", f"adds {left}, {left}, #4", "beq 5f"]
    lines += ["4:", f"ldrb r12, [{source}], #1", f"strb r12, [{to}], #1", f"subs {left}, {left}, #1", "bne 4b", "5:"]
    return lines


def clip_rows() -> tuple[str, str]:
    """(source, to, run, rows, stride, lead, count, iy, dy, height, value): as copy_rows at the input's border.

    Only bytes lead..lead+count of a run lie inside the input, and only rows iy, iy + dy, ... inside 0..height-1; the
    rest becomes `value`.
    """
    lines = ["push {r4-r11, lr}", "ldr r4, [sp, #36]", "ldrd r5, r6, [sp, #40]", "ldrd r7, r8, [sp, #48]"]
    lines += ["ldrd r9, r10, [sp, #56]", "uxtb r10, r10", "orr r10, r10, r10, lsl #8", "orr r10, r10, r10, lsl #16"]
    lines += ["1:", "mov r11, r2", "b 8f", "6:", "str r10, [r1, r11]", "8:", "subs r11, r11, #4", "bge 6b"]
    lines += ["adds r11, r11, #4", "beq 10f", "9:", "subs r11, r11, #1", "strb r10, [r1, r11]", "bne 9b", "10:"]
    lines += ["cmp r7, r9", "bhs 5f", "cmp r6, #0", "ble 5f", "push {r0, r1, r6}", "add r0, r0, r5", "add r1, r1, r5"]
    body = _copy("r0", "r1", "r6")
    lines += [*body[:-1], "7:", "pop {r0, r1, r6}", "5:"]
    lines = ["beq 7f" if line == "beq 5f" else line for line in lines]
    lines += ["add r0, r0, r4", "add r1, r1, r2", "add r7, r7, r8", "subs r3, r3, #1", "bne 1b", "pop {r4-r11, pc}"]
    return function("cliprows", f"ptr, ptr{9 * ', i32'}", lines)


def fill_bytes() -> tuple[str, str]:
    """(to, bytes, value): fill a run of at least one byte."""
    return function("fillbytes", "ptr, i32, i32", ["1:", "strb r2, [r0], #1", "subs r1, r1, #1", "bne 1b", "bx lr"])
