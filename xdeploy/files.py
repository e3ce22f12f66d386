"""Files that are never seen half-written: a part beside the final name, synced, renamed, and the folder synced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UsageError, XdeployError
from xdeploy.process.lock import held, scratch_folder, unheld

_MAX_TOML = 1 << 20
_LONG_KEY = re.compile(r"(?<![\w-])(?:[\w-]++[\"']?[ \t]*+\.[ \t]*+[\"']?){32}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HINTS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.EROFS: "choose another folder",
    errno.EACCES: "change the permissions, or choose another folder",
    errno.EPERM: "change the permissions, or choose another folder",
    errno.EIO: "the disk reports a fault; look at the system's log",
}


class StorageError(XdeployError, OSError):
    """A file could not be written or read because of the disk, its rights or a limit: an OSError that says what to do.

    What was finished before is kept, and the next run goes on from there. Exit code 1.
    """

    def __init__(self, message: str, *, hint: str | None = None, number: int = 0) -> None:
        XdeployError.__init__(self, message, hint=hint)
        self.errno = number
        self.strerror = os.strerror(number) if number else message

    __str__ = XdeployError.__str__


def storage_error(error: OSError, path: Path, needed: int = 0) -> StorageError:
    """The error of a path that cannot be written; `needed`: bytes that were to be written, 0: not known."""
    number = error.errno or 0
    reason = error.strerror or str(error)
    if number not in _NO_ROOM:
        return StorageError(f"{path}: {reason}", hint=_HINTS.get(number), number=number)
    size = f"; this file needs {needed} bytes" if needed else ""
    try:
        free = f", {shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free} are free"
    except OSError:
        free = ""
    return StorageError(
        f"{path}: {reason}{size}{free}", hint="make room and run it again: what was finished is kept", number=number
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; on success it is synced and renamed to `path`, else removed.

    Parts that a killed process left for the same path are removed: a living writer holds a lock on its own.

    Raises:
        StorageError: no room, no right, a limit or a fault of the disk, with the path and the bytes needed.
    """
    needed = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_parts(path.parent, f".{path.name}.")
        handle, part = _held_part(path)
        try:
            yield part
            needed = part.stat().st_size
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(0o644)
            part.replace(path)
            sync_folder(path.parent)
        finally:
            needed = needed or _size(part)
            part.unlink(missing_ok=True)
            os.close(handle)
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in (*_NO_ROOM, *_HINTS):  # such as a folder of this name: no matter of the disk
            raise
        raise storage_error(error, path, needed) from error


def _held_part(path: Path) -> tuple[int, Path]:
    """A new locked file beside `path`, and its handle; made again where a sweep of another process was quicker."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        if held(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def sweep_parts(folder: Path, prefix: str = ".") -> None:
    """Remove the parts (`<prefix>*.part`) in a folder whose writers are gone: those that nobody holds a lock on."""
    with os.scandir(folder) as entries:
        found = [e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(".part")]
    for name in found:
        with unheld(Path(name)) as free:
            if free and not os.path.isdir(name):
                os.unlink(name)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON document atomically, keys in the order given, NaN refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, schema: str) -> dict[str, Any]:
    """Read a JSON document and check its `schema`.

    Raises:
        UsageError: missing file, no JSON, another schema.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint="run the stage before it first") from None
    except RecursionError:
        raise UsageError(f"{path} is not readable JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(value, dict) or value.get("schema") != schema:
        given = value.get("schema") if isinstance(value, dict) else None
        raise UsageError(f"{path}: expected schema {schema!r}, got {given!r}")
    return value


def read_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text from a user, with bounds on what a parser can be made to spend on it.

    Raises:
        ValueError: no TOML, more than 1 MiB, keys of more than 32 parts, or nested too deeply.
    """
    if len(text) > _MAX_TOML:
        raise ValueError(f"it has {len(text)} characters; the limit is {_MAX_TOML}")
    if _LONG_KEY.search(text):
        raise ValueError("it holds a name of more than 32 parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays atomically, without pickles and with fixed time stamps."""
    with replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(arrays[name]), allow_pickle=False)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz of plain arrays; pickled objects are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, MemoryError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} is not a readable npz of plain arrays: {error}") from None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def quiet_stderr() -> Iterator[Path]:
    """Send the file descriptor 2 to a file meanwhile: TVM and LLVM write warnings there from C++."""
    with scratch_folder("stderr") as folder, (folder / "log").open("wb") as log:
        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield folder / "log"
        finally:
            os.dup2(saved, 2)
            os.close(saved)
