"""The benchmark of two threads: what handing over costs, told by the package's own code."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import threads

from tests.networks import residual_network
from xdeploy import pieces
from xdeploy.builder import build
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")


def test_handing_over_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "LEAST_HALF", 0.0)
    (graph, golden), target = residual_network(), load_target("x86-64-v3")
    program = bind(graph, target, "net", threads=2)
    artifact = build(program, graph, golden, target, tmp_path / "out", PackageOptions(), {})
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one CPU")
    found = threads.fork_join(artifact, rounds=200)
    assert set(found) == {"handed_over", "taken_back"}
    assert all(0 <= q["low"] <= q["value"] <= q["high"] for q in found.values())
