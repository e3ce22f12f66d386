"""Measuring in processes of their own (`__main__`): each takes batches from its standard input until that ends.

Processes and not threads, because TVM's parser holds the interpreter; plain ones and not multiprocessing's, because
those would run a user's script a second time. When the parent dies, standard input ends and so does the process. What
travels is made by this program on both sides.
"""

from __future__ import annotations

import math
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from xdeploy.errors import ToolchainError, XdeployError
from xdeploy.target import Target
from xdeploy.tune.jobs import Figures, Job

BATCH_JOBS = 8  # a link costs as much as a few kernels; a kill loses what is in flight
PROCESS_JOBS = 16  # worth a process, which first takes seconds to load the compiler
BATCH_BYTES = 1 << 20  # of inputs, outputs and constants: the smallest board's memory holds it several times


def batches(jobs: Sequence[Job], processes: int) -> list[list[Job]]:
    """Cut the jobs into images of a moderate size, in order, and so that every process has work."""
    cut: list[list[Job]] = []
    room, most = 0, min(BATCH_JOBS, -(-len(jobs) // processes))
    for job in jobs:
        size = _bytes(job)
        if not cut or len(cut[-1]) == most or size > room:
            cut.append([])
            room = BATCH_BYTES
        cut[-1].append(job)
        room -= size
    return cut


def _bytes(job: Job) -> int:
    """Of inputs and constants; the output is about as large as the inputs."""
    return sum(2 * math.prod(s) for s in job.shapes) + sum(c.nbytes for c in job.constants.values())


def measure_all(cut: Sequence[Sequence[Job]], target: Target, processes: int) -> Iterator[tuple[int, list[Figures]]]:
    """Measure batches on several processes, or in this one; yields (index of the batch, its figures) as they end.

    Raises:
        XdeployError: what a batch raised; ToolchainError: a process died.
    """
    if processes == 1:
        from xdeploy.tune.measure import measure

        yield from ((i, measure(jobs, target)) for i, jobs in enumerate(cut))
        return
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, list[Figures] | XdeployError]] = queue.SimpleQueue()
    for i in range(len(cut)):
        waiting.put(i)
    children = [_start() for _ in range(min(processes, len(cut)))]
    threads = [threading.Thread(target=_serve, args=(c, cut, target, waiting, done), daemon=True) for c in children]
    try:
        for thread in threads:
            thread.start()
        for _ in cut:
            index, result = done.get()
            if isinstance(result, XdeployError):
                raise result
            yield index, result
    finally:
        for child in children:
            child.kill()
            child.wait()
        for thread in threads:
            thread.join()


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "xdeploy.tune", str(os.getpid())]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _serve(
    child: subprocess.Popen[bytes],
    cut: Sequence[Sequence[Job]],
    target: Target,
    waiting: queue.SimpleQueue[int],
    done: queue.SimpleQueue[tuple[int, list[Figures] | XdeployError]],
) -> None:
    """Feed one process until nothing is left to do."""
    assert child.stdin is not None
    assert child.stdout is not None
    while True:
        try:
            index = waiting.get_nowait()
        except queue.Empty:
            break
        try:
            pickle.dump((list(cut[index]), target), child.stdin)
            child.stdin.flush()
            done.put((index, pickle.load(child.stdout)))
        except (OSError, EOFError, pickle.UnpicklingError):
            done.put((index, ToolchainError("a measuring process died", hint="run it again: what is measured is kept")))
            break
    child.stdin.close()
