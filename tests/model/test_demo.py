"""The demo: learns the digits in seconds, is the same every time, and survives a damaged cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xdeploy.errors import ToolchainError
from xdeploy.model import demo
from xdeploy.model.source import SourceModel, load_source
from xdeploy.model.torchmodule import NetworkModule
from xdeploy.recipe import DataOptions


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(cache: Path) -> SourceModel:
    return demo.demo_source(0, cache)


def accuracy(source: SourceModel) -> float:
    module = NetworkModule(source.network)
    with torch.no_grad():
        return float(np.mean([bool(r) for x, y in source.test_batches(64) for r in module(x).argmax(1) == y]))


def test_it_has_learnt(source: SourceModel) -> None:
    assert source.network.parameters() < 30_000
    assert accuracy(source) >= 0.97
    assert [len(p) for p in (source.train_indices, source.validation_indices, source.test_indices)] == [1079, 359, 359]
    assert (source.name, source.io.input_shape, len(source.io.labels)) == ("digits", (1, 8, 8), 10)
    assert float(source.train.samples.min()) == 0.0
    assert float(source.train.samples.max()) == 1.0
    assert {x.kind for x in source.network.layers} >= {"conv2d", "linear", "add", "avg_pool2d"}


def test_cache(source: SourceModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    (path,) = cache.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim, "AdamW", fail)
        assert demo.demo_source(0, cache).sha256 == source.sha256
        with pytest.raises(AssertionError):
            demo.demo_source(1, cache)
    monkeypatch.setattr(demo, "EPOCHS", 1)  # a damaged file is trained anew; one epoch tells as much
    damaged = cache / "damaged"
    demo.demo_source(0, damaged)
    (path,) = damaged.iterdir()
    content = path.read_bytes()
    for broken in (content[:-50], b"", content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(broken)
        demo.demo_source(0, damaged)
        assert path.read_bytes() == content


def test_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    (tmp_path / "file").write_text("")
    assert demo.demo_source(0, tmp_path / "file" / "below").network.layers


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / "xdeploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / ".cache" / "xdeploy"


def test_no_model_is_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    steps: list[tuple[str, int, int]] = []
    found = load_source(None, None, None, None, DataOptions(validation=0.2), 3, progress=lambda *s: steps.append(s))
    assert steps == [("training the demo", 1, 1)]
    assert (found.seed, found.name) == (3, "digits")
    assert abs(len(found.validation_indices) - 0.2 * 1797) < 5
    found.save(tmp_path)
    assert SourceModel.load(tmp_path).to_dict() == found.to_dict()


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ToolchainError, match="pip install scikit-learn"):
        demo.demo_data()
