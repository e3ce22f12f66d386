"""Builds the lowered graph: names, arrangement of data, and `quantise`, which turns a float value into codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int8, QParams
from xdeploy.lir.graph import Node, Tensor
from xdeploy.lir.ops import OPS, scaled_params
from xdeploy.lower.values import Codes, Index, InputPort, Pending, Real, Stop

_QUANTISE_FIRST = "QuantizeLinear and DequantizeLinear between the two"
_MIXED, _KEEP_ORDER = "a reshape mixes axes as no transpose does", "keep channels last or first throughout"


@dataclass(frozen=True, slots=True)
class Binding:
    """The ONNX tensor that holds the same codes as a tensor of the lowered graph."""

    onnx_name: str
    index: Index
    unsigned: bool

    def codes(self, array: NDArray[Any], shape: tuple[int, ...]) -> Int8:
        """Arrange what ONNX Runtime gave (N, ...) as the stored tensor (N, *shape), int8."""
        flat = array.reshape(len(array), -1).astype(np.int16) - (128 if self.unsigned else 0)
        stored = np.empty_like(flat)
        stored[:, self.index.reshape(-1)] = flat
        return stored.reshape(len(array), *shape).astype(np.int8)


def image_index(shape: tuple[int, ...]) -> Index:
    """Index of an ONNX (C, H, W) tensor that is stored as (H, W, C)."""
    c, h, w = shape
    return np.arange(c * h * w, dtype=np.int64).reshape(h, w, c).transpose(2, 0, 1)


# (builder, operation, output parameters, lowest and highest code) -> name of the tensor it wrote
Emit = Callable[["Builder", Pending, QParams, int, int], str]


@dataclass(slots=True)
class Builder:
    """The graph so far. Tensors are named like the nodes that write them; `emit` writes a pending operation."""

    emit: Mapping[str, Emit]
    opset: int = 21  # of the file's standard domain
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    bindings: dict[str, Binding] = field(default_factory=dict)
    _memo: dict[Any, Any] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)

    # --------------------------------------------------------------------------------------- plumbing
    def unique(self, name: str) -> str:
        """`name`, or with _2, _3, ... where it is taken."""
        candidate, k = name, 2
        while candidate in self._names:
            candidate, k = f"{name}_{k}", k + 1
        self._names.add(candidate)
        return candidate

    def add(
        self, origin: str, op: str, inputs: tuple[str, ...], q: QParams,
        attrs: Mapping[str, Any] | None = None, consts: Mapping[str, NDArray[Any]] | None = None,
    ) -> str:  # fmt: skip
        """Append a node and its output tensor; gives the tensor's name."""
        name = self.unique(origin)
        node = Node(name, op, inputs, name, attrs or {}, consts or {})
        try:
            shape = OPS[op].shape(node, [self.tensors[i].shape for i in inputs])
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise Stop(f"shapes do not fit ({error})") from None
        if any(d < 1 for d in shape):
            raise Stop(f"the output would have shape {shape}")
        self.nodes.append(node)
        self.tensors[name] = Tensor(tuple(int(d) for d in shape), q)
        return name

    def bind(self, onnx_name: str, codes: Codes) -> None:
        """Remember which ONNX tensor holds these codes (the first one wins)."""
        self.bindings.setdefault(codes.tensor, Binding(onnx_name, codes.index, codes.unsigned))

    def arrange(self, tensor: str, order: Index, origin: str) -> str:
        """A tensor stored like `order`: element k is the old element order.flat[k]. Free where nothing moves.

        Raises:
            Stop: the order is not a permutation of axes.
        """
        if self.tensors[tensor].shape == order.shape and _in_order(order):
            return tensor
        key = ("arrange", tensor, order.shape, order.tobytes())
        if key in self._memo:
            return str(self._memo[key])
        q, current = self.tensors[tensor].q, tensor
        base, perm = _as_permutation(order, self.tensors[tensor].shape)
        if self.tensors[current].shape != base:
            current = self.add(f"{origin}.reshape", "reshape", (current,), q, {"shape": base})
        if not _in_order(order):
            current = self.add(f"{origin}.transpose", "transpose", (current,), q, {"perm": perm})
        if self.tensors[current].shape != order.shape:
            current = self.add(f"{origin}.reshape", "reshape", (current,), q, {"shape": order.shape})
        self._carry_binding(tensor, current, order)
        self._memo[key] = current
        return current

    def _carry_binding(self, old: str, new: str, order: Index) -> None:
        bound = self.bindings.get(old)
        if bound is not None:
            inverse = np.empty(order.size, np.int64)
            inverse[order.reshape(-1)] = np.arange(order.size)
            self.bindings.setdefault(new, replace(bound, index=inverse[bound.index]))

    def image(self, codes: Codes, origin: str) -> str:
        """The codes of an ONNX (C, H, W) tensor, stored as (H, W, C)."""
        if codes.index.ndim != 3:
            raise Stop(f"wants an image (N, C, H, W), got rank {codes.index.ndim + 1}")
        return self.arrange(codes.tensor, np.ascontiguousarray(codes.index.transpose(1, 2, 0)), origin)

    def vector(self, codes: Codes, origin: str) -> str:
        """The stored tensor as a flat vector, in stored order."""
        return self.arrange(codes.tensor, np.arange(codes.index.size, dtype=np.int64), origin)

    # --------------------------------------------------------------------------------------- values
    def operand(self, real: Real, origin: str) -> Codes:
        """The codes of an operand that must be quantised already.

        Raises:
            Stop: it is not, or a function stands between its DequantizeLinear and this node.
        """
        if not isinstance(real.source, Codes):
            raise Stop("its input is not quantised", _QUANTISE_FIRST)
        source = replace(real.source, index=real.index)
        if real.untouched:
            return source
        low, high = _code_bounds(source.q, real)
        exact = [
            float(b) in (source.q.dequantise(np.array(c, np.int8)), np.inf, -np.inf)
            for b, c in ((real.low, low), (real.high, high))
        ]
        if real.table is not None or not all(exact):
            raise Stop(f"{real.origin or 'a function'} before it is not quantised", _QUANTISE_FIRST)
        return replace(source, tensor=self.clamp(source.tensor, low, high, real.origin or origin))

    def clamp(self, tensor: str, low: int, high: int, origin: str) -> str:
        """The tensor with its codes limited; itself where nothing is."""
        if low <= -128 and high >= 127:
            return tensor
        key = ("clamp", tensor, low, high)
        if key not in self._memo:
            attrs = {"low": low, "high": high}
            self._memo[key] = self.add(origin, "clamp", (tensor,), self.tensors[tensor].q, attrs)
        return str(self._memo[key])

    def quantise(self, real: Real, q: QParams, origin: str) -> Codes:
        """The codes of a float value at scale and zero point `q`; the arrangement stays."""
        table = None if real.table is None else real.table.tobytes()
        key = ("quantise", id(real.source), real.low, real.high, table, q)
        if key not in self._memo:
            tensor = self._quantise(real, q, real.origin or origin)
            self._memo[key] = (tensor, real.source)  # holding the source keeps its id taken
        else:
            tensor = self._memo[key][0]
        return Codes(tensor, q, real.index)

    def _quantise(self, real: Real, q: QParams, origin: str) -> str:
        source = real.source
        if isinstance(source, Pending):
            low, high = _code_bounds(q, real)
            return self.emit[source.op](self, source, q, low, high)
        if isinstance(source, InputPort):
            raise Stop("the float input was given another scale before", "one QuantizeLinear at the input")
        if real.table is not None:
            return self.add(origin, "lut", (source.tensor,), q, {}, {"table": q.quantise(real.table)})
        low, high = _code_bounds(q, real)
        return self.rescale(source.tensor, q, low, high, origin)

    def rescale(self, tensor: str, q: QParams, low: int, high: int, origin: str) -> str:
        """The tensor at other quantisation parameters, with limits in the new codes."""
        before = self.tensors[tensor].q
        if before == q:
            return self.clamp(tensor, low, high, origin)
        return self.add(origin, "rescale", (tensor,), q, scaled_params(before, None, q, low=low, high=high))


# ---------------------------------------------------------------------------------------------- arrangement
def _in_order(order: Index) -> bool:
    return bool((order.reshape(-1) == np.arange(order.size)).all())


def _as_permutation(order: Index, stored: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(base shape, perm) such that arange(base).transpose(perm) has the elements of `order` in their sequence.

    A transpose of the order's own axes or of the stored ones where that does it, else one of their parts.

    Raises:
        Stop: no such permutation of axes exists.
    """
    if _in_order(order):
        return order.shape, ()
    first = (0,) * order.ndim
    steps = [
        int(order[(*first[:k], 1, *first[k + 1 :])] - order[first]) if order.shape[k] > 1 else 0
        for k in range(order.ndim)
    ]
    own = _by_steps(list(order.shape), steps)
    whole = permutations(range(len(stored))) if len(stored) <= 4 else ()
    for base, perm in (own, *((stored, p) for p in whole), _by_runs(order)):
        if np.array_equal(np.arange(order.size).reshape(base).transpose(perm).reshape(-1), order.reshape(-1)):
            return base, perm
    raise Stop(_MIXED, _KEEP_ORDER)


def _by_steps(sizes: list[int], steps: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(base shape, perm) of axes with these sizes and steps in memory."""
    axes = sorted(range(len(sizes)), key=lambda k: -steps[k])
    return tuple(sizes[k] for k in axes), tuple(axes.index(k) for k in range(len(sizes)))


def _by_runs(order: Index) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes found from the inside out, so that any reshape, transpose, reshape (depth to space) is one transpose.

    The longest run of equal steps is the fastest axis; the first elements of all runs are the same problem again.
    """
    rest, sizes, steps = order.reshape(-1), list[int](), list[int]()
    while rest.size > 1:
        steps.insert(0, int(rest[1] - rest[0]))
        breaks = np.flatnonzero(np.diff(rest) != steps[0])
        sizes.insert(0, int(breaks[0]) + 1 if breaks.size else rest.size)
        if steps[0] <= 0 or rest.size % sizes[0]:
            raise Stop(_MIXED, _KEEP_ORDER)
        rest = rest[:: sizes[0]]
    return _by_steps(sizes, steps)


def _code_bounds(q: QParams, real: Real) -> tuple[int, int]:
    low, high = q.quantise(np.array([real.low, real.high]))
    return int(low), int(high)
