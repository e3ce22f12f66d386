"""What exporters spell out in several nodes becomes the one operator that is meant.

Element-wise regions (GELU by Erf, x * Sigmoid(x), (x + 3) clipped to 6 and divided by 6, ...) are not matched node by
node, which every exporter writes differently: a region of one input is evaluated on a grid and compared with the
functions that have an integer form. MatMul and the Add of its bias become one product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.model.onnxgraph.folding import FOLDS
from xdeploy.model.onnxgraph.rows import Array
from xdeploy.onnxfile import OnnxNode

Float64 = NDArray[np.float64]
_GRID = np.concatenate([np.linspace(-9.0, 9.0, 181), [-40.0, -0.5, 1e-3, 40.0]])
_TOLERANCE = 2e-6  # relative to 1 + |x|: constants are float32
_DEPTH = 12  # nodes between the region's input and its output
_ELEMENT_WISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Exp", "Log", "Erf", "Tanh", "Sigmoid", "Softplus", "Relu", "Clip", "Min",
    "Max", "HardSigmoid", "LeakyRelu", "Elu", "Reciprocal", "Abs", "Sqrt", "Where", "Greater", "Less", "GreaterOrEqual",
    "LessOrEqual",
}  # fmt: skip


def _gelu(x: Float64) -> Float64:
    from scipy.special import erf

    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)


def _targets() -> Iterable[tuple[str, Mapping[str, Any], Callable[[Float64], Float64]]]:
    def sigmoid(x: Float64) -> Float64:
        return np.asarray(1 / (1 + np.exp(-x)))

    yield "Relu", {}, lambda x: np.maximum(x, 0)
    yield "Clip", {"min": 0.0, "max": 6.0}, lambda x: np.clip(x, 0, 6)
    yield "Sigmoid", {}, sigmoid
    yield "Silu", {}, lambda x: x * sigmoid(x)
    yield "HardSwish", {}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    yield "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, lambda x: np.clip(x / 6 + 0.5, 0, 1)
    yield "HardSigmoid", {"alpha": 0.2, "beta": 0.5}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)
    yield "Gelu", {}, _gelu
    tanh = "tanh"
    yield (
        "Gelu",
        {"approximate": tanh},
        lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    )
    yield "Tanh", {}, np.tanh
    yield "Softplus", {}, lambda x: np.logaddexp(x, 0)


_TARGETS = [(op, attrs, function(_GRID)) for op, attrs, function in _targets()]


def recognise(nodes: Sequence[OnnxNode], constants: Mapping[str, Array]) -> list[OnnxNode]:
    """The same graph with regions and biases merged; nodes that nobody reads any more are left in place."""
    regions = _Regions(nodes, constants)
    return _with_biases([regions.merged(n) for n in nodes], constants)


class _Regions:
    """For each element-wise tensor, the tensors it is a function of alone, nearest first."""

    def __init__(self, nodes: Sequence[OnnxNode], constants: Mapping[str, Array]) -> None:
        self._constants = constants
        self._writers: dict[str, OnnxNode] = {}
        self._sources: dict[str, tuple[str, ...]] = {}
        for node in nodes:
            for out in node.outputs:
                self._sources[out] = (out,)
            if node.op in _ELEMENT_WISE and len(node.outputs) == 1:
                self._enter(node)

    def _enter(self, node: OnnxNode) -> None:
        data = [i for i in node.inputs if i and i not in self._constants]
        if not data or any(self._constants[i].size != 1 for i in node.inputs if i in self._constants):
            return
        chains = [self._sources.get(i, (i,)) for i in data]
        common = [t for t in chains[0] if all(t in c for c in chains[1:])]
        out = node.outputs[0]
        self._writers[out] = node
        self._sources[out] = (out, *common[:_DEPTH])

    def merged(self, node: OnnxNode) -> OnnxNode:
        """The node, or the single operator that it and nodes before it amount to."""
        if len(node.outputs) != 1 or node.outputs[0] not in self._writers:
            return node
        for source in reversed(self._sources[node.outputs[0]][1:]):
            if tuple(i for i in node.inputs if i) == (source,) or self._inputs(node) == {source}:
                continue  # the node alone: nothing to merge
            found = self._match(node.outputs[0], source)
            if found:
                return replace(node, op=found[0], inputs=(source,), attrs=dict(found[1]))
        return node

    def _inputs(self, node: OnnxNode) -> set[str]:
        return {i for i in node.inputs if i and i not in self._constants}

    def _match(self, out: str, source: str) -> tuple[str, Mapping[str, Any]] | None:
        values = self._evaluate(out, {source: _GRID}, [4 * _DEPTH])
        if values is None or not np.isfinite(values).any():
            return None
        for op, attrs, wanted in [*_TARGETS, *_sloped(values)]:
            if np.isfinite(values).all() and (np.abs(values - wanted) <= _TOLERANCE * (1 + np.abs(_GRID))).all():
                return op, attrs
        return None

    def _evaluate(self, name: str, done: dict[str, Array], budget: list[int]) -> Array | None:
        """The region on the grid, in float64; None where it leaves the region."""
        if name in done:
            return done[name]
        if name in self._constants:
            value = self._constants[name].reshape(-1)[:1]
            return value.astype(np.float64) if value.dtype.kind in "fiu" else value
        node = self._writers.get(name)
        budget[0] -= 1
        if node is None or budget[0] < 0:
            return None
        operands: list[Array | None] = []
        for i in node.inputs:
            operand = self._evaluate(i, done, budget) if i else None
            if i and operand is None:
                return None
            operands.append(operand)
        try:
            with np.errstate(all="ignore"):
                done[name] = np.asarray(FOLDS[node.op](node, 13, operands))
        except Exception:  # operands of other types than the operator's: not a region that is recognised
            return None
        return done[name]


def _sloped(values: Array) -> Iterable[tuple[str, Mapping[str, Any], Float64]]:
    """Leaky ReLU and ELU with the slope that the value at -1 tells."""
    slope = float(-np.interp(-1.0, _GRID[:181], values[:181]))
    if 0 < slope < 1:
        yield "LeakyRelu", {"alpha": slope}, np.where(_GRID >= 0, _GRID, slope * _GRID)
        alpha = slope / (1 - np.exp(-1))
        yield "Elu", {"alpha": float(alpha)}, np.where(_GRID >= 0, _GRID, alpha * np.expm1(np.minimum(_GRID, 0)))


def _with_biases(nodes: Sequence[OnnxNode], constants: Mapping[str, Array]) -> list[OnnxNode]:
    """MatMul with a constant, read only by an Add of a constant row, takes that row as a third operand."""
    readers = Counter(i for n in nodes for i in n.inputs)
    products = {
        n.outputs[0]: n
        for n in nodes
        if n.op == "MatMul" and n.inputs[1] in constants and constants[n.inputs[1]].ndim == 2
    }
    result: list[OnnxNode] = []
    for node in nodes:
        merged = _biased(node, products, constants, readers) if node.op == "Add" else None
        result.append(merged or node)
    return result


def _biased(
    node: OnnxNode, products: Mapping[str, OnnxNode], constants: Mapping[str, Array], readers: Mapping[str, int]
) -> OnnxNode | None:
    for x, bias in (node.inputs, node.inputs[::-1]):
        product = products.get(x)
        row = constants.get(bias)
        if product is None or row is None or readers[x] != 1:
            continue
        if row.size == row.shape[-1:][0] == constants[product.inputs[1]].shape[1]:
            return replace(product, inputs=(*product.inputs, bias), outputs=node.outputs)
    return None
