"""Helium function that gathers the windows of a tile of pixels, border included, in one call."""

from __future__ import annotations

from .armasm import function

# stack arguments after x, to, iy, ix in r0-r3; a pixel's window begins at (iy, ix), maybe outside the input
STACK_ARGS = (
    "count", "row", "channels", "line", "run", "kh", "inside_y", "inside_x", "down", "dy", "height", "sx", "last_x",
    "first_x", "sy", "in_zero",
)  # fmt: skip


def gather_tile() -> tuple[str, str]:
    """Copy `count` windows of `kh` rows of `run` bytes, one every `row` bytes; what lies outside is `in_zero`.

    channels, line: bytes of a pixel and of an input row; down: bytes from one row of a window to the next, dy rows
    apart; windows that begin in rows 0..inside_y-1 and columns 0..inside_x-1 lie inside the input. The next pixel
    begins sx columns further, and at last_x in column first_x, sy rows below.
    """

    def slot(name: str) -> str:
        return f"[sp, #{52 + 4 * STACK_ARGS.index(name)}]"

    lines = ["push {r0-r11, lr}", f"ldr r4, {slot('in_zero')}", "vdup.8 q1, r4"]
    lines += ["1:", "ldrd r2, r3, [sp, #8]", f"ldrd r4, r5, {slot('channels')}", "ldrd r0, r1, [sp]"]
    lines += ["mla r0, r3, r4, r0", "mla r0, r2, r5, r0", f"ldr r6, {slot('row')}", "add r6, r6, r1"]
    lines += ["str r6, [sp, #4]", f"ldrd r6, r7, {slot('run')}", f"ldr r8, {slot('down')}"]
    lines += [f"ldrd r9, r10, {slot('inside_y')}", "cmp r2, r9", "it lo", "cmplo r3, r10", "bhs 6f"]
    lines += ["2:", "mov r9, r0", "mov r10, r1", "dlstp.8 lr, r6"]
    lines += ["3:", "vldrb.u8 q0, [r9], #16", "vstrb.8 q0, [r10], #16", "letp lr, 3b"]
    lines += ["add r0, r0, r8", "add r1, r1, r6", "subs r7, r7, #1", "bne 2b"]
    lines += ["4:", "ldr r3, [sp, #12]", f"ldrd r4, r5, {slot('sx')}", "add r3, r3, r4", "cmp r3, r5", "bne 5f"]
    lines += [f"ldrd r3, r4, {slot('first_x')}", "ldr r2, [sp, #8]", "add r2, r2, r4", "str r2, [sp, #8]"]
    lines += ["5:", "str r3, [sp, #12]", f"ldr r2, {slot('count')}", "subs r2, r2, #1", f"str r2, {slot('count')}"]
    lines += ["bne.w 1b", "add sp, sp, #16", "pop {r4-r11, pc}"]
    # bytes r9..r9+r10 of a row lie inside
    lines += ["6:", "mul r3, r3, r4", "rsb r9, r3, #0", "cmp r9, #0", "it lt", "movlt r9, #0"]
    lines += ["cmp r9, r6", "it gt", "movgt r9, r6", "sub r10, r5, r3", "cmp r10, r6", "it gt", "movgt r10, r6"]
    lines += ["sub r10, r10, r9", f"ldrd r4, r5, {slot('dy')}"]
    lines += ["7:", "mov r11, r1", "dlstp.8 lr, r6", "8:", "vstrb.8 q1, [r11], #16", "letp lr, 8b"]
    lines += ["cmp r2, r5", "bhs 9f", "cmp r10, #0", "ble 9f", "add.w r11, r0, r9", "add.w r12, r1, r9"]
    lines += ["dlstp.8 lr, r10", "8:", "vldrb.u8 q0, [r11], #16", "vstrb.8 q0, [r12], #16", "letp lr, 8b"]
    lines += ["9:", "add r0, r0, r8", "add r1, r1, r6", "add r2, r2, r4", "subs r7, r7, #1", "bne 7b", "b 4b"]
    return function("gather", f"ptr, ptr{', i32' * (2 + len(STACK_ARGS))}", lines)
