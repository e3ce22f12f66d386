"""Rows of `stack`: parts of whole rows copied below each other, for every target.

Most stacks need no code at all: their parts are written where the whole shall lie (xdeploy.memory). What is left are
copies, of the rows that streaming keeps from band to band. Where all is a multiple of 4 bytes they go word by word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from xdeploy.kernel import KERNELS, Arg, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .ctext import function
from .snippets import Source


def _nothing(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    return {}


def _sizes(graph: LoweredGraph, node: Node) -> list[int]:
    return [graph.tensors[t].size for t in node.inputs]


def _word(graph: LoweredGraph, node: Node, target: Target) -> int:
    """Bytes moved at once: 4 where all parts have and keep the alignment of words."""
    return 4 if target.align % 4 == 0 and all(size % 4 == 0 for size in _sizes(graph, node)) else 1


def _tir(graph: LoweredGraph, node: Node, target: Target) -> Code:
    word, s, at = _word(graph, node, target), Source(), "0"
    for k in range(len(node.inputs)):
        s.input(k, f"X{k}")
    s.output("Y")
    dtype = {4: "int32", 1: "int8"}[word]
    to = s.view("V", "Y", dtype)
    for k, size in enumerate(_sizes(graph, node)):
        part, count = s.view(f"V{k}", f"X{k}", dtype), s.integer(f"count{k}", size // word)
        with s.block(f"for i in range({count}):"):
            s(f"{to}[{at} + i] = {part}[i]")
        at = f"{at} + {count}"
    return s.code()


def _c99(graph: LoweredGraph, node: Node, target: Target) -> Code:
    sizes = _sizes(graph, node)
    copies = "".join(
        f"    for (i = 0; i < count{k}; ++i) {{\n        y[at] = x{k}[i];\n        ++at;\n    }}\n"
        for k in range(len(sizes))
    )
    pointers = {f"const int8_t *x{k}": Arg("input", index=k) for k in range(len(sizes))}
    body = f"{{\n    int32_t at = 0;\n    int32_t i;\n\n{copies}}}\n"
    return function(body, {**pointers, "int8_t *y": Arg("output")}, {f"count{k}": n for k, n in enumerate(sizes)})


def _tir_cost(graph: LoweredGraph, node: Node, target: Target) -> float:
    return 4.0 * graph.tensors[node.output].size / _word(graph, node, target) + 20


def _c99_cost(graph: LoweredGraph, node: Node, target: Target) -> float:
    return 5.0 * graph.tensors[node.output].size + 20


for _isa, _emit, _cost in (("tir", _tir, _tir_cost), ("c99", _c99, _c99_cost)):
    _name = f"stack_s8_-_1x1__{_isa}"
    KERNELS.add(
        _name,
        Kernel(
            _name, "stack", "-", _isa, lambda graph, node, target: True, _cost, lambda graph, node: 0, _nothing, _emit
        ),
    )  # fmt: skip
