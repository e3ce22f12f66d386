"""Compressed models made by hand: random integer codes, scales from a float run; no calibration code involved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from xdeploy.compress.model import CompressedModel, QuantisedWeight
from xdeploy.formats import QParams, weight_format
from xdeploy.handover import CompressionPlan, IoSpec, PlanLine
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import NetworkModule

NONE = (0, 0, 0, 0)
MOVERS = ("relu", "clip", "max_pool2d", "flatten", "pad", "slice", "concat", "resize", "rearrange")


class Toy:
    """Layers one after another; `compressed` gives every weighted layer random codes of a format."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.layers = [Layer("input", "input", (), shape)]
        self.weights: dict[str, QuantisedWeight] = {}
        self.params: dict[str, dict[str, np.ndarray]] = {}

    @property
    def last(self) -> Layer:
        return self.layers[-1]

    def add(self, name: str, kind: str, inputs: Sequence[str] = (), **attrs: Any) -> str:
        inputs = tuple(inputs) or (self.last.name,)
        trial = Network((*self.layers, Layer(name, kind, inputs, (), attrs)), self.params)
        shape = tuple(NetworkModule(trial)(torch.zeros(1, *self.layers[0].shape)).shape[1:])
        self.layers.append(Layer(name, kind, inputs, shape, attrs))
        return name

    def function(self, name: str, function: str, source: str = "", alpha: float = 0.0, beta: float = 0.0) -> str:
        return self.add(name, "function", (source,) if source else (), function=function, alpha=alpha, beta=beta)

    def rearrange(self, name: str, view: tuple[int, ...], perm: tuple[int, ...], shape: tuple[int, ...]) -> str:
        self.layers.append(Layer(name, "rearrange", (self.last.name,), shape, {"view": view, "perm": perm}))
        return name

    def weight(self, name: str, shape: tuple[int, ...], format_name: str) -> None:
        fmt = weight_format(format_name)
        book = None
        if fmt.codebook:
            codes = self.rng.integers(0, 2**fmt.bits, shape).astype(np.int8)
            book = np.sort(self.rng.integers(-127, 128, 2**fmt.bits)).astype(np.int8)
        else:
            codes = self.rng.integers(-fmt.limit, fmt.limit + 1, shape).astype(np.int8)
        values = fmt.values(codes, book).astype(np.float64)
        gain = np.sqrt(2.0 / np.prod(shape[1:])) / max(values.std(), 1.0)
        scale = (gain * self.rng.uniform(0.5, 1.5, shape[0])).astype(np.float32)
        real = (values * scale.reshape(-1, *[1] * (len(shape) - 1))).astype(np.float32)
        bias = self.rng.normal(size=shape[0]).astype(np.float32) * np.float32(0.2)
        self.params[name] = {"weight": real, "bias": bias}
        self.weights[name] = QuantisedWeight(format_name, codes, book, scale, np.zeros(shape[0], np.int32))

    def conv(
        self, name: str, out: int, kernel: tuple[int, int] = (3, 3), fmt: str = "int8", source: str = "",
        stride: tuple[int, int] = (1, 1), pads: tuple[int, ...] = (1, 1, 1, 1), groups: int = 1,
        dilation: tuple[int, int] = (1, 1),
    ) -> str:  # fmt: skip
        source = source or self.last.name
        channels = next(x for x in self.layers if x.name == source).shape[0]
        self.weight(name, (out, channels // groups, *kernel), fmt)
        return self.add(name, "conv2d", (source,), stride=stride, pads=pads, dilation=dilation, groups=groups)

    def linear(self, name: str, out: int, fmt: str = "int8") -> str:
        self.weight(name, (out, self.last.shape[0]), fmt)
        return self.add(name, "linear")

    def compressed(self, bind: bool = True) -> CompressedModel:
        """bind: the inputs of a concatenation share its scale, as `compress` makes them; else they are rescaled."""
        network = Network(tuple(self.layers), self.params)
        activations = self._activations(network)
        for layer in network.layers:
            if layer.kind == "concat" and bind:
                activations.update(dict.fromkeys(layer.inputs, activations[layer.name]))
        weights = {}
        for name, w in self.weights.items():
            step = activations[network[name].inputs[0]].scale * w.scale.astype(np.float64)
            bias = np.rint(self.params[name]["bias"] / step).astype(np.int32)
            weights[name] = QuantisedWeight(w.format_name, w.codes, w.codebook, w.scale, bias)
        io = IoSpec("x", network.input.shape, "y", network.output.shape, labels=("a", "b"))
        lines = tuple(PlanLine(n, w.format_name) for n, w in weights.items())
        return CompressedModel(network, weights, activations, io, CompressionPlan(lines), ())

    def _activations(self, network: Network) -> dict[str, QParams]:
        values = {"input": torch.from_numpy(inputs_of(network, 16))}
        modules = NetworkModule(network).modules_by_name
        for layer in network.layers[1:]:
            values[layer.name] = modules[layer.name](*(values[i] for i in layer.inputs)).detach()
        chosen: dict[str, QParams] = {}
        for layer in network.layers:
            if network.fused_activation(layer.name) is not None:
                continue
            fused = layer.kind in ("relu", "clip") and network.fused_activation(layer.inputs[0]) is layer
            if layer.kind in MOVERS and not fused and layer.kind != "concat":
                chosen[layer.name] = chosen[layer.inputs[0]]
            elif layer.kind == "softmax":
                chosen[layer.name] = QParams(1 / 256, -128)
            else:
                v = values[layer.name]
                chosen[layer.name] = QParams.from_range(float(v.min()), float(v.max()))
        return chosen


def inputs_of(network: Network, n: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *network.input.shape)).astype(np.float32)


def everything(formats: Mapping[str, str] | None = None, bind: bool = True) -> CompressedModel:
    """Every layer kind once: two additions, two concatenated branches of other scales, an option-A shortcut."""
    f = {**dict.fromkeys(("stem", "a", "b", "dw", "left", "right", "fc1", "fc2"), "int8"), **(formats or {})}
    t = Toy((3, 12, 10))
    t.conv("stem", 4, fmt=f["stem"])
    top = t.add("stem.relu", "relu")
    t.conv("a", 8, fmt=f["a"], stride=(2, 2), pads=(0, 0, 1, 1))
    t.add("a.clip", "clip", low=0.0, high=2.0)
    main = t.conv("b", 8, fmt=f["b"])
    t.add("cut", "slice", (top,), starts=(0, 0, 0), stops=(4, 12, 10), steps=(1, 2, 2))
    short = t.add("grow", "pad", pads=NONE, channels=(2, 2))
    t.add("sum", "add", (main, short))
    joined = t.add("sum.relu", "relu")
    t.conv("dw", 8, fmt=f["dw"], groups=8, source=joined)
    t.add("border", "pad", pads=(1, 0, 0, 1), channels=(0, 0))
    left = t.conv("left", 4, (1, 1), fmt=f["left"], pads=NONE)
    t.add("pool", "max_pool2d", ("border",), kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1))
    right = t.conv("right", 4, (3, 2), fmt=f["right"], dilation=(2, 1), pads=(2, 0, 2, 1))
    t.add("cat", "concat", (left, right))
    t.add("cat.relu", "relu")
    t.add("avg", "avg_pool2d", kernel=(2, 2), stride=(2, 2), pads=(1, 0, 0, 1), include_pad=0)
    t.add("avg2", "avg_pool2d", kernel=(2, 2), stride=(1, 1), pads=(1, 1, 1, 1), include_pad=1)
    t.add("flat", "flatten")
    t.linear("fc1", 12, f["fc1"])
    first = t.add("fc1.relu", "relu")
    second = t.linear("fc2", 12, f["fc2"])
    t.add("sum2", "add", (first, second))
    t.add("soft", "softmax")
    return t.compressed(bind)


PARAMETERS = {"hard_sigmoid": (1 / 6, 0.5), "leaky_relu": (0.1, 0.0), "elu": (0.7, 0.0)}


def one_function(name: str) -> CompressedModel:
    """A convolution, a function of it, and a linear layer that reads the function's codes."""
    t = Toy((3, 6, 5))
    t.conv("conv", 4)
    t.function("act", name, "conv", *PARAMETERS.get(name, (0.0, 0.0)))
    t.add("flat", "flatten")
    t.linear("fc", 3)
    return t.compressed()


def gated() -> CompressedModel:
    """A gate per channel, a gate per element, and the difference of two branches."""
    t = Toy((3, 8, 8))
    top = t.conv("stem", 6)
    t.add("pool", "avg_pool2d", kernel=(8, 8), stride=(8, 8), pads=NONE, include_pad=0)
    t.conv("squeeze", 3, (1, 1), pads=NONE)
    t.add("squeeze.relu", "relu")
    t.conv("excite", 6, (1, 1), pads=NONE)
    gate = t.function("gate", "hard_sigmoid", "excite", 1 / 6, 0.5)
    first = t.add("scaled", "mul", (top, gate))
    t.conv("left", 6, source=first)
    t.conv("right", 6, source=first)
    signal, soft = t.function("tanh", "tanh", "left"), t.function("sigmoid", "sigmoid", "right")
    second = t.add("product", "mul", (signal, soft))
    t.add("difference", "sub", (first, second))
    t.add("flat", "flatten")
    t.linear("fc", 5)
    return t.compressed()


def moving() -> CompressedModel:
    """Whole-number and uneven resizing, depth to space and a channel shuffle, read by a convolution and by a linear."""
    t = Toy((3, 6, 5))
    t.conv("stem", 8)
    t.rearrange("deep", (2, 2, 2, 6, 5), (2, 3, 0, 4, 1), (2, 12, 10))  # depth to space by 2, blocks first
    t.conv("grown", 4, stride=(2, 2))
    t.add("twice", "resize", rows=tuple(i // 2 for i in range(12)), cols=tuple(i // 3 for i in range(15)))
    t.add("uneven", "resize", rows=(0, 0, 1, 3, 4, 9, 11), cols=(0, 2, 2, 5, 13))
    t.rearrange("shuffle", (2, 2, 7, 5), (1, 0, 2, 3), (4, 7, 5))
    t.conv("mix", 4, groups=2)
    t.add("flat", "flatten")
    t.linear("fc", 5)
    return t.compressed()
