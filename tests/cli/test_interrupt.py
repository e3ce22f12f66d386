"""A signal ends the command and what it started within two seconds, wherever the work is; a second one at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import LIMIT, command, environment
from tests.signals import LISTENING
from xdeploy.process.descendants import descendants
from xdeploy.process.interrupt import GRACE, MESSAGE

# a main thread inside C code that does not come back (it waits for a lock that it holds), a pool that is waited for,
# and a grandchild
STUCK = """
import ctypes, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from xdeploy.process.interrupt import Guard
from xdeploy.process.descendants import descendants
import os
Guard()
sleeper = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '333'])"]
if {child}:
    threading.Thread(target=subprocess.run, args=(sleeper,), daemon=True).start()
    while len(descendants(os.getpid())) < 2:
        time.sleep(0.05)
print("ready", flush=True)
if {pool}:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(time.sleep, [333, 333]))
lock = ctypes.create_string_buffer(256)
ctypes.CDLL(None).pthread_mutex_lock(lock)
ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


def start(text: str) -> subprocess.Popen[str]:
    words = [*LISTENING, sys.executable, "-c", text]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(0.5)  # into the call that does not come back: before it, Python itself would raise KeyboardInterrupt
    return child


def gone(numbers: list[int]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if not any(Path(f"/proc/{n}").exists() and " Z " not in Path(f"/proc/{n}/stat").read_text() for n in numbers):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_work_that_does_not_listen(number):
    child = start(STUCK.format(child=True, pool=False))
    below = descendants(child.pid)
    assert len(below) == 2
    child.send_signal(number)
    _, said = child.communicate(timeout=LIMIT)
    assert child.returncode == 128 + number
    assert MESSAGE in said
    assert gone(below)


def test_a_pool_of_threads_is_not_waited_for():
    child = start(STUCK.format(child=False, pool=True))
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130


def test_a_second_signal_does_not_wait():
    """With a grace of minutes the first one would."""
    text = STUCK.format(child=True, pool=False)
    child = start(text.replace("Guard()", "import xdeploy.process.interrupt as i; i.GRACE = 600.0; Guard()"))
    below = descendants(child.pid)
    child.send_signal(signal.SIGINT)
    time.sleep(2.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert gone(below)


def test_what_is_owed_elsewhere_has_time(tmp_path: Path):
    """Work that is slow to get there still tidies up, with a child; what it had started before is ended at once."""
    done = tmp_path / "done"
    text = (
        "import subprocess, sys, threading, time\nfrom xdeploy.process.interrupt import Guard, tidying, to_be_tidied\n"
        "Guard()\n"
        "try:\n"
        "    with to_be_tidied():\n"
        "        try:\n"
        "            child = subprocess.Popen(['sleep', '333'])\n"
        "            print('ready', flush=True)\n"
        "            child.wait()\n"
        "        except BaseException:\n"
        f"            time.sleep({GRACE} + 0.5)\n"
        "            with tidying():\n"
        f"                subprocess.run(['sh', '-c', 'sleep 0.5; echo yes > {done}'], check=True)\n"
        "            raise\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    child = start(text)
    below = descendants(child.pid)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert done.read_text() == "yes\n"
    assert gone(below)


def test_the_grace_leaves_time_within_two_seconds():
    assert GRACE <= 1.5


def interrupted(words: list[str], when: str, folder: Path, delay: float = 0.5) -> tuple[int, float, str, list[int]]:
    """Send SIGINT to the command alone, `delay` seconds after it told `when`.

    Returns:
        exit code, seconds until the end, what it said, and processes that it had then.
    """
    child = subprocess.Popen(
        [*LISTENING, *command(*words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder),
    )
    said = []
    assert child.stderr is not None
    for line in child.stderr:
        said.append(line)
        if line.split()[0] == when:
            break
    assert child.poll() is None, said
    time.sleep(delay)
    below = descendants(child.pid)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=LIMIT)
    return child.returncode, time.monotonic() - began, "".join(said) + rest, below


def test_while_it_builds(kept, tmp_path):
    """In the compiler's threads and children; the next run completes."""
    words = ["build", str(kept), "--target", "cortex-m4", "--target", "x86-64", "-o", str(tmp_path / "out")]
    code, _, said, below = interrupted(words, "lower", kept.parent)
    assert code == 130, said
    assert said.count(MESSAGE) == 1
    assert "Traceback" not in said
    assert gone(below)
    done = subprocess.run(command(*words, "--quiet"), env=environment(kept.parent), timeout=LIMIT, check=False)
    assert done.returncode == 0
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix == ".part"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "delay", "more"),
    [("source", 1.0, ["--set", "relevance.method='integrated-gradients'", "--set", "relevance.steps=4096"]),
     ("score", 1.0, []), ("plan", 4.0, ["--epochs", "100000"]), ("lower", 1.5, [])],
    ids=["score", "plan", "fine-tuning", "build"],
)  # fmt: skip
def test_in_each_stage_of_a_float_model(tmp_path, when, delay, more):
    from tests.e2e.files import blobs, float_onnx  # loads torch, for which the tests above need not wait

    float_onnx(tmp_path / "net.onnx", 0)
    blobs(tmp_path / "data.npz", 0)
    words = ["build", str(tmp_path / "net.onnx"), "--data", str(tmp_path / "data.npz"), "-o", str(tmp_path / "out")]
    words += ["--target", "cortex-a72", "--set", "plan.max_drop=100", *more]
    code, _, said, below = interrupted(words, when, tmp_path, delay)
    assert code == 130, said
    assert MESSAGE in said
    assert gone([*below, *descendants(os.getpid())])


def test_descendants_of_this_process():
    child = subprocess.Popen([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"])
    try:
        until = time.monotonic() + 60
        while len(found := descendants(child.pid)) < 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(found) == 1
        assert found[0] in descendants(os.getpid())
        assert child.pid in descendants(os.getpid())
    finally:
        for number in (*descendants(child.pid), child.pid):
            os.kill(number, signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize("module", ["xdeploy.model.decoder", "xdeploy.tune"])
def test_working_processes_leave_a_terminals_interrupt_to_their_parent(module):
    words = [sys.executable, "-m", module, str(os.getpid())]
    child = subprocess.Popen(
        [*LISTENING, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not (runs(child.pid, words) and ignores(child.pid, signal.SIGINT)):
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.communicate(b"", timeout=60) == (b"", b"")
    assert child.returncode == 0


def runs(process: int, words: list[str]) -> bool:
    """Whether it has come to this command; until then it may ignore what these tests were started to ignore."""
    return Path(f"/proc/{process}/cmdline").read_bytes() == b"".join(word.encode() + b"\0" for word in words)


def ignores(process: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    mask = next(line.split()[1] for line in lines if line.startswith("SigIgn:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
