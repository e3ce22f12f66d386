"""What a run folder already holds: a record of each finished stage, by the hash of all that went into it.

A stage is skipped when its key is unchanged and every file it wrote still has the hash recorded then.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError
from xdeploy.files import sha256, write_json

_SCHEMA = "xdeploy.run/1"


def digest(*parts: Any) -> str:
    """Hash of JSON-able parts, stable over runs."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def path_digest(path: Path | None) -> str:
    """Hash that changes when a file or folder does: content of files, names, sizes and times of a folder."""
    if path is None or not path.exists():
        return str(path)
    if path.is_file():
        return sha256(path)
    rows = ((str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.rglob("*")))
    return digest(list(rows))


class Store:
    """The record `run.json` of one run folder."""

    def __init__(self, folder: Path) -> None:
        """Open or create the folder.

        Raises:
            UsageError: the folder cannot be written.
        """
        self.folder = folder
        self.created = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"output folder {folder} cannot be written: {error.strerror}", hint="choose another one with -o"
            ) from None
        self.path = folder / "run.json"
        self.record: dict[str, Any] = {"schema": _SCHEMA, "request": {}, "stages": {}}
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(value, dict) and value.get("schema") == _SCHEMA:
                self.record = value
        except (OSError, ValueError):
            pass  # no record, or a broken one: every stage runs again

    def discard_if_empty(self) -> None:
        """Remove a folder that this run created and wrote nothing into."""
        if self.created and not any(self.folder.iterdir()):
            os.rmdir(self.folder)

    def is_fresh(self, stage: str, key: str) -> bool:
        """Whether the stage was finished with this key and its files are as it left them."""
        row = self.record["stages"].get(stage)
        if not row or row.get("key") != key:
            return False
        return all((self.folder / n).is_file() and sha256(self.folder / n) == h for n, h in row["files"].items())

    def finish(self, stage: str, key: str, files: Iterable[str], seconds: float) -> None:
        """Record a finished stage and its files (names relative to the folder)."""
        hashes = {name: sha256(self.folder / name) for name in files}
        self.record["stages"][stage] = {"key": key, "seconds": round(seconds, 3), "files": hashes}
        write_json(self.path, self.record)

    def files_below(self, name: str) -> list[str]:
        """All files below a subfolder, relative to the run folder."""
        return [str(p.relative_to(self.folder)) for p in sorted((self.folder / name).rglob("*")) if p.is_file()]

    def drop(self, name: str) -> None:
        """Remove a subfolder of the run, if there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
