"""The TVM RPC client of one run, in a process of its own: TVM may wait without end, a process can be ended.

Usage: python -m xdeploy.bench.rpc_client FOLDER, with `request.json`, `module.so` and `inputs.npy` in it; leaves
`outputs.npy` and `result.json`, and in `phase` what it was at.
"""

from __future__ import annotations

import ipaddress
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.tracker import Tracker, TrackerError

BOARDS = 5  # lent boards that do not answer, before it is given up
ANSWER = 10.0  # seconds for a tracker to answer


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: localhost, 127.0.0.0/8 or ::1; names are not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in ("localhost", "localhost.")


class NoBoardError(Exception):
    """A tracker lends no board that can be used."""


def work(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Upload, run all inputs, time the first; "status" of the code, "times" in s per inference, "triple" and "cpu"."""

    def phase(text: str) -> None:
        (folder / "phase").write_text(text, encoding="ascii")

    phase("loading TVM")
    import tvm
    import tvm.rpc

    found: dict[str, Any] = {}
    if request["kind"]:
        session, found = _borrowed(request, phase, tvm.rpc.connect)
    else:
        phase("connecting")
        session = tvm.rpc.connect(request["host"], request["port"], session_timeout=request["timeout"])
    phase(f"asking {found['board']} for its CPU" if found else "asking for its CPU")
    result = found | {key: _asked(session, f"target.llvm_get_system_{key}") for key in ("triple", "cpu")}
    if result["triple"] and result["triple"].partition("-")[0] not in request["machines"]:
        return result
    phase("copying the library")
    session.upload(bytearray((folder / "module.so").read_bytes()), request["name"])
    try:
        phase("loading the library")
        module, device = session.load_module(request["name"]), session.cpu(0)
        phase("running")
        inputs = np.load(folder / "inputs.npy", allow_pickle=False)
        given = tvm.runtime.tensor(inputs.reshape(-1), device)
        taken = tvm.runtime.tensor(np.zeros(len(inputs) * request["output_bytes"], np.int8), device)
        result["status"] = int(module["run"](given, taken, len(inputs)))
        np.save(folder / "outputs.npy", taken.numpy())
        if result["status"] == 0 and len(inputs):
            phase("timing")
            timed = module.time_evaluator("run", device, 1, request["repeats"], min_repeat_ms=request["burst_ms"])
            result["times"] = [float(t) for t in timed(given, taken, 1).results]
    finally:
        phase_before = (folder / "phase").read_text(encoding="ascii")
        phase("removing the library" if "status" in result else phase_before)
        session.remove(request["name"])
    return result


def _borrowed(
    request: dict[str, Any], phase: Callable[[str], None], connect: Callable[..., Any]
) -> tuple[Any, dict[str, Any]]:
    """A session with a free board of a kind; of it "board", its address, and "lost", those that were passed over.

    A board that is lent but does not answer is passed over, and the tracker asked again. TVM is loaded before: a board
    takes itself back when nobody comes within some seconds.
    """
    kind, end, lost = request["kind"], time.monotonic() + request["timeout"], list[str]()
    for _ in range(BOARDS):
        phase("asking the tracker")
        with Tracker(request["host"], request["port"], ANSWER) as tracker:
            kinds = tracker.kinds()
            if kind not in kinds:
                raise NoBoardError(_none_of(kind, kinds, lost))
            phase(f"waiting for one of {kinds[kind][0]} board(s) {kind} to be free")
            try:
                board = tracker.borrow(kind, max(1.0, end - time.monotonic()))
            except TimeoutError:
                raise NoBoardError(f"none of {kinds[kind][0]} board(s) {kind} became free in time") from None
            where = f"{board.host}:{board.port}"
            if not is_loopback(board.host) and not request["remote"]:
                raise NoBoardError(f"its board {where} is not this machine, and TVM's RPC has no protection")
            phase(f"connecting to {where}")
            try:
                session = connect(board.host, board.port, board.key, session_timeout=request["timeout"])
                return session, {"board": where, "lost": lost}
            except Exception as error:  # whatever TVM raises
                lost.append(f"{where}: {_told(error)}")
    raise NoBoardError(f"{BOARDS} boards do not answer: {'; '.join(lost)}")


def _none_of(kind: str, kinds: dict[str, tuple[int, int]], lost: list[str]) -> str:
    others = ", ".join(f"{name} ({count}, {free} free)" for name, (count, free) in kinds.items()) or "none"
    gone = f"; gone: {'; '.join(lost)}" if lost else ""
    return f"no board {kind} is registered; registered: {others}{gone}"


def _told(error: Exception) -> str:
    """The last line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def _asked(session: Any, name: str) -> str:
    """What a function of the server says; "" where a runtime without the compiler does not have it."""
    try:
        return str(session.get_function(name)())[:200]
    except Exception:
        return ""


def main(folder: Path) -> int:
    """Do the request of `folder`; a failure is written down as "error"."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        result = work(folder, request)
    except (NoBoardError, TrackerError) as error:
        result = {"error": str(error), "tracker": isinstance(error, NoBoardError)}
    except Exception as error:  # whatever TVM raises: the words are for the parent to tell
        result = {"error": _told(error)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
