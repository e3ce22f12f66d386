"""The row for parts that stay in float: dequantise, TVM's own import of the ONNX part, quantise. Not for Cortex-M.

Targets with a float unit and a C library have the feature `hosted`; a part falls back only where the recipe names it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.floating import float_model
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .nesttiles import PLAIN, Machine
from .relaxed import Flat, flatten

_BEFORE = """\
@T.prim_func(s_tir=True)
def dequantise(codes: T.Buffer(({count},), "int8"), values: T.Buffer({shape}, "float32")):
    for {loops} in T.grid({sizes}):
        with T.sblock("dequantise"):
            {index} = T.axis.remap("{kinds}", [{loops}])
            values[{index}] = (T.Cast("float32", codes[{at}]) - T.float32({zero})) * T.float32({scale})
"""
_AFTER = """\
@T.prim_func(s_tir=True)
def quantise(values: T.Buffer({shape}, "float32"), codes: T.Buffer(({count},), "int8")):
    for {loops} in T.grid({sizes}):
        with T.sblock("quantise"):
            {index} = T.axis.remap("{kinds}", [{loops}])
            codes[{at}] = T.Cast("int8", T.max(T.min(
                T.nearbyint(values[{index}] / T.float32({scale})) + T.float32({zero}),
                T.float32(127.0)), T.float32(-128.0)))
"""


def _border(text: str, shape: tuple[int, ...], scale: float, zero: int) -> str:
    """Fill one of the texts for a tensor of the model (1, *shape); both need at least two axes to be a grid."""
    wide = (1, *shape)
    loops, index = ([f"{stem}{k}" for k in range(len(wide))] for stem in "iv")
    at = "T.int64(0)"
    for name, size in zip(index, wide, strict=True):
        at = f"({at}) * T.int64({size}) + {name}"
    return text.format(
        count=int(np.prod(shape)), shape=wide, loops=", ".join(loops), sizes=", ".join(f"T.int64({n})" for n in wide),
        index=", ".join(index), kinds="S" * len(wide), at=at, zero=float(zero), scale=repr(float(np.float32(scale))),
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _compiled(
    model: bytes,
    given: tuple[int, ...],
    result: tuple[int, ...],
    scales: tuple[float, float],
    zeros: tuple[int, int],
    machine: Machine = PLAIN,
) -> Flat:
    before = _border(_BEFORE, given, scales[0], zeros[0])
    return flatten(model, before, _border(_AFTER, result, scales[1], zeros[1]), machine)


def _flat(graph: LoweredGraph, node: Node, machine: Machine = PLAIN) -> Flat:
    a = node.attrs
    given, result = graph.tensors[node.inputs[0]].shape, graph.tensors[node.output].shape
    try:
        return _compiled(
            float_model(node), given, result, (a["in_scale"], a["out_scale"]), (a["in_zero"], a["out_zero"]), machine
        )
    except UnsupportedError as error:
        raise UnsupportedError(f"{node.name} ({', '.join(a['ops'])}): {error.message}", hint=error.hint) from None


def _emit(graph: LoweredGraph, node: Node, target: Target) -> Code:
    flat = _flat(graph, node, Machine.of(target))
    return Code("tir", flat.text, flat.args)


def _cost(graph: LoweredGraph, node: Node, target: Target) -> float:
    """Float operations, four at once, and the way from codes to values and back."""
    moved = graph.tensors[node.inputs[0]].size + graph.tensors[node.output].size
    return _flat(graph, node).operations / 4.0 + 2.0 * moved


def _pack(graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
    return _flat(graph, node).consts


_NAME = "float_f32_-_1x1__hosted"
KERNELS.add(
    _NAME,
    Kernel(
        _NAME, "float", "-", "hosted", lambda graph, node, target: True, _cost,
        lambda graph, node: _flat(graph, node).workspace, _pack, _emit,
        notes="imported by TVM; outputs may differ from the reference by one code",
    ),
)  # fmt: skip
