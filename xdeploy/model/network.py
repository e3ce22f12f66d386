"""The network as plain data: layers in execution order and their float parameters.

Every front end (torch trace, ONNX) ends here and everything after it starts here. BatchNorm is folded into the
convolution or linear layer before it (or stands alone as a depthwise 1x1 convolution), dropout and identity are
gone, every layer is used once. Shapes are per sample, without the batch axis: (C, H, W) or (F,). The name of a layer
is the module's qualified name in the user's model: its origin everywhere later.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# kind -> attributes it carries (all ints or tuples of ints unless said). `pads` is (top, left, bottom, right).
KINDS: dict[str, tuple[str, ...]] = {
    "input": (),
    "conv2d": ("stride", "pads", "dilation", "groups"),  # params weight (O, I/groups, kh, kw), bias (O,)
    "linear": (),  # params weight (O, I), bias (O,)
    "relu": (),
    "clip": ("low", "high"),  # floats; ReLU6 is clip(0, 6)
    "max_pool2d": ("kernel", "stride", "pads"),
    "avg_pool2d": ("kernel", "stride", "pads", "include_pad"),  # global pooling: kernel = (H, W)
    "add": (),
    "concat": (),  # along channels
    "flatten": (),  # (C, H, W) -> (C*H*W,) in C order
    "pad": ("pads", "channels"),  # zeros; pads as above, channels = (before, after)
    "slice": ("starts", "stops", "steps"),  # each (C, H, W)
    "softmax": (),
    # element-wise: `function` names a row of FUNCTIONS, alpha and beta are its parameters (floats, 0 where it has none)
    "function": ("function", "alpha", "beta"),
    "sub": (),  # first minus second, of one shape
    "mul": (),  # (C, H, W) or (F,) times the same shape, or (C, H, W) times (C, 1, 1): the gate comes second
    "resize": ("rows", "cols"),  # nearest: the source row of each output row, the source column of each output column
    "rearrange": ("view", "perm"),  # reshape to `view`, permute its axes by `perm`, reshape to the layer's shape
    # a part in float, allowed by name in the recipe: one ONNX model as base64 text, (N, *input) -> (N, *output)
    "fallback": ("onnx", "ops"),
}
# function -> its formula in x, alpha and beta
FUNCTIONS: dict[str, str] = {
    "sigmoid": "1 / (1 + exp(-x))",
    "tanh": "tanh(x)",
    "hard_sigmoid": "clip(alpha * x + beta, 0, 1)",
    "hard_swish": "x * clip(x / 6 + 0.5, 0, 1)",
    "leaky_relu": "x if x >= 0 else alpha * x",
    "elu": "x if x >= 0 else alpha * (exp(x) - 1)",
    "silu": "x / (1 + exp(-x))",
    "gelu": "x * (1 + erf(x / sqrt(2))) / 2",
    "gelu_tanh": "x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2",
    "softplus": "log(1 + exp(x))",
}
WEIGHTED = ("conv2d", "linear")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its origin name, kind, the names of the layers it reads, attributes, output shape."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.name}: unknown layer kind {self.kind!r}")
        if set(self.attrs) != set(KINDS[self.kind]):
            raise ValueError(f"{self.name}: {self.kind} carries {KINDS[self.kind]}, got {tuple(self.attrs)}")
        if self.kind == "function" and self.attrs["function"] not in FUNCTIONS:
            raise ValueError(f"{self.name}: unknown function {self.attrs['function']!r}")


@dataclass(frozen=True, slots=True)
class Network:
    """Layers in execution order; params maps layer name -> {"weight": float32, "bias": float32}.

    Exactly one layer of kind "input" (the first) and one output (the last layer).
    """

    layers: tuple[Layer, ...]
    params: Mapping[str, Mapping[str, NDArray[np.float32]]]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for layer in self.layers:
            missing = [i for i in layer.inputs if i not in seen]
            if missing or layer.name in seen:
                raise ValueError(f"{layer.name}: reads {missing} before they exist, or its name is used twice")
            seen.add(layer.name)
        if not self.layers or [x.kind for x in self.layers].count("input") != 1 or self.layers[0].kind != "input":
            raise ValueError("a network starts with its one input layer")

    def __getitem__(self, name: str) -> Layer:
        return next(x for x in self.layers if x.name == name)

    @property
    def input(self) -> Layer:
        """The input layer."""
        return self.layers[0]

    @property
    def output(self) -> Layer:
        """The last layer, whose output is the network's."""
        return self.layers[-1]

    def consumers(self, name: str) -> tuple[Layer, ...]:
        """The layers that read `name`, in execution order."""
        return tuple(x for x in self.layers if name in x.inputs)

    def weighted(self) -> tuple[Layer, ...]:
        """Convolution and linear layers, in execution order."""
        return tuple(x for x in self.layers if x.kind in WEIGHTED)

    def hidden(self) -> tuple[str, ...]:
        """Names of the weighted layers that another weighted layer follows, in execution order."""
        followed = self.followed()
        return tuple(x.name for x in self.weighted() if x.name in followed)

    def followed(self) -> frozenset[str]:
        """Names of all layers that a weighted layer follows, at once or later."""
        found = set[str]()
        for layer in reversed(self.layers):
            if layer.kind in WEIGHTED or layer.name in found:
                found.update(layer.inputs)
        return frozenset(found)

    def fused_activation(self, name: str) -> Layer | None:
        """The relu or clip that is the only reader of a conv2d, linear or add layer, else None.

        The pair is quantised once, after the activation.
        """
        readers = self.consumers(name)
        if self[name].kind in ("conv2d", "linear", "add") and len(readers) == 1 and readers[0].kind in ("relu", "clip"):
            return readers[0]
        return None

    def quantised(self, name: str) -> str:
        """The layer after which a layer's output is quantised: its fused activation, or itself."""
        fused = self.fused_activation(name)
        return name if fused is None else fused.name

    def macs(self, name: str) -> int:
        """Multiply-accumulates of one sample through a conv2d or linear layer; 0 for the others."""
        layer = self[name]
        if layer.kind not in WEIGHTED:
            return 0
        weight = self.params[name]["weight"]
        return int(weight[0].size) * int(np.prod(layer.shape))

    def parameters(self) -> int:
        """Number of float parameters (weights and biases, after BN folding)."""
        return sum(int(a.size) for p in self.params.values() for a in p.values())

    def with_params(self, params: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> Network:
        """The same layers with other parameters."""
        return replace(self, params=params)

    def to_json(self) -> str:
        """The layers (not the parameters) as JSON text."""

        def plain(value: Any) -> Any:
            """JSON has no infinity, which a clip without one of its limits carries."""
            return str(value) if isinstance(value, float) and math.isinf(value) else value

        rows = [
            {
                "name": x.name, "kind": x.kind, "inputs": x.inputs, "shape": x.shape,
                "attrs": {k: plain(v) for k, v in x.attrs.items()},
            }
            for x in self.layers
        ]  # fmt: skip
        return json.dumps({"schema": "xdeploy.network/1", "layers": rows}, indent=1, allow_nan=False)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The parameters as one flat `layer:param` -> array table (for safetensors)."""
        return {f"{n}:{k}": np.ascontiguousarray(a) for n, p in self.params.items() for k, a in p.items()}

    @staticmethod
    def load(text: str, tensors: Mapping[str, Array]) -> Network:
        """Invert `to_json` and `tensors`."""

        def tuples(value: Any) -> Any:
            if value in ("inf", "-inf"):
                return float(value)
            return tuple(tuples(v) for v in value) if isinstance(value, list) else value

        layers = tuple(
            Layer(
                r["name"],
                r["kind"],
                tuple(r["inputs"]),
                tuple(r["shape"]),
                {k: tuples(v) for k, v in r["attrs"].items()},
            )
            for r in json.loads(text)["layers"]
        )
        params: dict[str, dict[str, NDArray[np.float32]]] = {}
        for key, array in tensors.items():
            name, _, param = key.rpartition(":")
            params.setdefault(name, {})[param] = np.asarray(array, np.float32)
        return Network(layers, params)
