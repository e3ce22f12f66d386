"""A run of three stages that write what a build writes, with the real store and the real files, in milliseconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from xdeploy.builder import _beside
from xdeploy.files import write_json, write_npz, write_text
from xdeploy.process.lock import scratch_folder
from xdeploy.store import Store, digest

STAGES = ("score", "plan", "board")


def keys(seed: int) -> dict[str, str]:
    """The plan does not depend on the seed, so that a second run takes it over."""
    return {name: digest(name, 0 if name == "plan" else seed) for name in STAGES}


def run(output: Path, seed: int) -> int:
    """The run; exit code 0."""
    store = Store(output)
    with store.working():
        for name, key in keys(seed).items():
            if store.is_fresh(name, key):
                continue
            store.begin(keys(seed))
            if not store.is_fresh(name, key):
                store.finish(name, key, _write(store, name, seed), 0.0)
        store.commit(finished=True)
    return 0


def _write(store: Store, name: str, seed: int) -> list[str]:
    folder = store.folder
    if name == "score":
        write_npz(folder / "score.npz", {"a": np.full(64, seed, np.int32)})
        return ["score.npz"]
    if name == "plan":
        write_json(folder / "plan.json", {"layers": [1, 2, 3]})
        return ["plan.json"]
    with _beside(folder / "board") as part, scratch_folder("test") as spare:
        write_text(spare / "scratch.txt", "spare")
        write_text(part / "src" / "model.c", f"int seed = {seed};\n")
        write_json(part / "manifest.json", {"seed": seed})
    return store.files_below("board")


def content(output: Path) -> str:
    """Hash of what the run's stages left in the folder, parts and locks aside."""
    found = hashlib.sha256()
    for name in ("score.npz", "plan.json", "board/src/model.c", "board/manifest.json"):
        path = output / name
        found.update(name.encode() + (path.read_bytes() if path.is_file() else b"-"))
    return found.hexdigest()
