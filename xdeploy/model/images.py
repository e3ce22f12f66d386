"""Class folders of images, on disk or in a zip: which files there are, and of which classes.

Nothing in a zip is trusted: names that lead outside, absurd sizes and broken images are refused by name.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UsageError
from xdeploy.model.decoder import Read, reader

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
MAX_FILE = 64 * 2**20  # bytes of one image file
MAX_TOTAL = 16 * 2**30  # bytes of all files, and of all decoded images


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The files of a data set in order, and how to read one."""

    path: Path  # of the folder or zip
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    read: Read


def list_folder(path: Path) -> ImageFiles:
    """Images below class folders.

    Raises:
        UsageError: no images, or fewer than two classes.
    """
    names = sorted(_files_below(path))
    large = next((n for n in names if _is_image(n) and (path / n).stat().st_size > MAX_FILE), None)
    if large:
        raise UsageError(f"{path}: {large} has more than {MAX_FILE >> 20} MiB")
    return _by_class(path, names, reader(path))


def _files_below(path: Path) -> Iterator[str]:
    """Names relative to a folder, `/` between their parts; folders behind links are not entered."""
    for folder, _, files in os.walk(path):
        here = Path(folder).relative_to(path)
        yield from ((here / name).as_posix() for name in files if os.path.isfile(os.path.join(folder, name)))


def list_zip(path: Path, archive: zipfile.ZipFile) -> ImageFiles:
    """Images below class folders of an open zip, which may hold one folder around them.

    Raises:
        UsageError: as `list_folder`; names that lead outside, encryption, declared sizes over the limits.
    """
    total = 0
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        parts = _parts(name)
        if ".." in parts or name.startswith("/") or (parts and ":" in parts[0]):
            raise UsageError(f"{path}: the entry {entry.filename!r} leads outside the archive; it is refused")
        total += entry.file_size
        if (entry.file_size > MAX_FILE and _is_image(entry.filename)) or total > MAX_TOTAL:
            raise UsageError(
                f"{path}: {entry.filename!r} declares {entry.file_size} bytes; the limits are {MAX_FILE >> 20} MiB a "
                f"file and {MAX_TOTAL >> 30} GiB in all"
            )
        if entry.flag_bits & 1:
            raise UsageError(f"{path}: {entry.filename!r} is encrypted")

    return _by_class(path, [e.filename for e in archive.infolist() if not e.is_dir()], reader(path, archive))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _by_class(where: Path, names: Sequence[str], read: Read) -> ImageFiles:
    """Sort names into classes: the first folder, or the second if all lie in one."""
    kept = [n for n in sorted(names) if _is_image(n) and not _is_hidden(n)]
    if not kept:
        raise UsageError(
            f"{where} holds no images ({', '.join(SUFFIXES)}) in class folders",
            hint="expected CLASS/IMAGE.png, or a .npz with x and y",
        )
    around = 0  # folders that all others lie in; parts are split anew each time, as those of all names are large
    while len({_parts(n)[around] for n in kept}) == 1 and all(len(_parts(n)) > around + 2 for n in kept):
        around += 1
    loose = next((n for n in kept if len(_parts(n)) < around + 2), None)
    if loose:
        raise UsageError(f"{where}: {loose} lies in no class folder", hint="expected CLASS/IMAGE.png")
    classes = tuple(sorted({_parts(n)[around] for n in kept}))
    if len(classes) < 2:
        raise UsageError(f"{where} holds one class only ({classes[0]}); at least two class folders are needed")
    if {c.lower() for c in classes} <= {"train", "test", "val", "valid", "validation"}:
        raise UsageError(
            f"{where} holds the splits {', '.join(classes)} instead of classes",
            hint=f"give one as --data and another as --test-data, e.g. --data {where}/{classes[-1]}",
        )
    number = {c: i for i, c in enumerate(classes)}
    labels = np.fromiter((number[_parts(n)[around]] for n in kept), np.int64, len(kept))
    return ImageFiles(where, classes, labels, tuple(kept), read)


def _parts(name: str) -> tuple[str, ...]:
    """As PurePosixPath's of a relative name, in a fraction of the time."""
    return tuple(part for part in name.split("/") if part not in ("", "."))


def _is_hidden(name: str) -> bool:
    parts = _parts(name)
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)
