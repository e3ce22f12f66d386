"""`--via`: which runner, and where it is; the one place that knows all runners."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xdeploy.bench.flash import Flash
from xdeploy.bench.host import HostRunner
from xdeploy.bench.qemu import QemuRunner
from xdeploy.bench.qemuuser import QemuUserRunner
from xdeploy.bench.rpc import RpcRunner, check_place
from xdeploy.bench.runner import Runner, RunOptions
from xdeploy.bench.serial import SerialRunner
from xdeploy.bench.ssh import SshRunner
from xdeploy.bench.unicorn import UnicornRunner
from xdeploy.errors import UsageError, choose_from
from xdeploy.handover import Artifact
from xdeploy.target import Target

LOCAL = ("host", "qemu", "unicorn")
SCHEMES = {
    "ssh": "ssh://[user@]host[:port]",
    "serial": "serial:/dev/ttyX[@baud]",
    "rpc": "rpc://host:port",
    "tracker": "tracker://host:port/kind",
}
FORMS = (*LOCAL, *SCHEMES.values())
_NAME = r"[A-Za-z0-9_][\w.-]*"
_ADDRESS = re.compile(rf"(?:(?P<user>{_NAME})@)?(?P<host>\[[0-9A-Fa-f:.]+\]|{_NAME})(?::(?P<port>\d+))?")


@dataclass(frozen=True, slots=True)
class Address:
    """A machine in the network."""

    host: str
    port: int | None = None
    user: str | None = None
    kind: str = ""  # of boards, of a tracker's address


def parse_address(via: str) -> Address:
    """The address of `scheme://[user@]host[:port]`, of a tracker with `/kind`; names start with a letter, digit or _.

    Raises:
        UsageError: it is none.
    """
    scheme, _, rest = via.partition("://")
    rest, _, kind = rest.partition("/") if scheme == "tracker" else (rest, "", "")
    found = _ADDRESS.fullmatch(rest)
    port = int(found["port"]) if found and found["port"] else None
    lacks_kind = scheme == "tracker" and not re.fullmatch(_NAME, kind)
    if found is None or lacks_kind or (port is not None and not 0 < port < 65536):
        raise UsageError(f"--via {via!r} is no {SCHEMES.get(scheme, 'address')}")
    return Address(found["host"].strip("[]"), port, found["user"], kind)


def admit(via: str, remote: bool) -> Address:
    """The address of a board in the network, before there is anything to run on it.

    Raises:
        UsageError: it is none, or one that may not be used as it is.
    """
    address = parse_address(via)
    if via.partition(":")[0] in ("rpc", "tracker"):
        check_place(address, remote)
    return address


def runner_for(artifact: Artifact, target: Target, via: str | None, options: RunOptions | None = None) -> Runner:
    """The runner that `via` names, or the target's own.

    Raises:
        UsageError: unknown name or bad address, or the target has no runner.
    """
    options = options or RunOptions()
    own = "host" if target.kind == "host" else str(target.runner.get("emulator", "none"))
    name = via or own
    scheme = name.partition(":")[0]
    if name not in LOCAL and scheme not in SCHEMES:
        if via is None:
            raise UsageError(f"{target.name} has no runner", hint="run the artifact on the device itself")
        raise choose_from("runner", name, FORMS)
    if scheme in ("rpc", "tracker"):
        return RpcRunner(artifact, target, parse_address(name), options)
    if scheme == "ssh":
        return SshRunner(artifact, parse_address(name), options)
    if name == "host":
        return HostRunner(artifact)
    if scheme == "serial":
        return SerialRunner(artifact, name, options)
    if name == "qemu" and target.kind != "firmware":
        return QemuUserRunner(artifact, target, options.timeout)
    if name == "qemu":
        return QemuRunner(artifact, str(target.runner.get("machine", "")), Flash.of(target.cycles))
    return UnicornRunner(artifact, str(target.runner.get("model", "")), Flash.of(target.cycles))
