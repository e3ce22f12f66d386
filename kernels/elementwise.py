"""Generic rows of elementwise ops, lookup tables and softmax. Elementwise outputs may overwrite their first input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.kernel import KERNELS, Code, Kernel, always
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .snippets import OutputStage, Source, clamp


def _everywhere(graph: LoweredGraph, node: Node, target: Target) -> bool:
    return True


def _elements(s: Source, graph: LoweredGraph, node: Node) -> str:
    return f"for i in range({s.integer('count', graph.tensors[node.output].size)}):"


def _scaled_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Add and rescale: clamp((a*x0 + b*x1 + const) >> shift)."""
    a, s = node.attrs, Source()
    s.input(0, "X")
    if len(node.inputs) == 2:
        s.input(1, "R")
    s.output("Y")
    total = f'T.cast(X[i], "int32") * {s.integer("factor0", a["a"])}'
    if len(node.inputs) == 2:
        total += f' + T.cast(R[i], "int32") * {s.integer("factor1", a["b"])}'
    total += f" + {s.integer('constant', a['const'])}"
    shifted = f"T.shift_right({total}, {a['shift']})"
    with s.block(_elements(s, graph, node)):
        s(f"Y[i] = {clamp(shifted, a['low'], a['high'])}")
    return s.code()


def _clamp_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    s = Source()
    s.input(0, "X")
    s.output("Y")
    with s.block(_elements(s, graph, node)):
        s(f"Y[i] = T.max(T.min(X[i], T.int8({node.attrs['high']})), T.int8({node.attrs['low']}))")
    return s.code()


def _lut_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    s = Source()
    s.input(0, "X")
    s.const("L", "table", "int8")
    s.output("Y")
    with s.block(_elements(s, graph, node)):
        s('Y[i] = L[T.cast(X[i], "int32") + 128]')
    return s.code()


def _mul_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Product of the centred codes; a gate of one value per channel is read again for every pixel."""
    a, out, s = node.attrs, graph.tensors[node.output], Source()
    s.input(0, "X")
    s.input(1, "G")
    s.output("Y")
    stage = OutputStage(s, node)
    multiplier = s.integer("multiplier", int(node.consts["multiplier"][0]))
    x_zero, g_zero = s.integer("x_zero", a["a_zero"]), s.integer("g_zero", a["b_zero"])

    def write(at: str, gate: str) -> None:
        product = f'(T.cast(X[{at}], "int32") - {x_zero}) * (T.cast(G[{gate}], "int32") - {g_zero})'
        stage(s, product, multiplier, at)

    if graph.tensors[node.inputs[1]].size == out.size:
        with s.block(_elements(s, graph, node)):
            write("i", "i")
        return s.code()
    pixels, channels = s.integer("pixels", out.size // out.shape[-1]), s.integer("channels", out.shape[-1])
    with s.block(f"for p in range({pixels}):"), s.block(f"for c in range({channels}):"):
        write(f"p * {channels} + c", "c")
    return s.code()


def _softmax_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    """Per row: largest code, sum of exponentials, then one unsigned 32-bit division per class."""
    shape = graph.tensors[node.output].shape
    s = Source()
    s.input(0, "X")
    s.const("E", "table", "int32")
    s.output("Y")
    rows = s.integer("rows", graph.tensors[node.output].size // shape[-1])
    classes = s.integer("classes", shape[-1])
    s.local("top", 1)
    s.local("total", 1)
    with s.block(f"for r in range({rows}):"):
        s("top[0] = -128", "total[0] = 0")
        with s.block(f"for i in range({classes}):"):
            s(f'top[0] = T.max(top[0], T.cast(X[r * {classes} + i], "int32"))')
        with s.block(f"for i in range({classes}):"):
            s(f'total[0] = total[0] + E[top[0] - T.cast(X[r * {classes} + i], "int32")]')
        with s.block(f"for i in range({classes}):"):
            above = f'E[top[0] - T.cast(X[r * {classes} + i], "int32")] * 256 + T.shift_right(total[0], 1)'
            ratio = f'T.truncdiv(T.cast({above}, "uint32"), T.cast(total[0], "uint32"))'
            s(f'Y[r * {classes} + i] = T.cast(T.min(T.cast({ratio}, "int32") - 128, 127), "int8")')
    return s.code()


def _table(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    dtype = np.int8 if node.op == "lut" else np.int32
    return {"table": node.consts["table"].astype(dtype)}


def _nothing(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    return {}


def _register(
    op: str,
    instructions: float,
    emit: Callable[[LoweredGraph, Node, Target], Code],
    pack: Callable[[LoweredGraph, Node], Mapping[str, NDArray[Any]]] = _nothing,
) -> None:
    def cost(graph: LoweredGraph, node: Node, target: Target) -> float:
        return instructions * graph.tensors[node.output].size

    name = f"{op}_s8_-_1x1__tir"
    KERNELS.add(name, Kernel(name, op, "-", "tir", _everywhere, cost, lambda graph, node: 0, pack, emit, always))


_register("add", 9.0, _scaled_emit)
_register("rescale", 7.0, _scaled_emit)
_register("mul", 14.0, _mul_emit)  # never over the gate: it may be shorter, and is read again
_register("clamp", 5.0, _clamp_emit)
_register("lut", 5.0, _lut_emit, _table)
_register("softmax", 30.0, _softmax_emit, _table)
