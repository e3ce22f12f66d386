"""Walking an exported ATen graph: which layer each node's value lives in, names, constants and obstacles.

A value is a layer plus the per-sample shape it is seen in: reshapes cost nothing until somebody reads through them,
and then only a flattening becomes a layer. Handlers of the single operations are in `aten`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from xdeploy.model.network import Layer

Shape = tuple[int, ...]
Float64 = NDArray[np.float64]


class Refused(Exception):  # noqa: N818 (an obstacle that is collected, never the user's error itself)
    """An operation that cannot become a layer; `node` when another than the one at hand is to blame."""

    def __init__(self, reason: str, hint: str | None = None, node: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.node = reason, hint, node


@dataclass(frozen=True, slots=True)
class Value:
    """What a node computes: the output of `layer`, seen per sample in `shape`."""

    layer: str
    shape: Shape
    node: fx.Node


@dataclass(frozen=True, slots=True)
class Problem:
    """One obstacle, ready to be listed."""

    text: str
    hint: str | None


class Walk:
    """The state of one conversion; handlers read operands and emit layers through it."""

    def __init__(self, program: ExportedProgram) -> None:
        self.layers: list[Layer] = []
        self.params: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.norms: dict[str, tuple[Float64, Float64]] = {}  # batch norms not folded yet: gain and shift
        self.problems: list[Problem] = []
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self._shapes: dict[str, Shape] = {}
        self._flat: dict[str, str] = {}
        self._names: set[str] = set()
        self._constants = _constant_tensors(program)
        self._owners = _parameter_owners(program)
        self._dependent: set[fx.Node] = set()
        self._batch: Any = None

    # --------------------------------------------------------------------------------------------- operands
    def start(self, node: fx.Node) -> None:
        """Enter the network's input."""
        self._dependent = reachable(node, lambda n: n.users)
        self._batch = node.meta["val"].shape[0]
        shape = self.shape_of(node)
        if len(shape) not in (1, 3):
            raise Refused(f"the input is {shape} per sample; (C, H, W) or (F,) is supported")
        self._names.add("input")
        self.layers.append(Layer("input", "input", (), shape))
        self._shapes["input"] = shape
        self.values[node] = Value("input", shape, node)

    def shape_of(self, node: fx.Node) -> Shape:
        """Per-sample shape of a node's tensor; refuses other types, dynamic shapes and mixed batches."""
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor):
            raise Refused("does not give a tensor")
        if val.dtype != torch.float32:
            raise Refused(f"computes in {_dtype(val.dtype)}; float32 is supported", "call .float() on model and input")
        if val.ndim == 0 or str(val.shape[0]) != str(self._batch):
            raise Refused(f"mixes the samples of a batch: (N, ...) becomes {_show(val.shape)}")
        if not all(isinstance(d, int) for d in val.shape[1:]):
            hint = "export with a fixed shape; only the batch may vary"
            raise Refused(f"has the dynamic shape {_show(val.shape)}", hint)
        return tuple(int(d) for d in val.shape[1:])

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node does not depend on the network's input."""
        return node not in self._dependent

    def constant(self, arg: Any, what: str) -> Float64 | None:
        """The value of a constant operand (a parameter or computed from parameters), None for None."""
        if arg is None:
            return None
        if not isinstance(arg, fx.Node) or not self.is_constant(arg):
            raise Refused(f"its {what} is computed from the input", "weights have to be constants")
        return self._evaluate(arg).detach().numpy().astype(np.float64)

    def _evaluate(self, node: fx.Node) -> torch.Tensor:
        if node not in self._constants:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._evaluate)
            assert callable(node.target)
            with torch.no_grad():
                self._constants[node] = node.target(*args, **kwargs)
        return self._constants[node]

    def value(self, arg: Any) -> Value:
        """The value of an operand that depends on the input."""
        found = self.values.get(arg) if isinstance(arg, fx.Node) else None
        if not isinstance(found, Value):
            raise Refused("combines the data with a constant", "fold the constant into the weights or bias before it")
        return found

    def read(self, arg: Any) -> tuple[str, Shape]:
        """Name and shape of the layer to read; a flattening view becomes a flatten layer here."""
        v = self.value(arg)
        if v.shape == self._shapes[v.layer]:
            return v.layer, v.shape
        if len(v.shape) != 1:
            raise Refused(
                f"reshapes {self._shapes[v.layer]} to {v.shape}; only flattening to (F,) is supported", node=v.node
            )
        if v.layer not in self._flat:
            self._flat[v.layer] = self.emit(v.node, "flatten", (v.layer,), v.shape).layer
        return self._flat[v.layer], v.shape

    def image(self, arg: Any) -> tuple[str, Shape]:
        """Like `read`, for operations on (C, H, W)."""
        name, shape = self.read(arg)
        if len(shape) != 3:
            raise Refused(f"reads {shape} per sample; it is supported on (C, H, W)")
        return name, shape

    def flat(self, arg: Any) -> tuple[str, Shape]:
        """Like `read`, for operations on (F,)."""
        name, shape = self.read(arg)
        if len(shape) != 1:
            raise Refused(f"reads {shape} per sample; it is supported on (F,)", "flatten before it")
        return name, shape

    # ------------------------------------------------------------------------------------------------ layers
    def emit(
        self,
        node: fx.Node,
        kind: str,
        inputs: tuple[str, ...],
        shape: Shape,
        attrs: Mapping[str, Any] | None = None,
        params: tuple[Float64, Float64 | None] | None = None,
    ) -> Value:
        """Append a layer; a missing bias becomes zeros."""
        name = self._name(node, kind)
        self.layers.append(Layer(name, kind, inputs, shape, dict(attrs or {})))
        self._shapes[name] = shape
        if params is not None:
            weight, bias = params
            bias = np.zeros(len(weight)) if bias is None else bias
            self.params[name] = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        return Value(name, shape, node)

    def _name(self, node: fx.Node, kind: str) -> str:
        path, is_module = enclosing(node)
        if not is_module:
            weights = [self._owners[n] for n in node.all_input_nodes if n in self._owners]
            path = weights[0] if weights else f"{path}.{kind}" if path else kind
        base, number = path or kind, 1
        name = base
        while name in self._names:
            name, number = f"{base}_{number}", number + 1
        self._names.add(name)
        return name

    # --------------------------------------------------------------------------------------------- obstacles
    def refuse(self, node: fx.Node, refused: Refused) -> None:
        """Note an obstacle; the node's value becomes a stand-in, so that the walk finds the others too."""
        blamed = refused.node or node
        text = f"{origin(blamed)}: {refused.reason}"
        if text not in [p.text for p in self.problems]:
            self.problems.append(Problem(text, refused.hint))
        val = node.meta.get("val")
        shapes = [t.shape[1:] for t in (val if isinstance(val, list | tuple) else [val]) if isinstance(t, torch.Tensor)]
        stand_ins = []
        for i, shape in enumerate(shapes):
            name = f"?{node.name}.{i}"
            self._shapes[name] = tuple(shape)
            stand_ins.append(Value(name, tuple(shape), node))
        self.values[node] = tuple(stand_ins) if isinstance(val, list | tuple) or not stand_ins else stand_ins[0]


# ----------------------------------------------------------------------------------------- where a node is from
def enclosing(node: fx.Node) -> tuple[str, bool]:
    """Qualified name of the innermost module around a node, and whether it is one of torch's own operations."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", False
    path, kind = stack[-1]
    path = re.sub(r"^L\['self'\]\.?|^L__self___?", "", str(path))
    path = re.sub(r"@\d+", "", path)
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return path, kind.startswith("torch.nn.modules.") and ".container." not in kind


def origin(node: fx.Node) -> str:
    """Where a node is from, for messages: `layer1.0: aten.gelu (net.py:12: y = gelu(x))`."""
    path, _ = enclosing(node)
    target = str(node.target).removesuffix(".default") if node.op == "call_function" else node.name
    trace = str(node.meta.get("stack_trace") or "").strip()
    frames = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s*(.+)', trace)
    own = [f for f in frames if "/torch/nn/" not in f[0].replace("\\", "/")]
    where = f" ({Path(own[-1][0]).name}:{own[-1][1]}: {own[-1][2].strip()})" if own else ""
    return f"{path or 'the model'}: {target}{where}"


def reachable(start: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """`start` and all nodes that repeated steps lead to."""
    found: set[fx.Node] = set()
    todo = [start]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += step(node)
    return found


def _constant_tensors(program: ExportedProgram) -> dict[fx.Node, torch.Tensor]:
    tables: dict[InputKind, Any] = {
        InputKind.PARAMETER: program.state_dict, InputKind.BUFFER: {**program.constants, **program.state_dict},
        InputKind.CONSTANT_TENSOR: program.constants,
    }  # fmt: skip
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind in tables and spec.target is not None:
            found[nodes[spec.arg.name]] = tables[spec.kind][spec.target]
    return found


def _parameter_owners(program: ExportedProgram) -> dict[fx.Node, str]:
    """Placeholder of each `weight` -> qualified name of the module that owns it."""
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    owners = {}
    for spec in program.graph_signature.input_specs:
        module, _, leaf = (spec.target or "").rpartition(".")
        if spec.kind == InputKind.PARAMETER and leaf == "weight" and module:
            owners[nodes[spec.arg.name]] = module
    return owners


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(shape: Any) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
