"""Finished stages of trials, for other trials that need the same: each is worked out once on a machine.

OUT/stages/<last stage>/<key>/ holds the files of a few stages in a row and their hashes. Whoever needs them locks the
key: the first works them out, the others wait and copy. What is copied is checked; what is damaged is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError
from xdeploy.files import read_json, sha256, write_json
from xdeploy.pipeline import run
from xdeploy.request import Progress, Request, Silent, stage_keys
from xdeploy.store import Store
from xdeploy.target import resolve_targets

_SCHEMA = "xdeploy.stages/1"
_SCORED, _LOWERED = ("source", "score"), ("plan", "compress", "export", "lower")


def run_shared(request: Request, stages: Path, progress: Progress | None = None) -> None:
    """Run a request of one target up to its built artifact, taking what other runs have worked out already.

    Raises:
        XdeployError: as `xdeploy.pipeline.run`.
    """
    target = resolve_targets(list(request.targets))
    keys = stage_keys(request, target)
    for names, until in ((_SCORED, "score"), (_LOWERED, "lower"), ((target[0].name,), "build")):
        _group(request, keys, names, until, stages, progress or Silent())


def run_scored(request: Request, stages: Path, progress: Progress | None = None) -> None:
    """The same up to the scores, which most trials have in common: a first check of model and data."""
    keys = stage_keys(request, resolve_targets(list(request.targets)))
    _group(request, keys, _SCORED, "score", stages, progress or Silent())


def _group(
    request: Request, keys: dict[str, str], names: Sequence[str], until: str, stages: Path, progress: Progress
) -> None:
    store = Store(request.output)
    if all(store.is_fresh(n, keys[n]) for n in names):
        return
    place = stages / names[-1] / keys[names[-1]][:32]
    with locked(place.with_suffix(".lock")):
        if _take(place, store, keys):
            return
        run(request, until=until, progress=progress)
        _give(place, Store(request.output), names)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; its owner's death frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take(place: Path, store: Store, keys: dict[str, str]) -> bool:
    """Copy the stages into a run folder, if they are there and whole."""
    try:
        rows = read_json(place / "stages.json", _SCHEMA)["stages"]
    except UsageError:
        return False
    for row in rows:
        if row["key"] != keys.get(row["stage"]):
            return False
        for name, expected in row["files"].items():
            if not (place / name).is_file() or sha256(place / name) != expected:
                return False
    for row in rows:
        for name in row["files"]:
            (store.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place / name, store.folder / name)  # mode bits too: programs are to be run
        store.finish(row["stage"], row["key"], row["files"], row["seconds"])
    return True


def _give(place: Path, store: Store, names: Sequence[str]) -> None:
    """Keep a copy for others; it is seen whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    try:
        rows: list[dict[str, Any]] = []
        for stage in names:
            row = store.record["stages"][stage]
            for name in row["files"]:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(store.folder / name, part / name)
            hashes = {n: sha256(part / n) for n in row["files"]}
            rows.append({"stage": stage, "key": row["key"], "seconds": row["seconds"], "files": hashes})
        write_json(part / "stages.json", {"schema": _SCHEMA, "stages": rows})
        shutil.rmtree(place, ignore_errors=True)
        os.replace(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
