"""External data: whatever a file names, nothing outside it is opened, by any command that takes a model.

Proven twice: by Python's audit of opened files, and for the canary by the kernel (inotify), which also sees what native
libraries open.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.hostile import LOCATIONS, PLACES, escapes
from xdeploy.cli import main

SECRET = b"the canary's secret"
_opened: list[str] = []
_watching = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(args[0]))


sys.addaudithook(_audit)


class Watch:
    """Counts how often files were opened or read, as the kernel saw it; without inotify it sees nothing."""

    def __init__(self, paths: list[Path]) -> None:
        self._fd = -1
        if sys.platform.startswith("linux"):
            libc = ctypes.CDLL(None, use_errno=True)
            self._fd = libc.inotify_init1(os.O_NONBLOCK)
            for path in paths:
                assert libc.inotify_add_watch(self._fd, os.fsencode(path), 0x20 | 0x01) >= 0  # IN_OPEN | IN_ACCESS

    def seen(self) -> bool:
        try:
            return self._fd >= 0 and bool(os.read(self._fd, 4096))
        except BlockingIOError:
            return False


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder for the model, with links and a pipe in it, and the canary one folder up."""
    (tmp_path / "canary.bin").write_bytes(SECRET * 10)
    folder = tmp_path / "model"
    (folder / "weights").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "canary.bin")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "hard.bin").hardlink_to(tmp_path / "canary.bin")
    (folder / "beside.bin").write_bytes(SECRET * 10)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def watching() -> Iterator[list[str]]:
    global _watching
    _opened.clear()
    _watching = True
    yield _opened
    _watching = False


Capture = pytest.CaptureFixture[str]


def _commands(capsys: Capture) -> list[str]:
    """Every subcommand whose first argument is a model, from the commands' own help."""
    main(["no-such-command"])
    names = re.findall(r"'([a-z]+)'", capsys.readouterr().err.partition("choose from")[2])
    found = []
    for name in names:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        usage = " ".join(capsys.readouterr().out.split("\n\n")[0].split())
        if re.search(r"(?<![\w-])(\[model\]|model|OUT\|MODEL\.onnx)$", usage):
            found.append(name)
    return found


def _arguments(command: str, model: Path, out: Path) -> list[str]:
    more = [] if command in ("check", "diff") else ["--target", "cortex-m4", "-o", str(out)]
    more += ["--budgets", "flash=32K"] if command == "sweep" else []
    return [command, str(model), *more]


LEGAL = {"location: beside"}  # with the flag: a plain file beside the model


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["in turn", "every"])
@pytest.mark.parametrize("flag", [[], ["--allow-external-data"]], ids=["by default", "allowed"])
def test_no_way_out(
    work: Path,
    tmp_path: Path,
    capsys: Capture,
    watching: list[str],
    monkeypatch: pytest.MonkeyPatch,
    flag: list[str],
    every: bool,
) -> None:
    """Every file with every command, or with two of them in turn."""
    commands = _commands(capsys)
    assert {"build", "explain", "plan", "compress", "export", "compile", "check", "diff"} <= set(commands)
    assert len(LOCATIONS) >= 20
    canary, model, out = tmp_path / "canary.bin", work / "model.onnx", tmp_path / "out"
    watch = Watch([canary, work / "beside.bin"])
    monkeypatch.chdir(work)
    count = 0
    for number, (label, data) in enumerate(escapes(str(canary), canary.name)):
        if flag and label in LEGAL:
            continue
        model.write_bytes(data)
        half = len(commands) // 2
        for command in commands if every else commands[number % half :: half]:
            watching.clear()
            code = main([*_arguments(command, model, out), *flag])
            message = "".join(capsys.readouterr())
            assert code == 3, (label, command, message)
            known = "another file|sparse|is malformed|not UTF-8|refused|is a link|cannot be read"
            assert re.search(known, message), (label, command, message)
            assert SECRET.decode() not in message
            bad = [p for p in watching if _outside(p, work, model) and not (flag and _the_folder(p, work))]
            assert not bad, (label, command, bad)
            assert not watch.seen(), (label, command)
            assert not out.exists(), (label, command)
            count += 1
    assert count >= (len(commands) if every else 2) * (len(LOCATIONS) + len(PLACES))
    canary.read_bytes()
    assert watch.seen() or not sys.platform.startswith("linux"), "the watch sees nothing at all"


def _the_folder(opened: str, work: Path) -> bool:
    """Whether it is the model's folder that was opened, to look for a plain name in it."""
    return Path(os.path.abspath(opened)) == work


def _outside(opened: str, work: Path, model: Path) -> bool:
    """Whether an opened file could be what a location names: anything in or above the work folder but the model."""
    path = Path(os.path.abspath(opened))
    if path == model or path.name == ".writable":
        return False
    near = path.is_relative_to(work.parent) and "out" not in path.relative_to(work.parent).parts
    return near or opened.startswith(("/proc/self/environ", "/proc/self/mem", "/dev/zero", "/etc/passwd"))


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing parent", "link to a pipe"])
def test_the_model_itself_is_a_regular_file(work: Path, capsys: Capture, kind: str) -> None:
    """A pipe is not waited for, a device not read."""
    path = work / "x.onnx"
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
        "missing parent": lambda: path.symlink_to(work / "nowhere" / "y.onnx"),
        "link to a pipe": lambda: path.symlink_to(work / "pipe"),
    }  # fmt: skip
    make[kind]()
    code = main(["check", str(path)])
    assert code in (2, 3)
    assert "x.onnx" in "".join(capsys.readouterr())
