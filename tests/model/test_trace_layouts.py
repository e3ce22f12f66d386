"""Views, layouts, sequences and everything that only moves data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.model.test_trace_functions import SEQ, calls
from tests.model.test_trace_ops import IMAGE, conv, kinds, traced
from xdeploy.model.aten_transposed import axis, phase_weights


def nhwc(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An operation on images in the middle of a model that keeps channels last."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def tail(m: nn.Module, x: Tensor) -> Tensor:
    """Channels last to the end, flattened as TensorFlow does."""
    x = nhwc(m.a, x.permute(0, 2, 3, 1)).relu()
    x = nhwc(m.b, x) + torch.arange(5.0)
    return m.fc(F.relu6(x).flatten(1))


def branches(m: nn.Module, x: Tensor) -> Tensor:
    """Concatenation, sum, mean over (1, 2), scale and gate, all channels last."""
    x = x.permute(0, 2, 3, 1)
    a, b = nhwc(m.a, x).relu(), nhwc(m.b, x)
    y = torch.cat([a, b], 3) * torch.linspace(0.5, 2, 9)
    y = y * y.mean((1, 2), keepdim=True).sigmoid()
    y = y[:, 1:, ::2, :] + y[:, 1:, ::2]
    return y.mean((1, 2))


def attention_free(m: nn.Module, x: Tensor) -> Tensor:
    """A mixer: linear layers over tokens and over channels."""
    tokens = m.a(x).flatten(2).transpose(1, 2)
    tokens = tokens + m.t(tokens.transpose(1, 2)).transpose(1, 2)
    tokens = tokens + m.c(F.gelu(tokens))
    return m.fc(tokens.mean(1))


CASES: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "pair cancels": (calls(lambda m, x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)), IMAGE, ["relu"]),
    "transposes cancel": (calls(lambda m, x: x.transpose(1, 3).relu().transpose(3, 1)), IMAGE, ["relu"]),
    "channels last": (
        calls(tail, a=conv(6, 4, 3), b=conv(4, 5, 3), fc=nn.Linear(100, 3)),
        IMAGE,
        ["conv2d", "relu", "conv2d", "clip", "flatten", "linear"],
    ),
    "channels last branches": (
        calls(branches, a=conv(6, 4, 3), b=conv(6, 5, 3)),
        IMAGE,
        [
            "conv2d",
            "relu",
            "conv2d",
            "concat",
            "conv2d",
            "avg_pool2d",
            "function",
            "mul",
            "slice",
            "slice",
            "add",
            "avg_pool2d",
            "flatten",
        ],
    ),
    "mixer": (
        calls(attention_free, a=conv(6, 4, 3), t=nn.Linear(42, 42), c=nn.Linear(4, 4), fc=nn.Linear(4, 3)),
        IMAGE,
        [
            "conv2d",
            "rearrange",
            "conv2d",
            "rearrange",
            "add",
            "function",
            "conv2d",
            "add",
            "avg_pool2d",
            "flatten",
            "linear",
        ],
    ),
    "permuted flatten": (
        calls(lambda m, x: m.fc(x.permute(0, 3, 1, 2).flatten(1)), fc=nn.Linear(432, 3)),
        IMAGE,
        ["flatten", "linear"],
    ),
    "output channels last": (calls(lambda m, x: x.relu().permute(0, 2, 3, 1)), IMAGE, ["relu", "rearrange"]),
    "linear over the last axis": (nn.Linear(8, 3), IMAGE, ["rearrange", "conv2d", "rearrange"]),
    "linear channels last": (
        calls(lambda m, x: nhwc(m.c, m.a(x.permute(0, 2, 3, 1))), a=nn.Linear(6, 5), c=conv(5, 2, 1)),
        IMAGE,
        ["conv2d", "conv2d", "rearrange"],
    ),
    "pixel shuffle": (nn.PixelShuffle(2), (12, 3, 4), ["rearrange"]),
    "pixel unshuffle": (nn.PixelUnshuffle(2), (3, 6, 4), ["rearrange"]),
    "shuffle and back": (nn.Sequential(nn.PixelShuffle(2), nn.ReLU(), nn.PixelUnshuffle(2)), (12, 3, 4), ["relu"]),
    "channel shuffle": (nn.ChannelShuffle(3), IMAGE, ["rearrange"]),
    "channel shuffle by hand": (
        calls(lambda m, x: x.reshape(-1, 2, 3, 9, 8).transpose(1, 2).reshape(-1, 6, 9, 8).relu()),
        IMAGE,
        ["relu", "rearrange"],
    ),
    "crossing borders": (
        calls(lambda m, x: x.permute(0, 2, 3, 1).reshape(-1, 6, 9, 8).permute(0, 3, 1, 2).relu()),
        IMAGE,
        ["rearrange", "relu", "rearrange"],
    ),
    "reshape": (calls(lambda m, x: m.c(x.reshape(-1, 3, 16, 9)), c=conv(3, 2, 3)), IMAGE, ["rearrange", "conv2d"]),
    "unflatten": (
        calls(lambda m, x: m.c(m.a(x).reshape(-1, 3, 4, 4)), a=nn.Linear(7, 48), c=conv(3, 2, 3)),
        (7,),
        ["linear", "rearrange", "conv2d"],
    ),
    "squeeze and unsqueeze": (
        calls(lambda m, x: x.unsqueeze(2).relu().squeeze(2) + x[:, None, :, :].squeeze(1)),
        IMAGE,
        ["relu", "add"],
    ),
    "softmax behind views": (
        calls(lambda m, x: m.p(x).permute(0, 2, 3, 1).reshape(-1, 6).softmax(-1), p=nn.AdaptiveAvgPool2d(1)),
        IMAGE,
        ["avg_pool2d", "flatten", "softmax"],
    ),
    "sum of two layouts": (
        calls(lambda m, x: m.a(x).permute(0, 2, 3, 1) + m.b(x).reshape(-1, 7, 6, 4), a=conv(6, 4, 3), b=conv(6, 4, 3)),
        IMAGE,
        ["conv2d", "conv2d", "rearrange", "add", "rearrange"],
    ),
    # joins and cuts
    "cat of rows": (
        calls(lambda m, x: torch.cat([x, x.relu()], 2)),
        IMAGE,
        ["relu", "rearrange", "rearrange", "concat", "rearrange"],
    ),
    "cat of a gray image": (calls(lambda m, x: torch.cat([x, x.relu()], 1)), (1, 4, 5), ["relu", "concat"]),
    "cat of mixed features": (
        calls(lambda m, x: torch.cat([x.mean((2, 3)), m.a(x.flatten(1))], 1), a=nn.Linear(432, 3)),
        IMAGE,
        ["avg_pool2d", "flatten", "linear", "flatten", "concat"],
    ),
    "cat with zeros": (calls(lambda m, x: torch.cat([torch.zeros(len(x), 1, 9, 8), x], 1)), IMAGE, ["pad"]),
    "stack": (
        calls(lambda m, x: torch.stack([x, x.relu()], 1).flatten(1, 2)),
        IMAGE,
        ["relu", "rearrange", "rearrange", "concat", "rearrange"],
    ),
    "stack of features": (
        calls(lambda m, x: torch.stack([x, x.relu()], 1).mean(1)),
        (7,),
        ["relu", "rearrange", "rearrange", "concat", "rearrange", "avg_pool2d", "flatten"],
    ),
    "select": (calls(lambda m, x: x[:, :, 3] + x[:, :, -1]), IMAGE, ["slice", "slice", "add"]),
    "select a channel": (calls(lambda m, x: x[:, 2:3] * x[:, 4].unsqueeze(1)), IMAGE, ["slice", "slice", "mul"]),
    "unbind": (calls(lambda m, x: x.unbind(1)[2].relu()), SEQ, ["slice", "relu", "flatten"]),
    "slice of features": (calls(lambda m, x: x[:, 2:6:2]), (7,), ["rearrange", "slice", "flatten"]),
    "slice of a sequence": (calls(lambda m, x: x[:, 1:, 2:-1:2]), SEQ, ["slice"]),
    "chunk of features": (
        calls(lambda m, x: (c := x.chunk(2, 1))[0] + c[1]),
        (8,),
        ["rearrange", "slice", "slice", "add", "flatten"],
    ),
    "index rows": (calls(lambda m, x: x[:, :, torch.tensor([0, 0, 2, -1])]), IMAGE, ["resize"]),
    "index rows and columns": (
        calls(lambda m, x: x[:, :, torch.tensor([[0], [0], [2]]), torch.tensor([[1, 1]])]),
        IMAGE,
        ["resize", "resize"],
    ),
    "index channels": (calls(lambda m, x: x[:, torch.tensor([2, 0, 1])]), IMAGE, ["rearrange", "resize", "rearrange"]),
    "index evenly": (calls(lambda m, x: x[:, torch.tensor([0, 2, 4])]), IMAGE, ["slice"]),
    "index select": (calls(lambda m, x: x.index_select(3, torch.tensor([1, 1, 0]))), IMAGE, ["resize"]),
    "flip and roll": (calls(lambda m, x: x.flip(2, 3).roll((1, 2), (2, 3))), IMAGE, ["resize"] * 4),
    "repeat interleave": (calls(lambda m, x: x.repeat_interleave(2, 3)), IMAGE, ["resize"]),
    "expand": (
        calls(lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 4)),
        IMAGE,
        ["avg_pool2d", "resize", "resize"],
    ),
    "tile": (calls(lambda m, x: x.repeat(1, 1, 2, 1)), IMAGE, ["resize"]),
    # resizing and padding
    "upsample": (nn.Upsample(scale_factor=2), IMAGE, ["resize"]),
    "upsample to a size": (nn.Upsample(size=(13, 5)), IMAGE, ["resize"]),
    "upsample by a fraction": (nn.Upsample(scale_factor=1.7), IMAGE, ["resize"]),
    "upsample exactly": (nn.Upsample(size=(13, 5), mode="nearest-exact"), IMAGE, ["resize"]),
    "upsample a sequence": (nn.Upsample(scale_factor=3), SEQ, ["resize"]),
    "reflect": (nn.ReflectionPad2d((1, 2, 3, 0)), IMAGE, ["resize"]),
    "replicate": (nn.ReplicationPad2d(2), IMAGE, ["resize"]),
    "circular": (nn.CircularPad2d(1), IMAGE, ["resize"]),
    "reflect a sequence": (nn.ReflectionPad1d(2), SEQ, ["resize"]),
    "cropping pad": (calls(lambda m, x: F.pad(x, (-1, 0, 2, -3))), IMAGE, ["slice", "pad"]),
    "pad channels last": (
        calls(lambda m, x: nhwc(m.c, F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 0, 0, 1))).relu(), c=conv(6, 4, 3)),
        IMAGE,
        ["conv2d", "relu", "rearrange"],
    ),
    "pad a sequence": (nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(6, 4, 3)), SEQ, ["conv2d"]),
    "pad features": (calls(lambda m, x: F.pad(x, (1, 2))), (7,), ["rearrange", "pad", "flatten"]),
    "max pool after infinity": (
        calls(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=float("-inf")), 3, 2)),
        IMAGE,
        ["max_pool2d"],
    ),
    # sequences
    "conv1d": (nn.Conv1d(6, 4, 3, 2, 1, 2), SEQ, ["conv2d"]),
    "conv1d same": (nn.Conv1d(6, 4, 4, padding="same"), SEQ, ["conv2d"]),
    "conv1d depthwise": (nn.Conv1d(6, 6, 3, groups=6), SEQ, ["conv2d"]),
    "conv1d norm": (nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), SEQ, ["conv2d", "relu"]),
    "sequence net": (
        nn.Sequential(
            nn.Conv1d(6, 4, 3),
            nn.MaxPool1d(2),
            nn.Conv1d(4, 4, 1),
            nn.AvgPool1d(2, 2, ceil_mode=True),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        SEQ,
        ["conv2d", "max_pool2d", "conv2d", "avg_pool2d", "avg_pool2d", "flatten", "linear"],
    ),
    "sequence last": (
        calls(
            lambda m, x: m.fc(m.c(x.transpose(1, 2)).transpose(1, 2).mean(1)), c=nn.Conv1d(10, 4, 3), fc=nn.Linear(4, 2)
        ),
        SEQ,
        ["rearrange", "conv2d", "avg_pool2d", "flatten", "linear"],
    ),
    "sequence from an image": (
        calls(lambda m, x: m.c(x.flatten(2)), c=nn.Conv1d(6, 4, 3)),
        IMAGE,
        ["rearrange", "conv2d"],
    ),
    "image from a sequence": (calls(lambda m, x: m.c(x.unsqueeze(1)), c=conv(1, 4, 3)), SEQ, ["rearrange", "conv2d"]),
    "adaptive max of a sequence": (nn.AdaptiveMaxPool1d(2), SEQ, ["max_pool2d"]),
}


@pytest.mark.parametrize("case", CASES)
def test_operation(case: str) -> None:
    module, shape, want = CASES[case]
    assert kinds(traced(module, shape)) == want


@pytest.mark.parametrize("seed", range(5))
def test_random_views_before_a_linear_layer_move_no_data(seed: int) -> None:
    """Permutations of whole axes go into the weight's columns; what is left of other chains stays exact."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in rng.integers(1, 6, 3))
    orders = [[0, *(int(a) + 1 for a in rng.permutation(3))] for _ in range(3)]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for order in orders:
            x = x.permute(order).relu()
        return m.fc(x.flatten(1))

    net = traced(calls(forward, fc=nn.Linear(int(np.prod(shape)), 3)), shape)
    assert kinds(net) == ["relu", "relu", "relu", "flatten", "linear"] or kinds(net) == ["relu", "flatten", "linear"]


@pytest.mark.parametrize("seed", range(10))
def test_random_chains(seed: int) -> None:
    """Reshapes, permutations, slices, joins and sums in any order compute what the module does."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in rng.choice([1, 2, 3, 4, 6], 3))
    choices = [int(c) for c in rng.integers(0, 7, 6)]
    seeds = [int(s) for s in rng.integers(0, 1000, 6)]

    def step(x: Tensor, choice: int, local: np.random.Generator) -> Tensor:
        rank = x.ndim
        axis = int(local.integers(1, rank))
        if choice == 0:
            return x.permute(0, *(int(a) + 1 for a in local.permutation(rank - 1)))
        if choice == 1:
            size = x[0].numel()
            first = int(local.choice([d for d in range(1, size + 1) if size % d == 0]))
            second = int(local.choice([d for d in range(1, size // first + 1) if (size // first) % d == 0]))
            return x.reshape(-1, first, second, size // first // second)
        if choice == 2 and x.shape[axis] > 1:
            return x.narrow(axis, 1, x.shape[axis] - 1)
        if choice == 3 and x[0].numel() < 300:
            return torch.cat([x, x.relu()], axis)
        if choice == 4:
            return x + x.mean(axis, keepdim=True)
        if choice == 5:
            return x * torch.linspace(-1, 1, x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(rank)])
        return x.flip(axis)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        for choice, s in zip(choices, seeds, strict=True):
            x = step(x, choice, np.random.default_rng(s))
        return x.tanh()

    traced(calls(forward), shape)


TRANSPOSED = [
    # channels in, out, kernel, stride, padding, output padding, groups, dilation, bias
    (3, 2, (3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1), True),
    (4, 6, (2, 2), (2, 2), (0, 0), (0, 0), 2, (1, 1), True),
    (4, 4, (4, 4), (2, 2), (1, 1), (0, 0), 4, (1, 1), False),
    (3, 2, (3, 5), (1, 1), (1, 2), (0, 0), 1, (1, 1), True),
    (3, 2, (1, 1), (3, 2), (0, 0), (2, 1), 1, (1, 1), True),
]


def transposed_case(
    seed: int,
) -> tuple[int, int, tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int, tuple[int, int], bool]:
    rng = np.random.default_rng(seed)

    def two(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high)), int(rng.integers(low, high))

    stride, dilation, groups = two(1, 5), two(1, 4), int(rng.integers(1, 3))
    extra = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
    per = two(1, 4)
    return (
        per[0] * groups,
        per[1] * groups,
        two(1, 6),
        stride,
        two(0, 4),
        (extra[0], extra[1]),
        groups,
        dilation,
        bool(rng.random() < 0.5),
    )


@pytest.mark.parametrize("case", [*TRANSPOSED, *map(transposed_case, range(6))], ids=str)
def test_transposed_convolution(case: tuple) -> None:  # type: ignore[type-arg]
    """Against torch, whose definition is a scatter of products."""
    i, o, kernel, stride, padding, extra, groups, dilation, bias = case
    size = [n for n in (4, 5)]
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    if min(out) < 1:
        pytest.skip("nothing is left of the image")
    module = nn.ConvTranspose2d(i, o, kernel, stride, padding, extra, groups, bias, dilation)
    net = traced(module, (i, *size))
    assert set(kinds(net)) <= {"conv2d", "rearrange", "slice"}
    assert kinds(net).count("conv2d") == 1


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra"), [(4, 2, 1, 0), (3, 3, 0, 2), (5, 1, 2, 0), (2, 4, 0, 3)]
)
def test_transposed_convolution_of_a_sequence(kernel: int, stride: int, padding: int, extra: int) -> None:
    net = traced(nn.ConvTranspose1d(6, 4, kernel, stride, padding, extra), SEQ)
    assert net.output.shape[:2] == (4, 1)


@pytest.mark.parametrize("seed", range(100))
def test_phases_of_a_transposed_convolution(seed: int) -> None:
    """The decomposition alone, in float64, against torch."""
    i, o, kernel, stride, padding, extra, groups, dilation, _ = transposed_case(1000 + seed)
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(1, 7, 2))
    x = torch.from_numpy(rng.standard_normal((2, i, *size)))
    weight = rng.standard_normal((i, o // groups, *kernel))
    try:
        want = F.conv_transpose2d(x, torch.from_numpy(weight), None, stride, padding, extra, groups, dilation)
    except RuntimeError:
        pytest.skip("nothing is left of the image")
    rows, cols = (axis(size[d], want.shape[2 + d], kernel[d], stride[d], padding[d], dilation[d]) for d in (0, 1))
    plain = torch.from_numpy(phase_weights(weight, groups, rows, cols))
    widths = (*cols.pads, *rows.pads)
    got = F.conv2d(F.pad(x, widths), plain, dilation=(rows.dilation, cols.dilation), groups=groups)
    height, width = got.shape[2:]
    dealt = got.reshape(2, o, rows.stride, cols.stride, height, width).permute(0, 1, 4, 2, 5, 3)
    dealt = dealt.reshape(2, o, height * rows.stride, width * cols.stride)
    kept = dealt[:, :, rows.start : rows.start + want.shape[2], cols.start : cols.start + want.shape[3]]
    np.testing.assert_allclose(kept, want, rtol=0, atol=1e-12)


def test_transposed_convolution_folds_what_follows() -> None:
    module = nn.Sequential(nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), conv(4, 3, 1))
    assert kinds(traced(module, IMAGE)) == ["conv2d", "relu", "rearrange", "conv2d"]
