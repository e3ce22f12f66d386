"""Visits the ONNX nodes in order, closes values at QuantizeLinear, and collects every obstacle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from xdeploy.errors import ModelError, UnsupportedError
from xdeploy.formats import QParams
from xdeploy.lir.graph import Tensor
from xdeploy.lower.budget import Budget
from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments, activation_params, codebook_weight, dequantised, fold, foldable
from xdeploy.lower.dialect import EXACT, WRITERS, expanded
from xdeploy.lower.emit import EMIT, SOFTMAX_Q
from xdeploy.lower.fallback import FLOAT, Fallback, emit_float
from xdeploy.lower.movement import MOVEMENT
from xdeploy.lower.operands import Outcome, activation, real
from xdeploy.lower.patterns import PATTERNS
from xdeploy.lower.values import Codes, Index, InputPort, Pending, Poison, Real, Stop, Value
from xdeploy.onnxfile import CODEBOOK, FOREIGN, Constant, Obstacle, OnnxGraph, OnnxNode
from xdeploy.onnxshapes import inferred

_ANY = QParams(1 / 128, 0)  # of stand-ins
_STATIC = "static quantisation in QDQ form"
SUPPORTED = sorted({*PATTERNS, *MOVEMENT, *WRITERS, "QuantizeLinear", "DequantizeLinear", "CodebookWeight"})
_NORMS = ("InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization")
_REWRITES = {
    "DynamicQuantizeLinear": _STATIC,
    "MatMulNBits": "4-bit weights with one scale per output channel (block_size at least K)",
    **dict.fromkeys(_NORMS, "batch normalisation, which folds into the layer before it"),
    "Where": "Min, Max or Clip", "LogSoftmax": "Softmax", "LRN": "batch normalisation",
    "LSTM": "a convolutional network", "GRU": "a convolutional network", "Attention": "a convolutional network",
}  # fmt: skip


@dataclass(slots=True)
class Lowering:
    """One pass over the graph with the input stored in `layout` ("CHW": as (H, W, C); "HWC": as it is)."""

    graph: OnnxGraph
    layout: str
    builder: Builder = field(init=False)
    values: dict[str, Value] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)
    input: str = ""
    output: str = ""
    output_shape: tuple[int, ...] = ()
    budget: Budget = field(default_factory=lambda: Budget(()))
    fallback: Fallback = field(default_factory=Fallback)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of float tensors, for stand-ins

    def run(self) -> Lowering:
        """Lower every node; look at `obstacles` afterwards."""
        self.builder = Builder({**EMIT, FLOAT: emit_float}, self.graph.opset)
        self.values = dict(self.graph.constants)
        self.budget = Budget(self.graph.constants.values())
        self._open()
        for node in self.graph.nodes:
            self._visit(node)
        self._close()
        return self

    @property
    def moves(self) -> int:
        """Transposes that were needed."""
        return sum(n.op == "transpose" for n in self.builder.nodes)

    # -------------------------------------------------------------------------------------- the borders
    def _open(self) -> None:
        port = self.graph.input
        shape = port.shape[1:]
        self.input = self.builder.unique(port.name)
        index: Index = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        if len(shape) == 3 and self.layout == "CHW":
            c, h, w = shape
            index = index.reshape(h, w, c).transpose(2, 0, 1)
        if port.dtype == "float32":
            self.values[port.name] = Real(InputPort(port.name), index)
            return
        try:
            q, unsigned = self._integer_input()
        except Stop as stop:
            self._stopped(OnnxNode(port.name, "input", (), ()), stop)
            self.values[port.name] = Poison()
            return
        self._store_input(q)
        codes = Codes(self.input, q, index, unsigned)
        self.builder.bind(port.name, codes)
        self.values[port.name] = codes

    def _store_input(self, q: QParams) -> None:
        shape = self.graph.input.shape[1:]
        stored = (*shape[1:], shape[0]) if len(shape) == 3 and self.layout == "CHW" else shape
        self.builder.tensors[self.input] = Tensor(stored, q)

    def _integer_input(self) -> tuple[QParams, bool]:
        """Parameters of an int8 or uint8 input: those of the DequantizeLinear that reads it, behind moves of data."""
        names = {self.graph.input.name}
        for node in self.graph.nodes:
            if not names & set(node.inputs[:1]):
                continue
            if node.op == "DequantizeLinear":
                return activation_params(*self._parameters(node), node, self.graph.input.dtype == "uint8")
            if node.op in MOVEMENT or node.op == "MaxPool":
                names |= set(node.outputs)
        raise Stop("the integer input has no DequantizeLinear, so its scale is not known")

    def _parameters(self, node: OnnxNode) -> tuple[Value | None, Value | None]:
        scale, zero = (*node.inputs[1:3], "")[:2]
        return self.values.get(scale, self.graph.constants.get(scale)), self.values.get(
            zero, self.graph.constants.get(zero)
        )

    def _close(self) -> None:
        port = self.graph.output
        value = self.values.get(port.name)
        if isinstance(value, Poison):
            return
        node = OnnxNode(port.name, "output", (), ())
        try:
            codes = self._output_codes(value)
            index = codes.index
            image = index.ndim == 3 and self.layout == "CHW"
            order = np.ascontiguousarray(index.transpose(1, 2, 0) if image else index)
            self.output = self.builder.arrange(codes.tensor, order, port.name)
            self.output_shape = index.shape
        except (Stop, UnsupportedError) as stop:
            self._stopped(node, stop)

    def _output_codes(self, value: Value | None) -> Codes:
        x = activation(value)
        if isinstance(x, Codes):
            return x
        if isinstance(x.source, Pending):
            if x.source.op != "softmax":
                raise Stop(
                    f"{x.source.origin} before it is not quantised", "QuantizeLinear and DequantizeLinear at the output"
                )
            return self.builder.quantise(x, SOFTMAX_Q, x.source.origin)
        return self.builder.operand(x, self.graph.output.name)

    # -------------------------------------------------------------------------------------- the nodes
    def _visit(self, node: OnnxNode) -> None:
        args: list[Value | None] = []
        result: Outcome = Poison()
        try:
            args = [self._read(name) for name in node.inputs]
            if node.op != FOREIGN and not any(isinstance(a, Poison) for a in args):
                result = self._lower(node, args)
                for value in result if isinstance(result, tuple) else (result,):
                    self.budget.charge(node.name, value)
        except (Stop, UnsupportedError) as stop:
            self._stopped(self._culprit(node, args), stop, args)
        except RecursionError:
            self._stopped(node, Stop("too many operators follow each other unquantised", "QuantizeLinear between them"))
        except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:  # malformed attributes
            self._stopped(node, Stop(f"the node is malformed ({type(error).__name__}: {error})"))
        several = result if isinstance(result, tuple) else (result,) * len(node.outputs[:1])
        if isinstance(result, Poison):
            several = tuple(self._stand_in(node, name) for name in node.outputs)
        for name, value in zip(node.outputs, several, strict=False):
            self.values[name] = value
            if isinstance(value, Codes):
                self.builder.bind(name, value)

    def _stand_in(self, node: OnnxNode, name: str) -> Value:
        """A float result of a node that is not lowered, where its shape is known: what reads it is judged as well.

        Its codes and their scale are made up; with an obstacle in the list nothing is built from them.
        """
        shape = self.shapes.get(name)
        if shape is None:
            return Poison()
        image = len(shape) == 3 and self.layout == "CHW"
        stored = (*shape[1:], shape[0]) if image else shape
        index: Index = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(stored)
        tensor = self.builder.unique(name)
        self.builder.tensors[tensor] = Tensor(stored, _ANY)
        index = index.transpose(2, 0, 1) if image else index
        value = Real(Codes(tensor, _ANY, index), index)
        self.budget.charge(node.name, value)
        return value

    def _read(self, name: str) -> Value | None:
        if name and name not in self.values:
            raise Stop(f"reads {name!r}, which no earlier node writes")
        return self.values.get(name)

    def _culprit(self, node: OnnxNode, args: Arguments) -> OnnxNode:
        """The float operation that a QuantizeLinear was to close, if there is one, else the node itself."""
        first = args[0] if args else None
        if node.op == "QuantizeLinear" and isinstance(first, Real) and isinstance(first.source, Pending):
            return OnnxNode(first.source.origin, first.source.op, (), ())
        return node

    def _stopped(self, node: OnnxNode, stop: Stop | UnsupportedError, args: Arguments = ()) -> None:
        reason = stop.reason if isinstance(stop, Stop) else stop.message
        rewrite = stop.rewrite if isinstance(stop, Stop) else (stop.hint or "")
        attribute = stop.attribute if isinstance(stop, Stop) else ""
        shape = next((a.index.shape for a in args if isinstance(a, Codes | Real)), ())
        self.obstacles.append(Obstacle(node.name, node.op, reason, rewrite, attribute, shape))

    def _lower(self, node: OnnxNode, args: Arguments) -> Outcome:
        if foldable(node, args):
            return fold(node, args)
        if self.fallback.covers(node):
            return self.fallback.lower(self.builder, node, args)
        if node.op == "QuantizeLinear":
            return self._quantise(node, args)
        if node.op == "DequantizeLinear":
            return self._dequantise(node, args)
        if node.op == CODEBOOK[1]:
            return codebook_weight(node, args)
        handler = PATTERNS.get(node.op) or MOVEMENT.get(node.op)
        if handler is None:
            raise Stop(
                "the operator has no integer form here", _REWRITES.get(node.op, f"one of {', '.join(SUPPORTED)}")
            )
        result = handler(self.builder, node, args)
        if EXACT in node.attrs and isinstance(result, Real) and isinstance(result.source, Pending):
            pending = replace(result.source, attrs={**result.source.attrs, "exact": True})
            return replace(result, source=pending)
        return result

    def _quantise(self, node: OnnxNode, args: Arguments) -> Codes:
        q, unsigned = activation_params(args[1], args[2] if len(args) > 2 else None, node)
        x = real(args[0])
        if isinstance(x.source, InputPort):
            return self._quantise_input(node, x, q, unsigned)
        codes = self.builder.quantise(x, q, node.origin if not isinstance(x.source, Pending) else x.source.origin)
        return Codes(codes.tensor, q, codes.index, unsigned)

    def _quantise_input(self, node: OnnxNode, x: Real, q: QParams, unsigned: bool) -> Codes:
        if self.input not in self.builder.tensors:
            self._store_input(q)
        if self.builder.tensors[self.input].q != q or x.table is not None:
            raise Stop("the float input is used at two scales, or by a function", "one QuantizeLinear at the input")
        source = Codes(self.input, q, x.index, unsigned)
        if x.low == -np.inf and x.high == np.inf:
            return source
        return self.builder.quantise(Real(source, x.index, x.low, x.high, origin=x.origin), q, node.origin)

    def _dequantise(self, node: OnnxNode, args: Arguments) -> Value:
        if isinstance(args[0], Constant):
            return dequantised(node, args)
        codes = activation(args[0])
        if not isinstance(codes, Codes):
            raise Stop("dequantises a float")
        q, _ = activation_params(args[1], args[2] if len(args) > 2 else None, node, codes.unsigned)
        if q != codes.q:
            raise Stop(f"reads codes of {codes.q} as {q}", "the parameters of the QuantizeLinear before it")
        return Real(codes, codes.index)


def lower_nodes(graph: OnnxGraph, fallback: Fallback | None = None) -> Lowering:
    """The pass with the input layout that needs fewer transposes; channels first where it makes no difference."""
    fallback = fallback or Fallback()
    fallback.check(graph)
    graph = expanded(graph)
    best = Lowering(graph, "CHW", fallback=fallback).run()
    if len(graph.input.shape) == 4 and (best.obstacles or best.moves):
        other = Lowering(graph, "HWC", fallback=fallback).run()
        if (len(other.obstacles), other.moves) < (len(best.obstacles), best.moves):
            best = other
    return _further(best, graph) if best.obstacles else best


def _further(first: Lowering, graph: OnnxGraph) -> Lowering:
    """The pass once more, with stand-ins for what the obstacles would have given: finds what stands behind them."""
    shapes = inferred(graph, graph.nodes, {k: c.array for k, c in graph.constants.items()})
    if not shapes:
        return first
    try:
        return Lowering(graph, first.layout, fallback=first.fallback, shapes=shapes).run()
    except ModelError:  # stand-ins that are too large altogether
        return first
