"""The TVM RPC client of one run, in a process of its own: TVM may wait without end, a process can be ended.

Usage: python -m xdeploy.bench.rpc_client FOLDER, with `request.json`, `module.so` and `inputs.npy` in it; leaves
`outputs.npy` and `result.json`, and in `phase` what it was at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def work(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Upload, run all inputs, time the first; "status" of the code, "times" in s per inference, "triple" and "cpu"."""

    def phase(text: str) -> None:
        (folder / "phase").write_text(text, encoding="ascii")

    phase("loading TVM")
    import tvm
    import tvm.rpc

    phase("connecting")
    session = tvm.rpc.connect(request["host"], request["port"], session_timeout=request["timeout"])
    phase("asking for its CPU")
    result: dict[str, Any] = {key: _asked(session, f"target.llvm_get_system_{key}") for key in ("triple", "cpu")}
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
    except Exception as error:  # whatever TVM raises: the words are for the parent to tell
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        result = {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
