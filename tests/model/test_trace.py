"""Capture as a whole: the zoo, names, what is refused and how, and that the user's module stays as it was."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.test_trace_ops import Calls
from xdeploy.errors import ModelError, UnsupportedError
from xdeploy.model import zoo
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.model.trace import trace

# the published layer tables: (input channels read by one output, outputs, kernel elements, output pixels)
Table = list[tuple[int, int, int, int]]
VGG = [(3, 64, 32), (64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8),
       (256, 512, 4), (512, 512, 4), (512, 512, 4), *[(512, 512, 2)] * 3]  # fmt: skip
WIDTHS = (735, 512, 512, 256, 256, 128, 128, 12)
MOBILE = [(8, 16, 48), (16, 32, 24), (32, 32, 24), (32, 64, 12), (64, 64, 12), (64, 128, 6), *[(128, 128, 6)] * 5,
          (128, 256, 3), (256, 256, 3)]  # fmt: skip
TABLES: dict[str, Table] = {
    "resnet20": [
        (3, 16, 9, 1024), *[(16, 16, 9, 1024)] * 6, (16, 32, 9, 256), *[(32, 32, 9, 256)] * 5, (32, 64, 9, 64),
        *[(64, 64, 9, 64)] * 5, (64, 10, 1, 1),
    ],
    "vgg16": [*((i, o, 9, s * s) for i, o, s in VGG), (512, 10, 1, 1)],
    "mlp": [(i, o, 1, 1) for i, o in itertools.pairwise(WIDTHS)],
    "ds_cnn": [(1, 64, 40, 125), *[(1, 64, 9, 125), (64, 64, 1, 125)] * 4, (64, 12, 1, 1)],
    "mobilenet_v1_025": [
        (3, 8, 9, 48 * 48), *(row for i, o, s in MOBILE for row in ((1, i, 9, s * s), (i, o, 1, s * s))),
        (256, 2, 1, 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [*TABLES, "mobilenet_v1", "digits_cnn", pytest.param("resnet56", marks=pytest.mark.slow)]
)
def test_zoo(name: str) -> None:
    torch.manual_seed(0)
    module = getattr(zoo, name)()
    shape = module.xdeploy_input["shape"]
    network = trace(module, shape)
    x = torch.randn((2, *shape), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want, got = module.eval()(x), NetworkModule(network)(x)
    assert float((want - got).abs().max()) <= 1e-4 * float(want.abs().max())
    if name in TABLES:
        assert network.parameters() == sum(i * o * k + o for i, o, k, _ in TABLES[name])
        assert sum(network.macs(x.name) for x in network.layers) == sum(i * o * k * s for i, o, k, s in TABLES[name])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file"),
    [("resnet20", "resnet20-cifar10"), ("resnet20", "resnet20-cifar10-jpeg"), ("vgg16", "vgg16-cifar10-jpeg")],
)
def test_zoo_takes_the_shared_weights(shared: Path, name: str, file: str) -> None:
    from xdeploy.model.factory import with_weights

    module = with_weights(getattr(zoo, name)(), shared / "models" / f"{file}.safetensors")
    assert all(p.dtype == torch.float32 for p in module.parameters())


# ------------------------------------------------------------------------------------------------------- names
class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.conv(x))
        return F.relu(self.act(self.conv(y)) + x)


class OwnConv(nn.Conv2d):
    """A user's class with an operation of torch inside."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


def test_names_are_qualified_and_unique() -> None:
    module = nn.Sequential(
        OrderedDict(
            stem=OwnConv(3, 4, 3), body=nn.Sequential(Block(), Block()), pool=nn.AvgPool2d(8), flat=nn.Flatten()
        )
    )
    names = [x.name for x in trace(module, (3, 8, 8)).layers]
    block = ["conv", "act", "conv_1", "act_1", "add", "relu"]
    assert names == ["input", "stem", *[f"body.{i}.{n}" for i in (0, 1) for n in block], "pool", "flat"]


def test_names_of_functions_at_the_top() -> None:
    module = Calls(lambda m, x: F.relu(m.fc(F.avg_pool2d(F.relu(x), 4).flatten(1))), fc=nn.Linear(3, 2))
    names = [x.name for x in trace(module, (3, 4, 4)).layers]
    assert names == ["input", "relu", "avg_pool2d", "flatten", "fc", "relu_1"]


def test_reused_module_becomes_layers_with_the_same_weights() -> None:
    network = trace(nn.Sequential(Block()), (4, 6, 6))
    np.testing.assert_array_equal(network.params["0.conv"]["weight"], network.params["0.conv_1"]["weight"])


# --------------------------------------------------------------------------------------------------- untouched
@pytest.mark.parametrize("fails", [False, True])
def test_module_stays_as_it_was(fails: bool) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.LogSoftmax(1) if fails else nn.ReLU()
    )
    module[1].eval()
    module[0].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    calls: list[int] = []
    module[0].register_forward_hook(lambda *_: calls.append(1))
    random = torch.random.get_rng_state()
    if fails:
        with pytest.raises(UnsupportedError):
            trace(module, (3, 8, 8))
    else:
        trace(module, (3, 8, 8))
    assert [m.training for m in module.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(type(p) is nn.Parameter and p.grad is None for p in module.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert len(module[0]._forward_hooks) == 1
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    module.train()(x).sum().backward()
    assert x.grad is not None


# ----------------------------------------------------------------------------------------------------- refused
def state(m: nn.Module, x: Tensor) -> Tensor:
    m.count += 1
    return x.relu()


def counting() -> nn.Module:
    module = Calls(state)
    module.register_buffer("count", torch.zeros(1))
    return module


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


IMAGE = (6, 8, 8)
linear = nn.Linear(6, 6)
REFUSED: dict[str, tuple[nn.Module | Callable[[nn.Module, Tensor], Tensor], tuple[int, ...], tuple[str, ...]]] = {
    # name: module or function, shape, words of the message
    "unknown": (lambda m, x: x.erfinv(), IMAGE, ("erfinv", "supported: Conv1d")),
    "log softmax": (nn.LogSoftmax(1), (6,), ("log_softmax", "predicted class is the same")),
    "softmax of images": (nn.Softmax(1), IMAGE, ("softmax", "(F,)")),
    "missing axis": (lambda m, x: x + x.mean(1), IMAGE, ("(6, 8, 8) and (8, 8)", "same number of axes")),
    "two broadcasts": (
        lambda m, x: x.mean(2, keepdim=True) + x.mean(3, keepdim=True), IMAGE, ("(6, 1, 8) and (6, 8, 1)",)
    ),
    "widening constant": (lambda m, x: x.mean((2, 3), keepdim=True) + torch.ones(8, 8), IMAGE, ("widens",)),
    "division by data": (lambda m, x: x / (x * x + 1), IMAGE, ("div", "divides by the data", "gate")),
    "division by zero": (lambda m, x: x / 0, IMAGE, ("divides by zero",)),
    "power": (lambda m, x: x**2.5, IMAGE, ("power of 2.5",)),
    "layer norm": (nn.LayerNorm((6, 8, 8)), IMAGE, ("layer_norm", "BatchNorm")),
    "group norm": (nn.GroupNorm(2, 6), IMAGE, ("group_norm", "BatchNorm")),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE, ("upsample_bilinear2d", "nearest")),
    "matrix product": (lambda m, x: x @ x, IMAGE, ("matmul", "constants")),
    "early softplus": (nn.Softplus(1, 5), IMAGE, ("softplus", "threshold=20")),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE, ("divisor_override",)),
    "adaptive, no divisor": (nn.AdaptiveAvgPool2d(3), IMAGE, ("8x8 to 3x3", "divide")),
    "dilated pooling": (nn.MaxPool2d(2, dilation=2), IMAGE, ("dilation (2, 2)",)),
    "mean over the batch": (lambda m, x: x - x.mean(0, keepdim=True), IMAGE, ("mixes the samples",)),
    "padding with infinity": (lambda m, x: F.pad(x, (1, 1), value=float("-inf")), IMAGE, ("max pooling only",)),
    "joined constant": (lambda m, x: torch.cat([x, torch.ones(len(x), 1, 8, 8)], 1), IMAGE, ("constant", "zeros")),
    "limits crossed": (lambda m, x: x.clamp(2, 1), IMAGE, ("2..1",)),
    "limit per channel": (lambda m, x: x.clamp(torch.arange(6.0)[:, None, None]), IMAGE, ("limit per element",)),
    "batch moved": (lambda m, x: x.transpose(0, 1).relu().transpose(0, 1), IMAGE, ("mixes the samples",)),
    "batch mixed": (lambda m, x: x.reshape(-1, 8, 8, 1), IMAGE, ("mixes the samples",)),
    "points": (lambda m, x: x[:, torch.tensor([0, 1]), torch.tensor([0, 1])], IMAGE, ("point by point",)),
    "functional dropout": (lambda m, x: F.dropout(x, 0.5), IMAGE, ("dropout", "self.training")),
    "instance norm": (nn.InstanceNorm2d(6), IMAGE, ("instance_norm",)),
    "batch statistics": (nn.BatchNorm2d(6, track_running_stats=False), IMAGE, ("norm",)),
    "half": (lambda m, x: x.half().relu(), IMAGE, ("float16", "float32")),
    "computed weights": (lambda m, x: F.linear(x, x), (6,), ("weight", "constants")),
    "second result": (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[1].float(), IMAGE, ("max_pool2d",)),
    "data dependent": (lambda m, x: x if x.sum() > 0 else -x, IMAGE, ("at test_trace.py", "if x.sum() > 0", "branch")),
    "two outputs": (lambda m, x: (x.relu(), x), IMAGE, ("2 outputs", "logits")),
    "two inputs": (Two(), IMAGE, ("x, y",)),
    "state": (counting(), IMAGE, ("count", "buffers")),
    "double": (nn.Linear(6, 2).double(), (6,), ("float64", ".float()")),
    "meta": (nn.Linear(6, 2, device="meta"), (6,), ("meta",)),
    "rank": (nn.ReLU(), (2, 6, 8, 8), ("(2, 6, 8, 8)", "(C, H, W)")),
    "three axes": (nn.Conv3d(1, 2, 3), (1, 8, 8, 8), ("(C, H, W)",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    module, shape, words = REFUSED[case]
    with pytest.raises(UnsupportedError) as caught:
        trace(module if isinstance(module, nn.Module) else Calls(module), shape, name="mine")
    message = str(caught.value)
    assert not [w for w in words if w not in message], message
    assert "mine" in message
    if case == "state":
        assert float(module.count) == 0


def test_all_obstacles_are_listed_with_origin_and_line() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.erfinv(x)
            return y.sort(1).values * 2

    pool = nn.AvgPool2d(2, divisor_override=3)
    module = nn.Sequential(OrderedDict(a=nn.ReLU(), b=Inner(), c=nn.Sigmoid(), p=pool, d=nn.Softmax(1)))
    with pytest.raises(UnsupportedError) as caught:
        trace(module, IMAGE)
    message = str(caught.value)
    assert message.startswith("4 operations of Sequential cannot be deployed")
    rows = message.splitlines()[1:5]
    assert [r.split(":")[0].strip() for r in rows] == ["b", "b", "p", "d"]
    names = ("aten.erfinv", "aten.sort", "aten.avg_pool2d", "aten.softmax")
    assert [op in row for op, row in zip(names, rows, strict=True)]
    assert "test_trace.py" in rows[0]
    assert "y = torch.erfinv(x)" in rows[0]
    assert "; instead: multiply by a constant" in rows[2]
    # the same as data
    found = caught.value.obstacles
    assert [o.node for o in found] == ["b", "b", "p", "d"]
    assert [o.op.split(" ")[0] for o in found] == ["aten.erfinv", "aten.sort", "aten.avg_pool2d", "aten.softmax.int"]
    assert found[2].attribute == "divisor_override"
    assert [o.shape for o in found] == [(6, 8, 8), (), (6, 4, 4), (6, 4, 4)]
    assert all(o.reason for o in found)
    assert found[3].rewrite == "leave it out: the largest score stays the largest"


def nan(value: float) -> nn.Module:
    module = nn.Sequential(OrderedDict(first=nn.Conv2d(6, 2, 1), second=nn.BatchNorm2d(2)))
    module.second.running_mean[1] = value
    return module


BROKEN: dict[str, tuple[nn.Module, tuple[int, ...], tuple[str, ...]]] = {
    "NaN": (nan(float("nan")), IMAGE, ("second.running_mean", "NaN", "1 of 2")),
    "infinity": (nan(float("inf")), IMAGE, ("second.running_mean",)),
    "empty": (nn.Identity(), IMAGE, ("no layer",)),
    "constant": (Calls(lambda m, x: torch.zeros(len(x), 3)), IMAGE, ("does not depend",)),
    "wrong shape": (nn.Linear(7, 3), (6,), ("forward fails", "(N, 6)", "xdeploy_input")),
    "no forward": (Calls(lambda m, x: [][1]), IMAGE, ("IndexError",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken(case: str) -> None:
    module, shape, words = BROKEN[case]
    with pytest.raises(ModelError) as caught:
        trace(module, shape, name="mine")
    assert not [w for w in (*words, "mine") if w not in str(caught.value)], str(caught.value)


def test_a_module_that_is_not_a_function_of_its_input_is_noticed() -> None:
    calls = iter(range(100))
    module = Calls(lambda m, x: m.a(x) if next(calls) else m.b(x), a=nn.Linear(6, 2), b=nn.Linear(6, 2))
    with pytest.raises(ModelError, match="differs from"):
        trace(module, (6,))
