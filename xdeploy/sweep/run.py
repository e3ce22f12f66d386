"""The processes of a sweep on this machine, and what is told while they work."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdeploy.errors import TransportError, XdeployError
from xdeploy.request import Progress
from xdeploy.sweep.front import line
from xdeploy.sweep.shared import run_scored
from xdeploy.sweep.study import Study
from xdeploy.sweep.work import POLL, work

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TVM_NUM_THREADS")
_GO_ON = "what is done is kept: the same command goes on"
_STARTS = 3  # of processes that end without having settled anything


class Watcher:
    """Tells every trial once, when it has a result."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self.study, self.progress = study, progress
        self.told: set[int] = set(study.settled())
        self.progress.stage("trials")
        if self.told:
            self.progress.stage(f"{len(self.told)} of {study.wanted} trials have a result already", 0)

    def __call__(self) -> None:
        """Look at the study."""
        settled = self.study.settled()
        for position, t in settled.items():
            if position not in self.told:
                self.told.add(position)
                self.progress.stage(line(t), float(t.user_attrs.get("seconds", 0)) or 0.1)
                self.progress.stage("trials")
        self.progress("trials", len(settled), self.study.wanted)


def run_jobs(study: Study, output: Path, storage: str | None, jobs: int, watch: Watcher, model: Any = None) -> None:
    """Work on the study until every position has a result, here or in `jobs` processes of their own.

    Raises:
        XdeployError: model or data cannot be read, or processes end without doing anything.
        TransportError: a board is out of reach.
    """
    if len(study.settled()) >= study.wanted:
        return
    _prepare(study, output, watch.progress, model)
    if jobs == 1:
        work(study, output, watch, model)
        watch()
        return
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(study, output, storage, k)) for k in range(jobs)]
        starts, before = 0, len(study.settled())
        while len(study.settled()) < study.wanted:
            watch()
            for k, worker in enumerate(workers):
                if worker.poll() == TransportError.exit_code:
                    raise TransportError(_last(output, k), hint=_GO_ON)
                if worker.poll() is not None and len(study.settled()) < study.wanted:
                    starts = starts + 1 if len(study.settled()) == before else 0
                    before = len(study.settled())
                    if starts > _STARTS * jobs:
                        raise XdeployError(f"working processes end at once: {_last(output, k)}")
                    workers[k] = stack.enter_context(_worker(study, output, storage, k))
            time.sleep(POLL)
        watch()


def _prepare(study: Study, output: Path, progress: Progress, model: Any) -> None:
    """The first trial's scores: what is wrong with model or data would be wrong with every trial."""
    definition = study.definition
    first = next((t for t in study.trials() if t.user_attrs.get("position") == 0), None)
    options = (first.user_attrs.get("options") if first else None) or (study.points[0] if study.points else {})
    if not options and "recipe" in definition.space.dimensions:
        options = {"recipe": next(iter(definition.recipes))}
    folder = output / "stages" / f".first-{os.getpid()}"
    try:
        run_scored(definition.request(options, definition.targets[0], folder, model), output / "stages", progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _worker(study: Study, output: Path, storage: str | None, k: int) -> Iterator[subprocess.Popen[bytes]]:
    """A working process; ended with this one."""
    log = output / "workers" / f"{k}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(_THREADS, str(study.definition.threads))
    command = [sys.executable, "-m", "xdeploy.sweep", str(output), storage or "", str(study.wanted), str(os.getpid())]
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **threads}
        )
    try:
        yield child
    finally:
        if child.poll() is None and len(study.settled()) >= study.wanted:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it sees by itself that all is done
                child.wait(5 * POLL)
        child.kill()
        child.wait()


def _last(output: Path, k: int) -> str:
    lines = (output / "workers" / f"{k}.log").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((x for x in reversed(lines) if x.strip()), "without a word")
