"""Walking an exported ATen graph: which layer each node's value lives in, how it is seen, names and obstacles.

A value is a layer plus a view of it (`views`): reshapes and permutations cost nothing until somebody needs the data in
another order, and only then become a flatten or rearrange layer. Layers hold (C, H, W) or (F,); a sequence (C, L) lives
in (C, 1, L). Handlers of the single operations are in the `aten` modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export import ExportedProgram

from xdeploy.errors import Obstacle
from xdeploy.model.network import Layer
from xdeploy.model.origins import constant_tensors, enclosing, origin, parameter_owners, reachable
from xdeploy.model.views import Shape, View, size_of

Float64 = NDArray[np.float64]


class Refused(Exception):  # noqa: N818 (an obstacle that is collected, never the user's error itself)
    """An operation that cannot become a layer; `node` when another than the one at hand is to blame."""

    def __init__(
        self, reason: str, hint: str | None = None, node: fx.Node | None = None, *, attribute: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.node, self.attribute = reason, hint, node, attribute


@dataclass(frozen=True, slots=True)
class Value:
    """What a node computes: the output of `layer`, seen per sample through `view`."""

    layer: str
    view: View
    node: fx.Node

    @property
    def shape(self) -> Shape:
        """Per sample."""
        return self.view.shape

    def reshaped(self, shape: Sequence[int]) -> Value:
        """Seen in another shape."""
        return Value(self.layer, self.view.reshaped(shape), self.node)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How a value lies in a layer: its axes in that order, the first `channels` of them are the layer's channels.

    `spatial` is the layer's height and width, () for a layer of features (F,).
    """

    order: tuple[int, ...]
    channels: int
    spatial: Shape


@dataclass(frozen=True, slots=True)
class Problem:
    """One obstacle, ready to be listed."""

    text: str
    obstacle: Obstacle


class Walk:
    """The state of one conversion; handlers read operands and emit layers through it."""

    def __init__(self, program: ExportedProgram) -> None:
        self.layers: list[Layer] = []
        self.params: dict[str, dict[str, NDArray[np.float32]]] = {}
        self.norms: dict[str, tuple[Float64, Float64]] = {}  # scales and shifts not folded yet: gain and shift
        self.problems: list[Problem] = []
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self.low_pads: dict[fx.Node, tuple[Value, Shape]] = {}  # paddings with minus infinity, for max pooling
        self._shapes: dict[str, Shape] = {}
        self._settled: dict[tuple[str, View], str] = {}
        self._names: set[str] = set()
        self._constants = constant_tensors(program)
        self._owners = parameter_owners(program)
        self._dependent: set[fx.Node] = set()
        self._batch: Any = None

    # --------------------------------------------------------------------------------------------- operands
    def start(self, node: fx.Node) -> None:
        """Enter the network's input."""
        self._dependent = reachable(node, lambda n: n.users)
        self._batch = node.meta["val"].shape[0]
        shape = self.shape_of(node)
        if len(shape) not in (1, 2, 3):
            raise Refused(f"the input is {shape} per sample; (C, H, W), (C, L) or (F,) is supported")
        inner = (shape[0], 1, shape[1]) if len(shape) == 2 else shape
        self._names.add("input")
        self.layers.append(Layer("input", "input", (), inner))
        self._shapes["input"] = inner
        self.values[node] = Value("input", View.of(inner).reshaped(shape), node)

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

    def axis(self, dim: int, shape: Shape) -> int:
        """Per-sample axis of a dimension that counts the batch; refuses the batch itself."""
        axis = dim % (len(shape) + 1) - 1
        if axis < 0:
            raise Refused("works across the batch", attribute=f"dim={dim}")
        return axis

    def is_constant(self, arg: Any) -> bool:
        """Whether an operand is a number or does not depend on the network's input."""
        return not isinstance(arg, fx.Node) or arg not in self._dependent

    def constant(self, arg: Any, what: str) -> Float64 | None:
        """The value of a constant operand (a number, a parameter or computed from parameters), None for None."""
        if arg is None:
            return None
        if isinstance(arg, int | float):
            return np.asarray(arg, np.float64)
        if not isinstance(arg, fx.Node) or not self.is_constant(arg):
            raise Refused(f"its {what} is computed from the input", "weights have to be constants")
        return self.evaluate(arg).detach().numpy().astype(np.float64)

    def evaluate(self, node: fx.Node) -> torch.Tensor:
        """The tensor that a constant node gives."""
        if node not in self._constants:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.evaluate)
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

    def layer_shape(self, name: str) -> Shape:
        """Output shape of a layer."""
        return self._shapes[name]

    # ------------------------------------------------------------------------------------- reading in some order
    def settle(self, value: Value, shape: Shape) -> str:
        """The layer that holds a value's elements in C order as `shape`; made where there is none yet."""
        source = self._shapes[value.layer]
        view = value.view.reshaped(shape)
        if view.is_flat and shape == source:
            return value.layer
        key = (value.layer, view)
        if key not in self._settled:
            if view.is_flat and len(shape) == 1 and len(source) == 3:
                made = self.emit(value.node, "flatten", (value.layer,), shape)
            else:
                # in order: keep the source's own axes, so that channels stay visible
                atoms, perm = (source, tuple(range(len(source)))) if view.is_flat else (view.atoms, view.perm)
                made = self.emit(value.node, "rearrange", (value.layer,), shape, {"view": atoms, "perm": perm})
            self._settled[key] = made.layer
        return self._settled[key]

    def image(self, arg: Any) -> tuple[str, Shape]:
        """Name and shape of the layer to read for operations on (C, H, W); (C, L) is (C, 1, L)."""
        v = arg if isinstance(arg, Value) else self.value(arg)
        if len(v.shape) not in (2, 3):
            raise Refused(f"reads {v.shape} per sample; it is supported on (C, H, W) and (C, L)")
        shape = (v.shape[0], 1, v.shape[1]) if len(v.shape) == 2 else v.shape
        return self.settle(v, shape), shape

    def flat(self, arg: Any) -> tuple[str, Shape]:
        """Name and shape of the layer to read for operations on (F,); unit axes do not count."""
        v = arg if isinstance(arg, Value) else self.value(arg)
        shape = (size_of(v.shape),)
        if max(v.shape, default=1) != shape[0]:
            raise Refused(f"reads {v.shape} per sample; it is supported on (F,)", "flatten before it")
        return self.settle(v, shape), shape

    def result(self, arg: Any) -> str:
        """The layer that holds the network's output: its elements in C order."""
        v = self.value(arg)
        shape = self._shapes[v.layer]
        alike = [n for n in shape if n > 1] == [n for n in v.shape if n > 1]
        if v.view.is_flat and len(shape) == 3 and alike and len(v.shape) not in (1, 3):
            return v.layer  # (C, L) stays in (C, 1, L)
        return self.settle(v, v.shape if len(v.shape) == 1 else _three(v.shape) if v.shape else (1,))

    def permuted(self, value: Value, axes: Sequence[int]) -> Value:
        """Seen with permuted axes; data moves only where no view can express it."""
        view = value.view.permuted(axes)
        if view is None:
            value = self.seen(self.settle(value, _three(value.shape)), value.node).reshaped(value.shape)
            view = value.view.permuted(axes)
            assert view is not None  # the layer holds the value in C order
        return Value(value.layer, view, value.node)

    def seen(self, layer: str, node: fx.Node) -> Value:
        """A layer's output as it is."""
        return Value(layer, View.of(self._shapes[layer]), node)

    def arrangement(self, values: Sequence[Value], first: Sequence[int], *, image: bool = False) -> Arrangement:
        """Axes `first` of values of one rank as channels: as the first value that lies so already, else in C order.

        `image` asks for height and width even where they are 1 x 1.
        """
        rest = tuple(a for a in range(len(values[0].shape)) if a not in first)
        found = [n for v in values if (n := self._native(v, tuple(first))) and (n.spatial or not image)]
        single = all(size_of([v.shape[a] for a in rest]) == 1 for v in values)
        if found and (not single or image or len(found) == len(values)):
            return min(found, key=lambda n: len(n.spatial))  # features rather than images of one pixel
        spatial = _three((1, *(values[0].shape[a] for a in rest)))[1:]
        return Arrangement((*first, *rest), len(first), () if single and not image else spatial)

    def _native(self, value: Value, first: tuple[int, ...]) -> Arrangement | None:
        """The arrangement in which a value's layer holds it, if `first` are its channels."""
        source, order = self._shapes[value.layer], value.view.source_order()
        if order is None:
            return None
        order = (*first, *(a for a in order if a not in first))
        view = value.view.permuted(order)
        if view is None or not view.is_flat or source[0] != size_of([value.shape[a] for a in first]):
            return None
        return Arrangement(order, len(first), source[1:])

    def channels(self, value: Value) -> tuple[int, ...]:
        """The axes that are the channels (or features) of the layer a value lives in, else its first axis."""
        order = value.view.source_order() or ()
        for count in range(1, len(order) + 1):
            if self._native(value, order[:count]):
                return tuple(order[:count])
        return (0,)

    def arranged(self, value: Value, how: Arrangement) -> tuple[str, Shape]:
        """Name and shape of the layer that holds a value so."""
        moved = self.permuted(value, how.order)
        shape = (size_of(moved.shape[: how.channels]), *how.spatial)
        if size_of(shape) != size_of(moved.shape):
            raise Refused(f"reads {value.shape} per sample beside another shape")
        return self.settle(moved, shape), shape

    def restored(self, made: Value, how: Arrangement, dims: Shape) -> Value:
        """What a layer made of arranged operands is in the order of their axes; `dims` are the result's."""
        back = tuple(int(i) for i in np.argsort(how.order))
        return self.permuted(made.reshaped([dims[a] for a in how.order]), back)

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
        name = self._name(node, str((attrs or {}).get("function", kind)))
        self.layers.append(Layer(name, kind, inputs, shape, dict(attrs or {})))
        self._shapes[name] = shape
        if params is not None:
            weight, bias = params
            bias = np.zeros(len(weight)) if bias is None else bias
            self.params[name] = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        return self.seen(name, node)

    def pointwise(self, node: fx.Node, value: Value, kind: str, attrs: Mapping[str, Any] | None = None) -> Value:
        """Append a layer that works element by element: on the data as it lies, whatever its view."""
        made = self.emit(node, kind, (value.layer,), self._shapes[value.layer], attrs)
        return Value(made.layer, value.view, node)

    def affine(self, node: fx.Node, name: str, gain: Float64, shift: Float64) -> Value:
        """Append gain * x + shift per channel of a layer; folded into its neighbours later (`fold`)."""
        shape = self._shapes[name]
        image = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1), "groups": shape[0]}
        made = self.emit(node, *(("conv2d", (name,), shape, image) if len(shape) == 3 else ("linear", (name,), shape)))
        self.norms[made.layer] = (gain, shift)
        return made

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
        text = f"{origin(blamed)}: {refused.reason}" + (f"; instead: {refused.hint}" if refused.hint else "")
        if text not in [p.text for p in self.problems]:
            self.problems.append(Problem(text, _obstacle(blamed, refused)))
        val = node.meta.get("val")
        shapes = [t.shape[1:] for t in (val if isinstance(val, list | tuple) else [val]) if isinstance(t, torch.Tensor)]
        stand_ins = []
        for i, shape in enumerate(shapes):
            name, dims = f"?{node.name}.{i}", tuple(d if isinstance(d, int) else 1 for d in shape)
            self._shapes[name] = _three(dims) if len(dims) > 1 else (size_of(dims),)
            stand_ins.append(Value(name, View.of(dims), node))
        self.values[node] = tuple(stand_ins) if isinstance(val, list | tuple) or not stand_ins else stand_ins[0]


def _three(shape: Shape) -> Shape:
    """A shape of any rank as (C, H, W)."""
    if len(shape) <= 2:
        return (*shape[:1], 1, *shape[1:]) if len(shape) == 2 else (size_of(shape), 1, 1)
    return (shape[0], size_of(shape[1:-1]), shape[-1])


def _obstacle(node: fx.Node, refused: Refused) -> Obstacle:
    val = node.meta.get("val")
    shape = tuple(val.shape[1:]) if isinstance(val, torch.Tensor) else ()
    fixed = tuple(int(d) for d in shape) if all(isinstance(d, int) for d in shape) else ()
    where, _, target = origin(node).partition(": ")
    return Obstacle(where, target, refused.reason, refused.hint or "", refused.attribute, fixed)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(shape: Any) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
