"""SIGKILL at calls that change a file: the earlier run is whole until the new one is, and the next run mends all."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import small
import warm

from tests.conftest import seed
from tests.promises import steps
from xdeploy.process.child import tied
from xdeploy.process.lock import locked, scratch_folder

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
POINTS = 24


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str, list[warm.Point]]:
    """A folder, the hashes of a run of seed 7 and of seed 0, and the calls of the second over the first."""
    folder = tmp_path_factory.mktemp("kills")
    hashes = []
    for number in (7, 0):
        steps.run(folder / f"run{number}", number)
        hashes.append(steps.content(folder / f"run{number}"))
    output, place = fresh(folder)
    ended = warm.run(partial(steps.run, output, 0), place, trace=folder / "trace")
    if ended.code == 70 or not (folder / "trace").read_text():
        pytest.skip("processes cannot be traced here")
    assert ended.code == 0, ended.text
    found = warm.points(folder / "trace", (output, place.temporary))
    assert {"write", "fsync", "mkdir", "unlink", "rename"} <= {p.call for p in found}
    return folder, *hashes, found


def fresh(folder: Path) -> tuple[Path, warm.Place]:
    spot = folder / "spot"
    shutil.rmtree(spot, ignore_errors=True)
    shutil.copytree(folder / "run7", spot / "out")
    return spot / "out", warm.Place.below(spot, folder)


def check(folder: Path, earlier: str, new: str, point: warm.Point) -> None:
    output, place = fresh(folder)
    ended = warm.run(partial(steps.run, output, 0), place, [f"{point.call}:signal=SIGKILL:when={point.number}"])
    assert ended.code == -signal.SIGKILL, point
    assert steps.content(output) in (earlier, new) or (output / ".commit").exists(), point
    again = warm.run(partial(steps.run, output, 0), place)
    assert again.code == 0, again.text
    assert steps.content(output) == new, point
    assert not small.litter(output, place.temporary), point


def test_some_kills(scene: tuple[Path, str, str, list[warm.Point]]) -> None:
    folder, earlier, new, found = scene
    for point in random.Random(seed()).sample(found, POINTS):
        check(folder, earlier, new, point)


def test_a_first_run_is_killed(scene: tuple[Path, str, str, list[warm.Point]]) -> None:
    """Nothing was there before: the run works in the folder itself, and leaves its parts there."""
    folder, _, new, _ = scene
    spot = folder / "first"
    met = False
    for number in range(1, 7):
        shutil.rmtree(spot, ignore_errors=True)
        place, output = warm.Place.below(spot, folder), spot / "out"
        work = partial(steps.run, output, 0)
        ended = warm.run(work, place, [f"fsync:signal=SIGKILL:when={2 * number}"])
        assert ended.code == -signal.SIGKILL
        met |= any(p.is_dir() for p in output.glob(".*.part"))
        assert warm.run(work, place).code == 0
        assert steps.content(output) == new
        assert not small.litter(output, place.temporary)
    assert met, "no kill fell into the package"


@pytest.mark.slow
def test_every_kill(scene: tuple[Path, str, str, list[warm.Point]]) -> None:
    folder, earlier, new, found = scene
    for point in found:
        check(folder, earlier, new, point)


def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    """What `tied` starts is gone soon after its parent is killed; the same child untied lives on."""
    for is_tied in (True, False):
        pid_file = tmp_path / f"pid{is_tied}"

        def work(is_tied: bool = is_tied, pid_file: Path = pid_file) -> int:
            command = ["sleep", "30"]
            child = subprocess.Popen(tied(command) if is_tied else command)
            pid_file.write_text(str(child.pid))
            return child.wait()

        pid, _ = warm.start(work, warm.Place.below(tmp_path, tmp_path), tmp_path / "log")
        while not pid_file.exists() or not pid_file.read_text() or "sleep" not in _command(int(pid_file.read_text())):
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        warm.finish(pid)
        child = int(pid_file.read_text())
        end = time.monotonic() + (5 if is_tied else 0.3)
        while _command(child) and time.monotonic() < end:
            time.sleep(0.02)
        assert bool(_command(child)) is not is_tied
        if not is_tied:
            os.kill(child, signal.SIGKILL)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_context_that_a_child_ends_stays_its_parents(tmp_path: Path) -> None:
    stack = contextlib.ExitStack()
    folder = stack.enter_context(scratch_folder("test"))
    stack.enter_context(locked(tmp_path / ".lock", "the folder"))
    pid = os.fork()
    if not pid:
        try:
            stack.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert folder.is_dir()
    assert (tmp_path / ".lock").is_file()
    stack.close()
    assert not folder.exists()
    assert not (tmp_path / ".lock").exists()
