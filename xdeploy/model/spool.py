"""Arrays that lie in a file instead of in memory: written once, mapped, and read in pieces.

The file has no name, so it goes with the process however that ends, and nobody else can change or shorten what is
mapped. It lies in the user's cache folder (`caches.own_cache`), or among the temporary files where that cannot be
written. Pages that were read belong to the file, not to the process: the system takes them back when it needs them,
and `release` does so at once.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xdeploy.caches import own_cache
from xdeploy.files import StorageError, storage_error

PIECE = 4 * 2**20  # bytes that are read or copied at once, about
_AT_ONCE = 4  # rows that `picked` reads before it releases them
_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)


class Spool:
    """A nameless file that takes the rows of one array, from any thread, and is mapped once all are there."""

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Reserve the room.

        Args:
            shape: of the array, rows first.
            dtype: of its entries, plain data.

        Raises:
            StorageError: no room, or another refusal of the disk, with the bytes needed.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.size = math.prod(shape) * self.dtype.itemsize
        self._row = math.prod(shape[1:]) * self.dtype.itemsize
        self._folder = _folder()
        try:
            # a name such as this, where the file system needs one for a moment, is swept by the next run of the cache
            self._file = tempfile.TemporaryFile(prefix=".samples.", suffix=".part", dir=self._folder)  # noqa: SIM115
        except OSError as error:
            raise storage_error(error, self._folder, self.size) from error
        try:
            if self.size:  # room is reserved now: a mapped page that finds none later would end the process
                os.posix_fallocate(self._file.fileno(), 0, self.size)
        except OSError as error:
            self._file.close()
            raise self._refused(error) from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # what is mapped stays

    def write(self, first: int, rows: NDArray[Any]) -> None:
        """Put rows (n, *shape[1:]) at row number `first`; they are brought to the array's dtype."""
        self.write_bytes(first * self._row, np.ascontiguousarray(rows, self.dtype).data.cast("B"))

    def write_bytes(self, start: int, data: memoryview) -> None:
        """Put bytes of the array, C order, at byte `start`.

        Raises:
            StorageError: the disk refuses them.
        """
        try:
            write_at(self._file.fileno(), start, data)
        except OSError as error:
            raise self._refused(error) from error

    @property
    def descriptor(self) -> int:
        """Of the open file, for a process that writes rows itself: row n begins at n times the bytes of a row."""
        return self._file.fileno()

    def array(self) -> NDArray[Any]:
        """The array, mapped and not writeable; to be asked for once everything is written."""
        if not self.size:
            return np.empty(self.shape, self.dtype)
        mapped = mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ)
        return np.ndarray(self.shape, self.dtype, buffer=mapped)

    def _refused(self, error: OSError) -> StorageError:
        return storage_error(error, self._folder / "(samples)", self.size)


def write_at(descriptor: int, start: int, data: memoryview) -> None:
    """Put all bytes at byte `start` of an open file."""
    while data:
        done = os.pwrite(descriptor, data, start)
        data, start = data[done:], start + done


def _folder() -> Path:
    folder = own_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def release(array: NDArray[Any]) -> None:
    """Give the pages of a mapped array back to the system; they are read again when they are asked for.

    An array in memory, or on a system without `madvise`, is left alone.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and _DONTNEED is not None:
        owner.madvise(_DONTNEED)


def picked(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """A copy of these rows of an array (N, ...), (len(rows), ...), a few at a time; what was passed is released.

    Linux maps up to two megabytes around a page that is asked for: for rows that lie apart that is much more memory
    than themselves.
    """
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    for first in range(0, len(rows), _AT_ONCE):
        out[first : first + _AT_ONCE] = array[rows[first : first + _AT_ONCE]]
        release(array)
    return out


def pieces(array: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """(first row, rows) through an array (N, ...), about PIECE bytes at a time; what was passed is released."""
    row = array.nbytes // max(len(array), 1)
    step = max(1, PIECE // max(row, 1))
    for first in range(0, len(array), step):
        yield first, array[first : first + step]
        release(array)


def stored(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The same values of this dtype in C order: the array itself where it is so already, else copied to a file.

    Raises:
        StorageError: the disk refuses it.
    """
    if array.dtype == np.dtype(dtype) and array.flags.c_contiguous:
        return array
    with Spool(array.shape, dtype) as spool:
        for first, rows in pieces(array):
            spool.write(first, rows)
        return spool.array()
