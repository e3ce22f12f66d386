"""The MLPerf Tiny int8 models, as their converter wrote them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xdeploy.lir import ops
from xdeploy.lower import lower
from xdeploy.lower.compare import adopt, agreement, compare_with_onnx
from xdeploy.lower.runtime import run_onnx

pytestmark = pytest.mark.shared


@pytest.fixture
def resnet8(shared: Path) -> Path:
    return shared / "models" / "mlperf-tiny-ic-resnet8.int8.onnx"


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", ["mlperf-tiny-ic-resnet8", "mlperf-tiny-kws-dscnn"])
def test_each_node_is_at_most_one_code_away(shared: Path, name: str, fuse: bool) -> None:
    exported = adopt(shared / "models" / f"{name}.int8.onnx")
    graph = lower(exported, fuse=fuse)
    rows = compare_with_onnx(exported, graph, exported.inputs)
    assert max(r["max_code_difference"] for r in rows) <= 1
    assert min(r["equal"] for r in rows) >= 0.96
    assert not any(n.op in ("transpose", "rescale") for n in graph.nodes)


def test_resnet8_fuses_its_three_shortcuts(resnet8: Path) -> None:
    graph = lower(resnet8)
    assert [n.op for n in graph.nodes] == ["conv2d"] * 9 + ["avg_pool2d", "reshape", "linear", "softmax"]
    assert sum(len(n.inputs) == 2 for n in graph.nodes) == 3
    assert graph.io.input_shape == graph.io.device_input_shape == (32, 32, 3)


def test_dscnn_is_lowered_without_moving_data(shared: Path) -> None:
    graph = lower(shared / "models" / "mlperf-tiny-kws-dscnn.int8.onnx")
    assert [n.op for n in graph.nodes] == ["conv2d"] * 9 + ["avg_pool2d", "reshape", "linear", "softmax"]
    assert [n.attrs["groups"] for n in graph.nodes[:9]] == [1, *[64, 1] * 4]


def test_resnet8_on_cifar10_images(shared: Path, resnet8: Path) -> None:
    with zipfile.ZipFile(shared / "data" / "cifar10-jpeg-test.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        classes = sorted({n.split("/")[0] for n in names})
        picked = [n for c in classes for n in [m for m in names if m.startswith(f"{c}/")][:12]]
        images = [np.array(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in picked]
    labels = np.repeat(np.arange(10), 12)
    pixels = np.stack(images).astype(np.float32)  # the input's scale is 1: pixels 0..255
    graph = lower(resnet8)
    ours = ops.run(graph, graph.io.to_codes(pixels))[graph.output]
    theirs = run_onnx(resnet8, graph.io, pixels)
    assert agreement(ours, theirs)["top1"] >= 0.97
    assert (ours.argmax(axis=1) == labels).mean() > 0.6
