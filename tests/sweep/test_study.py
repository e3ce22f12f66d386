"""Slots of a study: each worked on once, by whoever lives."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from tests.sweep.conftest import defined
from xdeploy.errors import UsageError
from xdeploy.sweep import storage as storages
from xdeploy.sweep.space import Choice, Range
from xdeploy.sweep.storage import open_storage, shown_url
from xdeploy.sweep.study import MOST, Study

WORKER = """
import os, sys, time
from pathlib import Path
from tests.sweep.conftest import defined
from xdeploy.sweep.storage import open_storage
from xdeploy.sweep.study import Study
where, log, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
study = Study(defined(targets=("cortex-m4", "cortex-m7")), open_storage(where, Path(where).parent), None)
study.top_up()
while len(study.settled()) < study.wanted:
    taken = study.take()
    if taken is None:
        study.bury()
        study.top_up()
        time.sleep(0.05)
        continue
    with log.open("a") as file:
        file.write(f"{taken.position} {taken.target} {os.getpid()}\\n")
    time.sleep(pause)
    study.complete(taken, [float(taken.position), 1.0], {"quantities": {}})
"""


def test_a_slot_is_taken_by_one_of_two_at_the_same_moment(tmp_path: Path) -> None:
    """While the first is between reading that a slot waits and saying that it has it, the second tries."""
    first, second = (Study(defined(), open_storage(None, tmp_path), None) for _ in range(2))
    first.top_up()
    slot = first.storage.get_all_trials(first.id, states=(TrialState.WAITING,))[0]
    found: list[bool] = []
    other = threading.Thread(target=lambda: found.append(second._claim(slot)))

    def between(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE trials") and other.ident is None:
            other.start()
            other.join(1.0)  # it must not get further before the first is done

    event.listen(first.storage.engine, "before_cursor_execute", between)
    assert first._claim(slot)
    other.join()
    assert found == [False]


def _start(where: Path, log: Path, pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(where), str(log), str(pause)])


@pytest.mark.parametrize("name", ["study.db", "study.journal"])
def test_two_processes_do_each_trial_once(tmp_path: Path, name: str) -> None:
    log = tmp_path / "log"
    children = [_start(tmp_path / name, log, 0.15) for _ in range(2)]
    assert [c.wait(120) for c in children] == [0, 0]
    rows = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(r[0]) for r in rows) == list(range(12))  # 6 points on 2 targets
    assert len({r[2] for r in rows}) == 2
    study = Study(defined(targets=("cortex-m4", "cortex-m7")), open_storage(str(tmp_path / name), tmp_path), None)
    points = [(str(t.user_attrs["options"]), t.user_attrs["target"]) for t in study.settled().values()]
    assert len(set(points)) == 12


def test_a_killed_process_leaves_its_trial_to_others(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = _start(tmp_path / "study.db", log, 60.0)
    while not log.exists() or not log.read_text().endswith("\n"):
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    second = _start(tmp_path / "study.db", log, 0.0)
    assert second.wait(120) == 0
    done = collections.Counter(line.split()[0] for line in log.read_text().splitlines())
    assert done == {str(i): 1 + (i == 0) for i in range(12)}


def _study(tmp_path: Path, trials: int | None = None, grace: float = 120.0) -> Study:
    return Study(defined(), open_storage(None, tmp_path), trials, grace)


def test_results_of_all_kinds_settle_a_position(tmp_path: Path) -> None:
    study = _study(tmp_path)
    study.top_up()
    taken = [study.take() for _ in range(4)]
    assert [t.position for t in taken if t] == [0, 1, 2, 3]
    a, b, c, d = (t for t in taken if t)
    study.complete(a, [90.0, 10.0], {"quantities": {}})
    study.prune(b, "no plan fits")
    study.fail(c, "internal error: boom")
    study.release(d)
    assert list(study.settled()) == [0, 1, 2]
    assert [t.user_attrs["outcome"] for t in study.settled().values()] == ["complete", "pruned", "failed"]
    study.top_up(again=True)
    assert list(study.settled()) == [0, 1]
    left = [t.position for t in iter(study.take, None)]
    assert sorted(left) == [2, 3, 4, 5]


def test_the_same_point_after_a_loss(tmp_path: Path) -> None:
    space = {"recover.lr": Range(1e-4, 1.0, log=True), "plan.flash": Choice((1, 2, 3))}
    study = Study(defined(space, sampler="tpe"), open_storage(None, tmp_path), 3)
    study.top_up()
    first = study.take()
    assert first is not None
    study.release(first)
    study.top_up()
    again = {t.position: t.options for t in iter(study.take, None)}
    assert again[0] == first.options


def test_it_is_given_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(tmp_path, 1)
    monkeypatch.setattr("xdeploy.sweep.study.started", lambda pid: "long ago")  # what this process writes down
    for lost in range(MOST):
        study.top_up()
        assert study.take() is not None, lost
        with monkeypatch.context() as later:
            later.setattr("xdeploy.sweep.study.started", lambda pid: None)
            assert study.bury() == 1
    (last,) = study.settled().values()
    assert "ended 3 times without a result" in last.user_attrs["reason"]
    assert study.take() is None


def test_a_silent_process_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _study(tmp_path, 1, grace=0.2)
    study.top_up()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("xdeploy.sweep.study.machine", lambda: "elsewhere")
        taken = study.take()
    assert taken is not None
    assert study.bury() == 0  # seen for the first time
    time.sleep(0.3)
    study.storage.set_trial_user_attr(taken.slot._trial_id, "beat", 1)
    assert study.bury() == 0  # it has given a sign
    time.sleep(0.3)
    assert study.bury() == 1
    study.complete(taken, [1.0, 1.0], {})  # comes back too late: the other attempt counts
    assert not study.settled()
    assert study.take() is not None


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xdeploy.sweep.study.BEAT", 0.02)
    study = _study(tmp_path, 1)
    study.top_up()
    taken = study.take()
    assert taken is not None
    with study.alive(taken):
        end = time.monotonic() + 20
        while not study.trials()[0].user_attrs.get("beat") and time.monotonic() < end:
            time.sleep(0.02)
    assert study.trials()[0].user_attrs["beat"] >= 1


def test_surplus_slots_are_dropped(tmp_path: Path) -> None:
    study = _study(tmp_path, 2)
    study.top_up()
    for position in (0, 1):  # what a second process may have added at the same moment
        study.optuna.enqueue_trial({}, user_attrs={"position": position, "target": "cortex-m4"})
    taken = list(iter(study.take, None))
    assert [t.position for t in taken] == [0, 1]
    assert len(study.trials()) == 2


def test_more_trials_later(tmp_path: Path) -> None:
    study = _study(tmp_path, 2)
    study.top_up()
    for t in iter(study.take, None):
        study.complete(t, [1.0, 1.0], {})
    more = _study(tmp_path, 5)
    more.top_up()
    assert [t.position for t in iter(more.take, None)] == [2, 3, 4]


def test_storages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_url("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    monkeypatch.setattr(storages, "_TRIES", 1)
    for where in ("nonsense://x", "sqlite:////no/such/folder/study.db"):
        with pytest.raises(UsageError):
            open_storage(where, tmp_path)
