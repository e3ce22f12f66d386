"""Reference networks in plain torch: factories without arguments, as `xdeploy.model.zoo:resnet20`.

Each module carries `xdeploy_input`: the shape of one sample and the mean and standard deviation per channel that
pixels in 0..1 are normalised with.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own convention)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR: dict[str, Any] = {"shape": (3, 32, 32), **IMAGENET}


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; "same" padding for odd kernels."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), relu=nn.ReLU()))


# ----------------------------------------------------------------------------------------------- ResNet, CIFAR
class OptionA(nn.Module):
    """Shortcut without parameters: every second pixel, missing channels are zeros on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + extra, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class CifarBlock(nn.Module):
    """Basic block of the CIFAR ResNets."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else OptionA(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """He et al. 2016, arXiv 1512.03385, section 4.2: depth 6 n + 2, widths 16, 32, 64, option-A shortcuts."""

    xdeploy_input = CIFAR

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1))
        return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, classes)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        y = F.avg_pool2d(y, y.shape[3]).flatten(1)
        logits: Tensor = self.linear(y)
        return logits


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10: 0.27 M parameters, 41 M multiply-accumulates."""
    return CifarResNet(3)


def resnet56() -> nn.Module:
    """ResNet-56 for CIFAR-10: 0.85 M parameters, 125 M multiply-accumulates."""
    return CifarResNet(9)


# -------------------------------------------------------------------------------------------------------- VGG
class Vgg16(nn.Module):
    """VGG-16 with BatchNorm for 32x32 images and one linear layer (Simonyan and Zisserman, arXiv 1409.1556)."""

    xdeploy_input = CIFAR
    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0: max pooling

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in self.WIDTHS:
            layers += _conv_norm(inputs, width, 3) if width else [nn.MaxPool2d(2)]
            inputs = width or inputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def vgg16() -> nn.Module:
    """VGG-16-BN for CIFAR-10: 14.7 M parameters, 313 M multiply-accumulates."""
    return Vgg16()


# -------------------------------------------------------------------------------------------------- MobileNet
class MobileNetV1(nn.Module):
    """Depthwise separable convolutions (Howard et al. 2017, arXiv 1704.04861), widths scaled by `alpha`."""

    # (output channels, stride) of the separable blocks
    BLOCKS = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
        (1024, 2), (1024, 1),
    )  # fmt: skip

    def __init__(self, alpha: float, classes: int, size: int, first_stride: int) -> None:
        super().__init__()
        self.xdeploy_input = {"shape": (3, size, size), **IMAGENET}
        width = int(32 * alpha)
        layers = [_conv_norm(3, width, 3, first_stride)]
        for channels, stride in self.BLOCKS:
            outputs = int(channels * alpha)
            layers += [_conv_norm(width, width, 3, stride, groups=width), _conv_norm(width, outputs, 1)]
            width = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) -> logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def mobilenet_v1_025() -> nn.Module:
    """MobileNetV1 0.25 for 96x96 images and 2 classes, as MLPerf Tiny's visual wake words: 0.21 M parameters."""
    return MobileNetV1(0.25, classes=2, size=96, first_stride=2)


def mobilenet_v1() -> nn.Module:
    """MobileNetV1 0.5 for 32x32 images and 10 classes; the first convolution keeps the resolution."""
    return MobileNetV1(0.5, classes=10, size=32, first_stride=1)


# ------------------------------------------------------------------------------------------------ audio, sensors
class Mlp(nn.Module):
    """Six hidden layers for 735 audio features (49 frames of 15 coefficients) and a few keywords."""

    xdeploy_input: dict[str, Any] = {"shape": (735,)}  # noqa: RUF012 (read only)
    HIDDEN = (735, 512, 512, 256, 256, 128, 128)

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        pairs = list(pairwise((*self.HIDDEN, classes)))
        hidden = [m for i, o in pairs[:-1] for m in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(*pairs[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 735) -> logits (N, classes)."""
        y: Tensor = self.layers(x)
        return y


def mlp() -> nn.Module:
    """Multilayer perceptron 735-512-512-256-256-128-128-12: 0.9 M parameters."""
    return Mlp()


def spoken_digits_mlp() -> nn.Module:
    """The same for the 10 spoken digits: the network that ECQx compresses for speech (arXiv 2109.04236)."""
    return Mlp(classes=10)


class DsCnn(nn.Module):
    """Keyword spotting with depthwise separable convolutions (Zhang et al. 2017, arXiv 1711.07128), size S."""

    xdeploy_input: dict[str, Any] = {"shape": (1, 49, 10)}  # noqa: RUF012 (read only)

    def __init__(self, classes: int = 12, width: int = 64) -> None:
        super().__init__()
        first = nn.Conv2d(1, width, (10, 4), (2, 2), (5, 1), bias=False)
        blocks = [b for _ in range(4) for b in (_conv_norm(width, width, 3, groups=width), _conv_norm(width, width, 1))]
        stem = (first, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2))
        self.features = nn.Sequential(*stem, *blocks, nn.Dropout(0.4))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 49, 10) spectrogram -> logits (N, classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def ds_cnn() -> nn.Module:
    """DS-CNN of MLPerf Tiny's keyword spotting: 49 frames of 10 coefficients, 12 classes, 23 k parameters."""
    return DsCnn()


# ------------------------------------------------------------------------------------------------------- digits
class DigitsBlock(nn.Module):
    """Residual block; with a stride its first half is separable and the shortcut is a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = [("conv1", _conv_norm(inputs, outputs, 3))]
        if stride > 1:
            depthwise = _conv_norm(inputs, inputs, 3, stride, groups=inputs)
            first = [("depthwise", depthwise), ("pointwise", _conv_norm(inputs, outputs, 1))]
        self.first = nn.Sequential(OrderedDict(first))
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """relu(norm2(conv2(first(x))) + shortcut(x))."""
        y: Tensor = self.relu(self.norm2(self.conv2(self.first(x))) + self.shortcut(x))
        return y


class DigitsCnn(nn.Module):
    """The demo's network: a small residual CNN for 8x8 digits."""

    xdeploy_input: dict[str, Any] = {"shape": (1, 8, 8)}  # noqa: RUF012 (read only)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_norm(1, 16, 3)
        self.block1 = DigitsBlock(16, 16, 1)
        self.block2 = DigitsBlock(16, 32, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) in 0..1 -> logits (N, 10)."""
        y = self.block2(self.block1(self.stem(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(y), 1))
        return logits


def digits_cnn() -> nn.Module:
    """Residual CNN for the handwritten digits of scikit-learn: 16 k parameters."""
    return DigitsCnn()
