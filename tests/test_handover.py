"""Hand-over objects: round trips, atomic files, refused pickles, IoSpec's layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xdeploy.errors import UsageError
from xdeploy.files import read_npz, replacing, write_json, write_npz
from xdeploy.formats import QParams
from xdeploy.handover import (
    CompressionPlan,
    GoldenIo,
    IoSpec,
    LayerCount,
    Measurement,
    PlanLine,
    RelevanceMap,
    quantity,
)
from xdeploy.store import Store, path_digest


def test_replacing_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), replacing(path) as part:  # noqa: PT012 (two steps are the point)
        part.write_text("half")
        tmp_path.read_text()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_npz_is_deterministic_and_takes_no_pickles(tmp_path: Path) -> None:
    arrays = {"b": np.arange(5), "a": np.ones((2, 3), np.float32)}
    write_npz(tmp_path / "x.npz", arrays)
    write_npz(tmp_path / "y.npz", dict(reversed(arrays.items())))
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    assert (read_npz(tmp_path / "x.npz")["b"] == arrays["b"]).all()
    np.savez(tmp_path / "evil.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(UsageError):
        read_npz(tmp_path / "evil.npz")


def test_plan_round_trip_and_edits(tmp_path: Path) -> None:
    plan = CompressionPlan((PlanLine("conv1", "c4s8", keep=(0, 2), reason="r"), PlanLine("fc", "int8")), {"flash": 10})
    plan.save(tmp_path / "plan.json")
    assert CompressionPlan.load(tmp_path / "plan.json") == plan
    for bad in (
        {"weight_format": "int7", "origin": "a"},
        {"origin": "a", "wieght": 1},
        {"origin": "a", "weight_format": "int8", "keep": ["x"]},
    ):
        write_json(tmp_path / "plan.json", {"schema": "xdeploy.plan/1", "layers": [bad]})
        with pytest.raises(UsageError):
            CompressionPlan.load(tmp_path / "plan.json")


def test_relevance_round_trip(tmp_path: Path) -> None:
    w = {"a.b": np.random.default_rng(0).random((3, 2)).astype(np.float32)}
    c = {"a.b": np.array([1, 2, 1], np.float32)}
    made = RelevanceMap("lrp", {"epsilon": 0.1}, "f", 4, w, c, w, 1e-5)
    made.save(tmp_path / "r.npz")
    read = RelevanceMap.load(tmp_path / "r.npz")
    assert (read.weight["a.b"] == w["a.b"]).all()
    assert read.share() == {"a.b": 1.0}
    assert read.parameters == {"epsilon": 0.1}


def test_measurement_and_golden_round_trip(tmp_path: Path) -> None:
    m = Measurement(
        "t", "host", "bit-exact", None, {"flash": quantity(1, "byte", "measured")}, (LayerCount("a", "k", 3),)
    )
    m.save(tmp_path / "b.json")
    assert Measurement.load(tmp_path / "b.json") == m
    g = GoldenIo(np.zeros((1, 2), np.float32), np.ones((1, 2), np.int8), np.ones((1, 3), np.int8))
    g.save(tmp_path / "g.npz")
    assert (GoldenIo.load(tmp_path / "g.npz").output_codes == g.output_codes).all()


def test_io_layouts() -> None:
    io = IoSpec("x", (3, 4, 5), "y", (2,), input_q=QParams(0.5, 3))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    codes = io.to_codes(x)
    assert codes.shape == (2, 4, 5, 3)
    assert codes[1, 2, 3, 0] == np.clip(np.rint(x[1, 0, 2, 3] / 0.5) + 3, -128, 127)
    assert (io.to_codes(codes) == codes).all()
    assert (io.to_codes(np.moveaxis(codes, -1, 1)) == codes).all()
    with pytest.raises(UsageError, match="expected"):
        io.to_codes(np.zeros((1, 7), np.float32))
    assert IoSpec.from_dict(io.to_dict()) == io


def test_store_sees_every_change(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    (tmp_path / "run" / "a").write_text("1")
    store.finish("score", "key", ["a"], 1.0)
    again = Store(tmp_path / "run")
    assert again.is_fresh("score", "key")
    assert not again.is_fresh("score", "other")
    (tmp_path / "run" / "a").write_text("2")
    assert not again.is_fresh("score", "key")
    (tmp_path / "run" / "run.json").write_text("{broken")
    assert not Store(tmp_path / "run").is_fresh("score", "key")
    before = path_digest(tmp_path)
    (tmp_path / "new").write_text("")
    assert path_digest(tmp_path) != before


def test_store_refuses_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        Store(tmp_path / "file")
