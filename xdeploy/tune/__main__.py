"""A measuring process: pickled (jobs, target) come in, pickled figures or an error go out, until the input ends."""

from __future__ import annotations

import os
import pickle
import sys
from typing import BinaryIO

from xdeploy.errors import XdeployError
from xdeploy.process.child import work_for
from xdeploy.tune.jobs import Figures
from xdeploy.tune.measure import measure


def work(source: BinaryIO, sink: BinaryIO) -> None:
    """The loop of the process."""
    while True:
        try:
            jobs, target = pickle.load(source)
        except EOFError:
            return
        result: list[Figures] | XdeployError
        try:
            result = measure(jobs, target)
        except XdeployError as error:
            result = error
        try:
            pickle.dump(result, sink)
            sink.flush()
        except BrokenPipeError:  # nobody waits for it any more
            return


if __name__ == "__main__":
    work_for(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    work(sys.stdin.buffer, answers)
