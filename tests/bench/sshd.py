"""A real sshd on loopback for a test module: own keys and configuration, the current user, no file of the system."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
FEW = ("uname", "cat", "mkdir", "rm", "ls", "chmod", "wc", "tail", "grep", "tr", "id", "sh")
SMALL = 65536  # bytes of the tiny file system


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Board:
    """The far side as the tests see it; `shims` comes first in its PATH, `tmp` is its TMPDIR, `small` a full one."""

    def __init__(self, folder: Path) -> None:
        assert SSHD is not None
        self.folder, self.port = folder, free_port()
        self.tmp, self.shims, self.small, self.poor = (folder / n for n in ("tmp", "shims", "small", "poor"))
        for path in (self.tmp, self.shims, self.small, self.poor):
            path.mkdir()
        for name in ("host", "user", "poor-user", "stranger"):
            key = str(folder / name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
        for name in FEW:
            (self.poor / name).symlink_to(str(shutil.which(name)))
        paths = {"user": f"{self.shims}:{os.environ['PATH']}", "poor-user": str(self.poor)}
        # HOME: start-up files of the real user's shell are no part of the test
        keys = (
            f'environment="PATH={path}",environment="HOME={folder}" {(folder / f"{name}.pub").read_text()}'
            for name, path in paths.items()
        )
        (folder / "authorized").write_text("".join(keys))
        kind, key = (folder / "host.pub").read_text().split()[:2]
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")
        (folder / "nobody").write_text("")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nAcceptEnv TMPDIR\n"
            "PermitUserEnvironment PATH,HOME\n"
            f"Banner {folder}/banner\n"
        )
        (folder / "banner").write_text("Authorised use only\n" * 3)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [str(SSHD), "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "sshd.log")]
        if os.geteuid() == 0:
            # privilege separation wants a folder below /run: made in a name space that only this sshd sees, and so is
            # the tiny file system
            mounts = f"mount -t tmpfs -o size={SMALL} tmpfs {shlex.quote(str(self.small))}"
            inner = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && {mounts} && exec {shlex.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", inner]
        with (self.folder / "start.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)

    def works(self) -> str | None:
        """None when a plain login succeeds, else the reason why there is no board."""
        done = subprocess.CompletedProcess([], 255, "", "")
        for _ in range(50):
            if self.process.poll() is not None:
                break
            command = [*shlex.split(self.ssh()), "-o", "BatchMode=yes", "127.0.0.1", "echo in"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
            if done.stdout == "in\n":
                return None
            time.sleep(0.1)
        logs = "".join(
            p.read_text()[-400:] for p in (self.folder / "start.log", self.folder / "sshd.log") if p.exists()
        )
        return f"sshd does not let this user in: {done.stderr.strip()} {logs.strip()}"

    @property
    def via(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    def ssh(self, key: str = "user", known: str = "known", tmp: Path | None = None) -> str:
        """The ssh command of a user with these keys and known hosts; TMPDIR there. "poor-user" finds `FEW` only."""
        config = Path(tempfile.mkstemp(prefix="config", dir=self.folder)[1])
        config.write_text(
            f"Host *\n Port {self.port}\n IdentityFile {self.folder}/{key}\n IdentitiesOnly yes\n IdentityAgent none\n"
            f" UserKnownHostsFile {self.folder}/{known}\n GlobalKnownHostsFile none\n"
            f" SetEnv TMPDIR={tmp or self.tmp}\n"
        )
        return f"ssh -F {shlex.quote(str(config))}"

    def shim(self, name: str, text: str) -> Path:
        """A program that the board finds before its own."""
        path = self.shims / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def clear(self) -> None:
        for path in self.shims.iterdir():
            path.unlink()

    def left(self) -> list[str]:
        return sorted(os.listdir(self.tmp))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
