"""The front doors through which a user's ONNX file comes in: one function with an outcome, in its own process."""

from __future__ import annotations

import contextlib
import os
import resource
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

SECONDS = 10.0  # of the CPU: a case that takes more hangs, as does one that takes six times as long by the clock
RSS_LIMIT = 2**30  # bytes, the whole process with torch and ONNX Runtime loaded
ADDRESS_ROOM = 3 * 2**30  # of address space that a case may ask for on top of what is loaded
WORK_LIMIT = 2**28  # multiply-accumulates of a network that is also run
FAILURES = ("crash", "hang", "internal", "memory", "differs")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: accepted, refused (an XdeployError of exit code 2 or 3), or one of FAILURES."""

    kind: str
    detail: str = ""
    rss: int = 0  # bytes, the process's peak

    @property
    def failed(self) -> bool:
        return self.kind in FAILURES


def enter(path: Path, compare: bool = False) -> Outcome:
    """Take a file through the doors for quantised and float models."""
    from xdeploy.errors import XdeployError
    from xdeploy.onnxfile import is_quantised

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return _quantised(path, compare) if is_quantised(path) else _float(path)
    except XdeployError as error:
        text = str(error)
        if error.exit_code not in (2, 3):
            return Outcome("internal", f"exit code {error.exit_code}: {text[:200]}")
        if not all(c.isprintable() or c == "\n" for c in text):
            return Outcome("internal", f"a message with control characters: {text[:200]!r}")
        return Outcome("refused", text[:160])
    except MemoryError:
        return Outcome("memory", traceback.format_exc(limit=-3))
    except Exception:
        return Outcome("internal", traceback.format_exc(limit=-4))


def _quantised(path: Path, compare: bool) -> Outcome:
    from xdeploy.lir import ops
    from xdeploy.lower import lower
    from xdeploy.lower.compare import adopt, compare_with_onnx

    graph = lower(path)
    work = sum(2**16 + ops.macs(graph, n) + 64 * graph.tensors[n.output].size for n in graph.nodes)
    if work > WORK_LIMIT:  # a large network that is legal; what it computes is not looked at
        return Outcome("accepted", "quantised, not run")
    exported = adopt(path)
    graph = lower(exported)
    codes = graph.io.to_codes(exported.inputs[:1])
    ops.run(graph, codes)
    if compare:
        rows = compare_with_onnx(exported, graph, exported.inputs)
        worst = max(rows, key=lambda r: r["max_code_difference"], default={"max_code_difference": 0})
        if worst["max_code_difference"] > 1:
            return Outcome("differs", str(worst))
    return Outcome("accepted", "quantised")


def _float(path: Path) -> Outcome:
    from xdeploy.model.frontend import load_network
    from xdeploy.recipe import DataOptions

    load_network(str(path), None, None, DataOptions())
    return Outcome("accepted", "float")


def serve(pipe: Connection, folder: str) -> None:
    """The worker: files come in as bytes, outcomes go out."""
    import onnxruntime  # noqa: F401  (loaded before the limit is set)
    import torch

    import xdeploy.lower.compare
    import xdeploy.model.frontend  # noqa: F401

    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_ROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = Path(folder) / "mutant.onnx"
    pipe.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            data, compare = pipe.recv()
            path.write_bytes(data)
            outcome = enter(path, compare)
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            kind = "memory" if rss > RSS_LIMIT and not outcome.failed else outcome.kind
            pipe.send(Outcome(kind, outcome.detail, rss))


class Worker:
    """A process that takes files; it is replaced when it dies, hangs, or has grown above the limit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._process, self._pipe = folder, None, None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, t: TracebackType | None) -> None:
        self.stop()

    def kill(self) -> None:
        """As a fault of a native library would."""
        assert self._process is not None
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch", "onnxruntime", "xdeploy.lower.compare", "xdeploy.model.frontend"])
        self._pipe, far = context.Pipe()
        self._process: Any = context.Process(target=serve, args=(far, str(self.folder)), daemon=True)
        self._process.start()
        far.close()
        assert self._pipe.recv() == "ready"

    def run(self, data: bytes, compare: bool = False, seconds: float = SECONDS) -> Outcome:
        """The outcome of one file, a crash or a hang included."""
        if self._process is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((data, compare))
            if not self._answers(seconds):
                self.stop()
                return Outcome("hang", f"more than {seconds:g} s")
            outcome: Outcome = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            return Outcome("crash", f"the process ended with {code}")
        if outcome.kind == "memory":
            self.stop()
        return outcome

    def _answers(self, seconds: float) -> bool:
        """Wait for it: by the time that the process works, so that a busy machine does not look like a hang."""
        last, used = time.monotonic() + 6 * seconds, self._used()
        while not self._pipe.poll(min(seconds, 0.25)):
            if self._used() - used > seconds or time.monotonic() > last:
                return False
        return True

    def _used(self) -> float:
        """Seconds of the CPU that the process has used; 0 once it is gone."""
        try:
            words = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
