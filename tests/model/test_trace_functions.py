"""Functions, arithmetic, constants, reductions and the layouts they work in: the network against the module itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.test_trace_ops import IMAGE, Calls, conv, kinds, traced
from xdeploy.errors import UnsupportedError
from xdeploy.model.fallback import fallback_node
from xdeploy.model.network import Network
from xdeploy.model.trace import trace
from xdeploy.onnxfile import OnnxNode

SEQ = (6, 10)
FLAT = (7,)


def calls(function: object, **modules: nn.Module) -> nn.Module:
    return Calls(function, **modules)  # type: ignore[arg-type]


def slopes(count: int) -> nn.Module:
    module = nn.PReLU(count)
    module.weight.data.copy_(torch.linspace(-0.3, 1.5, count))
    return module


class SqueezeExcite(nn.Module):
    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.conv, self.down, self.up = conv(6, 8, 3), nn.Linear(8, 2), nn.Linear(2, 8)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        s = self.gate(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * s[:, :, None, None]


FUNCTIONS = {
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
    "tanh": (nn.Tanh(), "tanh"),
    "hardsigmoid": (nn.Hardsigmoid(), "hard_sigmoid"),
    "hardswish": (nn.Hardswish(), "hard_swish"),
    "silu": (nn.SiLU(), "silu"),
    "gelu": (nn.GELU(), "gelu"),
    "gelu tanh": (nn.GELU("tanh"), "gelu_tanh"),
    "leaky": (nn.LeakyReLU(0.2), "leaky_relu"),
    "elu": (nn.ELU(0.7), "elu"),
    "softplus": (nn.Softplus(), "softplus"),
    "prelu": (nn.PReLU(), "leaky_relu"),
    "abs": (calls(lambda m, x: x.abs()), "leaky_relu"),
    "rrelu": (nn.RReLU(), "leaky_relu"),
}


@pytest.mark.parametrize(
    ("case", "shape"),
    [*((c, IMAGE) for c in FUNCTIONS), ("sigmoid", SEQ), ("prelu", SEQ), ("gelu", FLAT), ("abs", FLAT)],
)
def test_function(case: str, shape: tuple[int, ...]) -> None:
    module, want = FUNCTIONS[case]
    network = traced(module, shape)
    assert kinds(network) == ["function"]
    assert network.layers[1].attrs["function"] == want


CASES: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "selu": (nn.SELU(), IMAGE, ["function", "conv2d"]),
    "celu": (nn.CELU(0.5), IMAGE, ["conv2d", "function", "conv2d"]),
    "elu after conv": (
        nn.Sequential(conv(6, 4, 3), nn.CELU(0.5), conv(4, 3, 1)),
        IMAGE,
        ["conv2d", "function", "conv2d"],
    ),
    "mish": (nn.Mish(), IMAGE, ["function", "function", "mul"]),
    "softplus beta": (nn.Softplus(2.0), IMAGE, ["conv2d", "function", "conv2d"]),
    "log sigmoid": (nn.LogSigmoid(), IMAGE, ["conv2d", "function", "conv2d"]),
    "prelu per channel": (nn.Sequential(conv(6, 4, 3), slopes(4)), IMAGE, ["conv2d", "clip", "relu", "conv2d", "add"]),
    "prelu, slopes alike": (nn.Sequential(conv(6, 4, 3), nn.PReLU(4)), IMAGE, ["conv2d", "function"]),
    "prelu of features": (
        nn.Sequential(nn.Linear(7, 4), slopes(4)),
        FLAT,
        ["linear", "clip", "relu", "rearrange", "conv2d", "flatten", "add"],
    ),
    "clamp max": (calls(lambda m, x: x.clamp(max=1.0)), IMAGE, ["clip"]),
    "clamp min": (calls(lambda m, x: x.clamp(min=-1.0)), IMAGE, ["clip"]),
    "relu6 by min and max": (calls(lambda m, x: torch.minimum(x.relu(), torch.tensor(6.0))), IMAGE, ["clip"]),
    "relu6 by two limits": (calls(lambda m, x: x.clamp(min=0.0).clamp(max=6.0)), IMAGE, ["clip"]),
    "maximum with zero": (calls(lambda m, x: torch.maximum(torch.zeros(1), x)), IMAGE, ["relu"]),
    "clamp tensor": (calls(lambda m, x: x.clamp(torch.tensor(-1.0), torch.tensor(2.0))), IMAGE, ["clip"]),
    "maximum of two": (
        calls(lambda m, x: torch.maximum(x, m.c(x)), c=conv(6, 6, 1)),
        IMAGE,
        ["conv2d", "sub", "relu", "add"],
    ),
    "minimum of two": (
        calls(lambda m, x: torch.min(x, m.c(x)), c=conv(6, 6, 1)),
        IMAGE,
        ["conv2d", "sub", "relu", "sub"],
    ),
    # constants
    "add one": (calls(lambda m, x: x + 1), IMAGE, ["conv2d"]),
    "one minus": (calls(lambda m, x: 1 - x.sigmoid()), IMAGE, ["function", "conv2d"]),
    "rsub alpha": (calls(lambda m, x: torch.rsub(x, 3.0, alpha=2)), IMAGE, ["conv2d"]),
    "add alpha": (calls(lambda m, x: torch.add(x.relu(), 3.0, alpha=2)), IMAGE, ["relu", "conv2d"]),
    "negate": (calls(lambda m, x: -x), IMAGE, ["conv2d"]),
    "normalise": (
        calls(
            lambda m, x: m.c((x - torch.arange(6.0)[:, None, None]) / (1 + torch.arange(6.0)[None, :, None, None])),
            c=conv(6, 4, 3),
        ),
        IMAGE,
        ["conv2d"],
    ),
    "normalise before padding": (
        calls(lambda m, x: m.c((x - 0.4) / 0.2), c=conv(6, 4, 3, padding=1)),
        IMAGE,
        ["conv2d", "conv2d"],
    ),
    "scale before padding": (calls(lambda m, x: m.c(x / 0.2), c=conv(6, 4, 3, padding=1)), IMAGE, ["conv2d"]),
    "shift before grouped": (
        calls(lambda m, x: m.c(x * torch.arange(6.0)[:, None, None] - 0.4), c=conv(6, 4, 3, groups=2)),
        IMAGE,
        ["conv2d"],
    ),
    "shift before depthwise": (
        calls(lambda m, x: m.c(x * torch.arange(6.0)[:, None, None] - 0.4), c=conv(6, 12, 3, groups=6)),
        IMAGE,
        ["conv2d"],
    ),
    "bias by hand": (
        calls(lambda m, x: m.c(x) + torch.arange(4.0)[:, None, None], c=conv(6, 4, 3, bias=False)),
        IMAGE,
        ["conv2d"],
    ),
    "bias read twice": (
        calls(lambda m, x: (y := m.c(x)) + (y + 2).relu(), c=conv(6, 4, 3)),
        IMAGE,
        ["conv2d", "conv2d", "relu", "add"],
    ),
    "shift between paddings": (
        calls(lambda m, x: m.c(F.pad(x + 1, (1, 1, 1, 1))), c=conv(6, 4, 3)),
        IMAGE,
        ["conv2d", "conv2d"],
    ),
    "matmul plus bias": (calls(lambda m, x: x @ m.a.weight.t() + m.a.bias, a=nn.Linear(7, 3)), FLAT, ["linear"]),
    "scaled features": (calls(lambda m, x: m.a(x * torch.arange(7.0) + 2), a=nn.Linear(7, 3)), FLAT, ["linear"]),
    "free features": (
        calls(lambda m, x: (x * torch.arange(7.0) + 2).relu()),
        FLAT,
        ["rearrange", "conv2d", "flatten", "relu"],
    ),
    "free scales": (
        calls(lambda m, x: ((x * 3 + 2) * 2 + torch.arange(7.0)).relu()),
        FLAT,
        ["rearrange", "conv2d", "flatten", "relu"],
    ),
    "batch norm of features": (
        nn.Sequential(nn.ReLU(), nn.BatchNorm1d(7)),
        FLAT,
        ["relu", "rearrange", "conv2d", "flatten"],
    ),
    "constant per row": (
        calls(lambda m, x: x * torch.arange(9.0)[:, None]),
        IMAGE,
        ["rearrange", "conv2d", "rearrange"],
    ),
    "constant image": (
        calls(lambda m, x: x - torch.linspace(-1, 1, 432).reshape(6, 9, 8)),
        IMAGE,
        ["rearrange", "conv2d", "rearrange"],
    ),
    "times one": (calls(lambda m, x: (x * 1 + 0).relu()), IMAGE, ["relu"]),
    "padding with ones": (calls(lambda m, x: F.pad(x, (1, 2), value=1.0)), IMAGE, ["conv2d", "conv2d"]),
    # two tensors
    "sub": (calls(lambda m, x: x - x.relu()), IMAGE, ["relu", "sub"]),
    "sub alpha": (calls(lambda m, x: torch.sub(x, m.c(x), alpha=2), c=conv(6, 6, 1)), IMAGE, ["conv2d", "sub"]),
    "mul": (calls(lambda m, x: x * x.sigmoid()), FLAT, ["function", "mul"]),
    "square": (calls(lambda m, x: x**2 + x.square()), IMAGE, ["mul", "mul", "add"]),
    "gate": (calls(lambda m, x: x.mean((2, 3), keepdim=True).sigmoid() * x), IMAGE, ["avg_pool2d", "function", "mul"]),
    "gate added": (calls(lambda m, x: x + x.mean((2, 3), keepdim=True)), IMAGE, ["avg_pool2d", "resize", "add"]),
    "gate minus": (calls(lambda m, x: x.mean((2, 3), keepdim=True) - x), IMAGE, ["avg_pool2d", "resize", "sub"]),
    "gate from features": (
        SqueezeExcite(nn.Hardsigmoid()),
        IMAGE,
        ["conv2d", "avg_pool2d", "flatten", "linear", "relu", "linear", "function", "rearrange", "mul"],
    ),
    "gate per pixel": (
        calls(lambda m, x: x * m.c(x).sigmoid(), c=conv(6, 1, 1)),
        IMAGE,
        ["conv2d", "function", "rearrange", "rearrange", "mul", "rearrange"],
    ),
    "gate of features": (
        calls(lambda m, x: x * m.a(x).sigmoid(), a=nn.Linear(7, 1)),
        FLAT,
        ["linear", "function", "rearrange", "rearrange", "mul", "flatten"],
    ),
    "glu": (
        calls(lambda m, x: F.glu(m.c(x), 1), c=conv(6, 8, 3)),
        IMAGE,
        ["conv2d", "slice", "slice", "function", "mul"],
    ),
    # reductions
    "sum": (calls(lambda m, x: x.sum((2, 3))), IMAGE, ["avg_pool2d", "conv2d", "flatten"]),
    "mean of rows": (calls(lambda m, x: x.mean(3)), IMAGE, ["avg_pool2d"]),
    "mean of columns": (calls(lambda m, x: x.mean(2, keepdim=True)), IMAGE, ["avg_pool2d"]),
    "mean of channels": (calls(lambda m, x: x.mean(1, keepdim=True)), IMAGE, ["rearrange", "avg_pool2d", "rearrange"]),
    "max of channels": (calls(lambda m, x: x.max(1, keepdim=True)[0]), IMAGE, ["rearrange", "max_pool2d", "rearrange"]),
    "smallest": (calls(lambda m, x: x.amin((2, 3))), IMAGE, ["conv2d", "max_pool2d", "conv2d", "flatten"]),
    "mean of all": (calls(lambda m, x: x.mean((1, 2, 3), keepdim=True)), IMAGE, ["rearrange", "avg_pool2d"]),
    "mean of features": (calls(lambda m, x: x.mean(1, keepdim=True)), FLAT, ["rearrange", "avg_pool2d", "flatten"]),
    "softmax of pixels": (
        calls(lambda m, x: m.p(x).softmax(1), p=nn.AdaptiveAvgPool2d(1)),
        IMAGE,
        ["avg_pool2d", "flatten", "softmax", "rearrange"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_operation(case: str) -> None:
    module, shape, want = CASES[case]
    assert kinds(traced(module, shape)) == want


def test_scales_and_shifts_keep_their_numbers() -> None:
    net = traced(calls(lambda m, x: 2 - 3 * x), IMAGE)
    assert set(net.params[net.layers[1].name]["weight"].ravel()) == {-3.0}
    assert set(net.params[net.layers[1].name]["bias"]) == {2.0}
    module = calls(lambda m, x: m.c((x - 0.5) * 4), c=conv(6, 4, 3))
    net = traced(module, IMAGE)
    weight = module.c.weight.detach()
    np.testing.assert_allclose(net.params["c"]["weight"], weight * 4, rtol=1e-6)
    bias = module.c.bias.detach() - 2 * weight.sum((1, 2, 3))
    np.testing.assert_allclose(net.params["c"]["bias"], bias, rtol=1e-5, atol=1e-6)


def test_limits_without_an_end_survive_text() -> None:
    net = traced(calls(lambda m, x: x.clamp(max=1.0)), IMAGE)
    assert net.layers[1].attrs == {"low": -math.inf, "high": 1.0}
    assert "Infinity" not in net.to_json()
    assert Network.load(net.to_json(), net.tensors()).layers == net.layers


def test_float_parts_pass_through() -> None:
    part = fallback_node([OnnxNode("e", "Erf", ("a",), ("b",))], {}, "a", (4, 9, 8), 17)
    net = traced(calls(lambda m, x: m.part(m.c(x)).relu(), c=conv(6, 4, 1), part=part), IMAGE)
    assert kinds(net) == ["conv2d", "fallback", "relu"]
    assert net.layers[2].attrs == {"onnx": part.onnx, "ops": ("Erf",)}


def test_float_parts_take_images_or_features() -> None:
    part = fallback_node([OnnxNode("e", "Erf", ("a",), ("b",))], {}, "a", SEQ, 17)
    with pytest.raises(UnsupportedError, match=r"reads \(6, 10\) per sample"):
        trace(calls(lambda m, x: m.part(x), part=part), SEQ)
