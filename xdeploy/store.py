"""What a run folder already holds: a record of each finished stage, by the hash of all that went into it.

A stage is skipped when its key is unchanged and every file it wrote still has the hash recorded then.

A folder with a finished run in it is not touched while a changed one is worked out: that happens in `unfinished` below
it, which takes over what is unchanged by hard links. When all is done, a journal (`.commit`) is written and the new
files are moved into place; a run that finds a journal finishes the move first. So whenever the process ends, the
folder holds the earlier run as a whole, or the new one. One process works in a folder at a time (`.lock`).
"""

from __future__ import annotations

import contextlib
import copy
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError, XdeployError
from xdeploy.files import sha256, storage_error, sweep_parts, sync_folder, write_json
from xdeploy.process.lock import locked, sweep_scratch

_SCHEMA = "xdeploy.run/1"
UNFINISHED = "unfinished"  # below the output: where a run works that will replace a finished one
# what another folder of the same machine may not help against
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
_LOCK, _JOURNAL, _OLD = ".lock", ".commit", ".replaced"
Row = Mapping[str, Any]


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
    """The record `run.json` of one run folder.

    output: the folder that the user named. folder: where stages read and write, `output` or `unfinished` below it.
    """

    def __init__(self, folder: Path) -> None:
        """Open or create the folder.

        Raises:
            UsageError: the folder cannot be written or read. StorageError: not now, for want of room or by a fault.
        """
        self.output = self.folder = folder
        self.created = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink(missing_ok=True)
            self.record: dict[str, Any] = _read(folder)
        except OSError as error:
            self.discard_if_empty()
            if error.errno in _TRANSIENT:
                raise storage_error(error, Path(error.filename or folder)) from None
            why = "it is a file" if folder.is_file() else error.strerror
            raise UsageError(
                f"output folder {folder} cannot be written: {why}", hint="choose another one with -o"
            ) from None

    @property
    def path(self) -> Path:
        """Where the record lies."""
        return self.folder / "run.json"

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Hold the folder: nobody else works in it meanwhile, and what a killed run left is cleared away.

        Raises:
            UsageError: another process works in it. StorageError: an OSError from inside, with the folder.
        """
        try:
            with locked(self.output / _LOCK, f"output folder {self.output}"):
                settle(self.output)
                sweep_scratch()
                self.record = _read(self.output)
                yield
        except OSError as error:
            if isinstance(error, XdeployError):
                raise
            raise storage_error(error, Path(error.filename or self.output)) from error

    def discard_if_empty(self) -> None:
        """Remove a folder that this run created and wrote nothing into."""
        with contextlib.suppress(OSError):
            if self.created and not any(self.output.iterdir()):
                os.rmdir(self.output)

    # ------------------------------------------------------------------------------------- what is there already
    def is_fresh(self, stage: str, key: str) -> bool:
        """Whether the stage was finished with this key and its files are as it left them."""
        return _is_fresh(self.folder, self.record, stage, key)

    def finish(
        self, stage: str, key: str, files: Iterable[str], seconds: float, memory: Mapping[str, Any] | None = None
    ) -> None:
        """Record a finished stage and its files (names relative to the folder), with what a Meter says of memory."""
        hashes = {name: sha256(self.folder / name) for name in files}
        self.record["stages"][stage] = {"key": key, "seconds": round(seconds, 3), **(memory or {}), "files": hashes}
        self._write()

    def _write(self) -> None:
        """Write the record with a hash of its own content."""
        body = {k: v for k, v in self.record.items() if k != "sha256"}
        self.record = {**body, "sha256": digest(body)}
        write_json(self.path, self.record)

    def files_below(self, name: str) -> list[str]:
        """All files below a subfolder, relative to the run folder."""
        return [str(p.relative_to(self.folder)) for p in sorted((self.folder / name).rglob("*")) if p.is_file()]

    def drop(self, name: str) -> None:
        """Remove a subfolder of the run, if there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    # --------------------------------------------------------------------- a finished run is replaced as a whole
    def begin(self, keys: Mapping[str, str]) -> None:
        """Leave a finished run as it is from now on, and work in `unfinished` instead, where a killed run may have.

        keys: of all stages of this run; those that are fresh here or there are taken over.
        """
        if self.folder != self.output or not self.record.get("finished"):
            return
        aside = self.output / UNFINISHED
        aside.mkdir(exist_ok=True)
        request, known = self.record["request"], _read(aside)
        known["request"] = request
        for stage, row in self.record["stages"].items():
            if stage in keys and _is_fresh(aside, known, stage, keys[stage]):
                continue
            known["stages"].pop(stage, None)
            if stage in keys and _is_fresh(self.output, self.record, stage, keys[stage]):
                _take_over(self.output, aside, row["files"])
                known["stages"][stage] = copy.deepcopy(row)
        self.folder, self.record = aside, known

    def commit(self, finished: bool) -> None:
        """Move what was worked out into place, all of it or nothing, and record whether the run is complete."""
        if finished and not self.record.get("finished"):
            self.record["finished"] = True
            self._write()
        if self.folder == self.output:
            shutil.rmtree(self.output / UNFINISHED, ignore_errors=True)  # of a run that was given up
            return
        _sweep(self.folder)
        before = _read(self.output)
        kept = {k: v for k, v in before["stages"].items() if k not in self.record["stages"]}
        self.record["stages"] = {**kept, **self.record["stages"]}
        self.record["finished"] = True  # as `output` was; a part of the stages replaces that part
        self._write()
        same = {n for n, row in self.record["stages"].items() if _is_same(self.output, before, n, row)}
        names = [p.name for p in sorted(self.folder.iterdir()) if not (p.is_dir() and p.name in same)]
        sync_folder(self.folder)
        write_json(self.output / _JOURNAL, {"schema": "xdeploy.commit/1", "names": names})
        settle(self.output)
        self.folder = self.output


def settle(output: Path) -> None:
    """Finish a move that was cut off, and clear away what a killed run left; the folder's lock must be held."""
    journal, aside = output / _JOURNAL, output / UNFINISHED
    if journal.exists():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            for name in json.loads(journal.read_text(encoding="utf-8"))["names"]:
                if Path(name).name == name:
                    _move(aside / name, output / name, aside / _OLD)
        sync_folder(output)
        journal.unlink()
        shutil.rmtree(aside, ignore_errors=True)
    for folder in (output, aside):
        _sweep(folder)


def _move(source: Path, place: Path, old: Path) -> None:
    """Put a file or folder in its place; again where it was cut off."""
    if not source.exists():
        return
    if place.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
    source.replace(place)


def _sweep(folder: Path) -> None:
    """Remove the parts of files and packages that a killed run left in a folder that is held."""
    if not folder.is_dir():
        return
    _sweep_below(folder)
    for path in [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()]:
        _sweep_below(path)
    # parts on a file system without locks, and the temporary files that safetensors makes beside them
    for part in [p for pattern in (".*.part", ".tmp??????") for p in folder.glob(pattern) if p.is_file()]:
        part.unlink(missing_ok=True)


def _sweep_below(folder: Path) -> None:
    sweep_parts(folder)
    for entry in list(folder.iterdir()):
        left = entry.suffix in (".part", ".old") or entry.name.startswith(".load-")
        if left and entry.name.startswith(".") and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


def _read(folder: Path) -> dict[str, Any]:
    """The record of a folder; none, or a broken one: every stage runs again.

    Raises:
        OSError: it cannot be read now, so nobody knows whether the folder holds a finished run.
    """
    try:
        value = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and value.get("schema") == _SCHEMA and _is_record(value):
        return value
    return {"schema": _SCHEMA, "request": {}, "stages": {}}


def _is_record(value: Row) -> bool:
    if value.get("sha256") != digest({k: v for k, v in value.items() if k != "sha256"}):
        return False
    stages = value.get("stages")
    rows = list(stages.values()) if isinstance(stages, dict) else [None]
    return isinstance(value.get("request"), dict) and all(
        isinstance(r, dict) and isinstance(r.get("files"), dict) and isinstance(r.get("key"), str) for r in rows
    )


def _is_fresh(folder: Path, record: Row, stage: str, key: str) -> bool:
    row = record["stages"].get(stage)
    if not row or row["key"] != key:
        return False
    try:
        return all((folder / n).is_file() and sha256(folder / n) == h for n, h in row["files"].items())
    except OSError:
        return False


def _is_same(folder: Path, record: Row, stage: str, row: Row) -> bool:
    """Whether the files of a stage lie in the folder already, as the row says they are."""
    known = record["stages"].get(stage)
    return bool(known) and known["files"] == row["files"] and _is_fresh(folder, record, stage, known["key"])


def _take_over(source: Path, aside: Path, names: Iterable[str]) -> None:
    """The same files below another folder: links, or copies where the file system has none."""
    for name in names:
        place = aside / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(source / name, place)
        except OSError:
            shutil.copy2(source / name, place)
