"""The bytes of an ONNX file, measured before anything is allocated for them, then parsed.

Protobuf messages grow up to a hundredfold in memory (two bytes of an empty node become about 150), so the fields are
counted on the wire first. The same walk finds text that is not UTF-8, which protobuf would hand out as bytes, and text
too long to be a name. Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import onnx

from xdeploy.errors import ModelError, not_there

FILE_LIMIT = 2**31 - 1  # protobuf's own
FIELD_LIMIT = 1_000_000  # of all messages together: at most about 200 MB once parsed
DEPTH_LIMIT = 32  # of messages: eight subgraphs, one inside the other, and what they hold
NAME_LIMIT = 4096  # bytes
_FREE_TEXT = {"doc_string", "value"}  # documentation, and values of metadata: no names
_STRING, _MESSAGE = 9, 11  # FieldDescriptor.TYPE_*
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
_EMPTY: dict[int, Any] = {}


def read_bytes(path: Path) -> bytes:
    """The file's bytes. Only a regular file is read; a pipe or device of that name is not waited for.

    Raises:
        UsageError: there is none. ModelError: not a regular file, unreadable, or above 2 GiB.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ModelError(f"{path} is not a regular file")
            if about.st_size > FILE_LIMIT:
                raise ModelError(f"{path} has {about.st_size} bytes; an ONNX file has at most {FILE_LIMIT}")
            return file.read(min(FILE_LIMIT, about.st_size + 1))
    except FileNotFoundError:
        raise not_there(Path(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise ModelError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse(data: bytes, path: Path | str) -> Any:
    """An onnx.ModelProto of bounded size whose names are text.

    Raises:
        ModelError: broken bytes, or above the limits.
    """
    try:
        scan(data)
        return onnx.ModelProto.FromString(data)
    except _Excess as error:
        raise ModelError(f"{path} is refused: {error}") from None
    except Exception as error:  # protobuf raises several types for broken bytes
        raise ModelError(f"{path} is not an ONNX file ({type(error).__name__})") from None


class _Excess(Exception):  # noqa: N818 (a reason, put into words with the path by `parse`)
    """A limit is exceeded, or text is no text."""


@cache
def _table(descriptor: Any) -> dict[int, Any]:
    """Field number -> the name of a checked text field, or the descriptor of a message field."""
    table: dict[int, Any] = {}
    for field in descriptor.fields:
        if field.type == _MESSAGE:
            table[field.number] = field.message_type
        elif field.type == _STRING:
            table[field.number] = field.name
    return table


def scan(data: bytes) -> None:
    """Walk the wire format of a ModelProto and check every limit; nothing is kept.

    Raises:
        ValueError, IndexError: broken bytes. _Excess: above a limit.
    """
    fields, stack = 0, [(0, len(data), onnx.ModelProto.DESCRIPTOR, 1)]
    while stack:
        at, end, descriptor, depth = stack.pop()
        if depth > DEPTH_LIMIT:
            raise _Excess(f"its messages are nested deeper than {DEPTH_LIMIT}")
        table = _table(descriptor) if descriptor is not None else _EMPTY
        while at < end:
            fields += 1
            if fields > FIELD_LIMIT:
                raise _Excess(f"it has more than {FIELD_LIMIT} fields")
            tag, at = _varint(data, at)
            kind = tag & 7
            if kind == 2:
                size, at = _varint(data, at)
                if size > end - at:
                    raise ValueError("a field ends behind its message")
                what = table.get(tag >> 3)
                if isinstance(what, str):
                    _text(what, data, at, size)
                elif what is not None:
                    stack.append((at, at + size, what, depth + 1))
                at += size
            elif kind == 0:
                _, at = _varint(data, at)
            else:
                at += _FIXED[kind] if kind in _FIXED else _refuse(kind)
        if at != end:
            raise ValueError("a field ends behind its message")


def _refuse(kind: int) -> int:
    raise ValueError(f"wire type {kind}, which ONNX does not use")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
    raise ValueError("a number of more than ten bytes")


def _text(field: str, data: bytes, at: int, size: int) -> None:
    if size > NAME_LIMIT and field not in _FREE_TEXT:
        raise _Excess(f"a {field} of {size} bytes; at most {NAME_LIMIT}")
    try:
        data[at : at + size].decode()
    except UnicodeDecodeError:
        raise _Excess(f"a {field} that is not UTF-8: {data[at : at + min(size, 40)]!r}") from None


# ------------------------------------------------------------------------------------------------- tensors
@cache
def _carriers(descriptor: Any) -> frozenset[str]:
    """Names of the message fields through which a tensor can be reached."""
    found = set()
    for field in descriptor.fields:
        if field.type == _MESSAGE and _reaches(field.message_type, frozenset()):
            found.add(field.name)
    return frozenset(found)


def _reaches(descriptor: Any, seen: frozenset[str]) -> bool:
    if descriptor.name == "TensorProto":
        return True
    if descriptor.name in seen:
        return False
    below = seen | {descriptor.name}
    return any(f.type == _MESSAGE and _reaches(f.message_type, below) for f in descriptor.fields)


def tensors(message: Any) -> Iterable[Any]:
    """Every TensorProto inside a message, wherever the format allows one.

    Initialisers, attributes, sparse tensors, subgraphs, functions and their defaults, training information.
    """
    stack = [message]
    while stack:
        at = stack.pop()
        if at.DESCRIPTOR.name == "TensorProto":
            yield at
            continue
        wanted = _carriers(at.DESCRIPTOR)
        for field, value in at.ListFields():
            if field.name in wanted:
                stack.extend([value] if hasattr(value, "DESCRIPTOR") else value)
