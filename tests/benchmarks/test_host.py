"""The host benchmark's own instruments: a C program's view of a library, and the machine's limit."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import host
import pytest

from tests.networks import residual_network
from xdeploy.builder import build
from xdeploy.files import read_json, write_json
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")


def test_what_a_c_program_sees(tmp_path: Path) -> None:
    (graph, golden), target = residual_network(), load_target("x86-64")
    artifact = build(bind(graph, target, "net"), graph, golden, target, tmp_path / "x86-64", PackageOptions(), {})
    program = json.loads((artifact.folder / "program.json").read_text(encoding="utf-8"))
    seen = host.called(artifact, program, rounds=3)
    assert len(seen["layers_ns"]) == len(program["nodes"])
    assert all(ns > 0 for ns in seen["layers_ns"])
    assert sum(seen["layers_ns"]) < 1e9
    assert 0 < seen["first_ns"] < 10e9
    assert 200 < seen["peak_kb"] < 50_000  # not what the process was forked from


def test_the_limit_is_that_of_multiplications() -> None:
    assert 1e9 < host.limit("")["value"] < 1e12


def test_rows_of_other_cpus_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes the place of the same network's row of the same CPU only."""
    name, other, here = next(iter(host.ZOO)), {"cpu": "other"}, host.environment()
    old = [{"network": n, "environment": e, "commit": "old"} for n in (name, "none") for e in (other, here)]
    write_json(tmp_path / "host.json", {"schema": host.SCHEMA, "rows": old})
    row = {"network": name, "latency": {"value": 1e-6}, "verdict": "bit-exact"}
    monkeypatch.setattr(host, "RESULT", tmp_path / "host.json")
    monkeypatch.setattr(host, "x86", lambda *_: row)
    monkeypatch.setattr("sys.argv", ["host.py", "--only", name])
    host.main()
    rows = read_json(tmp_path / "host.json", host.SCHEMA)["rows"]
    assert sorted((r["network"], r["environment"] == other, r["commit"] == "old") for r in rows) == sorted(
        [(name, True, True), (name, False, False), ("none", True, True), ("none", False, True)]
    )
