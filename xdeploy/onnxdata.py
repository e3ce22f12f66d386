"""Tensors that an ONNX file keeps in files beside it: checked, read once, and put into the model itself.

Only on request (`permission.external_data`). A location is the plain name of a file in the model's own folder, opened
relative to that folder without following links; it is a regular file of one name. What a tensor asks for is held
against its shape and against the file's size before a byte is read. Everything behind this sees one file.
Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto

from xdeploy.errors import ModelError, shown
from xdeploy.onnxguard import byte_size
from xdeploy.onnxwire import FILE_LIMIT, tensors
from xdeploy.permission import EXTERNAL_DATA, external_data_allowed

_KEYS = ("location", "offset", "length", "checksum")
_NAME_LIMIT = 255  # bytes
_LINKED = "copy the model and its data files into one folder, without links (cp -L)"
_ONE_FILE = "or save the model as one file (torch.onnx.export(..., external_data=False))"


@dataclass(frozen=True, slots=True)
class _Wish:
    """What one tensor asks for: `length` bytes from `offset` of the file, whose SHA-1 is `checksum` ("": any)."""

    tensor: Any
    location: str
    offset: int
    length: int
    checksum: str


def is_external(tensor: Any) -> bool:
    """Whether a TensorProto says that its data stands elsewhere."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def inline(model: Any, path: Path) -> dict[str, str]:
    """Put the data that the model keeps in other files into the model; without such nothing is opened.

    Args:
        model: an onnx.ModelProto, changed in place.
        path: the file it was parsed from, whose folder the other files lie in.

    Returns:
        name of every file that was read -> SHA-256 of its bytes.

    Raises:
        ModelError: not allowed, or anything about the locations, files or ranges is wrong.
    """
    outside = [t for t in tensors(model) if is_external(t)]
    if not outside:
        return {}
    if not external_data_allowed():
        raise _not_allowed(outside[0], path)
    wishes = [_wish(t, path) for t in outside]
    if sum(w.length for w in wishes) > FILE_LIMIT:
        raise ModelError(f"{path}: its tensors in other files have more than {FILE_LIMIT} bytes")
    return _read_all(wishes, path)


def _not_allowed(tensor: Any, path: Path) -> ModelError:
    named = next((e.value for e in tensor.external_data if e.key == "location"), "")
    return ModelError(
        f"{path}: tensor {shown(tensor.name)} keeps its data in another file, {shown(named)}, which is not opened",
        hint=f"give {EXTERNAL_DATA} (recipe key lower.external_data) if it lies in the model's own folder, {_ONE_FILE}",
    )


# ------------------------------------------------------------------------------------------- what is asked for
def _wish(tensor: Any, path: Path) -> _Wish:
    label = f"{path}: tensor {shown(tensor.name)}, kept in another file"
    given = [e.key for e in tensor.external_data]
    if tensor.data_location != TensorProto.EXTERNAL or len(set(given)) < len(given) or not set(given) <= set(_KEYS):
        keys = ", ".join(shown(k) for k in given[:6]) or "no keys"
        raise ModelError(f"{label}, is malformed: {keys}; each of {', '.join(_KEYS)} stands at most once")
    entry = {e.key: e.value for e in tensor.external_data}
    location = entry.get("location", "")
    if not _plain(location) or location == path.name:
        raise ModelError(
            f"{label}: {shown(location)} is refused",
            hint="the plain name of a file in the model's own folder is read, no path",
        )
    length = byte_size(tensor)
    asked = _number(entry, "length", length, label)
    if asked != length:
        raise ModelError(f"{label}, has {length} bytes by its shape, but asks for {asked}")
    return _Wish(tensor, location, _number(entry, "offset", 0, label), length, entry.get("checksum", "").lower())


def _plain(name: str) -> bool:
    """A file name that means the same everywhere: no path, drive or stream, all printable, no dots at the ends."""
    whole = bool(name) and name.isprintable() and len(name.encode()) <= _NAME_LIMIT
    return whole and not set(name) & set("/\\:") and name == name.strip(" .~")


def _number(entry: Mapping[str, str], key: str, default: int, label: str) -> int:
    text = entry.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{label}, is malformed: {key} {shown(text)} is no number of bytes")
    return int(text)


# --------------------------------------------------------------------------------------------------- reading
def _read_all(wishes: Iterable[_Wish], path: Path) -> dict[str, str]:
    """Each file is opened once; its bytes are hashed and handed out from one reading."""
    by_file: dict[str, list[_Wish]] = {}
    for wish in wishes:
        by_file.setdefault(wish.location, []).append(wish)
    if not hasattr(os, "O_NOFOLLOW") or os.open not in os.supports_dir_fd:
        raise ModelError(f"{path}: data in other files is not read on this system", hint=_ONE_FILE)
    found, room = {}, FILE_LIMIT
    folder = _folder(path)
    try:
        for name, group in by_file.items():
            data = _read(folder, name, group, path, room)
            room -= len(data)
            for w in group:
                w.tensor.raw_data = bytes(memoryview(data)[w.offset : w.offset + w.length])
                w.tensor.ClearField("data_location")
                w.tensor.ClearField("external_data")
            found[name] = hashlib.sha256(data).hexdigest()
    finally:
        os.close(folder)
    return found


def _folder(path: Path) -> int:
    """A descriptor of the model's folder; the model itself must lie there, not a link to it."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            linked = stat.S_ISLNK(os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode)
        except OSError:
            os.close(folder)
            raise
    except OSError as error:
        raise ModelError(f"{path}: its folder cannot be read: {error.strerror}") from None
    if linked:
        os.close(folder)
        raise ModelError(
            f"{path} is a link to another file; it keeps data in other files, which only count beside the file itself",
            hint=_LINKED,
        )
    return folder


def _read(folder: int, name: str, group: Iterable[_Wish], path: Path, room: int) -> bytes:
    """The bytes of one file, after everything that can be known of it without reading was checked."""
    where = f"{path}: its data file {shown(name)}"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe is not waited for
    try:
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        _regular(about, where)
        with open(os.open(name, flags, dir_fd=folder), "rb") as file:
            about = os.fstat(file.fileno())  # of what was opened, should it have been swapped meanwhile
            _regular(about, where)
            if about.st_size > room:
                raise ModelError(f"{where} has {about.st_size} bytes; all together have at most {FILE_LIMIT}")
            for w in group:
                if w.offset + w.length > about.st_size:
                    raise ModelError(
                        f"{where} has {about.st_size} bytes; tensor {shown(w.tensor.name)} asks for bytes "
                        f"{w.offset} to {w.offset + w.length}"
                    )
            data = file.read(about.st_size)
    except (OSError, ValueError) as error:
        raise ModelError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) != about.st_size:
        raise ModelError(f"{where} became shorter while it was read")
    _checksum(data, group, where)
    return data


def _regular(about: os.stat_result, where: str) -> None:
    if stat.S_ISLNK(about.st_mode):
        raise ModelError(f"{where} is a link, which is refused", hint=_LINKED)
    if not stat.S_ISREG(about.st_mode):
        raise ModelError(f"{where} is refused: it is not a regular file")
    if about.st_nlink != 1:
        raise ModelError(f"{where} is refused: it has {about.st_nlink} names (hard links)", hint=_LINKED)


def _checksum(data: bytes, group: Iterable[_Wish], where: str) -> None:
    wanted = {w.checksum for w in group} - {""}
    if wanted and wanted != {hashlib.sha1(data, usedforsecurity=False).hexdigest()}:
        raise ModelError(f"{where} is refused: its SHA-1 is not the checksum that the model names")
