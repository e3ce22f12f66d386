"""What report.json takes from a run's files, and that these files hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.explain.test_survival import compressed
from tests.explain.toys import source
from tests.networks import separable_network
from xdeploy import accuracy
from xdeploy.environment import commit, environment
from xdeploy.handover import IoSpec
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import bind, describe
from xdeploy.report import seal
from xdeploy.report.json import _zeros
from xdeploy.report.provenance import stages, stages_memory
from xdeploy.report.timeline import arena, front, points
from xdeploy.target import load_target


@pytest.fixture(scope="module")
def program() -> tuple[LoweredGraph, dict[str, Any]]:
    graph, _ = separable_network()
    return graph, describe(bind(graph, load_target("cortex-m4"), "toy"))


def test_lifetimes_fill_the_arena_and_cover_every_use(program: tuple[LoweredGraph, dict[str, Any]]) -> None:
    """Bytes that some buffer covers while a node runs are never taken by two; every tensor of a node is alive then."""
    graph, value = program
    found = arena(json.loads(json.dumps(value)))
    assert found is not None
    assert found["steps"] == [n.name for n in graph.nodes]
    peak = 0
    for step in range(len(found["steps"]) + 1):
        taken = np.zeros(found["bytes"], np.int64)
        for b in found["buffers"]:
            if b["first"] <= step <= b["last"]:
                taken[b["offset"] : b["offset"] + b["bytes"]] += 1
        assert taken.max(initial=0) <= 1
        peak = max(peak, int(taken.sum()))
    assert peak <= found["lower_bound"] <= found["bytes"]
    assert peak > 0.9 * found["lower_bound"]  # what is missing is alignment
    for node in value["nodes"]:
        step = found["steps"].index(node["name"])
        live = [b for b in found["buffers"] if b["first"] <= step <= b["last"]]
        for place in (*node["inputs"], node["output"]):
            if place["in"] == "arena":
                assert any(b["offset"] <= place["offset"] < b["offset"] + max(b["bytes"], 1) for b in live), place


def test_a_program_without_lifetimes_has_no_timeline(program: tuple[LoweredGraph, dict[str, Any]]) -> None:
    assert arena({k: v for k, v in program[1].items() if k != "lifetimes"}) is None


def test_zeros_are_those_of_the_values(program: tuple[LoweredGraph, dict[str, Any]]) -> None:
    for node in program[0].nodes:
        expected = None if node.format is None else sum(v == 0 for v in node.values.ravel().tolist())
        assert _zeros(node) == expected


def test_steps_tell_their_bytes() -> None:
    s = source()
    model = compressed(s, bits="int3", keep=(0, 1, 2))
    first, second = model.steps[:2]
    count = sum(a.size for parts in s.network.params.values() for a in parts.values())
    assert (first["step"], first["bytes_before"]) == ("prune", 4 * count)
    assert 0 < first["bytes_after"] < 4 * count
    assert (second["step"], second["bytes_before"]) == ("quantise", first["bytes_after"])
    for row in model.steps[1:]:
        assert row["bytes_after"] == sum(w.packed_bytes for w in model.weights.values())


def test_points_are_the_steps_and_the_test_accuracies() -> None:
    step = {
        "step": "quantise",
        "bytes_before": 80,
        "bytes_after": 10,
        "accuracy_before": 9.0,
        "accuracy_after": 8.0,
        "n": 5,
    }
    document = {
        "steps": [step], "model": {"float_bytes": {"value": 80}}, "weights": {"packed_bytes": {"value": 10}},
        "accuracy": {"float": {"value": 7.0, "n": 6}, "deployed": None},
    }  # fmt: skip
    found = [(p["label"], p["bytes"], p["accuracy"], p["on"]) for p in points(document)]
    assert found == [
        ("float32", 80, 9.0, "validation"),
        ("quantise", 10, 8.0, "validation"),
        ("float", 80, 7.0, "test"),
    ]
    assert (
        points(document | {"steps": [{"step": "x", "accuracy_before": 1, "accuracy_after": 1, "n": 1}]})[0]["on"]
        == "test"
    )


def test_confusions_are_counted() -> None:
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 4, 300), rng.integers(0, 7, 300)
    counts = accuracy.pairs(true, said)
    for i, j, n in counts:
        assert n == sum(a == i and b == j for a, b in zip(true.tolist(), said.tolist(), strict=True))
    assert sum(row[2] for row in counts) == 300
    share = accuracy.share_right(counts)
    assert share["value"] == pytest.approx(100 * float((true == said).mean()))
    io = IoSpec("x", (1,), "y", (7,), labels=("a", "b"))
    table = accuracy.table(counts, io)
    assert table is not None
    assert table["labels"] == ["a", "b", "2", "3", "4", "5", "6"]
    assert json.loads(json.dumps(table)) == table
    assert accuracy.table(None, io) is None


def test_stages_and_their_memory() -> None:
    run = {"stages": {"plan": {"seconds": 1.5, "peak_rss": 1000}, "lower": {"seconds": 0.5}}}
    assert {k: q["value"] for k, q in stages(run).items()} == {"plan": 1.5, "lower": 0.5}
    assert {k: (q["value"], q["unit"]) for k, q in stages_memory(run).items()} == {"plan": (1000, "byte")}


def test_the_front_of_the_sweep_around(tmp_path: Path) -> None:
    folder = tmp_path / "trials" / "0001"
    folder.mkdir(parents=True)
    assert front(folder) is None

    def trial(number: int, target: str, flash: int | None) -> dict[str, Any]:
        values = None if flash is None else {"flash": {"value": flash}, "accuracy": {"value": 90.0 + number}}
        return {"trial": number, "target": target, "values": values, "on_front": number == 1}

    value = {
        "schema": "xdeploy.front/1", "front": {"m4": [{"trial": 1, "folder": "trials/0001"}]},
        "trials": [trial(0, "m4", 20), trial(1, "m4", 10), trial(2, "m7", 5), trial(3, "m4", None)],
    }  # fmt: skip
    (tmp_path / "front.json").write_text(json.dumps(value))
    found = front(folder)
    assert found is not None
    assert found["target"] == "m4"
    assert [(t["trial"], t["bytes"], t["this"]) for t in found["trials"]] == [(0, 20, False), (1, 10, True)]
    (tmp_path / "front.json").write_text('{"schema": "somebody else"}')
    assert front(folder) is None


def test_the_environment_is_told(tmp_path: Path) -> None:
    found = environment()
    assert found["packages"]["numpy"] == np.__version__
    assert json.loads(json.dumps(found)) == found
    assert commit(tmp_path) is None
    (tmp_path / "other" / ".git").mkdir(parents=True)
    assert commit(tmp_path / "other") is None  # no repository that git knows


def test_a_sealed_page_is_kept_until_something_changes(tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "survival.png"
    made_of = seal.source("{}", picture)
    assert not seal.is_current(page, made_of)
    page.write_text(seal.sealed("<p>\u00e9</p>\n", made_of), encoding="utf-8")
    assert seal.is_current(page, made_of)
    assert not seal.is_current(page, seal.source("{ }", picture))
    picture.write_bytes(b"drawn")
    assert seal.source("{}", picture) != made_of
    data = page.read_bytes()
    for broken in (data[:-9], data.replace(b"<p>", b"<b>"), data + b" ", b"\xff" + data):
        page.write_bytes(broken)
        assert not seal.is_current(page, made_of)
