"""Float fallback: nodes that the recipe names stay in float, as one `float` node of the lowered graph per region.

A region grows along the graph: a named node whose operand is the open result of another named node joins its region.
The region reads one quantised activation, besides constants, and is closed by the QuantizeLinear after it. It leaves
as an ONNX model of its own in device layout, with names made here; nothing of the file's names gets into it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from xdeploy.errors import UsageError, choose_from
from xdeploy.formats import QParams
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lower.builder import Builder, image_index
from xdeploy.lower.constants import Arguments
from xdeploy.lower.values import Codes, Index, Pending, QConstant, Real, Stop, Value
from xdeploy.onnxfile import Constant, OnnxGraph, OnnxNode
from xdeploy.recipe import LowerOptions
from xdeploy.target import Target

FLOAT = "float"
OUTPUT_LIMIT = 2**24  # elements
_NEVER = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Fallback:
    """Which nodes may stay in float: by name, by origin, or by the `fallback` mark that the exporter leaves.

    refused: why none may, e.g. because of a target; the named nodes are then obstacles with this reason.
    """

    names: tuple[str, ...] = ()
    refused: str = ""

    @staticmethod
    def of(options: LowerOptions, targets: Iterable[Target]) -> Fallback:
        """What the recipe allows on these targets: nothing where one of them is firmware."""
        firmware = [t.name for t in targets if t.kind == "firmware"]
        refused = f"{', '.join(firmware)} has no float kernels" if firmware else ""
        if options.fail_on_fallback:
            refused = "the recipe says lower.fail_on_fallback"
        return Fallback(options.fallback, refused)

    @staticmethod
    def of_graph(graph: LoweredGraph) -> Fallback:
        """What was allowed when this graph was lowered: the nodes of its float parts."""
        return Fallback(tuple(name for n in graph.nodes if n.op == FLOAT for name in n.attrs["nodes"]))

    def covers(self, node: OnnxNode) -> bool:
        """Whether the node is named."""
        return node.op not in _NEVER and any(name in self.names for name in _names(node))

    def check(self, graph: OnnxGraph) -> None:
        """Refuse names that no node has.

        Raises:
            UsageError: with the names that are close.
        """
        known = {name for node in graph.nodes if node.op not in _NEVER for name in _names(node)}
        for name in self.names:
            if name not in known:
                near = choose_from("node in lower.fallback", name, known)
                raise UsageError(f"no node is named {name!r} (lower.fallback)", hint=near.hint)

    def lower(self, builder: Builder, node: OnnxNode, args: Arguments) -> Value:
        """The open result of a named node.

        Raises:
            Stop: it reads two activations, or one that is not quantised, or its output shape cannot be told.
        """
        if self.refused:
            raise Stop(f"it is named to stay in float, but {self.refused}", "an operator with an integer form")
        region = _Region.of(builder, node, args).with_shape()
        source = Real(region.source, region.source.index)
        pending = Pending(FLOAT, node.meta.get("fallback") or node.origin, (source,), {"region": region})
        return Real(pending, region.output_index())


def emit_float(b: Builder, p: Pending, q: QParams, low: int, high: int) -> str:
    """Write the `float` node once the scale of its output is known."""
    region: _Region = p.attrs["region"]
    x = region.stored(b, p.origin)
    before = b.tensors[x].q
    model = np.frombuffer(region.model().SerializeToString(deterministic=True), np.uint8)
    attrs = {
        "in_scale": before.scale, "in_zero": before.zero_point, "out_scale": q.scale, "out_zero": q.zero_point,
        "ops": region.ops, "shape": region.stored_shape(),
        "nodes": tuple(n.name for n in region.nodes.values()),
    }  # fmt: skip
    return b.clamp(b.add(p.origin, FLOAT, (x,), q, attrs, {"onnx": model}), low, high, f"{p.origin}.clamp")


def _names(node: OnnxNode) -> tuple[str, ...]:
    return tuple(n for n in (node.name, node.origin, node.meta.get("fallback", "")) if n)


@dataclass(frozen=True, slots=True)
class _Region:
    """Named nodes in order, the one activation they read, their constants, and the ONNX names of the activation."""

    nodes: dict[str, OnnxNode]
    source: Codes
    reads: frozenset[str]
    constants: Mapping[str, NDArray[Any]]
    opset: int
    shape: tuple[int, ...] = ()  # of the last node's output, per sample, in ONNX order

    @staticmethod
    def of(b: Builder, node: OnnxNode, args: Arguments) -> _Region:
        """The regions that the operands belong to, joined, with `node` behind."""
        nodes: dict[str, OnnxNode] = {}
        constants: dict[str, NDArray[Any]] = {}
        reads: set[str] = set()
        sources: list[Codes] = []
        for name, value in zip(node.inputs, args, strict=True):
            if isinstance(value, Constant | QConstant):
                constants[name] = _plain(value)
            elif value is not None:
                part = _inner(value)
                if part is None:
                    sources.append(_outer(b, value, node))
                    reads.add(name)
                else:
                    nodes |= part.nodes
                    constants |= part.constants
                    reads |= part.reads
                    sources.append(part.source)
        if not sources:
            raise Stop("a part in float has to read an activation", "the constant it computes")
        first = sources[0]
        if any(s.tensor != first.tensor or not np.array_equal(s.index, first.index) for s in sources[1:]):
            raise Stop(
                "a part in float reads one activation, this would read two",
                "QuantizeLinear and DequantizeLinear after one of the operands, or other nodes named to stay in float",
            )
        return _Region({**nodes, node.outputs[0]: node}, first, frozenset(reads), constants, b.opset)

    @property
    def ops(self) -> tuple[str, ...]:
        """The operators, for messages and reports."""
        return tuple(n.op for n in self.nodes.values() if n.op != "Identity") or ("Identity",)

    # ---------------------------------------------------------------------------------------- arrangement
    @property
    def channels_first(self) -> bool:
        """Whether the activation is an ONNX (C, H, W) tensor that lies as (H, W, C)."""
        index = self.source.index
        if index.ndim != 3 or np.array_equal(index.reshape(-1), np.arange(index.size)):
            return False
        return np.array_equal(index, image_index(index.shape))

    def stored(self, b: Builder, origin: str) -> str:
        """The tensor with the activation as the model takes it: (H, W, C), or in ONNX order."""
        if self.channels_first:
            return b.image(self.source, origin)
        return b.arrange(self.source.tensor, self.source.index, origin)

    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the output as it is stored; images come channels last."""
        turned = self.channels_first and len(self.shape) == 3
        return (*self.shape[1:], self.shape[0]) if turned else self.shape

    def output_index(self) -> Index:
        """Where each element of the output, in ONNX order, is stored."""
        if self.channels_first and len(self.shape) == 3:
            return image_index(self.shape)
        return np.arange(int(np.prod(self.shape)), dtype=np.int64).reshape(self.shape)

    # ---------------------------------------------------------------------------------------- ONNX
    def model(self, closed: bool = True) -> Any:
        """The region as onnx.ModelProto from (1, *stored input) to (1, *stored output), float32, names made here.

        Not `closed`, the output stays in ONNX order and has no shape yet.
        """
        names: dict[str, str] = {"": ""}

        def named(name: str) -> str:
            return names.setdefault(name, f"t{len(names)}")

        given, nodes, begin = self.source.index.shape, [], "x"
        if self.channels_first:
            nodes.append(helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2]))
            begin, given = "image", (*given[1:], given[0])
        names.update(dict.fromkeys(self.reads, begin))
        nodes += [_proto(n, [named(i) for i in n.inputs], [named(o) for o in n.outputs]) for n in self.nodes.values()]
        turned = closed and self.channels_first and len(self.shape) == 3
        end = named(next(reversed(self.nodes)))
        turn = {"perm": [0, 2, 3, 1]} if turned else {}
        nodes.append(helper.make_node("Transpose" if turned else "Identity", [end], ["y"], **turn))
        result = (1, *self.stored_shape()) if closed else None
        graph = helper.make_graph(
            nodes, "part", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, *given))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
            [numpy_helper.from_array(np.ascontiguousarray(v), named(k)) for k, v in self.constants.items()],
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)

    def with_shape(self) -> _Region:
        """The region with the shape of its output.

        Raises:
            Stop: ONNX cannot infer it, it is too large, or the output is not one float tensor per sample.
        """
        try:
            model = onnx.shape_inference.infer_shapes(self.model(closed=False), strict_mode=True, data_prop=True)
        except Exception as error:  # onnx raises its own and protobuf's types
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise Stop(f"ONNX cannot infer the shape of its output: {said[-1][:200]}") from None
        kind = model.graph.output[0].type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.elem_type != TensorProto.FLOAT or len(dims) < 1 or any(d < 1 for d in dims) or dims[0] != 1:
            raise Stop(f"its output has shape {tuple(dims)}; a part in float gives one float tensor per sample")
        if int(np.prod([float(d) for d in dims])) > OUTPUT_LIMIT:
            raise Stop(f"its output of shape {tuple(dims)} is too large")
        return replace(self, shape=tuple(dims[1:]) or (1,))


def _outer(b: Builder, value: Value, node: OnnxNode) -> Codes:
    """The quantised activation that a region reads.

    Raises:
        Stop: it is not quantised, or a function without exact codes stands before it.
    """
    if not isinstance(value, Real):
        raise Stop("reads integer codes", "DequantizeLinear before it")
    return b.operand(value, node.origin)


def _inner(value: Value) -> _Region | None:
    """The region whose open result the value is, or None.

    Raises:
        Stop: something between the two is not named.
    """
    if not (isinstance(value, Real) and isinstance(value.source, Pending) and value.source.op == FLOAT):
        return None
    region: _Region = value.source.attrs["region"]
    if not value.untouched or not np.array_equal(value.index, region.output_index()):
        what = value.origin or "a node that moves data"
        raise Stop(f"{what} stands between two parts in float", "name the node between them to stay in float, too")
    return region


def _plain(value: Constant | QConstant) -> NDArray[Any]:
    return value.array if isinstance(value, Constant) else value.real.astype(np.float32)


def _proto(node: OnnxNode, inputs: Iterable[str], outputs: Iterable[str]) -> Any:
    attrs = {
        k: numpy_helper.from_array(np.ascontiguousarray(v.array)) if isinstance(v, Constant) else v
        for k, v in node.attrs.items()
        if not (isinstance(v, list) and not v)
    }
    return helper.make_node(node.op, list(inputs), list(outputs), **attrs)
