"""Arrays of an npz file, unpacked to nameless files and mapped: memory does not grow with their size."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from xdeploy.errors import UsageError
from xdeploy.files import StorageError
from xdeploy.model.images import MAX_TOTAL
from xdeploy.model.spool import PIECE, Spool

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: Path, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Those of the named arrays that an npz holds, not writeable, in C order where the file has them so.

    Raises:
        UsageError: no npz, pickled objects, damaged, or larger than MAX_TOTAL. StorageError: no room to unpack it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(e.file_size for e in archive.infolist())
            if total > MAX_TOTAL:
                raise UsageError(f"{path} declares {total} bytes; the limit is {MAX_TOTAL >> 30} GiB")
            there = set(archive.namelist())
            return {n: _unpack(archive, f"{n}.npy") for n in names if f"{n}.npy" in there}
    except StorageError:
        raise
    except ValueError as error:
        what = "holds pickled objects, which are refused" if "pickle" in str(error).lower() else f"is damaged: {error}"
        raise UsageError(f"{path} {what}", hint="save plain arrays with np.savez(path, x=..., y=...)") from None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, MemoryError, zlib.error, lzma.LZMAError) as error:
        raise UsageError(f"{path} is not a readable npz: {error}") from None


def _unpack(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    """One array; nothing is reserved before the member is known to be long enough for what its header declares."""
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file, member)
        size = math.prod(shape) * dtype.itemsize
        if size > archive.getinfo(member).file_size - file.tell():
            raise ValueError(f"{member} declares {dtype} {shape}, but holds fewer bytes")
        # in Fortran's order the file's bytes are those of the transposed array
        with Spool(shape[::-1] if fortran else shape, dtype) as spool:
            _copy(file, spool, size, member)
            array = spool.array()
    return array.T if fortran else array


def _header(file: IO[bytes], member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{member} has version {version} of the npy format; 1.0 and 2.0 are read")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{member} holds pickled objects")
    if any(d < 0 for d in shape) or not dtype.itemsize:
        raise ValueError(f"{member} declares {dtype} {shape}")
    return shape, fortran, dtype


def _copy(file: IO[bytes], spool: Spool, size: int, member: str) -> None:
    start = 0
    while start < size:
        data = file.read(min(PIECE, size - start))
        if not data:
            raise ValueError(f"{member} ends after {start} of {size} bytes")
        spool.write_bytes(start, memoryview(data))
        start += len(data)
