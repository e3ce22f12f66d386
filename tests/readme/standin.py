"""Small files under the names that README's commands have, so that these run as they are written."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench import traces
from tests.conftest import seed

CLASSES = 10
PER_CLASS = {"train.zip": 12, "test.zip": 8}


class Small(nn.Module):
    """Two convolutions and a residual sum for colour images of 32x32 pixels: ResNet-20's place is taken by it."""

    xdeploy_input: dict[str, Any] = {"shape": (3, 32, 32)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.body = nn.Conv2d(8, 8, 3, 1, 1)
        self.linear = nn.Linear(8 * 4 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(self.body(x) + x), 2)
        return self.linear(x.flatten(1))


def images(count: int) -> np.ndarray:
    """uint8 (N, 32, 32, 3): coarse patterns, so that compression to any file format and back keeps them."""
    rng = np.random.default_rng(seed())
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


@torch.no_grad()
def labelled() -> tuple[Small, np.ndarray, np.ndarray]:
    """A network, images, and as labels what it says of them: its accuracy is 100 % without any training."""
    torch.manual_seed(seed())
    net, x = Small().eval(), images(900)
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2)).float() / 255
    scores = net(inputs)
    net.linear.weight /= scores.std(0)[:, None]
    net.linear.bias -= scores.mean(0)
    net.linear.bias /= scores.std(0)
    return net, x, net(inputs).argmax(1).numpy()


def make(folder: Path) -> Small:
    """resnet20.safetensors, train.zip, test.zip, net.onnx, net.int8.onnx, samples.npy and trace.csv; the network."""
    net, x, y = labelled()
    save_file(net.state_dict(), folder / "resnet20.safetensors")
    taken = 0
    for name, count in PER_CLASS.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for label in range(CLASSES):
                for index in np.flatnonzero(y == label)[taken : taken + count]:
                    archive.writestr(f"{label}/{index}.png", _png(x[index]))
        taken += count
    inputs = x[:4].transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.save(folder / "samples.npy", inputs)
    given = torch.from_numpy(inputs[:1])
    axes = {"image": {0: "n"}, "scores": {0: "n"}}
    torch.onnx.export(net, (given,), folder / "net.onnx", dynamo=False, dynamic_axes=axes,
                      input_names=["image"], output_names=["scores"])  # fmt: skip
    onnx.checker.check_model(folder / "net.onnx")
    quantize_static(folder / "net.onnx", folder / "net.int8.onnx", _Once(inputs), weight_type=QuantType.QInt8,
                    activation_type=QuantType.QInt8)  # fmt: skip
    traces.generic(folder / "trace.csv")
    return net


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


class _Once(CalibrationDataReader):  # type: ignore[misc]
    """One batch for ONNX Runtime's quantiser."""

    def __init__(self, x: np.ndarray) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter([{"image": x}])

    def get_next(self) -> Any:
        return next(self.batches, None)
