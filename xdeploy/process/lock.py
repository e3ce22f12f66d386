"""One process at a time: a lock that the system gives back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from xdeploy.errors import UsageError

SCRATCH = "xdeploy-scratch-"  # begins the names of temporary folders that are locked while they are used


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`, which is there only meanwhile.

    A file that a killed process left is taken over. On file systems without locks nothing is held.

    Args:
        path: in a folder that can be written.
        what: is locked, for the message.

    Raises:
        UsageError: another process holds it, by its number.
    """
    handle, holder = _open(path, what), os.getpid()
    try:
        yield
    finally:
        if os.getpid() == holder:  # a child that was forked meanwhile has nothing to clear away
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: who opened it before finds it gone and makes another
        os.close(handle)


def _open(path: Path, what: str) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UsageError(
                f"{what} is locked by pid {holder}: another xdeploy works in it",
                hint="wait for it to end, or choose another folder",
            ) from None
        except OSError:
            return handle
        if _is_at(handle, path):
            with contextlib.suppress(OSError):  # no room for a number that is only told to others
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            return handle
        os.close(handle)


def held(handle: int, path: Path) -> bool:
    """Take the lock of an open file or folder, waiting; False: it was removed meanwhile and must be made again."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)
    return _is_at(handle, path)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextlib.contextmanager
def unheld(path: Path) -> Iterator[bool]:
    """Whether nobody holds the file or folder; meanwhile nobody can. One that cannot be opened counts as held."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = _is_at(handle, path)
        except OSError:
            free = False
        yield free
    finally:
        os.close(handle)


@contextlib.contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """A temporary folder, locked, so that `sweep_scratch` can tell those of killed processes."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{kind}-"))
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another process's sweep came before the lock
            continue
        if held(handle, folder):
            break
        os.close(handle)
    holder = os.getpid()
    try:
        yield folder
    finally:
        if os.getpid() == holder:  # not in a child that was forked meanwhile, where this may be collected as garbage
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def sweep_scratch() -> None:
    """Remove this user's temporary folders whose processes were killed."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(SCRATCH) and entry.stat(follow_symlinks=False).st_uid == os.getuid():
                _remove(Path(entry.path))


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError), unheld(path) as free:
        if free and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
