"""Nothing phones home, and nothing listens beyond this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small
import warm

# lines of strace: bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
_CALLS = ("bind", "connect", "sendto", "sendmsg")
_ADDRESS = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_EVENTS = {"socket.bind", "socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
           "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect"}  # fmt: skip
COMMANDS = (["doctor"], ["targets"], ["ops"])


def beyond(trace: str) -> list[str]:
    """Traced calls with an address of a network other than this machine's own."""
    found = []
    for line in trace.splitlines():
        if any(f"{call}(" in line for call in _CALLS):
            addresses = [a or b for a, b in _ADDRESS.findall(line)]
            found += [line for a in addresses if a != "::1" and not a.startswith("127.")]
    return found


def watched(arguments: list[str]) -> int:
    """The command in this process, which ends with 99 where Python's own sockets or clients are used."""
    used: list[str] = []

    def hear(event: str, details: tuple[object, ...]) -> None:
        if event in _EVENTS and not (event == "socket.connect" and isinstance(details[1], str)):
            used.append(f"{event} {details}")

    sys.addaudithook(hear)
    code = warm.command_line(arguments)
    print(*used, sep="\n", flush=True)
    return 99 if used else code


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_open_no_sockets(arguments: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    small.prepare(work)
    more = ["small_net:make", "--data", "data.npz", "--target", small.TARGET] if arguments[0] == "build" else []
    ended = warm.run(partial(watched, [*arguments, *more]), warm.Place.below(tmp_path / "spot", work))
    assert ended.code != 99, ended.text
    assert "Traceback" not in ended.text


def test_the_hook_hears(tmp_path: Path) -> None:
    """A command that would listen is found out."""

    def work() -> int:
        import socket

        used = []
        sys.addaudithook(lambda event, _: used.append(event) if event in _EVENTS else None)
        socket.create_server(("127.0.0.1", 0)).close()
        return 99 if "socket.bind" in used else 0

    assert warm.run(work, warm.Place.below(tmp_path / "spot", tmp_path)).code == 99


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_reports_of_onnxruntime_are_off(given: str | None, found: str) -> None:
    """It would send them from when it is loaded, by code of its own that no hook of Python's hears; users may."""
    name = "ORT_DISABLE_TELEMETRY"
    env = {k: v for k, v in os.environ.items() if k != name} | ({} if given is None else {name: given})
    code = f"import os, xdeploy; print(os.environ['{name}'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ('bind(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("0.0.0.0")}, 16) = 0', 1),
        ('bind(3, {sa_family=AF_INET6, sin6_port=htons(8), inet_pton(AF_INET6, "::", &sin6_addr)}, 28) = 0', 1),
        ('connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.0.0.2")}, 16) = 0', 1),
        ('bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("127.0.0.1")}, 16) = 0', 0),
        ('bind(3, {sa_family=AF_INET6, sin6_port=htons(8), inet_pton(AF_INET6, "::1", &sin6_addr)}, 28) = 0', 0),
        ('connect(3, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT', 0),
    ],
)
def test_addresses_are_read(line: str, count: int) -> None:
    assert len(beyond(line)) == count


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_tuned_build_talks_to_nobody(tmp_path: Path) -> None:
    """All processes of a build that tunes, from the shell's command on: no address but this machine's own."""
    work = tmp_path / "work"
    small.prepare(work)
    trace = tmp_path / "trace"
    words = ["strace", "-f", "--seccomp-bpf", "-e", "trace=bind,listen,connect,sendto,sendmsg", "-o", str(trace)]
    command = [sys.executable, "-m", "xdeploy", *small.command(tmp_path / "out", 0, "--tune", "quick")]
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}  # set by the tests; xdeploy itself must
    done = subprocess.run([*words, *command], cwd=work, env=env, capture_output=True, text=True, check=False)
    if "PTRACE" in done.stderr:
        pytest.skip("processes cannot be traced here")
    assert done.returncode == 0, done.stderr[-500:]
    text = trace.read_text(errors="replace")
    assert "exited with 0" in text  # something was traced
    assert not beyond(text), beyond(text)[:5]
    assert not re.search(r"\blisten\(", text)
