"""Small networks built by hand, with every layer kind, and a learnable toy task."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from xdeploy.handover import IoSpec
from xdeploy.model.network import Layer, Network
from xdeploy.model.torchmodule import NetworkModule


class Builder:
    """Adds layers one after another; parameters are He-normal draws of one generator."""

    def __init__(self, shape: tuple[int, ...], seed: int = 0, bias: float = 0.1) -> None:
        self.rng = np.random.default_rng(seed)
        self.bias = bias
        self.layers = [Layer("input", "input", (), shape)]
        self.params: dict[str, dict[str, np.ndarray]] = {}

    @property
    def last(self) -> str:
        return self.layers[-1].name

    def add(self, name: str, kind: str, inputs: tuple[str, ...] = (), **attrs: object) -> str:
        inputs = inputs or (self.last,)
        trial = [*self.layers, Layer(name, kind, inputs, (), attrs)]
        probe = NetworkModule(Network(tuple(trial), self.params))
        shape = tuple(probe(torch.zeros(1, *self.layers[0].shape)).shape[1:])
        self.layers.append(Layer(name, kind, inputs, shape, attrs))
        return name

    def _draw(self, name: str, shape: tuple[int, ...]) -> None:
        gain = np.sqrt(2.0 / np.prod(shape[1:]))
        weight = (self.rng.normal(size=shape) * gain).astype(np.float32)
        self.params[name] = {"weight": weight, "bias": (self.rng.normal(size=shape[0]) * self.bias).astype(np.float32)}

    def conv(
        self, name: str, out: int, kernel: int = 3, stride: int = 1, pads: tuple[int, ...] = (1, 1, 1, 1),
        groups: int = 1, dilation: int = 1, source: str = "",
    ) -> str:  # fmt: skip
        source = source or self.last
        channels = next(x for x in self.layers if x.name == source).shape[0]
        self._draw(name, (out, channels // groups, kernel, kernel))
        return self.add(
            name, "conv2d", (source,), stride=(stride, stride), pads=pads, dilation=(dilation, dilation), groups=groups
        )

    def linear(self, name: str, out: int) -> str:
        self._draw(name, (out, self.layers[-1].shape[0]))
        return self.add(name, "linear")

    def global_pool(self, name: str = "pool") -> str:
        size = self.layers[-1].shape[1:]
        self.add(name, "avg_pool2d", kernel=size, stride=size, pads=(0, 0, 0, 0), include_pad=0)
        return self.add("flatten", "flatten")

    def network(self) -> Network:
        return Network(tuple(self.layers), self.params)


def plain(seed: int = 0, bias: float = 0.1, softmax: bool = False) -> Network:
    """conv relu maxpool depthwise relu6 conv(asymmetric pads, stride 2) relu pool linear."""
    b = Builder((2, 8, 8), seed, bias)
    b.conv("stem", 6)
    b.add("stem_relu", "relu")
    b.add("max", "max_pool2d", kernel=(2, 2), stride=(2, 2), pads=(0, 0, 0, 0))
    b.conv("dw", 6, groups=6)
    b.add("dw_clip", "clip", low=0.0, high=6.0)
    b.conv("mid", 8, stride=2, pads=(0, 0, 1, 1))
    b.add("mid_relu", "relu")
    b.global_pool()
    b.linear("fc", 4)
    if softmax:
        b.add("soft", "softmax")
    return b.network()


def residual(seed: int = 0, bias: float = 0.1) -> Network:
    """A residual block with an option-A shortcut (slice, pad) and a concatenation."""
    b = Builder((2, 8, 8), seed, bias)
    b.conv("stem", 4)
    top = b.add("stem_relu", "relu")
    b.conv("a", 8, stride=2)
    b.add("a_relu", "relu")
    main = b.conv("b", 8)
    b.add("cut", "slice", (top,), starts=(0, 0, 0), stops=(4, 8, 8), steps=(1, 2, 2))
    short = b.add("grow", "pad", pads=(0, 0, 0, 0), channels=(2, 2))
    b.add("sum", "add", (main, short))
    joined = b.add("sum_relu", "relu")
    left = b.conv("left", 4, kernel=1, pads=(0, 0, 0, 0), source=joined)
    right = b.conv("right", 4, dilation=2, pads=(2, 2, 2, 2), source=joined)
    b.add("cat", "concat", (left, right))
    b.add("cat_relu", "relu")
    b.global_pool()
    b.linear("fc", 4)
    return b.network()


def io_of(network: Network) -> IoSpec:
    return IoSpec("x", network.input.shape, "y", network.output.shape)


def task(n: int, shape: tuple[int, ...] = (2, 8, 8), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four classes: which quadrant of a noisy image is bright in which channel sum."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=g)
    x = torch.randn(n, *shape, generator=g) * 0.5
    for k in range(4):
        rows = y == k
        x[rows, :, (k // 2) * 4 : (k // 2) * 4 + 4, (k % 2) * 4 : (k % 2) * 4 + 4] += 1.0
    return x, y


def trained(network: Network, steps: int = 60, seed: int = 0) -> Network:
    """A few Adam steps on the toy task: enough to be clearly above chance."""
    torch.manual_seed(seed)
    module = NetworkModule(network)
    x, y = task(512, network.input.shape, seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    for k in range(steps):
        rows = torch.arange(64) + 64 * (k % 8)
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
        optimiser.step()
    return module.to_network()


def batches(x: Tensor, y: Tensor, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


FUNCTION_PARAMETERS = {"hard_sigmoid": (1 / 6, 0.5), "leaky_relu": (0.1, 0.0), "elu": (0.7, 0.0)}


def modern(seed: int = 0, bias: float = 0.1, functions: bool = True) -> Network:
    """Squeeze-excite, a gated pair of branches, a difference, nearest resizing, a channel shuffle, SiLU and GELU.

    Without functions every part is linear or piecewise linear, but for the products.
    """
    b = Builder((2, 8, 8), seed, bias)

    def act(name: str, function: str) -> str:
        alpha, beta = FUNCTION_PARAMETERS.get(function, (0.0, 0.0))
        if not functions:
            return b.add(name, "relu")
        return b.add(name, "function", function=function, alpha=alpha, beta=beta)

    b.conv("stem", 8)
    top = act("stem_act", "silu")
    b.add("se_pool", "avg_pool2d", kernel=(8, 8), stride=(8, 8), pads=(0, 0, 0, 0), include_pad=0)
    b.conv("se_down", 4, kernel=1, pads=(0, 0, 0, 0))
    b.add("se_relu", "relu")
    b.conv("se_up", 8, kernel=1, pads=(0, 0, 0, 0))
    gate = act("se_gate", "hard_sigmoid")
    scaled = b.add("se_mul", "mul", (top, gate))
    b.conv("mid", 8, stride=2, pads=(0, 0, 1, 1))
    b.layers.append(Layer("shuffle", "rearrange", ("mid",), (8, 4, 4), {"view": (2, 4, 4, 4), "perm": (1, 0, 2, 3)}))
    b.conv("grouped", 8, groups=2)
    deep = b.add("grow", "resize", rows=(0, 0, 1, 1, 2, 2, 3, 3), cols=(0, 1, 1, 1, 2, 2, 3, 3))
    left = b.conv("left", 8, kernel=1, pads=(0, 0, 0, 0), source=deep)
    signal = act("tanh", "tanh")
    b.conv("right", 8, kernel=1, pads=(0, 0, 0, 0), source=deep)
    soft = act("sigmoid", "sigmoid")
    product = b.add("product", "mul", (soft, signal) if functions else (signal, soft))
    b.add("difference", "sub", (scaled, product))
    act("last_act", "gelu")
    b.global_pool()
    b.linear("fc", 4)
    assert left == "left"
    return b.network()
