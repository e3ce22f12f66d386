"""Samples in the layout of the file or of the network, and the MLPerf Tiny files from file to network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.onnxfiles import answer, node, save
from xdeploy.errors import UsageError
from xdeploy.formats import QParams
from xdeploy.handover import IoSpec, laid_out
from xdeploy.model.data import load_data
from xdeploy.model.frontend import front_end
from xdeploy.model.source import SourceModel, load_source
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import DataOptions

F32 = np.float32
Q = QParams(0.5, 3)


@pytest.mark.parametrize(
    ("given", "shape", "axes"),
    [
        ((2, 3, 4), (2, 3, 4), (0, 1, 2, 3)),
        ((3, 4, 2), (2, 3, 4), (0, 3, 1, 2)),
        ((4, 4, 4), (4, 4, 4), (0, 1, 2, 3)),
        ((5, 7), (5, 1, 7), None),
        ((6, 7), (1, 6, 7), None),
        ((42,), (1, 6, 7), None),
        ((9, 1, 1), (9,), None),
    ],
)
def test_layouts_that_the_shape_tells(
    given: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> None:
    x = np.arange(2 * np.prod(given)).reshape(2, *given)
    want = x.reshape(2, *shape) if axes is None else x.transpose(axes)
    found = laid_out(x, shape)
    assert found is not None
    np.testing.assert_array_equal(found, want)


def test_signals_channels_last() -> None:
    x = np.arange(2 * 7 * 5).reshape(2, 7, 5)
    np.testing.assert_array_equal(laid_out(x, (5, 1, 7)), x.transpose(0, 2, 1)[:, :, None])


@pytest.mark.parametrize("given", [(2, 4, 3), (12,), (24,), (2, 3), (3, 4, 2, 1), ()])
def test_layouts_that_do_not_fit(given: tuple[int, ...]) -> None:
    assert laid_out(np.zeros((2, *given)), (2, 3, 4)) is None


def test_codes_of_both_layouts_are_the_same() -> None:
    io = IoSpec("x", (2, 3, 4), "y", (5,), input_q=Q)
    x = np.random.default_rng(0).normal(size=(6, 2, 3, 4)).astype(F32)
    want = Q.quantise(x.transpose(0, 2, 3, 1))
    for given in (x, x.transpose(0, 2, 3, 1), want, Q.quantise(x)):
        np.testing.assert_array_equal(io.to_codes(given), want)
    last = IoSpec("x", (3, 4, 2), "y", (5,), input_q=Q, input_layout="HWC")
    for given in (x, x.transpose(0, 2, 3, 1), want):
        np.testing.assert_array_equal(last.to_codes(given), want)


def test_codes_of_signals() -> None:
    io = IoSpec("x", (5, 1, 7), "y", (5,), input_q=Q)
    x = np.random.default_rng(0).normal(size=(6, 5, 7)).astype(F32)
    want = Q.quantise(x.transpose(0, 2, 1)[:, None])
    for given in (x, x[:, :, None], x.transpose(0, 2, 1), want):
        np.testing.assert_array_equal(io.to_codes(given), want)
    with pytest.raises(UsageError, match="expected"):
        io.to_codes(x[:, :4])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_npz_of_both_layouts(order: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 5, 7)).astype(F32)
    np.savez(tmp_path / "d.npz", x=x.transpose(order), y=np.arange(6) % 2)
    data = load_data(tmp_path / "d.npz", shape=(3, 5, 7))
    np.testing.assert_array_equal(data.samples, x)
    with pytest.raises(UsageError, match=r"takes \(3, 5, 8\)"):
        load_data(tmp_path / "d.npz", shape=(3, 5, 8))


def test_pixels_channels_first(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 7)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(4) % 2)
    data = load_data(tmp_path / "d.npz", shape=(3, 5, 7))
    np.testing.assert_array_equal(data.samples, x.transpose(0, 2, 3, 1))


def test_pixels_of_0_to_255() -> None:
    from xdeploy.model.data import DataSet

    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    data = DataSet(x, np.zeros(1, np.int64), ("a",), True, (0.0,), (0.00392156862745098,), "", "")
    np.testing.assert_allclose(data.inputs(x).numpy()[0, 0], x[0, :, :, 0], rtol=1e-6)


def test_source_of_a_channels_last_file(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t w", "c"),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p"),
    ]
    weights = {"w": np.random.default_rng(1).normal(size=(4, 2, 3, 3)).astype(F32)}
    path = save(tmp_path / "m.onnx", nodes, weights, ("N", 8, 6, 2))
    x = np.random.default_rng(2).normal(size=(40, 8, 6, 2)).astype(F32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 4)
    source = load_source(str(path), None, tmp_path / "d.npz", None, DataOptions(), 0)
    assert source.io.input_shape == (2, 8, 6)
    source.save(tmp_path)
    again = SourceModel.load(tmp_path)
    assert again.fingerprint == source.fingerprint
    with torch.no_grad():
        got = NetworkModule(again.network)(again.train.inputs(again.train.samples)).numpy()
    np.testing.assert_allclose(got, answer(path, x), rtol=1e-4, atol=1e-5)


def test_source_of_signals_for_a_torch_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv1d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten()
    )
    x = np.random.default_rng(2).normal(size=(40, 3, 9)).astype(F32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(40) % 4)
    source = load_source(net, None, tmp_path / "d.npz", None, DataOptions(), 0)
    assert source.io.input_shape == source.train.shape == (3, 1, 9)
    source.save(tmp_path)
    assert SourceModel.load(tmp_path).fingerprint == source.fingerprint


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [("mlperf-tiny-ic-resnet8.float.onnx", (3, 32, 32), 10), ("mlperf-tiny-kws-dscnn.float.onnx", (1, 49, 10), 12)],
)
def test_mlperf_tiny(shared: Path, name: str, shape: tuple[int, ...], outputs: int) -> None:
    given = front_end(str(shared / "models" / name))
    network = given.network(None)
    assert (network.input.shape, network.output.shape) == (shape, (outputs,))
    assert {x.kind for x in network.layers} <= {
        "input",
        "conv2d",
        "relu",
        "add",
        "avg_pool2d",
        "flatten",
        "linear",
        "softmax",
    }
    x = 255 * torch.rand(4, *shape)
    with torch.no_grad():
        got = NetworkModule(network)(x).numpy()
    want = answer(shared / "models" / name, x.permute(0, 2, 3, 1).contiguous().numpy())
    np.testing.assert_allclose(got, want, atol=1e-4)
