"""Runs an artifact behind a TVM RPC server (`python -m tvm.exec.rpc_server`) on an A-class board or a host.

rpc://host:port is a server; tracker://host:port/kind is a tracker, which lends one of its boards of a kind: who comes
while all are busy waits, so runs that are started at once share the boards.

TVM's RPC has no protection: whoever reaches the port may write files there and run code, and all of it travels in plain
text. So only loopback addresses are taken, which an SSH forward gives, unless the user allows others.
"""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xdeploy.bench.board import machines_for
from xdeploy.bench.rpc_client import is_loopback
from xdeploy.bench.runner import Image, Ran, RunOptions, Tell, Tells, silent
from xdeploy.builder.module import link_module
from xdeploy.errors import DeviceError, TransportError, UsageError, shown
from xdeploy.formats import Int8
from xdeploy.handover import Artifact
from xdeploy.process.child import tied
from xdeploy.process.lock import scratch_folder
from xdeploy.target import Target

if TYPE_CHECKING:
    from xdeploy.bench.via import Address

BURST_MS = 2  # a timed burst lasts at least this long
GRACE = 30.0  # seconds for loading TVM, connecting and copying
CONNECT = 10.0  # seconds to connect
RESULT_LIMIT = 1 << 20  # bytes of result.json


def _scheme(address: Address) -> str:
    return "tracker" if address.kind else "rpc"


def check_place(address: Address, remote: bool) -> None:
    """Refuse what is no place of a server or tracker, or one that is not this machine without `remote`.

    Raises:
        UsageError: no port, a user, or another machine.
    """
    scheme = _scheme(address)
    if address.port is None or address.user is not None:
        raise UsageError(f"--via {scheme}:// takes a host and a port and no user: {scheme}://localhost:9090")
    if not is_loopback(address.host) and not remote:
        raise UsageError(
            f"{scheme}://{address.host}:{address.port} is not this machine, and TVM's RPC has no protection: who "
            "reaches the port runs any code there, and everything travels in plain text",
            hint=f"forward the port by SSH: `ssh -L {address.port}:localhost:{address.port} {address.host}`, then "
            f"--via {scheme}://localhost:{address.port}; or, in a network you trust, --allow-remote",
        )


class RpcRunner:
    """Runner "rpc" of a host or Linux artifact; `address` is that of the server or tracker, which must be running.

    Raises:
        UsageError: no port, a user, or another machine than this one without `options.remote`.
    """

    name = "rpc"
    tells = Tells(
        ("outputs", "latency"),
        {
            "instructions": "TVM's RPC reads no counters; --via ssh, qemu or unicorn does",
            "stack": "the stack is the server's own",
            "governor": "the server does not tell clock frequencies, throttling or its cores: --via ssh does",
        },
    )

    def __init__(self, artifact: Artifact, target: Target, address: Address, options: RunOptions) -> None:
        check_place(address, options.remote)
        self.image, self.target, self.address, self.options = Image(artifact), target, address, options
        kind = f"/{address.kind}" if address.kind else ""
        self.where = f"{_scheme(address)}://{address.host}:{address.port}{kind}"

    def available(self) -> str | None:
        """Whether the artifact is for Linux; whether the server answers is seen when it runs."""
        if self.target.kind == "firmware":
            return f"{self.target.name} is firmware: no TVM runtime runs there"
        return None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs there, then time the first.

        Raises:
            TransportError: no server, it has another CPU, it was lost, or the time is over.
            DeviceError: the code fails there. ToolchainError: the library cannot be compiled.
        """
        inputs = self.image.check(codes)
        tell(self.name, 0, 2)
        self._reach()
        module = link_module(self.image.artifact, self.target)
        tell(self.name, 1, 2)
        with scratch_folder("rpc") as folder:
            result = self._client(Path(folder), inputs, module)
            outputs = self._outputs(Path(folder), len(inputs))
        tell(self.name, 2, 2)
        times = np.array(result.get("times", []), np.float64) * 1e9
        if len(inputs) and not (len(times) == self.options.repeats and np.isfinite(times).all() and (times > 0).all()):
            raise DeviceError(f"{self.where}: {len(times)} of {self.options.repeats} times came back, or are no times")
        environment = {
            "machine": result.get("cpu") or "not told by the server", "server": result.get("board") or self.where,
            "triple": result.get("triple") or "not told by the server", "protection": self._protection(),
        }  # fmt: skip
        if self.address.kind:
            environment |= {"tracker": self.where, "gone": list(result.get("lost", []))}
        return Ran(self.name, self.image.shaped(outputs), times=times if len(times) else None, environment=environment)

    def _protection(self) -> str:
        if is_loopback(self.address.host):
            return "loopback only: a server here, or one behind an SSH forward"
        return "none: plain text, and anyone who reaches the port can run code there"

    def _client(self, folder: Path, inputs: Int8, module: bytes) -> dict[str, Any]:
        """What the client process wrote."""
        machine = str(self.image.manifest["machine"])
        request = {
            "host": self.address.host, "port": self.address.port, "kind": self.address.kind,
            "remote": self.options.remote, "timeout": self.options.timeout,
            "name": f"xdeploy-{secrets.token_hex(8)}.so", "machines": machines_for(machine),
            "output_bytes": self.image.output_bytes, "repeats": self.options.repeats, "burst_ms": BURST_MS,
        }  # fmt: skip
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        (folder / "module.so").write_bytes(module)
        np.save(folder / "inputs.npy", inputs)
        command = tied([sys.executable, "-m", "xdeploy.bench.rpc_client", str(folder)])
        devnull = subprocess.DEVNULL
        limit = self.options.timeout * (2 if self.address.kind else 1) + GRACE  # to wait for a board, and to use it
        try:
            done = subprocess.run(
                command, stdin=devnull, stdout=devnull, stderr=devnull, timeout=limit,
                check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TransportError(f"{self.where}: no end after {limit:g} s of {_phase(folder)}") from None
        path = folder / "result.json"
        if done.returncode or not path.is_file() or path.stat().st_size > RESULT_LIMIT:
            raise TransportError(f"{self.where}: the client ended with {done.returncode} while {_phase(folder)}")
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self._judge(result, _phase(folder), machine)
        return result

    def _judge(self, result: dict[str, Any], phase: str, machine: str) -> None:
        """Raise unless the code ran."""
        if "error" in result:
            told, limit = shown(str(result["error"]), 300, quote=False), self.options.timeout
            if phase == "connecting" or (phase == "asking the tracker" and not result.get("tracker")):
                raise self._no_server(told)
            if "tracker" in result:
                raise TransportError(f"{self.where}: {told}", hint=f"register a board: {self._register()}")
            raise TransportError(
                f"{self.where}: failed while {phase}: {told}",
                hint=f"the server may lack the instructions of {self.target.isa}, have another version of TVM, "
                f"or have ended the session after {limit:g} s",
            )
        if "status" not in result:
            triple = shown(str(result.get("triple")), quote=False)
            raise TransportError(
                f"{self.where} is a {triple}, {self.target.name} is built for {machine}",
                hint="build for the server's CPU",
            )
        if result["status"] == -1:
            raise DeviceError(f"{self.where}: the library was called wrongly: is it another version of TVM there?")
        self.image.status(int(result["status"]))

    def _register(self) -> str:
        """The command, on a board that reaches the tracker by an SSH forward."""
        return (
            f"python -m tvm.exec.rpc_server --host 127.0.0.1 --port 9091 --port-end 9092 "
            f"--tracker 127.0.0.1:{self.address.port} --key {self.address.kind}"
        )

    def _no_server(self, told: str) -> TransportError:
        port = self.address.port or 0
        if self.address.kind:
            hint = f"start one here (it needs tornado): python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port {port}"
            return TransportError(f"{self.where}: no TVM RPC tracker answers: {told}", hint=hint)
        return TransportError(
            f"{self.where}: no TVM RPC server answers: {told}",
            hint=f"start one there: python -m tvm.exec.rpc_server --host 127.0.0.1 --port {port} --port-end {port + 1}"
            ", and forward the port by SSH",
        )

    def _reach(self) -> None:
        """Connect once and leave: quicker than compiling and loading TVM to find nothing there."""
        try:
            socket.create_connection((self.address.host, self.address.port or 0), CONNECT).close()
        except OSError as error:
            raise self._no_server(error.strerror or str(error)) from None

    def _outputs(self, folder: Path, count: int) -> Int8:
        outputs = np.load(folder / "outputs.npy", allow_pickle=False)
        if outputs.dtype != np.int8 or outputs.size != count * self.image.output_bytes:
            raise DeviceError(f"{self.where}: {outputs.size} bytes of outputs came back")
        shaped: Int8 = outputs.reshape(count, self.image.output_bytes)
        return shaped


def _phase(folder: Path) -> str:
    path = folder / "phase"
    return path.read_text(encoding="ascii") if path.is_file() else "starting"
