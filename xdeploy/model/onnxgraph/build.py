"""The file's graph becomes an `OnnxModule`; whatever stands in the way is collected and raised at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.errors import ModelError, Obstacle, UsageError, choose_from
from xdeploy.model.fallback import fallback_node
from xdeploy.model.onnxgraph import arithmetic, movement, pooling, resizing, shapes, weighted
from xdeploy.model.onnxgraph.behind import found_by_capture, stand_in
from xdeploy.model.onnxgraph.folding import FOLDS, fold, shape_of
from xdeploy.model.onnxgraph.layout import Layout, input_layout
from xdeploy.model.onnxgraph.module import OnnxModule, Part, Placed, attachable, on_meta
from xdeploy.model.onnxgraph.names import origins
from xdeploy.model.onnxgraph.recognise import recognise
from xdeploy.model.onnxgraph.refused import REFUSED
from xdeploy.model.onnxgraph.rows import (
    BATCHES,
    CHECKS,
    ROWS,
    Array,
    Call,
    Data,
    Known,
    Operand,
    Refused,
    Step,
    Unknown,
)
from xdeploy.model.onnxgraph.verify import verify
from xdeploy.onnxfile import ACTIVATION_LIMIT, ObstacleError, OnnxGraph, OnnxNode, read
from xdeploy.onnxshapes import inferred

MODULES = (arithmetic, movement, pooling, resizing, shapes, weighted)  # importing them enters their rows
OLDEST = 7  # of the standard operators' versions that the rows know
_BATCH = 7  # of the shapes that are computed; a prime, so that operators that mix the batch show


def load_onnx(path: Path, *, deployable: bool = True, fallback: Collection[str] = ()) -> OnnxModule:
    """Read a float file as a torch module, and hold it against ONNX Runtime on random inputs.

    Args:
        path: the file.
        deployable: refuse what runs in float but has no form on a device.
        fallback: names of nodes that may stay in float there.

    Raises:
        ModelError: unreadable, or the module differs from ONNX Runtime. ObstacleError: all that is not supported.
    """
    graph = read(path)
    known = {name for node in graph.nodes for name in (node.name, node.origin)}
    for name in fallback:
        if name not in known:
            raise UsageError(f"no node is named {name!r} (lower.fallback)", hint=choose_from("node", name, known).hint)
    module = module_of(graph, str(path), deployable=deployable, fallback=fallback)
    verify(module, path, graph)
    return module


def module_of(graph: OnnxGraph, name: str, *, deployable: bool = True, fallback: Collection[str] = ()) -> OnnxModule:
    """The module of a graph that was read or made; `name` is what messages call it.

    Raises:
        ModelError, ObstacleError: as `load_onnx`.
    """
    if graph.opset < OLDEST:
        hint = "onnx.version_converter.convert_version(model, 17) makes a newer one"
        raise ModelError(f"{name} is of opset {graph.opset}; {OLDEST} and newer are read", hint=hint)
    constants = {k: c.array for k, c in graph.constants.items()}
    nodes = _folded(graph, constants)
    nodes = _live(recognise(_live(nodes, graph.output.name), constants), graph.output.name)
    layout = input_layout(graph.input, nodes, constants, graph.opset)
    build = _Build(graph, constants, deployable, fallback)
    build.run(nodes)
    if build.obstacles:
        raise ObstacleError(build.all_obstacles(nodes, layout, deployable), name)
    if not isinstance(build.values.get(graph.output.name), Data):
        raise ModelError(f"the output of {name} does not depend on its input")
    ends, ports = (graph.input.name, build.alias(graph.output.name)), (graph.input.name, graph.output.name)
    return OnnxModule(Path(name).stem, layout.shape, layout.entry, ends, build.placed(constants), ports)


def _folded(graph: OnnxGraph, constants: dict[str, Array]) -> list[OnnxNode]:
    """Compute what depends on constants alone into `constants`; the other nodes remain."""
    left = []
    for node in graph.nodes:
        if node.op in FOLDS and all(not i or i in constants for i in node.inputs):
            try:
                found = fold(node, graph.opset, [Known.constant(constants[i]) if i else None for i in node.inputs])
            except Refused:
                left.append(node)  # named where it is read
            else:
                constants.update(zip(node.outputs, (k.first for k in found), strict=False))
        else:
            left.append(node)
    return left


def _live(nodes: Sequence[OnnxNode], output: str) -> list[OnnxNode]:
    """The nodes that the output depends on; results that nobody reads lose their name."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(o for o in node.outputs if o):
            kept.append(node)
            wanted.update(i for i in node.inputs if i)
    return kept[::-1]


@dataclass(frozen=True, slots=True)
class _Made:
    """A step of the module, not named yet."""

    step: Step
    node: OnnxNode
    writes: tuple[str, ...]


class _Build:
    """The state while nodes become steps: what is known of each tensor, and the obstacles so far."""

    def __init__(
        self, graph: OnnxGraph, constants: Mapping[str, Array], deployable: bool, fallback: Collection[str]
    ) -> None:
        self._opset, self._deployable, self._fallback = graph.opset, deployable, fallback
        self._graph, self._constants = graph, constants
        self._nodes: Sequence[OnnxNode] = ()
        self.values: dict[str, Operand] = {k: Known.constant(a) for k, a in constants.items()}
        self.values[graph.input.name] = Data(graph.input.name, graph.input.shape[1:])
        self.obstacles: list[Obstacle] = []
        self.made: list[_Made] = []

    def run(self, nodes: Sequence[OnnxNode]) -> None:
        """All nodes in order."""
        read, self._nodes = {i for n in nodes for i in n.inputs}, nodes
        for node in nodes:
            try:
                found = self._node(node, read)
            except Refused as refused:
                self._refuse(node, refused)
                found = self._stand_ins(node)
            self.values.update((o, v) for o, v in zip(node.outputs, found, strict=False) if o)

    def _node(self, node: OnnxNode, read: set[str]) -> Sequence[Operand]:
        """What the node's outputs are."""
        missing = [i for i in node.inputs if i and i not in self.values]
        if missing:
            raise ModelError(f"node {node.name!r} reads {missing[0]!r}, which nothing before it writes")
        operands = [self.values[i] if i else None for i in node.inputs]
        if node.name in self._fallback or node.origin in self._fallback:
            return self._float(node, operands)
        if node.op not in ROWS and node.op not in FOLDS:
            raise Refused(*REFUSED.get(node.op, ("is not supported", "")))
        if any(isinstance(o, Unknown) for o in operands):
            return self._behind(node, operands)
        first = operands[0] if operands else None
        if node.op in ("Shape", "Size") and isinstance(first, Data):
            return [_shape_arithmetic(node, first)]
        if not any(isinstance(o, Data) for o in operands):
            return fold(node, self._opset, [o for o in operands if not isinstance(o, Data | Unknown)])
        if node.op not in ROWS:
            raise Refused(
                "is computed from the data; it is supported on constants only", REFUSED.get(node.op, ("", ""))[1]
            )
        return self._step(node, [o for o in operands if not isinstance(o, Unknown)], read)

    def _float(self, node: OnnxNode, operands: Sequence[Operand | None]) -> Sequence[Operand]:
        """A node that is named to stay in float: one step of `xdeploy::fallback`."""
        if any(isinstance(o, Unknown) for o in operands):
            return [Unknown()] * len(node.outputs)
        data = {i: o for i, o in zip(node.inputs, operands, strict=True) if isinstance(o, Data)}
        known = {i: o.first for i, o in zip(node.inputs, operands, strict=True) if isinstance(o, Known)}
        if len(data) != 1:
            raise Refused(f"a part in float reads one tensor that depends on the input, this reads {len(data)}")
        ((name, source),) = data.items()
        try:
            part = fallback_node([node], known, name, source.shape, self._opset)
        except ModelError as error:
            raise Refused(error.message) from None
        step = Step(Part(lambda own, x: part(x)), (source,))  # no submodule: the layer is named after the node
        (shape,) = self._shapes(step)
        self.made.append(_Made(step, node, node.outputs[:1]))
        return [Data(node.outputs[0], shape)]

    def _step(self, node: OnnxNode, operands: Sequence[Data | Known | None], read: set[str]) -> Sequence[Operand]:
        used = (node.outputs[0], *(o if o in read else "" for o in node.outputs[1:]))
        call = Call(OnnxNode(node.name, node.op, node.inputs, used, node.attrs, node.meta), self._opset, operands)
        for check in CHECKS.get(node.op, ()):
            check(call)
        made = _guarded(ROWS[node.op], call)
        if isinstance(made, Data):
            return [made]
        dims = self._shapes(made)
        for remark in call.remarks if self._deployable else ():
            self._refuse(node, remark, dims[0])
        writes = tuple(o or f"{node.name}:{k}" for k, o in enumerate(node.outputs))[: len(dims)]
        self.made.append(_Made(made, node, writes))
        return [Data(w, s) for w, s in zip(writes, dims, strict=True)]

    # ------------------------------------------------------------------------------ behind a refused node
    def _behind(self, node: OnnxNode, operands: Sequence[Operand | None]) -> Sequence[Operand]:
        """A node that reads something unknown: its attributes are judged, its results may have a known shape again."""
        if node.op in ("Shape", "Size") or not any(isinstance(o, Data) or o == Unknown() for o in operands):
            return [Unknown(data=False)] * len(node.outputs)
        call = Call(node, self._opset, [])
        for check in CHECKS.get(node.op, ()):
            check(call)
        for remark in call.remarks if self._deployable else ():
            self._refuse(node, remark)
        return self._stand_ins(node)

    def _stand_ins(self, node: OnnxNode) -> list[Operand]:
        """The results of a node that is not built, as data of the shape that ONNX infers, else unknown."""
        reads = (self.values.get(i) for i in node.inputs)
        source = next((o for o in reads if isinstance(o, Data)), self.values[self._graph.input.name])
        assert isinstance(source, Data)
        return [self._stand_in(node, source, name) for name in node.outputs]

    def _stand_in(self, node: OnnxNode, source: Data, name: str) -> Operand:
        shape = self._inferred.get(name)
        part = stand_in(source.shape, shape) if shape and source.shape else None
        if shape is None or part is None:
            return Unknown()
        self.made.append(_Made(Step(Part(lambda own, x: part(x)), (source,)), node, (name,)))
        return Data(name, shape)

    @cached_property
    def _inferred(self) -> Mapping[str, tuple[int, ...]]:
        return inferred(self._graph, self._nodes, self._constants)

    def all_obstacles(self, nodes: Sequence[OnnxNode], layout: Layout, capture: bool) -> list[Obstacle]:
        """The obstacles, with those that only capture finds, in the order of the nodes."""
        ends = [w for m in self.made for w in m.writes]
        if not capture or not ends:
            return self.obstacles
        last = self.values.get(self._graph.output.name)
        out = last.name if isinstance(last, Data) else ends[-1]
        placed = self.placed(self._constants)
        module = OnnxModule("file", layout.shape, layout.entry, (self._graph.input.name, out), placed)
        more = found_by_capture(module, {o.node for o in self.obstacles})
        place = {n.name: k for k, n in enumerate(nodes)}
        return sorted([*self.obstacles, *more], key=lambda o: place.get(o.node, len(place)))

    def _shapes(self, step: Step) -> list[tuple[int, ...]]:
        """The per-sample shapes that a step gives, computed without allocating."""
        found = _guarded(lambda s: on_meta(s.part, [r.shape for r in s.reads], _BATCH), step)
        results = list(found) if isinstance(found, tuple | list) else [found]
        for result in results:
            if result.ndim == 0 or result.shape[0] != _BATCH:
                raise Refused("mixes the samples of a batch", "operators that keep the first axis")
            if float(np.prod([float(d) for d in result.shape[1:]])) > ACTIVATION_LIMIT:
                raise Refused(
                    f"gives {tuple(result.shape[1:])} per sample, above the limit of {ACTIVATION_LIMIT} elements"
                )
        return [tuple(int(d) for d in r.shape[1:]) for r in results]

    def _refuse(self, node: OnnxNode, refused: Refused, shape: tuple[int, ...] = ()) -> None:
        self.obstacles.append(Obstacle(node.name, node.op, refused.reason, refused.rewrite, refused.attribute, shape))

    def alias(self, name: str) -> str:
        """The tensor that a name stands for, past nodes that change nothing."""
        found = self.values[name]
        assert isinstance(found, Data)
        return found.name

    def placed(self, constants: Mapping[str, Array]) -> list[Placed]:
        """The steps with unique qualified names."""
        names = attachable(origins([m.node for m in self.made], constants))
        return [
            Placed(m.step.part, tuple(r.name for r in m.step.reads), m.writes, n, m.node)
            for m, n in zip(self.made, names, strict=True)
        ]


def _shape_arithmetic(node: OnnxNode, data: Data) -> Known:
    """A tensor's shape (or size) for both batch sizes."""
    first, second = ((b, *data.shape) for b in BATCHES)
    if node.op == "Size":
        return Known(*(np.asarray(np.prod(s), np.int64) for s in (first, second)))
    return Known(shape_of(node, first), shape_of(node, second))


def _guarded(work: Any, argument: Any) -> Any:
    """Errors of torch or numpy about operands that do not fit become obstacles."""
    try:
        return work(argument)
    except (Refused, ModelError):
        raise
    except Exception as error:  # torch raises many kinds for shapes and attributes that do not fit
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        raise Refused(f"its operands and attributes do not fit together ({type(error).__name__}: {lines[0]})") from None
