"""Boards behind a TVM RPC tracker: lent when free, passed over when dead, and told when there is none."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.bench.conftest import Built
from tests.bench.farm import Farm, farm
from tests.bench.sshd import free_port
from tests.bench.test_rpc import OPTIONS, needs_x86
from xdeploy.bench import bench
from xdeploy.bench.runner import RunOptions
from xdeploy.bench.tracker import Board, Tracker, TrackerError
from xdeploy.bench.via import parse_address, runner_for
from xdeploy.errors import TransportError, UsageError
from xdeploy.target import load_target

__all__ = ["farm"]  # a fixture
MAGIC = struct.pack("<i", 0x2F271)


def framed(value: object) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<i", len(text)) + text


@contextlib.contextmanager
def speaker(*answers: bytes, magic: bytes = MAGIC) -> Iterator[tuple[str, int]]:
    """A stand-in for a tracker: the same answers, one for each message, on every connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while listener.fileno() >= 0:
                with contextlib.suppress(OSError), listener.accept()[0] as connection:
                    connection.recv(4)
                    connection.sendall(magic)
                    for answer in answers:
                        connection.recv(1 << 12)
                        connection.sendall(answer)
                    while connection.recv(1 << 12):  # and is silent until the other side goes
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield "127.0.0.1", listener.getsockname()[1]


def test_the_protocol() -> None:
    summary = {"queue_info": {"pi": {"free": 1, "pending": 0}}, "server_info": [{"key": "server:pi"}] * 2}
    with speaker(framed([0, summary]), framed([0, ["127.0.0.1", 9091, "pi:0.5"]])) as at, Tracker(*at, 5.0) as tracker:
        assert tracker.kinds() == {"pi": (2, 1)}
        assert tracker.borrow("pi", 5.0) == Board("127.0.0.1", 9091, "pi:0.5")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (framed(b"{"), "no answer"), (framed([1, None]), "refuses"), (framed([0, ["host", 0, "key"]]), "no board"),
        (framed([0, {"host": 1}]), "no board"), (struct.pack("<i", -1), "announces -1 bytes"),
        (struct.pack("<i", 2**31 - 1), "announces 2147483647 bytes"), (framed(b"[" * 100_000), "no answer"),
    ],
)  # fmt: skip
def test_answers_that_are_none(answer: bytes, told: str) -> None:
    with speaker(answer) as at, Tracker(*at, 5.0) as tracker, pytest.raises(TrackerError, match=told):
        tracker.borrow("pi", 5.0)


def test_something_else_answers() -> None:
    with speaker(magic=b"HTTP") as at, pytest.raises(TrackerError, match="something else"):
        Tracker(*at, 5.0)
    with speaker() as at, Tracker(*at, 5.0) as tracker, pytest.raises(TimeoutError):
        tracker.borrow("pi", 0.05)
    with speaker() as at, Tracker(*at, 0.05) as tracker, pytest.raises(TrackerError, match="no answer within"):
        tracker.kinds()


def test_addresses(built: Built) -> None:
    artifact, _ = built("x86-64")
    target = load_target("x86-64")
    assert parse_address("tracker://localhost:9190/pi4").kind == "pi4"
    for via in ("tracker://localhost:9190", "tracker://localhost:9190/", "tracker://localhost:9190/a b"):
        with pytest.raises(UsageError, match="is no tracker://host:port/kind"):
            runner_for(artifact, target, via)
    with pytest.raises(UsageError, match="a host and a port"):
        runner_for(artifact, target, "tracker://localhost/pi4")
    with pytest.raises(UsageError, match="no protection"):
        runner_for(artifact, target, "tracker://farm:9190/pi4")
    assert runner_for(artifact, target, "tracker://farm:9190/pi4", RunOptions(remote=True)).name == "rpc"


def test_no_tracker(built: Built) -> None:
    artifact, golden = built("x86-64")
    via = f"tracker://localhost:{free_port()}/pi4"
    with pytest.raises(TransportError, match="no TVM RPC tracker answers: Connection refused") as caught:
        bench(artifact, golden, load_target("x86-64"), via, OPTIONS)
    assert "tvm.exec.rpc_tracker --host 127.0.0.1" in str(caught.value)


@needs_x86
def test_a_board_elsewhere_is_not_used(built: Built) -> None:
    """The tracker is here, but the address it tells is not."""
    artifact, golden = built("x86-64")
    summary = {"queue_info": {}, "server_info": [{"key": "server:pi"}]}
    with (
        speaker(framed([0, summary]), framed([0, ["192.0.2.1", 9091, "pi:0.5"]])) as (host, port),
        pytest.raises(TransportError, match=r"192\.0\.2\.1:9091 is not this machine"),
    ):
        bench(artifact, golden, load_target("x86-64"), f"tracker://{host}:{port}/pi", OPTIONS)


@needs_x86
@pytest.mark.slow
def test_two_boards_of_which_one_dies(farm: Farm, built: Built) -> None:
    artifact, golden = built("x86-64")
    target, via = load_target("x86-64"), f"tracker://127.0.0.1:{farm.port}/here"
    addresses = {farm.board("here"), farm.board("here")}
    farm.until("here", 2)
    found = [bench(artifact, golden, target, via, OPTIONS) for _ in range(2)]
    assert [m.verdict for m in found] == ["bit-exact"] * 2
    assert {m.environment["server"] for m in found} == addresses  # the tracker lends them in turns
    assert found[0].environment["tracker"] == via
    farm.kill(1)
    farm.until("here", 1)
    m = bench(artifact, golden, target, via, OPTIONS)
    assert (m.verdict, m.quantities["latency"]["how"]) == ("bit-exact", "measured")
    farm.kill(2)
    farm.until("here", 0)
    with pytest.raises(TransportError, match="no board here is registered; registered: none") as caught:
        bench(artifact, golden, target, via, OPTIONS)
    assert f"--tracker 127.0.0.1:{farm.port} --key here" in str(caught.value)
