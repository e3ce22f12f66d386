"""The row for parts that stay in float: dequantise, TVM's own import of the ONNX part, quantise. Not for Cortex-M.

Targets with a float unit and a C library have the feature `hosted`; a part falls back only where the recipe names it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.floating import float_model
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

from .borders import dequantise, quantise
from .nesttiles import PLAIN, Machine
from .relaxed import Flat, flatten


@functools.lru_cache(maxsize=64)
def _compiled(
    model: bytes,
    given: tuple[int, ...],
    result: tuple[int, ...],
    scales: tuple[float, float],
    zeros: tuple[int, int],
    machine: Machine = PLAIN,
) -> Flat:
    return flatten(model, dequantise(given, scales[0], zeros[0]), quantise(result, scales[1], zeros[1]), machine)


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
