"""One run by several processes (torchrun): scores and fine-tuning are shared, rank 0 alone writes the run folder.

All ranks work through the same stages up to `compress`, each in a folder of its own: rank 0's is the one asked for, the
others' are temporary and begin as copies of it, so that all skip the same. What follows is rank 0's alone.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from xdeploy import pipeline
from xdeploy.process.lock import scratch_folder
from xdeploy.request import Progress, Request, Silent, is_kept
from xdeploy.stages import STAGES
from xdeploy.store import UNFINISHED, Store
from xdeploy.target import resolve_targets

_SHARED = "compress"  # the last stage in which ranks have something to share


def wanted() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if "RANK" in os.environ and text.isdecimal() else 1


def run(request: Request, until: str, progress: Progress | None = None) -> pipeline.RunResult | None:
    """As `pipeline.run`, by as many processes as torchrun has started; None on all but rank 0.

    Raises:
        XdeployError: as there, on every rank.
    """
    from xdeploy import ranks  # loads torch

    if is_kept(request):  # nothing to share
        return pipeline.run(request, until, progress) if os.environ["RANK"] == "0" else None
    last = "score" if until == "explain" else STAGES[min(STAGES.index(until), STAGES.index(_SHARED))]
    with ranks.joined():
        first = ranks.rank() == 0
        if first:
            _put_away(request)
        ranks.wait()
        if first:
            ranks.wait()  # until the others have copied
            pipeline.run(request, last, progress)
        else:
            with scratch_folder("rank") as folder:
                _copy(request.output, folder)
                ranks.wait()
                pipeline.run(replace(request, output=folder), last, Silent())
    return pipeline.run(request, until, progress) if first else None


def _put_away(request: Request) -> None:
    """Clear what a killed run left, before the folder is copied."""
    resolve_targets(list(request.targets))  # bad names fail before anything is written
    with Store(request.output).working():
        pass


def _copy(source: Path, folder: Path) -> None:
    """The files of finished stages and checkpoints, not the targets' packages."""
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, folder / path.name)
    aside = source / UNFINISHED
    if aside.is_dir():
        shutil.copytree(aside, folder / UNFINISHED)
