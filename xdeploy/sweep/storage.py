"""Where a study is kept: Optuna's own storages. SQLite unless a URL or another kind of file is asked for."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xdeploy.errors import ToolchainError, UsageError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

FILE = "study.db"  # in the output folder
_TRIES = 8  # several processes may make the tables of a new file at once


def require_optuna() -> None:
    """Raise the ToolchainError of a missing Optuna; quieten it otherwise: what it would log, the sweep tells itself."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ToolchainError(
            f"a sweep needs Optuna: {error}", hint="pip install 'xdeploy[sweep]', or pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_storage(where: str | None, folder: Path) -> BaseStorage:
    """Open or make a storage.

    Args:
        where: a database URL, a path (.journal or .log: Optuna's journal; else SQLite), or None: FILE in `folder`.
        folder: the sweep's output folder.

    Raises:
        ToolchainError: no Optuna, or no driver for the database. UsageError: it cannot be opened.
    """
    require_optuna()
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    for left in reversed(range(_TRIES)):
        try:
            return _open(where or str(folder / FILE))
        except (ImportError, ModuleNotFoundError) as error:
            raise ToolchainError(
                f"storage {shown_url(where or '')}: {error}", hint="install the database's Python driver"
            ) from None
        except ArgumentError as error:
            raise UsageError(f"storage {shown_url(where or '')}: {error}", hint="such as sqlite:///sweep.db") from None
        except (SQLAlchemyError, StorageInternalError, RuntimeError, OSError) as error:
            if not left:
                told = str(error).splitlines()[0]
                raise UsageError(f"storage {shown_url(where or FILE)} cannot be opened: {told}") from None
            time.sleep(0.2)
    raise AssertionError


def _open(where: str) -> BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in where:
        return _serialised(RDBStorage(where, engine_kwargs=_patient(where)))
    path = Path(where).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".journal", ".log"):
        return JournalStorage(JournalFileBackend(str(path)))
    url = f"sqlite:///{path}"
    return _serialised(RDBStorage(url, engine_kwargs=_patient(url)))


def _serialised(storage: RDBStorage) -> RDBStorage:
    """SQLite: begin each transaction with the lock to write, as SQLAlchemy's manual has it; others lock rows.

    Python's driver begins one only at the first change: two processes could both read that a trial waits, and both
    take it.
    """
    from sqlalchemy import event

    engine = storage.engine
    if engine.dialect.name == "sqlite":
        engine.dispose()  # connections that were made before would not be told
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def _patient(url: str) -> dict[str, dict[str, int]]:
    """SQLite: seconds to wait for other processes."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}


def shown_url(url: str) -> str:
    """Without a password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def machine() -> str:
    """Names the process numbers that this process sees: machine, its boot, and the container."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    booted = boot.read_text(encoding="ascii")[:8] if boot.is_file() else ""
    return f"{socket.gethostname()}/{booted}/{os.readlink(space) if os.path.islink(space) else ''}"


def started(pid: int) -> str | None:
    """When a process began, in its machine's ticks; None: there is none. Numbers of ended processes come again."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    rest = stat.rpartition(")")[2].split()
    return None if rest[0] in "ZX" else rest[19]
