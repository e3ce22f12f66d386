"""Known networks by their shapes, with random weights: what memory planning and streaming look at."""

from __future__ import annotations

from tests.networks import Drawer
from xdeploy.handover import GoldenIo
from xdeploy.lir.graph import LoweredGraph


def resnet(blocks: int, widths: tuple[int, ...] = (16, 32, 64), size: int = 32) -> tuple[LoweredGraph, GoldenIo]:
    """CIFAR's ResNet with `blocks` blocks a stage: 1 gives MLPerf Tiny's resnet8, 3 gives ResNet-20."""
    d = Drawer((size, size, 3))
    y = d.conv("stem", "x", widths[0])
    for s, width in enumerate(widths):
        for b in range(blocks):
            stride = 2 if s and not b else 1
            side = d.conv(f"side{s}.{b}", y, width, k=1, stride=2) if stride == 2 else y
            inner = d.conv(f"a{s}.{b}", y, width, stride=stride)
            y = d.conv(f"b{s}.{b}", inner, width, residual=side)
    last = size // 2 ** (len(widths) - 1)
    return d.finish(d.linear("head", d.reshape("flat", d.max_pool("pool", y, last)), 10))


def mobilenet(size: int = 96, width: int = 8) -> tuple[LoweredGraph, GoldenIo]:
    """MobileNetV1: width 8 is the factor 0.25."""
    d = Drawer((size, size, 3))
    y, channels = d.conv("stem", "x", width, stride=2), width
    for i, (factor, stride) in enumerate(
        [(2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1)]
    ):
        y = d.conv(f"dw{i}", y, channels, stride=stride, groups=channels)
        channels = width * factor
        y = d.conv(f"pw{i}", y, channels, k=1)
    return d.finish(d.linear("head", d.reshape("flat", d.max_pool("pool", y, size // 32)), 2))
