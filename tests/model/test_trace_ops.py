"""Every supported operation: the network is compared with the module itself, on inputs that the capture did not use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdeploy.model.network import Network
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace


class Calls(nn.Module):
    """A module around a function, with submodules by name."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def randomise(module: nn.Module) -> nn.Module:
    """Weights and statistics that no mistake leaves unchanged."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            for t in (m.running_mean, m.weight, m.bias):
                if t is not None:
                    t.data.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
    return module


def traced(module: nn.Module, shape: tuple[int, ...], tolerance: float = 1e-4) -> Network:
    """Capture, and compare with the module on five other samples."""
    randomise(module)
    network = trace(module, shape)
    x = torch.randn((5, *shape), generator=torch.Generator().manual_seed(7)) * 2
    module.eval()
    with torch.no_grad():
        want, got = module(x.clone()), NetworkModule(network)(x.reshape(5, *network.input.shape))
    if want.ndim == got.ndim:
        assert want.shape == got.shape
    got = got.reshape(want.shape)
    assert float((want - got).abs().max()) <= tolerance * float(want.abs().max())
    assert Network.load(network.to_json(), network.tensors()).layers == network.layers
    for layer in network.weighted():
        assert all(p.dtype == np.float32 and np.isfinite(p).all() for p in network.params[layer.name].values())
    return network


def kinds(network: Network) -> list[str]:
    return [x.kind for x in network.layers[1:]]


IMAGE = (6, 9, 8)
conv = nn.Conv2d
CASES: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "conv": (conv(6, 4, 3), IMAGE, ["conv2d"]),
    "conv without bias": (conv(6, 4, (3, 1), bias=False), IMAGE, ["conv2d"]),
    "conv stride, padding, dilation": (conv(6, 4, 3, (2, 1), (1, 2), dilation=(1, 2)), IMAGE, ["conv2d"]),
    "conv groups": (conv(6, 4, 3, groups=2), IMAGE, ["conv2d"]),
    "conv depthwise": (conv(6, 6, 3, groups=6), IMAGE, ["conv2d"]),
    "conv depth multiplier": (conv(6, 12, 3, groups=6), IMAGE, ["conv2d"]),
    "conv same, even kernel": (conv(6, 4, (4, 3), padding="same"), IMAGE, ["conv2d"]),
    "conv same, dilated": (conv(6, 4, 4, padding="same", dilation=2), IMAGE, ["conv2d"]),
    "conv valid": (conv(6, 4, 3, padding="valid"), IMAGE, ["conv2d"]),
    "linear": (nn.Linear(7, 3), (7,), ["linear"]),
    "linear without bias": (nn.Linear(7, 3, bias=False), (7,), ["linear"]),
    "addmm": (Calls(lambda m, x: torch.addmm(m.a.bias, x, m.a.weight.t()), a=nn.Linear(7, 3)), (7,), ["linear"]),
    "matmul": (Calls(lambda m, x: x @ m.a.weight.t(), a=nn.Linear(7, 3)), (7,), ["linear"]),
    "mm": (Calls(lambda m, x: torch.mm(x, m.a.weight.t()), a=nn.Linear(7, 3)), (7,), ["linear"]),
    "weight norm": (nn.utils.parametrizations.weight_norm(conv(6, 4, 3)), IMAGE, ["conv2d"]),
    "conv norm": (nn.Sequential(conv(6, 4, 3, bias=False), nn.BatchNorm2d(4)), IMAGE, ["conv2d"]),
    "conv norm without affine": (nn.Sequential(conv(6, 4, 3), nn.BatchNorm2d(4, affine=False)), IMAGE, ["conv2d"]),
    "conv two norms": (nn.Sequential(conv(6, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), IMAGE, ["conv2d"]),
    "linear norm": (nn.Sequential(nn.Linear(7, 3), nn.BatchNorm1d(3)), (7,), ["linear"]),
    "norm linear": (nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 3)), (7,), ["linear"]),
    "norm alone": (nn.BatchNorm2d(6), IMAGE, ["conv2d"]),
    "norm first": (nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4, 1)), IMAGE, ["conv2d", "relu", "conv2d"]),
    "norm of a shared conv": (
        Calls(lambda m, x: m.n(y := m.c(x)) + y, c=conv(6, 4, 3), n=nn.BatchNorm2d(4)), IMAGE,
        ["conv2d", "conv2d", "add"],
    ),
    "relu": (nn.ReLU(), IMAGE, ["relu"]),
    "relu in place": (Calls(lambda m, x: m.c(x).relu_(), c=conv(6, 4, 1)), IMAGE, ["conv2d", "relu"]),
    "relu6": (nn.ReLU6(), IMAGE, ["clip"]),
    "relu6 function": (Calls(lambda m, x: F.relu6(x)), IMAGE, ["clip"]),
    "hardtanh": (nn.Hardtanh(-0.5, 1.5), IMAGE, ["clip"]),
    "clamp": (Calls(lambda m, x: x.clamp(-1, 2)), IMAGE, ["clip"]),
    "clamp from zero": (Calls(lambda m, x: x.clamp(min=0)), IMAGE, ["relu"]),
    "max pool": (nn.MaxPool2d(2), IMAGE, ["max_pool2d"]),
    "max pool padded": (nn.MaxPool2d(3, 2, 1), IMAGE, ["max_pool2d"]),
    "max pool ceil": (nn.MaxPool2d(2, ceil_mode=True), IMAGE, ["max_pool2d"]),
    "max pool ceil padded": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (6, 8, 6), ["max_pool2d"]),
    "avg pool": (nn.AvgPool2d(2), IMAGE, ["avg_pool2d"]),
    "avg pool padded": (nn.AvgPool2d(3, 2, 1), IMAGE, ["avg_pool2d"]),
    "avg pool padded, not counted": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE, ["avg_pool2d"]),
    "avg pool ceil": (nn.AvgPool2d(2, ceil_mode=True), IMAGE, ["avg_pool2d"]),
    "avg pool ceil padded": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (6, 8, 6), ["pad", "avg_pool2d"]),
    "avg pool ceil padded, not counted": (
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (6, 8, 6), ["avg_pool2d"]
    ),
    "adaptive avg": (nn.AdaptiveAvgPool2d(1), IMAGE, ["avg_pool2d"]),
    "adaptive avg to 3x4": (nn.AdaptiveAvgPool2d((3, 4)), IMAGE, ["avg_pool2d"]),
    "adaptive max": (nn.AdaptiveMaxPool2d((3, 2)), IMAGE, ["max_pool2d"]),
    "mean": (Calls(lambda m, x: x.mean((2, 3))), IMAGE, ["avg_pool2d", "flatten"]),
    "mean, negative axes, kept": (Calls(lambda m, x: x.mean((-1, -2), keepdim=True)), IMAGE, ["avg_pool2d"]),
    "amax": (Calls(lambda m, x: x.amax((2, 3))), IMAGE, ["max_pool2d", "flatten"]),
    "flatten": (nn.Flatten(), IMAGE, ["flatten"]),
    "view": (Calls(lambda m, x: x.view(x.size(0), -1)), IMAGE, ["flatten"]),
    "reshape": (Calls(lambda m, x: x.reshape(-1, 432)), IMAGE, ["flatten"]),
    "reshape to itself": (Calls(lambda m, x: x.reshape(x.shape).relu()), IMAGE, ["relu"]),
    "squeeze": (Calls(lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze()), IMAGE, ["avg_pool2d", "flatten"]),
    "squeeze twice": (
        Calls(lambda m, x: m.p(x).squeeze(3).squeeze(2), p=nn.AvgPool2d((9, 8))), IMAGE, ["avg_pool2d", "flatten"]
    ),
    "flatten read twice": (Calls(lambda m, x: (y := x.flatten(1)) + y.relu()), IMAGE, ["relu", "add", "flatten"]),
    "add": (Calls(lambda m, x: torch.add(x, x.relu())), IMAGE, ["relu", "add"]),
    "cat": (Calls(lambda m, x: torch.cat([x, x.relu()], 1)), IMAGE, ["relu", "concat"]),
    "cat of features": (Calls(lambda m, x: torch.cat((x, x.relu()), dim=-1)), (7,), ["relu", "concat"]),
    "dropout": (nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Dropout2d()), IMAGE, ["relu"]),
    "no-ops": (Calls(lambda m, x: nn.Identity()(x).contiguous().clone().detach().float().relu()), IMAGE, ["relu"]),
    "zero pad": (nn.ZeroPad2d((1, 2, 0, 3)), IMAGE, ["pad"]),
    "pad before conv": (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(6, 4, 3, 2)), IMAGE, ["conv2d"]),
    "pad read twice": (
        Calls(lambda m, x: (y := F.pad(x, (1, 1, 1, 1))).relu() + m.c(y), c=conv(6, 6, 1)), IMAGE,
        ["pad", "relu", "conv2d", "add"],
    ),
    "option A": (Calls(lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))), IMAGE, ["slice", "pad"]),
    "slice of a slice": (Calls(lambda m, x: x[:, 1:, 2:-1:2][:, ::2, 1:]), IMAGE, ["slice"]),
    "chunk": (Calls(lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1)), IMAGE, ["slice", "slice", "concat"]),
    "split, one part used": (Calls(lambda m, x: x.split([2, 4], 1)[1]), IMAGE, ["slice"]),
    "softmax": (nn.Softmax(dim=-1), (7,), ["softmax"]),
    "softmax axis 1": (nn.Softmax(dim=1), (7,), ["softmax"]),
    "batch of one": (Calls(lambda m, x: x.view(1, -1) if x.shape[0] == 1 else x.flatten(1)), IMAGE, ["flatten"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operation(case: str) -> None:
    module, shape, want = CASES[case]
    assert kinds(traced(module, shape)) == want


def test_in_place_operations_keep_their_meaning() -> None:
    """An alias sees what is done in place, a copy does not."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.c(x)
        alias, copy = y, y.clone()
        y.relu_()
        y += copy
        return alias + copy

    net = traced(Calls(forward, c=conv(6, 4, 1)), IMAGE)
    assert kinds(net) == ["conv2d", "relu", "add", "add"]
    assert net.layers[3].inputs == ("relu", "c")
    assert net.layers[4].inputs == ("add", "c")


def test_module_for_one_sample_only() -> None:
    module = Calls(lambda m, x: m.a(x.reshape(1, 432)), a=nn.Linear(432, 3))
    assert kinds(trace(module, IMAGE)) == ["flatten", "linear"]


def test_attributes_are_plain_numbers() -> None:
    net = traced(conv(6, 4, (4, 3), padding="same"), IMAGE)
    assert net.layers[1].attrs == {"stride": (1, 1), "pads": (1, 1, 2, 1), "dilation": (1, 1), "groups": 1}
    net = traced(nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), conv(6, 4, 3, padding=1)), IMAGE)
    assert net.layers[1].attrs["pads"] == (3, 1, 4, 2)
    net = traced(Calls(lambda m, x: x[:, 1:, 2:-1:2][:, ::2, 1:]), IMAGE)
    assert net.layers[1].attrs == {"starts": (1, 4, 0), "stops": (6, 7, 8), "steps": (2, 2, 1)}


def test_batch_norm_is_folded_by_its_formula() -> None:
    c, n = conv(2, 3, 1), nn.BatchNorm2d(3, eps=0.1)
    net = traced(nn.Sequential(c, n), (2, 4, 4))
    gain = (n.weight / torch.sqrt(n.running_var + 0.1)).detach()
    np.testing.assert_allclose(net.params["0"]["weight"], (c.weight * gain.reshape(-1, 1, 1, 1)).detach(), rtol=1e-6)
    bias = ((c.bias - n.running_mean) * gain + n.bias).detach()
    np.testing.assert_allclose(net.params["0"]["bias"], bias, rtol=1e-5, atol=1e-6)
