"""Average pooling for cores with the Armv7E-M DSP instructions: four channels at a time, summed in lanes of 16 bits."""

from __future__ import annotations

from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .armasm import function
from .pool import avg_code, avg_pack
from .snippets import Source

CHANNELS, UNROLL = 4, 4
MOST = 255  # taps whose sum fits 16 bits: 128 * 255 < 2^15


def window_sums() -> tuple[str, str]:
    """(x, sums, rows, columns, row, channels, start): int32 sums of a window, from `start` on; bytes from row to row.

    Windows have at least one row and one column.
    """
    one = ["ldr r10, [r9]", "add r9, r9, r6", "sxtab16 r4, r4, r10", "sxtab16 r5, r5, r10, ror #8"]
    lines = ["push {r4-r11, lr}", "ldrd r8, r6, [sp, #36]", "mov lr, r6", "1:", "movs r4, #0", "movs r5, #0"]
    lines += ["mov r11, r0", "mov r12, r2", "2:", "mov r9, r11", f"subs r7, r3, #{UNROLL}", "blt 4f"]
    lines += ["3:", *one * UNROLL, f"subs r7, r7, #{UNROLL}", "bge 3b", "4:", f"adds r7, r7, #{UNROLL}", "beq 6f"]
    lines += ["5:", *one, "subs r7, r7, #1", "bne 5b", "6:", "add r11, r11, r8", "subs r12, r12, #1", "bne 2b"]
    lines += ["ldr r12, [sp, #44]", "sxtah r7, r12, r4", "sxtah r9, r12, r5", "add r10, r12, r4, asr #16"]
    lines += ["add r11, r12, r5, asr #16", "stm r1!, {r7, r9, r10, r11}", f"adds r0, r0, #{CHANNELS}"]
    lines += [f"subs lr, lr, #{CHANNELS}", "bne 1b", "pop {r4-r11, pc}"]
    return function("windowsums", f"ptr, ptr{5 * ', i32'}", lines)


def _applies(graph: LoweredGraph, node: Node, target: Target) -> bool:
    """Channels a multiple of 4, windows inside the input and not too large for 16 bits."""
    (kh, kw), pads = node.attrs["kernel"], node.attrs["pads"]
    return graph.tensors[node.output].shape[-1] % CHANNELS == 0 and not any(pads) and kh * kw <= MOST


def _cost(graph: LoweredGraph, node: Node, target: Target) -> float:
    size, (kh, kw) = graph.tensors[node.output].size, node.attrs["kernel"]
    return float(size * (1.2 * kh * kw + 2.5 * kh / CHANNELS + 20.0))


def _emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    text, name = window_sums()
    (kh, kw), width = node.attrs["kernel"], graph.tensors[node.inputs[0]].shape[1]
    rows, columns = (1, kh * kw) if kw == width else (kh, kw)  # whole rows follow each other

    def sum_up(s: Source, c: int, w: int) -> str:
        values = f"{rows}, {columns}, {w * c}, {c}, count * (0 - in_zero)"
        at = f"T.address_of(X[(y0 * {w} + x0) * {c}]), T.address_of(S[0])"
        s(f'T.evaluate(T.call_extern("int32", "{name}", {at}, {values}))')
        return text

    return avg_code(graph, node, sum_up)


KERNELS.add(
    "avg_pool2d_s8_-_1x4__armv7em",
    Kernel(
        "avg_pool2d_s8_-_1x4__armv7em", "avg_pool2d", "-", "armv7em", _applies, _cost,
        lambda graph, node: 4 * graph.tensors[node.output].shape[-1], avg_pack, _emit,
    ),
)  # fmt: skip
