"""The ssh runner against a real sshd on loopback: AArch64 programs under qemu there, and the host's own CPU."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.bench.sshd import SMALL, SSHD, Board, free_port
from tests.networks import residual_network
from tests.signals import LISTENING
from xdeploy.bench import bench, run_codes
from xdeploy.bench.runner import RunOptions
from xdeploy.bench.via import runner_for
from xdeploy.builder import build
from xdeploy.errors import DeviceError, TransportError, UsageError
from xdeploy.handover import Artifact, GoldenIo, Measurement
from xdeploy.lir import ops
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import Target, load_target

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-aarch64 is not installed: apt-get install qemu-user")
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the native program is for x86-64")
NATIVE = """
name = "x86-board"
description = "64-bit x86 under Linux, generic"
kind = "linux"
isa = "x86-64"
features = ["c99", "tir"]
[tvm]
kind = "llvm"
mtriple = "x86_64-linux-gnu"
mcpu = "x86-64"
[compiler]
triple = "x86_64-linux-musl"
flags = ["-march=x86_64"]
[memory]
align = 64
[runner]
emulator = "none"
"""


@pytest.fixture(scope="module")
def shared_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("sshd or ssh is not installed: apt-get install openssh-server openssh-client")
    board = Board(tmp_path_factory.mktemp("board"))
    try:
        reason = board.works()
        if reason is not None:
            pytest.skip(reason)
        yield board
    finally:
        board.stop()


@pytest.fixture
def board(shared_board: Board) -> Iterator[Board]:
    """Nothing may be left on it after any test."""
    yield shared_board
    shared_board.clear()
    deadline = time.monotonic() + 10
    while shared_board.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert shared_board.left() == []


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, GoldenIo, Target]:
    """A user's own target: a static program for this machine's CPU."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "board.toml").write_text(NATIVE)
    target = load_target(str(folder / "board.toml"))
    graph, golden = residual_network()
    artifact = build(bind(graph, target, "net"), graph, golden, target, folder / "out", PackageOptions(), {})
    return artifact, golden, target


def options(board: Board, **changes: Any) -> RunOptions:
    return RunOptions(**{"repeats": 3, "ssh": board.ssh(), "timeout": 60.0, **changes})


def measure(board: Board, native: tuple[Artifact, GoldenIo, Target], **changes: Any) -> Measurement:
    artifact, golden, target = native
    return bench(artifact, golden, target, board.via, options(board, **changes))


@needs_qemu
def test_aarch64_program_under_an_emulator(board: Board, built: Built) -> None:
    artifact, golden = built("cortex-a72")
    m = bench(artifact, golden, load_target("cortex-a72"), board.via, options(board, wrapper=str(QEMU)))
    assert (m.verdict, m.reason, m.runner) == ("bit-exact", None, "ssh")
    latency = m.quantities["latency"]
    assert 0 < latency["low"] <= latency["value"] <= latency["high"]
    # the wall time of an emulator must not pass for the board's
    assert latency["how"] == "emulated"
    assert "emulator" in latency["note"]
    assert "latency" in m.tells["cannot"]
    assert "instructions" not in m.quantities
    assert "peak_rss" not in m.quantities


@needs_qemu
def test_any_inputs(board: Board, built: Built) -> None:
    artifact, _ = built("cortex-a72")
    graph, _ = residual_network()
    codes = np.random.default_rng(5).integers(-128, 128, (50, 8, 8, 4)).astype(np.int8)
    chosen = options(board, wrapper=str(QEMU), repeats=1)
    got = run_codes(artifact, board.via, codes, options=chosen)
    assert np.array_equal(got.outputs, ops.run(graph, codes)[graph.output])
    assert run_codes(artifact, board.via, codes[:0], options=chosen).outputs.shape == (0, *got.outputs.shape[1:])


@needs_x86
def test_native_program(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    m = measure(board, native, repeats=5)
    assert (m.verdict, m.reason) == ("bit-exact", None)
    latency = m.quantities["latency"]
    assert (latency["how"], latency["n"]) == ("measured", 5)
    assert 0 < latency["low"] <= latency["value"] <= latency["high"]
    # pinned: the program itself was told so by the kernel; to the last of this machine's equal cores, or the fastest
    assert m.environment["core"] in os.sched_getaffinity(0)
    assert m.environment["cpu"] == "x86_64"
    assert m.quantities["peak_rss"]["value"] > native[0].manifest["arena"]["bytes"]
    assert "latency" in m.tells["can"]


@needs_x86
def test_chosen_core(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    core = min(os.sched_getaffinity(0))
    assert measure(board, native, core=core).environment["core"] == core
    with pytest.raises(UsageError, match="has no core 4000"):
        measure(board, native, core=4000)


@needs_x86
def test_counters(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    """A perf that gives 1,000 instructions to the process and 500 to every inference; cycles are not to be had."""
    board.shim(
        "perf",
        'while [ "$1" != "--" ]; do [ "$1" = -o ] && o=$2; shift; done; shift; "$@" || exit\n'
        'while [ "$1" != "--loop" ]; do shift; done\n'
        'echo "# started" > "$o"; echo "$((1000 + 500 * $2)),,instructions:u,9,100.00,," >> "$o"\n'
        'echo "<not supported>,,cycles:u,0,100.00,," >> "$o"',
    )
    board.shim("id", "echo 0")
    m = measure(board, native)
    assert m.quantities["instructions"]["value"] == 500
    assert m.quantities["instructions"]["how"] == "measured"
    assert "cycles" not in m.quantities
    assert "instructions" in m.tells["can"]


@needs_x86
@pytest.mark.parametrize(
    ("perf", "told"), [("echo no such counter >&2; exit 2", "no such counter"), ("exit 0", "did not count")]
)
def test_perf_that_fails(board: Board, native: tuple[Artifact, GoldenIo, Target], perf: str, told: str) -> None:
    board.shim("perf", perf)
    board.shim("id", "echo 0")
    m = measure(board, native)
    assert m.verdict == "bit-exact"
    assert told in m.tells["cannot"]["instructions"]


@needs_x86
def test_poor_board(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    """No taskset, no perf, no timeout, no mktemp: a handful of programs is enough."""
    m = measure(board, native, ssh=board.ssh(key="poor-user"))
    assert m.verdict == "bit-exact"
    assert m.environment["core"] in os.sched_getaffinity(0)
    assert m.tells["cannot"]["instructions"] == "perf is not installed on the board"


def test_another_cpu(board: Board, built: Built) -> None:
    artifact, golden = built("cortex-a72")
    board.shim("uname", "echo riscv64")
    with pytest.raises(TransportError, match="is riscv64, cortex-a72 is built for aarch64") as caught:
        bench(artifact, golden, load_target("cortex-a72"), board.via, options(board))
    assert "--exec-with qemu-aarch64" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"key": "stranger"}, "ssh-copy-id"),
        ({"known": "nobody"}, "connect once by hand"),
    ],
)
def test_not_let_in(board: Board, native: tuple[Artifact, GoldenIo, Target], keys: dict[str, Any], told: str) -> None:
    known = (board.folder / "nobody").read_text()
    with pytest.raises(TransportError, match="ssh cannot connect") as caught:
        measure(board, native, ssh=board.ssh(**keys))
    assert told in str(caught.value)
    assert (board.folder / "nobody").read_text() == known  # no host key is taken on trust


def test_changed_host_key(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    kind, key = (board.folder / "stranger.pub").read_text().split()[:2]
    (board.folder / "changed").write_text(f"[127.0.0.1]:{board.port} {kind} {key}\n")
    with pytest.raises(TransportError, match="cannot connect"):
        measure(board, native, ssh=board.ssh(known="changed"))


def test_closed_port(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    artifact, golden, target = native
    via = f"ssh://127.0.0.1:{free_port()}"
    with pytest.raises(TransportError, match="Connection refused") as caught:
        bench(artifact, golden, target, via, options(board))
    assert "is sshd running" in str(caught.value)


def test_no_ssh_here(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    m = measure(board, native, ssh="no-such-ssh")
    assert (m.verdict, m.reason) == ("not run", "no-such-ssh is not installed: apt-get install openssh-client")


def test_firmware_is_refused(board: Board, built: Built) -> None:
    artifact, golden = built("cortex-m4")
    m = bench(artifact, golden, load_target("cortex-m4"), board.via, options(board))
    assert m.verdict == "not run"
    assert "no Linux target" in str(m.reason)


@needs_x86
@pytest.mark.parametrize(
    ("wrapper", "told"),
    [
        ("kill -9 $$", "ended by SIGKILL: .*memory|ended by SIGKILL"),
        ("kill -4 $$", "ended by SIGILL"),
        ("echo oh dear >&2; exit 3", "ended with 3: oh dear"),
        ("exit 0", "0 bytes of outputs came back"),
        pytest.param('"$@"; : > outputs', "0 bytes of outputs came back", marks=pytest.mark.slow),
        ('"$@"; echo burst 1 nan > times', "not a line of times: burst 1 nan"),
        pytest.param('"$@"; echo burst 0 5 > times', "not a line of times", marks=pytest.mark.slow),
        pytest.param('"$@"; echo burst 1 -5 > times', "not a line of times", marks=pytest.mark.slow),
        ('"$@"; echo burst 1 5 > times', "1 of 3 times came back"),
        pytest.param('"$@"; : > times', "0 of 3 times came back", marks=pytest.mark.slow),
        ('head -c 100000 /dev/urandom > times; "$@"; cat /dev/urandom | head -c 100000 > times', "not a line of times"),
    ],
)
def test_program_that_fails(board: Board, native: tuple[Artifact, GoldenIo, Target], wrapper: str, told: str) -> None:
    m = measure(board, native, wrapper=str(board.shim("wrap", wrapper)))
    assert m.verdict == "differs"
    assert re.search(told, str(m.reason)), m.reason


@needs_x86
def test_wrong_code_is_seen(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    artifact, golden, target = native
    wrong = golden.output_codes.copy()
    wrong[0, 0] ^= 1
    m = bench(artifact, dataclasses.replace(golden, output_codes=wrong), target, board.via, options(board))
    assert m.verdict == "differs"
    assert str(m.reason).startswith("1 of 15 output codes differ")


@needs_x86
def test_program_that_hangs(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    """The program's own alarm ends it: here it waits for an input that never comes."""
    fifo = board.shims / "fifo"
    os.mkfifo(fifo)
    shim = board.shim("wrap", f"sleep 100 > {fifo} &\nexec ./program --limit 1 {fifo} out")
    m = measure(board, native, wrapper=str(shim), timeout=7.0)
    assert m.verdict == "differs"
    assert "no end after 7 s" in str(m.reason)


@needs_x86
def test_wrapper_that_hangs(board: Board, native: tuple[Artifact, GoldenIo, Target], tmp_path: Path) -> None:
    """Nothing there ends it but the clean-up, which must: its process group is killed, its folder removed."""
    from xdeploy.bench import ssh

    shim = board.shim("wrap", f"echo $$ > {tmp_path}/pid; sleep 1000")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh, "GRACE", 3.0)
        with pytest.raises(TransportError, match="running the program took more than 5 s"):
            measure(board, native, wrapper=str(shim), timeout=2.0)
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the tiny file system")
def test_full_disk(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    artifact, golden, target = native
    assert (artifact.folder / artifact.manifest["products"]["program"]).stat().st_size > SMALL
    before = space(board)
    with pytest.raises(TransportError, match=r"copying program failed.*No space left") as caught:
        bench(artifact, golden, target, board.via, options(board, ssh=board.ssh(tmp=board.small)))
    assert "TMPDIR" in str(caught.value)
    assert space(board) == before


def space(board: Board) -> str:
    """What lies in the tiny file system, which only the board sees."""
    command = [*board.ssh(tmp=board.small).split(), "127.0.0.1", 'ls -la "$TMPDIR" | grep -c xdeploy']
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_nowhere_to_write(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    with pytest.raises(TransportError, match="no folder can be made"):
        measure(board, native, ssh=board.ssh(tmp=board.folder / "not-there"))


@needs_x86
def test_shell_that_greets(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    """Megabytes before and between what was asked for, marks of others and terminal escapes among them."""
    junk = "head -c 300000 /dev/urandom; echo; echo xd0123456789abcdef begin; echo xd done; printf '\\033[2J'"
    board.shim("uname", f'{junk} >&2; exec {shutil.which("uname")} "$@"')
    wrapper = board.shim("wrap", f'{junk}; {junk} >&2; exec "$@"')
    assert measure(board, native, wrapper=str(wrapper)).verdict == "bit-exact"


def test_endless_output(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    board.shim("wc", "exec cat /dev/zero")
    with pytest.raises(TransportError, match="bytes came back while copying program"):
        measure(board, native)


@needs_x86
def test_lost_connection(board: Board, native: tuple[Artifact, GoldenIo, Target]) -> None:
    """The far side's sshd is gone in the middle: told as such, and tidied up over a new connection."""
    shim = board.shim("wrap", 'kill -9 $(ps -o ppid= -p $PPID); sleep 2; exec "$@"')
    with pytest.raises(TransportError, match="the connection was lost while running the program"):
        measure(board, native, wrapper=str(shim))


@needs_x86
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(board: Board, native: tuple[Artifact, GoldenIo, Target], number: int, tmp_path: Path) -> None:
    shim = board.shim("wrap", f"echo $$ > {tmp_path}/pid; sleep 1000")
    script = (
        "import sys\nfrom pathlib import Path\nfrom xdeploy.bench import run_codes\n"
        "from xdeploy.process.interrupt import Guard\n"
        "from xdeploy.bench.runner import RunOptions\nfrom xdeploy.bench.via import parse_address\n"
        "from xdeploy.bench.ssh import SshRunner\nfrom xdeploy.handover import Artifact, GoldenIo\n"
        "Guard()\n"
        "folder, via, ssh, wrapper = Path(sys.argv[1]), *sys.argv[2:]\n"
        "runner = SshRunner(Artifact.load(folder), parse_address(via), RunOptions(ssh=ssh, wrapper=wrapper))\n"
        "runner.run(GoldenIo.load(folder / 'golden.npz').input_codes)\n"
    )
    command = [sys.executable, "-c", script, str(native[0].folder), board.via, board.ssh(), str(shim)]
    process = subprocess.Popen([*LISTENING, *command], stderr=subprocess.PIPE)
    for _ in range(300):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            break
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.05)
    assert board.left()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode in (130, -2, 143)
    assert board.left() == []
    assert gone(int((tmp_path / "pid").read_text()))


def test_addresses_and_words_that_are_refused(built: Built) -> None:
    artifact, _ = built("cortex-a72")
    target = load_target("cortex-a72")
    for via in ("ssh://-oProxyCommand=id", "ssh://a@-b", "ssh://a b", "ssh://", "ssh://h:0", "ssh://h:99999"):
        with pytest.raises(UsageError, match="is no ssh"):
            runner_for(artifact, target, via)
    for wrapper in ("a 'b", "qemu\x1b", '"it\'s"'):
        with pytest.raises(UsageError):
            _command_line(artifact, target, wrapper)
    with pytest.raises(UsageError, match="cannot be split"):
        runner_for(artifact, target, "ssh://h", RunOptions(ssh="ssh 'x"))


def _command_line(artifact: Artifact, target: Target, wrapper: str) -> str:
    runner: Any = runner_for(artifact, target, "ssh://h", RunOptions(wrapper=wrapper))
    return str(runner._command(None))


def test_command_line_is_quoted(built: Built) -> None:
    """Dollar signs, back quotes and backslashes of a wrapper reach the program as they are."""
    artifact, _ = built("cortex-a72")
    words = r'a\$b "c d" `e` \\f'
    line = _command_line(artifact, load_target("cortex-a72"), words)
    out = subprocess.run(["sh", "-c", f"printf '%s|' {line}"], capture_output=True, text=True, check=True)
    assert out.stdout.split("|")[: len(shlex.split(words))] == shlex.split(words)


def test_errors_are_device_errors() -> None:
    assert issubclass(TransportError, DeviceError)
    assert TransportError.exit_code == 6
