"""What layers take on this machine, and what it can do: of a real library, and that the figures hang together."""

from __future__ import annotations

import json
import platform

import pytest

from tests.bench.conftest import Built
from xdeploy.bench import bench
from xdeploy.bench.host import HostRunner
from xdeploy.bench.roofline import layers_and_limits
from xdeploy.handover import Measurement
from xdeploy.lir.rows import origin
from xdeploy.target import load_target

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.system() != "Linux", reason="the library is for x86-64 Linux"
)


def test_every_call_has_a_time_and_limits_hold(built: Built) -> None:
    """Each layer runs for less than the whole; reading the nearest cache is no slower than reading memory.

    Times themselves are not held to anything: the machine may be busy.
    """
    artifact, golden = built("x86-64")
    found = layers_and_limits(HostRunner(artifact), golden.input_codes)
    program = json.loads((artifact.folder / "program.json").read_text())
    calls = [n["name"] for n in program["nodes"]]
    assert list(found["layer_times"]) == [n for n in calls if n in found["layer_times"]]
    assert len(found["layer_times"]) >= sum(1 for n in program["nodes"] if n["macs"])
    for q in (*found["layer_times"].values(), *found["limits"].values()):
        assert q["value"] > 0
        assert q["how"] == "measured"
        assert "one thread" in q["note"]
    assert set(found["limits"]) == {"multiply", "cache", "memory"}
    assert found["limits"]["multiply"]["unit"] == "MAC/s"


def test_it_lies_in_the_measurement_and_outputs_stay(built: Built) -> None:
    """The hook is taken away again: the library gives the same outputs after it was timed."""
    artifact, golden = built("x86-64")
    measured = bench(artifact, golden, load_target("x86-64"))
    assert measured.verdict == "bit-exact"
    assert measured.quantities["layer_times"]
    assert {origin(name) for name in measured.quantities["layer_times"]}
    path = artifact.folder / "roof.json"
    measured.save(path)
    assert Measurement.load(path).quantities["limits"] == measured.quantities["limits"]
    runner = HostRunner(artifact)
    layers_and_limits(runner, golden.input_codes)
    assert (runner.run(golden.input_codes).outputs == golden.output_codes).all()
    assert runner.run_layers(golden.input_codes)  # which sets the hook of its own


def test_nothing_where_the_cpu_lacks_what_it_needs(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, golden = built("x86-64")
    runner = HostRunner(artifact)
    monkeypatch.setattr("xdeploy.bench.roofline.cpu_flags", set)
    assert layers_and_limits(runner, golden.input_codes) == {}
