"""The rpc runner against a TVM RPC server on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.bench.sshd import free_port
from tests.networks import residual_network
from xdeploy.bench import bench, rpc, run_codes
from xdeploy.bench.rpc import is_loopback
from xdeploy.bench.runner import RunOptions
from xdeploy.bench.via import runner_for
from xdeploy.errors import TransportError, UsageError
from xdeploy.lir import ops
from xdeploy.target import load_target

SERVER = "import sys, time, tvm.rpc\nport = int(sys.argv[1])\nserver = tvm.rpc.Server('127.0.0.1', port, port + 1, " \
         "silent=True)\nprint('up', flush=True)\ntime.sleep(600)"  # fmt: skip
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")
OPTIONS = RunOptions(repeats=3, timeout=120.0)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-c", SERVER, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"up\n"
        yield f"rpc://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


@needs_x86
def test_runs_and_times(server: str, built: Built) -> None:
    artifact, golden = built("x86-64")
    m = bench(artifact, golden, load_target("x86-64"), server, OPTIONS)
    assert (m.verdict, m.reason, m.runner) == ("bit-exact", None, "rpc")
    latency = m.quantities["latency"]
    assert (latency["how"], latency["n"]) == ("measured", 3)
    assert 0 < latency["low"] <= latency["value"] <= latency["high"] < 1
    assert m.environment["triple"].startswith("x86_64")
    assert m.environment["protection"].startswith("loopback")
    assert "instructions" in m.tells["cannot"]
    wrong = golden.output_codes.copy()
    wrong[0, 1] ^= 2
    m = bench(artifact, dataclasses.replace(golden, output_codes=wrong), load_target("x86-64"), server, OPTIONS)
    assert m.verdict == "differs"


@needs_x86
def test_any_inputs(server: str, built: Built) -> None:
    """Rows of a size that is no multiple of the alignment lie in place or are copied: the same outputs."""
    artifact, _ = built("x86-64")
    graph, _ = residual_network()
    codes = np.random.default_rng(2).integers(-128, 128, (70, 8, 8, 4)).astype(np.int8)
    got = run_codes(artifact, server, codes, options=OPTIONS)
    assert np.array_equal(got.outputs, ops.run(graph, codes)[graph.output])


@needs_x86
def test_another_cpu(server: str, built: Built) -> None:
    artifact, golden = built("cortex-a72")
    with pytest.raises(TransportError, match=r"is a x86_64[\w-]*, cortex-a72 is built for aarch64"):
        bench(artifact, golden, load_target("cortex-a72"), server, OPTIONS)


def test_no_server(built: Built) -> None:
    artifact, golden = built("x86-64")
    with pytest.raises(TransportError, match="no TVM RPC server answers: Connection refused") as caught:
        bench(artifact, golden, load_target("x86-64"), f"rpc://localhost:{free_port()}", OPTIONS)
    assert "tvm.exec.rpc_server --host 127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10, "no TVM RPC server answers|the client ended"), (None, "no end after")],
)
def test_something_else_listens(built: Built, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, told: str) -> None:
    """One that talks another protocol, and one that says nothing at all."""
    artifact, golden = built("x86-64")
    monkeypatch.setattr(rpc, "GRACE", 60.0 if answer else 5.0)
    monkeypatch.setattr(rpc, "link_module", lambda *_: b"")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def serve() -> None:
            with contextlib.suppress(OSError):  # closed by the test's end, where the client gave up earlier
                for _ in range(2):
                    connection = listener.accept()[0]
                    kept.append(connection)
                    if answer:
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        via = f"rpc://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TransportError, match=told):
            bench(artifact, golden, load_target("x86-64"), via, RunOptions(repeats=1, timeout=1.0))
        for connection in kept:
            connection.close()


@pytest.mark.parametrize("host", ["board", "192.168.1.7", "0.0.0.0", "[2001:db8::1]", "localhost.example.org"])
def test_other_machines_only_when_allowed(built: Built, host: str) -> None:
    artifact, _ = built("x86-64")
    target = load_target("x86-64")
    with pytest.raises(UsageError, match="no protection") as caught:
        runner_for(artifact, target, f"rpc://{host}:9090")
    assert "ssh -L 9090:localhost:9090" in str(caught.value)
    assert runner_for(artifact, target, f"rpc://{host}:9090", RunOptions(remote=True)).name == "rpc"


def test_loopback() -> None:
    assert all(is_loopback(h) for h in ("localhost", "127.0.0.1", "127.8.9.1", "::1"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.org", "1"))


def test_addresses_and_targets_that_are_refused(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    for via in ("rpc://localhost", "rpc://me@localhost:9090"):
        with pytest.raises(UsageError, match="a host and a port and no user"):
            runner_for(artifact, load_target("cortex-m4"), via)
    m = bench(artifact, golden, load_target("cortex-m4"), "rpc://localhost:9090")
    assert (m.verdict, m.reason) == ("not run", "cortex-m4 is firmware: no TVM runtime runs there")
