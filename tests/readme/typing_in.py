"""Typing README's commands into a folder: most run as they are, the others have a row here that says why not."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.readme.reading import ROOT
from xdeploy import cli
from xdeploy.bench.via import parse_address
from xdeploy.commands import stages

# words of running text that stand for the reader's own
PLACEHOLDERS = {"MODEL": "net.onnx", "DIR": "train.zip", "OUT": "made", "NAME": "cortex-m4", "...": "cortex-m4"}
# what makes a command quick, and its plan free to lose all on so few samples; none of it changes which stages run
QUICK = {"threads": 1, "data.calibration": 32, "relevance.samples": 16, "bench.repeats": 2, "plan.max_drop": 100}
GATED = 4  # exit code of a gate that was judged and is not met, as it may be for a stand-in


class Row(NamedTuple):
    """Commands that do not run as they are: what is done instead, and why."""

    pattern: str
    instead: Callable[[str, Path], None]
    why: str


def type_in(command: str, folder: Path) -> None:
    """Run one line of README in `folder`, the parts between && one after the other."""
    for part in re.split(r"\s&&\s", command):
        row = next((r for r in ROWS if re.match(r.pattern, part)), None)
        if row is not None:
            row.instead(part, folder)
            continue
        words = [PLACEHOLDERS.get(w, w) for w in shlex.split(part, comments=True)]
        if words[0] == "xdeploy":
            _xdeploy(words[1:], folder)
        elif words[0] in ("python", "python3") and Path(words[1]).suffix == ".py":
            _program([sys.executable, *words[1:]], folder)
        else:
            pytest.fail(f"README has a command that this test does not know: {part!r}; run it here or give it a row")


def _xdeploy(words: list[str], folder: Path) -> None:
    if words[0] in (*stages._VERBS, "sweep"):
        if words[0] == "build" and "x86-64" not in words:
            words += ["--set", "bench.accuracy=false"]  # else this computer's library is built beside every target
        # a sweep has a flag for it, which says 1; a quantised file is not scored, and refuses what it cannot honour
        kept = words[1].endswith(("int8.onnx", "model.onnx")) and "--further" not in words
        dropped = {"threads"} if words[0] == "sweep" else {"relevance.samples"} if kept else set()
        quick = {k: v for k, v in QUICK.items() if k not in dropped}
        words += [w for key, value in quick.items() for w in ("--set", f"{key}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = cli.main(words)
    allowed = {0, GATED} if words[0] == "check" and any(w.startswith(("--max-", "--min-")) for w in words) else {0}
    assert code in allowed, f"xdeploy {shlex.join(words)} ended with {code}"


def _program(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------ what cannot run here
def _parsed(command: str, folder: Path) -> None:
    """Words and flags are known to the command line, the address is one, and the artifact is in the run folder."""
    args: argparse.Namespace = cli.parser().parse_args(shlex.split(command, comments=True)[1:])
    if args.via.startswith("ssh:"):
        parse_address(args.via)
    assert (folder / args.artifact / "manifest.json").is_file()


def _pip(command: str, folder: Path) -> None:
    """pip's own parser takes the words; files and extras that they name are there."""
    pytest.importorskip("pip", reason="this environment has no pip")
    from pip._internal.commands.install import InstallCommand

    assert shlex.split(command)[1] == "install"
    options, wanted = InstallCommand("install", "").parse_args(shlex.split(command, comments=True)[2:])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for item in [*wanted, *options.editables]:
        found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", item)
        if found is None:  # a distribution: pip gets it from the registry
            assert re.fullmatch(r"[A-Za-z][\w.-]*(\[[\w,]+\])?([<>=~!]=?[\w.]+)?", item), item
        else:
            assert {e for e in (found[1] or "").split(",") if e} <= set(extras), command
    assert all((ROOT / c).is_file() for c in options.constraints), command


def _ranks(command: str, folder: Path) -> None:
    """torchrun's own parser takes its words, and the command line the rest."""
    from torch.distributed.run import get_args_parser

    words = [PLACEHOLDERS.get(w, w) for w in shlex.split(command)]
    assert get_args_parser().parse_args(words[1:]).training_script == "xdeploy"
    cli.parser().parse_args(words[words.index("xdeploy") + 1 :])


def _served(command: str, folder: Path) -> None:
    """The module is there and knows the options."""
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *words[1:3], "--help"], capture_output=True, text=True, timeout=600, check=True
    )
    assert all(w in done.stdout for w in words if w.startswith("--"))


def _environment(command: str, folder: Path) -> None:
    """The environment is made, without pip; the shell's own reading of its script is the setting-up's."""
    if command.startswith("."):
        assert (folder / shlex.split(command)[1]).is_file(), command
    else:
        _program([sys.executable, *shlex.split(command)[1:], "--without-pip"], folder)


def _ssh(command: str, folder: Path) -> None:
    """ssh says what it would do."""
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed")
    words = shlex.split(command, comments=True)
    _program([words[0], "-G", *words[1:]], folder)


def _tests(command: str, folder: Path) -> None:
    """This is what runs at the moment: its configuration has the folders."""
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    assert all((ROOT / p).is_dir() for p in paths)


def _board(command: str, folder: Path) -> None:
    """QEMU starts the board with this firmware and names its serial port, then waits for a runner."""
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed")
    image = next((folder / "out/cortex-m4/build").glob("xd_*_serial.elf"))
    words = [w if "<model>" not in w else str(image) for w in shlex.split(command)]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as board:
        assert board.stdout is not None
        said = board.stdout.readline()
        board.kill()
    assert "redirected to /dev/pts/" in said, said


ROWS = (
    Row(r"(pip3?|python3? -m pip) ", _pip, "needs the network"),
    Row(r"(python3? -m venv|\.) ", _environment, "the project's check runs both set-up blocks in fresh environments"),
    Row(r"python -m tvm\.exec\.rpc_", _served, "runs until it is stopped; tests/bench has a tracker and two servers"),
    Row(r"torchrun ", _ranks, "minutes; tests/ranks runs one"),
    Row(r"pytest$", _tests, "would run itself"),
    Row(r"ssh ", _ssh, "needs a board"),
    Row(r"xdeploy bench .*--via (ssh:|serial:|rpc:|tracker:)", _parsed, "needs a board; tests/bench has stand-ins"),
    Row(r"qemu-system-arm .*-serial pty", _board, "waits for a runner, which tests/bench is"),
)
