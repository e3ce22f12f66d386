"""Commands on another machine through the user's own OpenSSH, and a private folder there for as long as it is needed.

Keys, agent, known hosts and ~/.ssh/config are the user's; nothing is asked (BatchMode), and an unknown or changed host
key is refused. What comes back is not trusted: its size is limited, and only what lies between this session's random
marks is read, so that banners and shells that greet do no harm.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING

from xdeploy.errors import TransportError, UsageError, XdeployError, shown
from xdeploy.process.interrupt import tidying, to_be_tidied

if TYPE_CHECKING:
    from xdeploy.bench.via import Address

NOISE = 8 << 20  # bytes that a board may send beside what was asked for
SAID = 4096  # last bytes of stderr that are kept
CONNECT = 15  # seconds to connect; three lost signs of life, as far apart, end a session
_ASKED = ("-T", "-a", "-x", "-o", "BatchMode=yes")  # before the user's options: ssh takes the first value of each
_DEFAULTS = ("-o", f"ConnectTimeout={CONNECT}", "-o", f"ServerAliveInterval={CONNECT}", "-o", "ServerAliveCountMax=3",
             "-o", "ClearAllForwardings=yes", "-o", "RemoteCommand=none", "-o", "LogLevel=ERROR")  # fmt: skip
_HINTS = (
    ("Permission denied", "let `ssh-copy-id` install your key there; passwords are never asked for here"),
    ("IDENTIFICATION HAS CHANGED", "the host key is not the known one: find out why before anything else"),
    ("Host key verification failed", "connect once by hand with ssh and compare the fingerprint of the host key"),
    ("Connection refused", "nothing listens there: is sshd running, and is the port right?"),
    ("Could not resolve", "the name is unknown: give an address, or a Host of your ~/.ssh/config"),
    ("timed out", "the machine does not answer: is it on, and in this network?"),
    ("No route to host", "the machine does not answer: is it on, and in this network?"),
)


class Shell:
    """/bin/sh of a machine, one connection per script.

    Args:
        address: where; without a user or port, as ~/.ssh/config says.
        ssh: the program and further options for it, as one would type them ("" for `ssh`).
    """

    def __init__(self, address: Address, ssh: str = "") -> None:
        try:
            words = shlex.split(ssh) or ["ssh"]
        except ValueError as error:
            raise UsageError(f"the ssh command {shown(ssh)} cannot be split into words: {error}") from None
        self.program = words[0]
        self._command = [self.program, *_ASKED, *words[1:], *_DEFAULTS]
        self._command += ["-p", str(address.port)] if address.port else []
        self._command += ["-l", address.user] if address.user else []
        self._command += ["--", address.host]
        user, port = f"{address.user}@" if address.user else "", f":{address.port}" if address.port else ""
        self.where = f"{user}{address.host}{port}"
        self.mark = f"xd{secrets.token_hex(16)}"
        self.reached = False  # whether a command may have run there

    def installed(self) -> bool:
        """Whether the ssh program is there."""
        return shutil.which(self.program) is not None

    def section(self, name: str) -> str:
        """The commands that begin a section of what is sent back; it ends where the next begins."""
        return f"echo; echo {self.mark} {name}"

    def run(self, what: str, script: str, timeout: float, stdin: bytes = b"", expected: int = 0) -> Mapping[str, bytes]:
        """Run a script (one line, without single quotes) there.

        Args:
            what: for messages, e.g. "copying the program".
            script: commands for /bin/sh, with `section` between what has to come back.
            timeout: seconds for all of it.
            stdin: bytes for the script.
            expected: bytes that it may send.

        Returns:
            The bytes of every section, and of "stderr" the last.

        Raises:
            TransportError: no connection, it was lost, the time is over, or too much came.
        """
        whole = f"{self.section('begin')}; {script}; {self.section('done')}"
        remote = f"exec /bin/sh -c {shlex.quote(whole)}"
        before, self.reached = self.reached, True
        try:
            code, out, said = _exchange([*self._command, remote], stdin, expected + NOISE, timeout)
        except subprocess.TimeoutExpired:
            raise TransportError(f"{self.where}: {what} took more than {timeout:.0f} s") from None
        except FileNotFoundError:
            self.reached = before
            raise TransportError(f"{self.program} is not installed", hint="apt-get install openssh-client") from None
        sections = _sections(out, self.mark)
        if len(out) > expected + NOISE:
            raise TransportError(
                f"{self.where}: more than {len(out) - 1} bytes came back while {what}",
                hint="a start-up file of the shell there may print without end",
            )
        self.reached = before or code != 255 or "begin" in sections
        if "done" not in sections:
            raise self._lost(what, code, "begin" in sections, said)
        return {**sections, "stderr": said}

    def _lost(self, what: str, code: int, began: bool, said: bytes) -> TransportError:
        text = said_text(said)
        if began or code != 255:
            told = f": {text}" if text else ""
            kind = "the connection was lost" if code in (255, -signal.SIGKILL) else f"ssh ended with {code}"
            return TransportError(f"{self.where}: {kind} while {what}{told}")
        hint = next((hint for sign, hint in _HINTS if sign in text), None)
        return TransportError(f"ssh cannot connect to {self.where}: {text or 'no reason was given'}", hint=hint)


def said_text(said: bytes, limit: int = 300) -> str:
    """What a program wrote last, as one printable line."""
    return shown(" ".join(said.decode("utf-8", "replace").split())[-limit:], limit, quote=False)


def _sections(data: bytes, mark: str) -> dict[str, bytes]:
    """Name -> bytes between its mark's line and the line end before the next mark."""
    found = {}
    for part in data.split(b"\n" + mark.encode() + b" ")[1:]:
        name, _, content = part.partition(b"\n")
        found[name.decode("ascii", "replace")] = content
    return found


def _exchange(command: Sequence[str], stdin: bytes, limit: int, timeout: float) -> tuple[int, bytes, bytes]:
    """Run a program: exit code, stdout (ended where it exceeds `limit`), the last of stderr.

    In a session of its own: no terminal to ask at, and Ctrl-C reaches this process alone, which then tidies up.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    out, said = bytearray(), deque[int](maxlen=SAID)

    def feed(pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError), pipe:
            pipe.write(stdin)

    def collect(pipe: IO[bytes]) -> None:
        with pipe:
            while len(out) <= limit and (data := os.read(pipe.fileno(), 1 << 16)):
                out.extend(data[: limit + 1 - len(out)])
        if len(out) > limit:
            _kill(process)

    def listen(pipe: IO[bytes]) -> None:
        with pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                said.extend(data[-SAID:])

    jobs = [(feed, process.stdin), (collect, process.stdout), (listen, process.stderr)]
    threads = [threading.Thread(target=job, args=(end,), daemon=True) for job, end in jobs]
    for thread in threads:
        thread.start()
    try:
        code = process.wait(timeout)
    finally:
        _kill(process)
        for thread in threads:  # a shared connection that ssh left behind may keep stderr open
            thread.join(2)
    return code, bytes(out), bytes(said)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Folder:
    """A private folder on the other machine, below its TMPDIR (or /tmp), with a name that nobody can foresee."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.name = f"xdeploy-{secrets.token_hex(12)}"
        self.left: str | None = None  # why it could not be removed

    def script(self, commands: str) -> str:
        """`commands` run inside the folder, if it is there; `pid` names their process group while they run."""
        return f'd="${{TMPDIR:-/tmp}}"/{self.name}; cd "$d" && {{ echo $$ > pid; {commands}; rm -f pid; }}'

    def put(self, name: str, data: bytes, timeout: float) -> None:
        """Write a file that only the user there can read or run.

        Raises:
            TransportError: it did not arrive whole.
        """
        shell, what = self.shell, f"copying {name}"
        commands = f"cat > {name} && chmod 700 {name}; {shell.section('size')}; wc -c < {name}"
        got = shell.run(what, self.script(commands), timeout, data)
        if got.get("size", b"").strip() != str(len(data)).encode():
            raise TransportError(
                f"{shell.where}: {what} failed: {said_text(got['stderr']) or 'not all bytes arrived'}",
                hint="make room there, or set TMPDIR for that user to a larger folder",
            )


@contextlib.contextmanager
def remote_folder(shell: Shell, timeout: float = 60.0) -> Iterator[Folder]:
    """A fresh folder there; it and what still runs in it are gone afterwards, whatever happens.

    Where even that fails, the error (or `left`, when there is none) says what was left behind.

    Raises:
        TransportError: it cannot be reached, or has no place for a folder.
    """
    folder = Folder(shell)
    made = f'umask 077; mkdir "${{TMPDIR:-/tmp}}"/{folder.name}; s=$?; {shell.section("status")}; echo $s'
    with to_be_tidied():
        try:
            got = shell.run("making a folder", made, timeout)
            if got["status"].strip() != b"0":
                raise TransportError(
                    f"{shell.where}: no folder can be made: {said_text(got['stderr'])}",
                    hint="set TMPDIR for that user to a folder it may write to",
                )
            yield folder
            folder.left = _remove(folder)
        except BaseException as error:  # an interrupt while it was being removed, too
            folder.left = _remove(folder) if shell.reached else None
            if folder.left and isinstance(error, XdeployError):
                error.message = f"{error.message}; {folder.left}"
            raise


def _remove(folder: Folder) -> str | None:
    """End what runs in the folder and remove it; None, or what is left where and why."""
    shell = folder.shell
    path = f'"${{TMPDIR:-/tmp}}"/{folder.name}'
    # sshd starts every command as the leader of a process group of its own; `pid` names that of one that has not ended
    end = f"if [ -s {path}/pid ]; then read p < {path}/pid; kill -9 -$p; fi 2>/dev/null"
    script = f"{end}; rm -rf -- {path}; {shell.section('left')}; ls -d {path} 2>/dev/null"
    try:
        with tidying():
            got = shell.run("removing the folder", script, 2.0 * CONNECT)
    except TransportError as error:
        return f"{folder.name} is left in {shell.where}'s temporary folder: {error.message}"
    left = got["left"].strip()
    return f"{said_text(left)} is left on {shell.where}: {said_text(got['stderr'])}" if left else None
