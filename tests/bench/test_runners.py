"""Every runner on one small network: the bits, the counts, the verdicts."""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.networks import residual_network
from xdeploy.bench import EXECUTOR, bench, run_codes
from xdeploy.bench.host import HostRunner
from xdeploy.bench.runner import RunOptions
from xdeploy.errors import DeviceError, UsageError
from xdeploy.handover import Artifact
from xdeploy.lir import ops
from xdeploy.target import load_target

EMULATED = ["cortex-a72", "cortex-m0plus", "cortex-m4", "cortex-m33"]
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="qemu-system-arm is not installed")


@pytest.mark.parametrize("name", EMULATED)
def test_unicorn(built: Built, name: str) -> None:
    artifact, golden = built(name)
    m = bench(artifact, golden, load_target(name))
    assert (m.verdict, m.reason, m.runner) == ("bit-exact", None, "unicorn")
    q = m.quantities
    assert sum(row.instructions for row in m.layers) == q["instructions"]["value"]
    assert [row.node for row in m.layers] == [n.name for n in residual_network()[0].nodes if n.op != "reshape"] + [
        EXECUTOR
    ]
    assert all(row.instructions > 0 for row in m.layers)
    assert q["stack"]["value"] <= artifact.manifest["stack_bound"]
    assert sum(p["value"] for p in q["flash_parts"].values()) == q["flash"]["value"]
    assert q["ram"]["value"] == q["arena"]["value"] == artifact.manifest["arena"]["bytes"]
    if "cycles" in q:
        assert 0.9 * q["instructions"]["value"] <= q["cycles"]["low"] <= q["cycles"]["value"] <= q["cycles"]["high"]
        assert sum(v["value"] for v in q["mix"].values()) == pytest.approx(q["instructions"]["value"], rel=1e-3)


@needs_x86
def test_host(built: Built) -> None:
    artifact, golden = built("x86-64")
    m = bench(artifact, golden, load_target("x86-64"), options=RunOptions(repeats=3))
    assert (m.verdict, m.runner) == ("bit-exact", "host")
    assert 0 < m.quantities["latency"]["low"] <= m.quantities["latency"]["value"] <= m.quantities["latency"]["high"]
    runner = HostRunner(artifact)
    runner.selftest()
    graph, _ = residual_network()
    codes = np.random.default_rng(1).integers(-128, 128, (333, 8, 8, 4)).astype(np.int8)
    seen = []
    got = runner.run_many(codes, lambda what, done, total: seen.append((done, total)))
    assert np.array_equal(got, ops.run(graph, codes)[graph.output])
    assert seen[-1] == (333, 333)


def test_extreme_inputs_and_many(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    graph, _ = residual_network()
    codes = np.stack([np.full((8, 8, 4), v, np.int8) for v in (-128, -1, 0, 127)] + [*golden.input_codes])
    result = run_codes(artifact, None, codes)
    assert np.array_equal(result.outputs, ops.run(graph, codes)[graph.output])
    assert result.runner == "unicorn"
    assert result.instructions is not None
    assert len(result.instructions) == len(codes)


@needs_qemu
@pytest.mark.qemu
@pytest.mark.parametrize("name", ["cortex-m55", "cortex-m4", "cortex-m33"])
def test_qemu(built: Built, name: str) -> None:
    artifact, golden = built(name)
    m = bench(artifact, golden, load_target(name), via="qemu")
    assert (m.verdict, m.reason) == ("bit-exact", None)
    assert sum(row.instructions for row in m.layers) == m.quantities["instructions"]["value"]
    assert m.quantities["stack"]["value"] <= artifact.manifest["stack_bound"]
    if name != "cortex-m55":  # two emulators, one count
        other = bench(artifact, golden, load_target(name), via="unicorn")
        for a, b in zip(other.layers, m.layers, strict=True):
            same = {"cycles": None, "energy": None}
            assert dataclasses.replace(a, **same) == dataclasses.replace(b, **same)
        assert other.quantities["stack"]["value"] == m.quantities["stack"]["value"]
        # code lies elsewhere in the two images, so other lines of it share a cache
        cycles = [sum(x.cycles or 0 for x in found.layers) for found in (m, other)]
        assert cycles[0] == pytest.approx(cycles[1], rel=0.1)


def test_absent_emulator_is_a_verdict(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, golden = built("cortex-m4")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    m = bench(artifact, golden, load_target("cortex-m4"), via="qemu")
    assert m.verdict == "not run"
    assert "apt-get install qemu-system-arm" in str(m.reason)
    assert m.quantities["flash"]["value"] > 0
    with pytest.raises(DeviceError, match="cannot run via qemu"):
        run_codes(artifact, "qemu", golden.input_codes)


def test_one_wrong_code_is_seen(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    wrong = golden.output_codes.copy()
    wrong[1, 2] ^= 4
    m = bench(artifact, dataclasses.replace(golden, output_codes=wrong), load_target("cortex-m4"))
    assert m.verdict == "differs"
    assert m.reason == "1 of 15 output codes differ from the reference, by up to 4"


def test_wrong_use(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    with pytest.raises(UsageError, match="unknown runner 'qemo'"):
        run_codes(artifact, "qemo", golden.input_codes)
    with pytest.raises(DeviceError, match="not a host target"):
        run_codes(artifact, "host", golden.input_codes)
    with pytest.raises(UsageError, match="takes int8 codes"):
        run_codes(artifact, None, golden.input_codes[:, :4])
    broken = Artifact(artifact.folder, {**artifact.manifest, "products": {}})
    with pytest.raises(DeviceError, match="holds no bare image"):
        run_codes(broken, None, golden.input_codes)


def test_access_beyond_the_arena_stops_the_run(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    arena = {**artifact.manifest["arena"], "bytes": artifact.manifest["arena"]["bytes"] - 512}
    small = Artifact(artifact.folder, {**artifact.manifest, "arena": arena})
    m = bench(small, golden, load_target("cortex-m4"))
    assert m.verdict == "differs"
    assert "in xd_" in str(m.reason)


PROGRAMS = {"cortex-a72": "qemu-aarch64", "cortex-a7": "qemu-arm"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_linux_program(built: Built, name: str, tmp_path: Path) -> None:
    """Files and pipes, its options, and what the system refuses: all without a C library."""
    qemu = shutil.which(PROGRAMS[name]) or shutil.which(f"{PROGRAMS[name]}-static")
    if qemu is None:
        pytest.skip(f"{PROGRAMS[name]} is not installed")
    artifact, golden = built(name)
    program = artifact.folder / artifact.manifest["products"]["program"]
    given, expected = golden.input_codes.tobytes(), golden.output_codes.tobytes()
    (tmp_path / "in").write_bytes(given)

    def start(*words: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([qemu, program, *words], input=text, capture_output=True, cwd=tmp_path, check=False)

    done = start("--repeat", "2", text=given)
    assert (done.returncode, done.stdout) == (0, expected)
    assert re.fullmatch(rb"[1-9]\d* ns per inference, least [1-9]\d*\n", done.stderr)
    done = start("--bursts", "3", "--times", "times", "--pin", "0", "in", "out")
    assert (done.returncode, done.stdout, (tmp_path / "out").read_bytes()) == (0, b"", expected)
    lines = (tmp_path / "times").read_text().splitlines()
    assert [x.split()[0] for x in lines] == ["resolution", "pinned", "burst", "burst", "burst", "rss"]
    assert lines[1] == "pinned 0"
    assert all(int(x.split()[2]) > int(x.split()[1]) > 0 for x in lines[2:5])

    for words, told in (
        (("nothere", "out"), b"nothere: the system refuses it, error 2"),
        (("in", "no/folder"), b"no/folder: the system refuses it, error 2"),
        (("in", "/dev/full"), b"writing outputs: the system refuses it, error 5"),
        (("--repeat", "99999999999999999999", "in"), b"usage: "), (("--speed", "1", "in"), b"usage: "),
        (("--bursts", "1", "in"), b"usage: "),
    ):  # fmt: skip
        done = start(*words)
        assert (done.returncode, told in done.stderr) == (2, True), (words, done.stderr)
    assert start("--loop", "999999999", "--limit", "1", "in", "out").returncode == -signal.SIGALRM
