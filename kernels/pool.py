"""Generic pooling rows: windows clipped to the input, accumulated tap by tap over contiguous channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .halves import settle
from .snippets import Source, clamp


def _everywhere(graph: LoweredGraph, node: Node, target: Target) -> bool:
    return True


def _taps(graph: LoweredGraph, node: Node) -> int:
    kh, kw = node.attrs["kernel"]
    return graph.tensors[node.output].size * int(kh) * int(kw)


def _window(s: Source, graph: LoweredGraph, node: Node) -> None:
    """Names y0..y1 and x0..x1: the part of the window of output (oy, ox) that lies inside the input."""
    (h, w, _), a = graph.tensors[node.inputs[0]].shape, node.attrs
    s(f"wy: T.let[T.int32] = oy * {a['stride'][0]} - {a['pads'][0]}")
    s(f"wx: T.let[T.int32] = ox * {a['stride'][1]} - {a['pads'][1]}")
    s("y0: T.let[T.int32] = T.max(wy, 0)", f"y1: T.let[T.int32] = T.min(wy + {a['kernel'][0]}, {h})")
    s("x0: T.let[T.int32] = T.max(wx, 0)", f"x1: T.let[T.int32] = T.min(wx + {a['kernel'][1]}, {w})")


def _max_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    (oh, ow, c), w = graph.tensors[node.output].shape, graph.tensors[node.inputs[0]].shape[1]
    s = Source()
    s.input(0, "X")
    s.output("Y")
    with s.block(f"for oy in range({oh}):"), s.block(f"for ox in range({ow}):"):
        _window(s, graph, node)
        s(f"to: T.let[T.int32] = (oy * {ow} + ox) * {c}")
        with s.block(f"for c in range({c}):"):
            s("Y[to + c] = T.int8(-128)")
        with s.block("for y in range(y1 - y0):"), s.block("for x in range(x1 - x0):"):
            s(f"at: T.let[T.int32] = ((y0 + y) * {w} + x0 + x) * {c}")
            with s.block(f"for c in range({c}):"):
                s("Y[to + c] = T.max(Y[to + c], X[at + c])")
    return s.code()


def _avg_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    return avg_code(graph, node, _sum_up)


def _sum_up(s: Source, c: int, w: int) -> str:
    """S[c] = sum of the centred codes of the window."""
    with s.block(f"for c in range({c}):"):
        s("S[c] = count * (0 - in_zero)")
    with s.block("for y in range(y1 - y0):"), s.block("for x in range(x1 - x0):"):
        s(f"at: T.let[T.int32] = ((y0 + y) * {w} + x0 + x) * {c}")
        with s.block(f"for c in range({c}):"):
            s('S[c] = S[c] + T.cast(X[at + c], "int32")')
    return ""


def avg_code(graph: LoweredGraph, node: Node, sum_up: Callable[[Source, int, int], str]) -> Code:
    """Average pooling; `sum_up` writes what fills S for the window y0..y1, x0..x1, and gives LLVM IR to import."""
    (oh, ow, c), w = graph.tensors[node.output].shape, graph.tensors[node.inputs[0]].shape[1]
    a = node.attrs
    taps = int(a["kernel"][0] * a["kernel"][1])
    s = Source()
    s.input(0, "X")
    s.const("M", "multiplier", "int32")
    s.output("Y")
    s.workspace("S", "int32")
    s.integer("in_zero", a["in_zero"])
    s.integer("out_zero", a["out_zero"])
    if a.get("tie", 0):
        s.integer("mantissa", a["tie"])
        s.local("E", 4, "int64")
    with s.block(f"for oy in range({oh}):"), s.block(f"for ox in range({ow}):"):
        _window(s, graph, node)
        s("count: T.let[T.int32] = (y1 - y0) * (x1 - x0)")
        ir = sum_up(s, c, w)
        s(f"divisor: T.let[T.int32] = {taps if a['include_pad'] else 'T.max(count, 1)'}")
        s('m: T.let[T.int64] = T.cast(M[divisor - 1], "int64")')
        total = f"T.shift_left(S[c], {a['shift']})" if a["shift"] else "S[c]"
        product, at = f'T.cast({total}, "int64") * m', f"(oy * {ow} + ox) * {c} + c"
        with s.block(f"for c in range({c}):"):
            code = f'T.cast(T.shift_right({product} + T.int64(2147483648), T.int64(32)), "int32") + out_zero'
            s(f"Y[{at}] = {clamp(code, a['low'], a['high'])}")
        if a.get("tie", 0):
            with s.block(f"for c in range({c}):"):
                settle(s, product, at, a, (w * c, c), 32 + taps.bit_length())
    return s.code(ir)


def avg_pack(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    """The multiplier of every number of taps."""
    return {"multiplier": node.consts["multiplier"].astype(np.int32)}


KERNELS.add(
    "max_pool2d_s8_-_1x1__tir",
    Kernel(
        "max_pool2d_s8_-_1x1__tir", "max_pool2d", "-", "tir", _everywhere,
        lambda graph, node, target: 5.0 * _taps(graph, node), lambda graph, node: 0, lambda graph, node: {}, _max_emit,
    ),
)  # fmt: skip
KERNELS.add(
    "avg_pool2d_s8_-_1x1__tir",
    Kernel(
        "avg_pool2d_s8_-_1x1__tir", "avg_pool2d", "-", "tir", _everywhere,
        lambda graph, node, target: 4.0 * _taps(graph, node) + 20.0 * graph.tensors[node.output].size,
        lambda graph, node: 4 * graph.tensors[node.output].shape[-1], avg_pack, _avg_emit,
    ),
)  # fmt: skip
