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
from xdeploy.lower.runtime import feed, output_codes, run, session

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


def images_of(shared: Path, each: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 32, 32, 3) and labels of the first `each` test images of every class."""
    with zipfile.ZipFile(shared / "data" / "cifar10-jpeg-test.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        classes = sorted({n.split("/")[0] for n in names})
        picked = [(n, k) for k, c in enumerate(classes) for n in [m for m in names if m.startswith(f"{c}/")][:each]]
        images = [np.array(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n, _ in picked]
    return np.stack(images), np.array([k for _, k in picked])


@pytest.mark.parametrize("each", [15, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("default", [False, True], ids=["basic", "default"])
def test_resnet8_on_cifar10_images(shared: Path, resnet8: Path, each: int | None, default: bool) -> None:
    """At most one image in a thousand gets another answer than from ONNX Runtime, however that is set up."""
    pixels, labels = images_of(shared, each)
    graph = lower(resnet8)
    codes = (pixels.astype(np.int16) - 128).astype(np.int8)  # the input's scale is 1
    np.testing.assert_array_equal(codes[:8], graph.io.to_codes(pixels[:8].astype(np.float32)))
    parts = [codes[i : i + 250] for i in range(0, len(codes), 250)]
    ours = np.concatenate([ops.run(graph, part)[graph.output] for part in parts])
    runner = session(resnet8, default=default)
    theirs = output_codes(run(runner, None, feed(runner, graph.io, codes))[0], graph.io)
    found = agreement(ours, theirs)
    assert found["top1"] >= 0.999
    assert found["equal"] >= 0.98
    accuracy = [(a.argmax(axis=1) == labels).mean() for a in (ours, theirs)]
    assert min(accuracy) > 0.7
    assert abs(accuracy[0] - accuracy[1]) <= 0.001


def test_resnet8_averages_like_float32(shared: Path, resnet8: Path) -> None:
    """An average of 64 codes is half way between two in one case of 64; each must go where ONNX Runtime puts it."""
    pixels, _ = images_of(shared, 10)
    graph = lower(resnet8)
    rows = compare_with_onnx(resnet8, graph, (pixels.astype(np.int16) - 128).astype(np.int8))
    pool = next(r for r in rows if r["op"] == "avg_pool2d")
    assert (pool["max_code_difference"], pool["equal"]) == (0, 1.0)
    assert min(r["equal"] for r in rows) >= 0.9999
