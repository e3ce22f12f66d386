"""Visits the ONNX nodes in order, closes values at QuantizeLinear, and collects every obstacle."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from xdeploy.errors import UnsupportedError
from xdeploy.formats import QParams
from xdeploy.lir.graph import Tensor
from xdeploy.lower.builder import Builder
from xdeploy.lower.constants import Arguments, activation_params, codebook_weight, dequantised, fold, foldable
from xdeploy.lower.emit import EMIT, SOFTMAX_Q
from xdeploy.lower.movement import MOVEMENT, activation
from xdeploy.lower.patterns import PATTERNS, real
from xdeploy.lower.values import Codes, Index, InputPort, Pending, Poison, Real, Stop, Value
from xdeploy.onnxfile import CODEBOOK, Constant, Obstacle, OnnxGraph, OnnxNode

_QLINEAR = ("QLinearConv", "QLinearMatMul")
SUPPORTED = sorted({*PATTERNS, *MOVEMENT, *_QLINEAR, "QuantizeLinear", "DequantizeLinear", "CodebookWeight"})
_REWRITES = {
    "BatchNormalization": "fold batch normalisation into the convolution before quantising",
    "ConvInteger": "QDQ form", "MatMulInteger": "QDQ form", "ConvTranspose": "a plain convolution",
    "LSTM": "a convolutional network", "GRU": "a convolutional network", "Attention": "a convolutional network",
}  # fmt: skip


@dataclass(slots=True)
class Lowering:
    """One pass over the graph with the input stored in `layout` ("CHW": as (H, W, C); "HWC": as it is)."""

    graph: OnnxGraph
    layout: str
    builder: Builder = field(default_factory=lambda: Builder(EMIT))
    values: dict[str, Value] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)
    input: str = ""
    output: str = ""
    output_shape: tuple[int, ...] = ()

    def run(self) -> Lowering:
        """Lower every node; look at `obstacles` afterwards."""
        self.values = dict(self.graph.constants)
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
                return activation_params(*self._parameters(node), node)
            if node.op in _QLINEAR:
                scale, zero = (self.graph.constants.get(n) for n in node.inputs[1:3])
                return activation_params(scale, zero, node)
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
        result: Value = Poison()
        try:
            args = [self._read(name) for name in node.inputs]
            if not any(isinstance(a, Poison) for a in args):
                result = self._lower(node, args)
        except (Stop, UnsupportedError) as stop:
            self._stopped(self._culprit(node, args), stop)
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:  # malformed attributes or arity
            self._stopped(node, Stop(f"the node is malformed ({type(error).__name__}: {error})"))
        for name in node.outputs[:1]:
            self.values[name] = result
        if isinstance(result, Codes):
            self.builder.bind(node.outputs[0], result)

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

    def _stopped(self, node: OnnxNode, stop: Stop | UnsupportedError) -> None:
        reason = stop.reason if isinstance(stop, Stop) else stop.message
        rewrite = stop.rewrite if isinstance(stop, Stop) else (stop.hint or "")
        self.obstacles.append(Obstacle(node.name, node.op, reason, rewrite))

    def _lower(self, node: OnnxNode, args: Arguments) -> Value:
        if foldable(node, args):
            return fold(node, args)
        if node.op == "QuantizeLinear":
            return self._quantise(node, args)
        if node.op == "DequantizeLinear":
            return self._dequantise(node, args)
        if node.op == CODEBOOK[1]:
            return codebook_weight(node, args)
        if node.op in _QLINEAR:
            return self._qlinear(node, args)
        handler = PATTERNS.get(node.op) or MOVEMENT.get(node.op)
        if handler is None:
            raise Stop(
                "the operator has no integer form here", _REWRITES.get(node.op, f"one of {', '.join(SUPPORTED)}")
            )
        return handler(self.builder, node, args)

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
        q, _ = activation_params(args[1], args[2] if len(args) > 2 else None, node)
        if q != codes.q:
            raise Stop(f"reads codes of {codes.q} as {q}", "the parameters of the QuantizeLinear before it")
        return Real(codes, codes.index)

    def _qlinear(self, node: OnnxNode, args: Arguments) -> Value:
        """QLinearConv and QLinearMatMul: DequantizeLinear, the float operator and QuantizeLinear in one node."""
        x, xs, xz, w, ws, wz, ys, yz = args[:8]
        conv = node.op == "QLinearConv"
        per_axis = OnnxNode(node.name, node.op, (), (), {"axis": 0 if conv else 1}, node.meta)
        source, weight = self._dequantise(node, (x, xs, xz)), dequantised(per_axis, (w, ws, wz))
        bias: list[Value | None] = []
        if conv and len(args) > 8 and isinstance(args[8], Constant) and isinstance(source, Real):
            assert isinstance(source.source, Codes)
            scale = source.source.q.scale * weight.scale
            bias = [Constant(args[8].array * scale)]
        inner = PATTERNS["Conv" if conv else "MatMul"](self.builder, node, (source, weight, *bias))
        return self._quantise(node, (inner, ys, yz))


def lower_nodes(graph: OnnxGraph) -> Lowering:
    """The pass with the input layout that needs fewer transposes; channels first where it makes no difference."""
    best = Lowering(graph, "CHW").run()
    if len(graph.input.shape) == 4 and (best.obstacles or best.moves):
        other = Lowering(graph, "HWC").run()
        if (len(other.obstacles), other.moves) < (len(best.obstacles), best.moves):
            best = other
    return best
