"""The float graph behind a quantised file, so that it can be scored, pruned and compressed like any float model.

Weights and biases are dequantised, QuantizeLinear and DequantizeLinear of activations go. What a quantised tensor
cannot hold is lost with them, and converters rely on that: a ReLU or ReLU6 often exists only as the range of the codes.
So a Clip to the representable range stays wherever the values could leave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xdeploy.errors import UnsupportedError
from xdeploy.formats import QParams
from xdeploy.lower.constants import activation_params, codebook_weight, dequantised, fold, foldable
from xdeploy.lower.dialect import EXACT, expanded
from xdeploy.lower.pixels import normal_of
from xdeploy.lower.values import Poison, QConstant, Stop, Value
from xdeploy.onnxfile import CODEBOOK, Constant, Obstacle, ObstacleError, OnnxGraph, OnnxNode

_CLIP_INPUTS = 11  # opset from which on Clip reads its limits as inputs
_BOUNDED = {"Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
# their results lie within the range of their first operand
_WITHIN = (
    "MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten", "Transpose",
    "Squeeze", "Unsqueeze", "Slice", "Identity", "Dropout", "Gather", "DepthToSpace", "SpaceToDepth", "Expand",
)  # fmt: skip
_Range = tuple[float, float]
_ANY: _Range = (-np.inf, np.inf)


@dataclass(frozen=True, slots=True)
class FloatView:
    """The float graph, the quantisation of its input and output in the file, and the tensors a Clip keeps in range.

    `kept` holds one line per inserted or narrowed Clip: name of the node, low, high.
    """

    graph: OnnxGraph
    input_q: QParams | None
    output_q: QParams | None
    kept: tuple[tuple[str, float, float], ...]

    @property
    def normal(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel of pixels in 0..1, both () where the file does not tell; see `pixels.normal_of`."""
        shape = self.graph.input.shape[1:]
        if self.input_q is None or len(shape) != 3:
            return (), ()
        return normal_of(self.graph, self.input_q, shape[2] if shape[0] not in (1, 3, 4) else shape[0])


def float_view(graph: OnnxGraph, where: str = "the model") -> FloatView:
    """The float graph of a quantised one.

    Args:
        graph: as `onnxfile.read` gives it, with operators on codes or in QDQ form.
        where: the file, for messages.

    Raises:
        ObstacleError: quantised tensors whose parameters are not constant, not per tensor, or of another type.
    """
    source = expanded(graph)
    view = _View(source)
    for node in source.nodes:
        view.visit(node)
    if view.obstacles:
        raise ObstacleError(view.obstacles, where)
    return view.done()


def _limits(q: QParams) -> _Range:
    """The lowest and highest value that int8 codes can hold."""
    return q.scale * (-128 - q.zero_point), q.scale * (127 - q.zero_point)


@dataclass(slots=True)
class _View:
    source: OnnxGraph
    values: dict[str, Value] = field(default_factory=dict)  # constants by name
    codes: dict[str, tuple[QParams, bool]] = field(default_factory=dict)  # quantised tensors, and whether uint8
    opened: dict[str, QParams] = field(default_factory=dict)  # outputs of DequantizeLinear
    alias: dict[str, str] = field(default_factory=dict)  # tensor of the file -> tensor of the float graph
    ranges: dict[str, _Range] = field(default_factory=dict)  # of tensors of the float graph
    nodes: list[OnnxNode] = field(default_factory=list)
    made: dict[str, Constant] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)
    kept: list[tuple[str, float, float]] = field(default_factory=list)
    readers: Counter[str] = field(default_factory=Counter)
    input_q: QParams | None = None

    def __post_init__(self) -> None:
        self.values = dict(self.source.constants)
        self.readers = Counter(i for n in self.source.nodes for i in n.inputs)
        self.readers[self.source.output.name] += 1

    def visit(self, node: OnnxNode) -> None:
        """Translate one node."""
        try:
            self._translate(node)
        except (Stop, UnsupportedError) as stop:
            reason = stop.reason if isinstance(stop, Stop) else stop.message
            rewrite = stop.rewrite if isinstance(stop, Stop) else (stop.hint or "")
            self.obstacles.append(Obstacle(node.name, node.op, reason, rewrite))
            self.values.update(dict.fromkeys(node.outputs, Poison()))

    def _translate(self, node: OnnxNode) -> None:
        args = [self.values.get(name) for name in node.inputs]
        constant = all(a is not None for a, name in zip(args, node.inputs, strict=True) if name)
        if any(isinstance(a, Poison) for a in args):
            self.values.update(dict.fromkeys(node.outputs, Poison()))
        elif node.op != "Shape" and constant and foldable(node, args):
            self.values[node.outputs[0]] = fold(node, args)
        elif node.op in ("DequantizeLinear", CODEBOOK[1]) and isinstance(args[0], Constant):
            real = codebook_weight(node, args) if node.op == CODEBOOK[1] else dequantised(node, args)
            self.values[node.outputs[0]] = Constant(real.real.astype(np.float32))
        elif node.op == "DequantizeLinear":
            self._open(node, args)
        elif node.op == "QuantizeLinear":
            self._close(node, args)
        else:
            self._keep(node)

    # --------------------------------------------------------------------------------------- quantised tensors
    def _open(self, node: OnnxNode, args: Sequence[Value | None]) -> None:
        """DequantizeLinear of an activation: another name for the same values."""
        name = node.inputs[0]
        given = self.codes.get(name)
        unsigned = given[1] if given else self.source.input.dtype == "uint8"
        q, unsigned = activation_params(args[1], args[2] if len(args) > 2 else None, node, unsigned)
        if given is not None and given[0] != q:
            raise Stop(f"reads codes of {given[0]} as {q}", "the parameters of the QuantizeLinear before it")
        if given is None:
            self._mark(name, q, unsigned)
        self.alias[node.outputs[0]] = self._real(name)
        self.opened[node.outputs[0]] = q

    def _mark(self, name: str, q: QParams, unsigned: bool) -> None:
        """A tensor that is quantised from the start: the input of the model."""
        self.codes[name] = (q, unsigned)
        self.ranges[self._real(name)] = _limits(q)
        if self.input_q is None:
            self.input_q = q

    def _close(self, node: OnnxNode, args: Sequence[Value | None]) -> None:
        """QuantizeLinear of an activation: what lies outside its range is cut off."""
        q, unsigned = activation_params(args[1], args[2] if len(args) > 2 else None, node)
        name, output = self._real(node.inputs[0]), node.outputs[0]
        self.codes[output] = (q, unsigned)
        if name == self.source.input.name:
            self.alias[output] = name
            self._mark(output, q, unsigned)
            return
        (low, high), (least, most) = self.ranges.get(name, _ANY), _limits(q)
        if low >= least - q.scale and high <= most + q.scale:
            self.alias[output] = name
            return
        bounds = max(low, least), min(high, most)
        last = self.nodes[-1] if self.nodes else None
        if last is not None and last.op in ("Relu", "Clip") and last.outputs == (name,) and self._alone(node.inputs[0]):
            self.nodes.pop()
            self._clip(last, last.inputs[0], name, bounds)
            self.alias[output] = name
        else:
            self._clip(replace(node, name=f"{node.name}_range", meta={}), name, output, bounds)

    def _alone(self, name: str) -> bool:
        return self.readers[name] == 1

    def _clip(self, node: OnnxNode, source: str, output: str, bounds: _Range) -> None:
        self.kept.append((node.name, *bounds))
        self.ranges[output] = bounds
        attrs: dict[str, Any] = {"min": bounds[0], "max": bounds[1]}
        inputs: tuple[str, ...] = (source,)
        if self.source.opset >= _CLIP_INPUTS:
            names = (f"{output}/low", f"{output}/high")
            self.made.update({n: Constant(np.array(v, np.float32)) for n, v in zip(names, bounds, strict=True)})
            inputs, attrs = (source, *names), {}
        self.nodes.append(replace(node, op="Clip", inputs=inputs, outputs=(output,), attrs=attrs))

    # ------------------------------------------------------------------------------------------ everything else
    def _real(self, name: str) -> str:
        return self.alias.get(name, name)

    def _keep(self, node: OnnxNode) -> None:
        attrs = {k: v for k, v in node.attrs.items() if k != EXACT}
        inputs = tuple(self._real(name) for name in node.inputs)
        given = self.codes.get(node.inputs[0]) if node.inputs else None
        if given is not None:
            inputs = self._on_codes(node, inputs, *given)
            self.codes.update(dict.fromkeys(node.outputs, given))
        self.nodes.append(replace(node, inputs=inputs, attrs=attrs))
        self.ranges.update(dict.fromkeys(node.outputs, self._range_of(node, inputs)))

    def _on_codes(self, node: OnnxNode, inputs: tuple[str, ...], q: QParams, unsigned: bool) -> tuple[str, ...]:
        """Inputs of an operator that worked on codes: what it reads as codes becomes real (a pad's value, limits)."""
        if node.op == "Relu":
            raise Stop("a Relu of codes", "Clip of codes, or Relu between DequantizeLinear and QuantizeLinear")
        places = {"Pad": (2,), "Clip": (1, 2)}.get(node.op, ())
        names = [*inputs, *[""] * (len(places) and places[-1] + 1 - len(inputs))]
        for k in places:
            value = self.values.get(names[k])
            code = np.zeros((), np.int64) if value is None and node.op == "Pad" else value
            if code is None:
                continue
            array = code.array if isinstance(code, Constant) else np.asarray(code)
            names[k] = f"{node.outputs[0]}/{k}"
            real = (array.astype(np.float64) - 128 * unsigned - q.zero_point) * q.scale
            self.made[names[k]] = Constant(real.astype(np.float32))
        return tuple(names)

    def _range_of(self, node: OnnxNode, inputs: tuple[str, ...]) -> _Range:
        before = self.ranges.get(inputs[0], _ANY) if inputs else _ANY
        if node.op in _WITHIN:
            return before
        if node.op == "Relu":
            return max(before[0], 0.0), max(before[1], 0.0)
        if node.op == "Clip":
            low, high = (self._limit(node, inputs, k, key) for k, key in ((1, "min"), (2, "max")))
            return (low if low is not None else before[0]), (high if high is not None else before[1])
        if node.op == "Concat":
            parts = [self.ranges.get(i, _ANY) for i in inputs]
            return min(p[0] for p in parts), max(p[1] for p in parts)
        return _BOUNDED.get(node.op, _ANY)

    def _limit(self, node: OnnxNode, inputs: tuple[str, ...], place: int, key: str) -> float | None:
        name = inputs[place] if len(inputs) > place else ""
        value = self.made.get(name, self.values.get(name))
        if isinstance(value, Constant):
            return float(value.array.reshape(-1)[0])
        given = node.attrs.get(key)
        return None if given is None else float(given)

    def done(self) -> FloatView:
        """The finished graph: only constants that are read, ports in float."""
        source = self.source
        output = self._real(source.output.name)
        if not any(output in n.outputs for n in self.nodes):
            raise ObstacleError([Obstacle(source.output.name, "output", "nothing is computed before it")], "the model")
        used = {i for n in self.nodes for i in n.inputs}
        constants = {n: c for n in sorted(used) if (c := self._constant(n)) is not None}
        given, taken = (replace(p, dtype="float32") for p in (source.input, source.output))
        port = self.codes.get(source.output.name)
        output_q = port[0] if port else self.opened.get(source.output.name)
        graph = replace(source, nodes=tuple(self._named(output)), constants=constants, input=given, output=taken)
        return FloatView(graph, self.input_q, output_q, tuple(self.kept))

    def _constant(self, name: str) -> Constant | None:
        value = self.made.get(name, self.values.get(name))
        if isinstance(value, QConstant):
            return Constant(value.real.astype(np.float32))
        return value if isinstance(value, Constant) else None

    def _named(self, output: str) -> list[OnnxNode]:
        """The nodes, with the last tensor under the output's own name."""
        name: Mapping[str, str] = {output: self.source.output.name}
        return [
            replace(n, inputs=tuple(name.get(i, i) for i in n.inputs), outputs=tuple(name.get(o, o) for o in n.outputs))
            for n in self.nodes
        ]
