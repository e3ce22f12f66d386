"""Commands of `xdeploy` in children forked from a process that has everything loaded: a build in seconds.

Under strace, a child waits until it is traced; only its main thread is, which does all writing below the run folder, so
that the K-th call of a kind is the same call in every run.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pkgutil
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "XDEPLOY_PROMISE"  # in the environment of a child and of all that it starts
CALLS = (
    "write", "pwrite64", "rename", "renameat", "renameat2", "fsync", "fdatasync", "mkdir", "mkdirat", "unlink",
    "unlinkat", "rmdir", "openat", "close", "link", "linkat", "ftruncate", "chmod", "fchmodat",
)  # fmt: skip
Work = list[str] | Callable[[], int]
_CALL = re.compile(r"^(\w+)\((.*)$")
_LIMIT = 900.0  # seconds, from which on a command hangs
_LOADED = ("torch.export", "matplotlib.pyplot", "captum.attr", "scipy.optimize", "tvm", "unicorn", "onnxruntime")


@dataclass(frozen=True)
class Place:
    """Where a command runs: working folder, temporary files, cache of figures."""

    work: Path
    temporary: Path
    cache: Path

    @staticmethod
    def below(folder: Path, work: Path) -> Place:
        """With folders of its own for temporary files and figures."""
        place = Place(work, folder / "tmp", folder / "cache")
        for path in (place.temporary, place.cache):
            path.mkdir(parents=True, exist_ok=True)
        return place


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (minus the signal that killed it), what it wrote, and how long it took."""

    code: int
    text: str
    seconds: float
    mark: str


def load_all() -> None:
    """Import what a build imports."""
    import xdeploy
    from xdeploy.environment import commit

    for name in _LOADED:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(xdeploy.__path__, "xdeploy."):
        if not module.name.endswith(("__main__", "rpc_client", ".child")):
            with contextlib.suppress(ImportError):  # optional packages
                importlib.import_module(module.name)
    commit(Path(xdeploy.__file__).parents[1])  # a run's files name it; rows that are written do not change it any more
    _capture()


def _capture() -> None:
    """Capture a network of one layer: much of torch.export is loaded only then, in every child otherwise."""
    import torch

    torch.export.export(torch.nn.Linear(1, 1).eval(), (torch.zeros(1, 1),))


def start(work: Work, place: Place, log: Path, *, stopped: bool = False) -> tuple[int, str]:
    """Fork a child that does the work and exits with its code; `stopped`: it waits for SIGCONT first."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    pid = os.fork()
    if pid:
        return pid, mark
    code = 70
    try:
        atexit._clear()  # what the parent has to clear away is still the parent's
        os.setsid()
        os.chdir(place.work)
        os.environ |= {MARK: mark, "TMPDIR": str(place.temporary), "XDEPLOY_CACHE": str(place.cache)}
        tempfile.tempdir = None
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        code = command_line(work) if isinstance(work, list) else work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def command_line(arguments: Sequence[str]) -> int:
    """The command of `xdeploy`, and what it left to do at its end."""
    from xdeploy.cli import main

    try:
        code = main(list(arguments))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def finish(pid: int, limit: float = _LIMIT) -> int:
    """Wait for a child; one that hangs is killed, and that is an error."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"no end after {limit:g} s")


def run(
    work: Work,
    place: Place,
    inject: Sequence[str] = (),
    trace: Path | None = None,
    meanwhile: Callable[[int], None] | None = None,
) -> Ended:
    """Run something in a forked child to its end.

    Args:
        work: arguments of `xdeploy`, or a function that gives an exit code.
        place: folders.
        inject: strace's injections, such as `rename:signal=SIGKILL:when=3`.
        trace: file for the traced calls.
        meanwhile: called with the child's number once it runs.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="promise-") as folder:
        log = Path(folder) / "log"
        traced = bool(inject or trace)
        pid, mark = start(work, place, log, stopped=traced)
        tracer = _attach(pid, inject, trace or Path(os.devnull)) if traced else None
        if meanwhile:
            meanwhile(pid)
        code = finish(pid)
        if tracer:
            tracer.wait()
        return Ended(code, log.read_text(errors="replace") if log.exists() else "", time.monotonic() - begun, mark)


def _attach(pid: int, inject: Sequence[str], out: Path) -> subprocess.Popen[bytes]:
    """Trace the stopped child's main thread and let it go on."""
    calls = ",".join(dict.fromkeys([*CALLS, *(i.partition(":")[0] for i in inject)]))
    words = ["strace", "-y", "-s", "8", "-e", f"trace={calls}", "-o", str(out), "-p", str(pid)]
    os.waitpid(pid, os.WUNTRACED)
    tracer = subprocess.Popen([*words, *(f"-einject={i}" for i in inject)], stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{pid}/status")
    while "TracerPid:\t0\n" in status.read_text():
        time.sleep(0.005)
    os.kill(pid, signal.SIGCONT)
    return tracer


@dataclass(frozen=True)
class Point:
    """One call: its kind, its number among the calls of this kind, and the file it touches."""

    call: str
    number: int
    file: str

    @property
    def name(self) -> str:
        """The call as `rename:3`."""
        return f"{self.call}:{self.number}"


def points(trace: Path, folders: Sequence[Path]) -> list[Point]:
    """The calls of a trace that change something below the folders."""
    counts: dict[str, int] = {}
    found = []
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if not match:
            continue
        call, rest = match.groups()
        counts[call] = counts.get(call, 0) + 1
        if (call == "openat" and "O_CREAT" not in rest) or (call == "close" and ".part" not in rest):
            continue  # what is only read
        inside = [f for f in folders if str(f) in rest]
        if inside:
            file = rest[rest.index(str(inside[0])) + len(str(inside[0])) :]
            found.append(Point(call, counts[call], re.split(r'[">]', file)[0].lstrip("/") or "."))
    return found


def orphans(mark: str, patience: float = 3.0) -> list[str]:
    """Commands of living processes that a child started and that outlive it by some seconds."""
    end = time.monotonic() + patience
    while True:
        left = list(_marked(mark))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def _marked(mark: str) -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if f"{MARK}={mark}".encode() in environment and state != "Z":
                    yield (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
