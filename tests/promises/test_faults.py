"""Calls that the system refuses: one clear message, the earlier run whole, nothing left, and the next run mends all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import faults
import kills
import pytest
import small
import warm

from tests.conftest import seed
from tests.promises import steps

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
SOME = 12
PAGE = os.sysconf("SC_PAGE_SIZE")
SHARES = (0.02, 0.3, 0.6, 0.8, 0.95)  # of what a build needs: how much room its disk has


def told(output: Path) -> int:
    """The run of three stages, its errors told as the command tells them."""
    from xdeploy.cli import _explain

    try:
        return steps.run(output, 0)
    except Exception as error:
        return _explain(error)


class Scene:
    """A finished run of seed 7, the hash of it and of an undisturbed one of seed 0, and what can be refused there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for number in (7, 0):
            steps.run(folder / f"run{number}", number)
        self.states = (steps.content(folder / "run7"), steps.content(folder / "run0"))
        output, place = self.fresh()
        ended = warm.run(partial(told, output), place, trace=folder / "trace")
        if ended.code == 70 or not (folder / "trace").read_text():
            pytest.skip("processes cannot be traced here")
        assert ended.code == 0, ended.text
        self.faults = faults.faults(warm.points(folder / "trace", (output, place.temporary)))

    def fresh(self) -> tuple[Path, warm.Place]:
        spot = self.folder / "spot"
        shutil.rmtree(spot, ignore_errors=True)
        shutil.copytree(self.folder / "run7", spot / "out")
        return spot / "out", warm.Place.below(spot, self.folder)

    def refuse(self, fault: faults.Fault) -> int:
        """The exit code, where everything else is as it should be."""
        output, place = self.fresh()
        row = faults.refuse(fault, partial(told, output), output, place, steps.content, self.states)
        assert not row["wrong"], (fault.name, fault.point.file, row)
        return int(row["code"])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("faults"))


@needs_strace
def test_some_calls_are_refused(scene: Scene) -> None:
    some = faults.chosen(scene.faults, SOME, seed())
    assert {f.error for f in some} == {"ENOSPC", "EROFS", "EACCES", "EIO", "EMFILE"}
    assert {scene.refuse(fault) for fault in some} >= {1}


@needs_strace
@pytest.mark.slow
def test_every_call_is_refused(scene: Scene) -> None:
    codes = [scene.refuse(fault) for fault in scene.faults]
    assert codes.count(1) > len(codes) // 3


# ------------------------------------------------------------------------------------------- a disk that is full
@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes at the folder; given up, not waited for, at the end."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "xdeploy-test", str(folder)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file systems can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def used(folder: Path) -> int:
    """Bytes that the folder's file system holds."""
    stat = os.statvfs(folder)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def is_full(ended: warm.Ended, folder: Path) -> bool:
    """Whether a command ended for want of room, and said where."""
    assert ended.code == 1, ended.text
    assert ended.text.count("error: ") == 1, ended.text
    assert "Traceback" not in ended.text
    assert "hint: make room" in ended.text, ended.text
    return f"error: {folder}" in ended.text and os.strerror(errno.ENOSPC) in ended.text


def test_a_full_disk(tmp_path: Path) -> None:
    """Page by page more room, from none for the second run on, until it fits; after each the folder is whole."""
    place = warm.Place.below(tmp_path / "spot", tmp_path)
    steps.run(tmp_path / "other", 0)
    new, full, done = steps.content(tmp_path / "other"), 0, False
    with disk(tmp_path / "disk", 1 << 20) as folder:
        output = folder / "out"
        steps.run(output, 7)
        earlier, room = steps.content(output), used(folder)
        while not done:
            grow(folder, room)
            ended = warm.run(partial(told, output), place)
            done = ended.code == 0
            full += not done and is_full(ended, output)
            assert steps.content(output) == (new if done else earlier)
            assert not [n for n in small.litter(output, place.temporary) if n != "unfinished"]
            room += 2 * PAGE
    assert full >= 3


@pytest.mark.slow
def test_a_build_on_a_full_disk(tmp_path: Path) -> None:
    """Rooms of several sizes, the last large enough; the package is the one of a disk with room."""
    warm.load_all()
    work = tmp_path / "work"
    small.prepare(work)
    place = warm.Place.below(tmp_path / "spot", work)
    with disk(tmp_path / "disk", 256 << 20) as folder:
        assert warm.run(small.command(folder / "other"), place).code == 0
        expected, need = small.digest(folder / "other"), used(folder)
        shutil.rmtree(folder / "other")
        for share in SHARES:
            grow(folder, int(share * need) // PAGE * PAGE)
            ended = warm.run(small.command(folder / "out"), place)
            assert is_full(ended, folder), (share, ended.text)
            assert not [n for n in small.litter(folder, place.temporary) if n != "unfinished"], share
        grow(folder, 2 * need)
        ended = warm.run(small.command(folder / "out"), place)
        assert ended.code == 0, ended.text
        assert small.digest(folder / "out") == expected
        assert not small.litter(folder, place.temporary)


@needs_strace
@pytest.mark.slow
def test_some_calls_of_a_build_are_refused(tmp_path: Path) -> None:
    warm.load_all()
    at = kills.scene(tmp_path)
    some = faults.chosen(faults.faults(kills.found_points(at)), SOME, seed())
    for fault in some:
        output, place = at.fresh()
        row = faults.refuse(fault, small.command(output), output, place, small.digest, (at.earlier, at.expected))
        assert not row["wrong"], (fault.name, row)


def test_a_full_disk_ends_the_compiler(tmp_path: Path) -> None:
    """An object file that does not fit: told as a disk that is full, not as a compiler that fails."""
    from xdeploy.builder import zig
    from xdeploy.errors import ToolchainError
    from xdeploy.files import StorageError

    (tmp_path / "a.c").write_text("const unsigned char w[200000] = {1};\n")
    with disk(tmp_path / "disk", 16 * PAGE) as folder:
        with pytest.raises(StorageError, match=re.escape(f"{folder}: {os.strerror(errno.ENOSPC)}")):
            zig.cc(["-c", tmp_path / "a.c", "-o", "a.o"], folder)
        (tmp_path / "a.c").write_text("no C at all")
        with pytest.raises(ToolchainError):
            zig.cc(["-c", tmp_path / "a.c", "-o", "b.o"], folder)
