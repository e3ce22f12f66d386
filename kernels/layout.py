"""Generic rows that move codes: pad, slice, concat, transpose, resize. Loops run in output order, channels inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .snippets import Source


def _pad_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    (h, w, c), (oh, ow, oc) = graph.tensors[node.inputs[0]].shape, graph.tensors[node.output].shape
    (top, left, _, _), (front, _) = node.attrs["pads"], node.attrs["channels"]
    s = Source()
    s.input(0, "X")
    s.output("Y")
    s.integer("value", node.attrs["value"])
    fill = 'T.cast(value, "int8")'
    with s.block(f"for oy in range({oh}):"), s.block(f"for ox in range({ow}):"):
        s(f"to: T.let[T.int32] = (oy * {ow} + ox) * {oc}")
        s(f"at: T.let[T.int32] = ((oy - {top}) * {w} + ox - {left}) * {c}")
        with s.block(f"if oy >= {top} and oy < {top + h} and ox >= {left} and ox < {left + w}:"):
            for start, count in ((0, front), (front + c, oc - front - c)):
                if count:
                    with s.block(f"for i in range({count}):"):
                        s(f"Y[to + {start} + i] = {fill}")
            with s.block(f"for i in range({c}):"):
                s(f"Y[to + {front} + i] = X[at + i]")
        with s.block("else:"), s.block(f"for i in range({oc}):"):
            s(f"Y[to + i] = {fill}")
    return s.code()


def _strided(s: Source, counts: list[int], strides: list[int], start: int) -> None:
    """Copy to contiguous Y from X[start + sum(index * stride)], dimensions of one element left out."""
    dims = [(n, t) for n, t in zip(counts, strides, strict=True) if n > 1] or [(1, 1)]
    to, at, depth = "0", str(start), []
    for i, (count, stride) in enumerate(dims):
        depth.append(f"for i{i} in range({count}):")
        to, at = f"({to}) * {count} + i{i}", f"{at} + i{i} * {stride}"
    _nest(s, depth, f"Y[{to}] = X[{at}]")


def _nest(s: Source, heads: list[str], line: str) -> None:
    if not heads:
        s(line)
        return
    with s.block(heads[0]):
        _nest(s, heads[1:], line)


def _steps(shape: tuple[int, ...]) -> list[int]:
    """Elements from one index to the next in every dimension of a contiguous tensor."""
    steps = [1]
    for n in reversed(shape[1:]):
        steps.insert(0, steps[0] * n)
    return steps


def _slice_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    shape, a = graph.tensors[node.inputs[0]].shape, node.attrs
    cuts = [
        slice(*c).indices(n) for n, c in zip(shape, zip(a["starts"], a["stops"], a["steps"], strict=True), strict=True)
    ]
    steps = _steps(shape)
    s = Source()
    s.input(0, "X")
    s.output("Y")
    start = sum(cut[0] * step for cut, step in zip(cuts, steps, strict=True))
    strides = [cut[2] * step for cut, step in zip(cuts, steps, strict=True)]
    _strided(s, list(graph.tensors[node.output].shape), strides, start)
    return s.code()


def _transpose_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    steps = _steps(graph.tensors[node.inputs[0]].shape)
    s = Source()
    s.input(0, "X")
    s.output("Y")
    _strided(s, list(graph.tensors[node.output].shape), [steps[p] for p in node.attrs["perm"]], 0)
    return s.code()


def _concat_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    out = graph.tensors[node.output]
    s, at = Source(), 0
    for k in range(len(node.inputs)):
        s.input(k, f"X{k}")
    s.output("Y")
    rows = s.integer("rows", out.size // out.shape[-1])
    for k, name in enumerate(node.inputs):
        count = graph.tensors[name].shape[-1]
        with s.block(f"for r in range({rows}):"), s.block(f"for c in range({count}):"):
            s(f"Y[r * {out.shape[-1]} + {at} + c] = X{k}[r * {count} + c]")
        at += count
    return s.code()


@dataclass(frozen=True, slots=True)
class Axis:
    """Sources of one resized axis: `count` steps of `step` from `start`, each used `repeat` times; or a table."""

    indices: tuple[int, ...]
    repeat: int = 1
    start: int = 0
    step: int = 0  # 0: no progression, the indices are looked up

    @property
    def count(self) -> int:
        """Distinct steps."""
        return len(self.indices) // self.repeat

    @property
    def table(self) -> NDArray[Any]:
        """The indices in the narrowest type that holds them."""
        return np.array(self.indices, np.uint16 if max(self.indices) < 1 << 16 else np.int32)


def axis(indices: tuple[int, ...]) -> Axis:
    """Recognise indices that loops can count: each repeated equally often, then a constant step forward."""
    repeat = next((k for k, i in enumerate(indices) if i != indices[0]), len(indices))
    steps = indices[::repeat]
    step = steps[1] - steps[0] if len(steps) > 1 else 1
    counted = tuple(steps[0] + k // repeat * step for k in range(len(indices)))
    return Axis(indices, repeat, indices[0], step) if step > 0 and counted == indices else Axis(indices)


def resize_axes(node: Node) -> dict[str, Axis]:
    """The rows and the columns of a resize node."""
    return {key: axis(tuple(node.attrs[key])) for key in ("rows", "cols")}


def resize_tables(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    """The tables of the axes that are looked up."""
    return {key: a.table for key, a in resize_axes(node).items() if not a.step}


def _axis_loops(a: Axis, name: str, table: str) -> tuple[list[str], str, str]:
    """Loop heads, output index and source index of one axis."""
    if not a.step:
        return [f"for {name} in range({a.count}):"], name, f'T.cast({table}[{name}], "int32")'
    heads = [f"for {name} in range({a.count}):"]
    heads += [f"for {name}_again in range({a.repeat}):"] if a.repeat > 1 else []
    to = f"({name} * {a.repeat} + {name}_again)" if a.repeat > 1 else name
    return heads, to, f"({a.start} + {name} * {a.step})"


def _resize_emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    (_, width, channels), columns = graph.tensors[node.inputs[0]].shape, len(node.attrs["cols"])
    s, axes = Source(), resize_axes(node)
    s.input(0, "X")
    for key, array in resize_tables(graph, node).items():
        s.const(key.upper(), key, str(array.dtype))
    s.output("Y")
    rows, to_row, row = _axis_loops(axes["rows"], "y", "ROWS")
    cols, to_col, col = _axis_loops(axes["cols"], "x", "COLS")
    line = f"Y[({to_row} * {columns} + {to_col}) * {channels} + c] = X[({row} * {width} + {col}) * {channels} + c]"
    _nest(s, [*rows, *cols, f"for c in range({channels}):"], line)
    return s.code()


Pack = Callable[[LoweredGraph, Node], Mapping[str, NDArray[Any]]]


def _nothing(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    return {}


def _register(op: str, emit: Callable[[LoweredGraph, Node, Target], Code], pack: Pack = _nothing) -> None:
    name = f"{op}_s8_-_1x1__tir"
    KERNELS.add(
        name,
        Kernel(
            name, op, "-", "tir", lambda graph, node, target: True,
            lambda graph, node, target: 4.0 * graph.tensors[node.output].size, lambda graph, node: 0,
            pack, emit,
        ),
    )  # fmt: skip


for _op, _emit in (
    ("pad", _pad_emit),
    ("slice", _slice_emit),
    ("concat", _concat_emit),
    ("transpose", _transpose_emit),
):
    _register(_op, _emit)
_register("resize", _resize_emit, resize_tables)
