"""Reading .pt2 files (torch.export.save) without running what they hold.

`torch.export.load` unpickles sample inputs (and, when the safe way fails, again the unsafe way), weights marked
`use_pickle` and custom objects, parses symbolic shapes as Python and resolves operations by attribute. So the archive
is read once into memory, every member is checked against a list of what a plain network needs, a new archive is made
of the checked members, and only that is loaded.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from xdeploy.errors import ModelError, UsageError

MAX_TOTAL = 4 * 2**30  # bytes, unpacked
_MEMBERS = re.compile(
    r"data/weights/(weight_\d+|\w+_weights_config\.json|\w+\.pt)"
    r"|data/constants/(tensor_\d+|\w+_constants_config\.json|\w+\.pt)"
    r"|data/sample_inputs/\w+\.pt|models/\w+\.json|archive_format|archive_version|byteorder|version"
    r"|\.data/(version|serialization_id)"
)
_TARGET = re.compile(
    r"torch\.ops\.(aten|higher_order)\.\w+(\.\w+)?|_operator\.(getitem|add|mul|sub|floordiv|eq|ge|le|lt|gt|ne)"
)
# no attribute access: a dot stands between digits only
_EXPRESSION = re.compile(r"([\w\s+\-*/%(),'<>=!&|~]|(?<=\d)\.(?=\d))*")
_WORDS = re.compile(
    r"[su]\d+|Symbol|Integer|Float|Rational|Add|Mul|Pow|positive|integer|nonnegative|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|IntTrueDiv|ModularIndexing|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not"
    r"|true|false|True|False|oo|int_oo"
)


def load_program(path: Path) -> ExportedProgram:
    """The exported program of a .pt2 file.

    Raises:
        UsageError: missing, no zip, or it holds pickled objects or anything else that could run code.
        ModelError: torch cannot read it.
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = _read(path, archive)
    except OSError as error:
        raise UsageError(f"model {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
        raise UsageError(f"model {path} is not a .pt2 file: {error}", hint="write it with torch.export.save") from None
    checked = {name: _check_member(path, name, content) for name, content in members.items()}
    try:
        program: ExportedProgram = torch.export.load(_pack(checked))
    except Exception as error:  # torch raises many kinds for files of other versions
        first = str(error).splitlines()[0] if str(error) else ""
        raise ModelError(
            f"model {path} cannot be read: {type(error).__name__}: {first}",
            hint=f"write it with torch.export.save of torch {torch.__version__.split('+')[0]}",
        ) from None
    return program


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Members by their name below the archive's one folder."""
    if sum(e.file_size for e in archive.infolist()) > MAX_TOTAL:
        raise UsageError(f"model {path} declares more than {MAX_TOTAL >> 30} GiB")
    members: dict[str, bytes] = {}
    tops = {e.filename.partition("/")[0] for e in archive.infolist()}
    if len(tops) != 1:
        raise UsageError(f"model {path} is not a .pt2 file: it has {len(tops)} top folders instead of one")
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        if name in members or not _MEMBERS.fullmatch(name):
            what = "appears twice" if name in members else "is not part of a plain exported program"
            raise UsageError(
                f"model {path}: the entry {entry.filename!r} {what}; it is refused, since it could run code",
                hint="export the float module again with torch.export.save",
            )
        members[name] = archive.read(entry)
    return members


def _check_member(path: Path, name: str, content: bytes) -> bytes:
    if name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except Exception as error:  # any failure here would make torch fall back to the unsafe way
            raise UsageError(
                f"model {path}: {name} holds pickled objects, which are refused ({type(error).__name__})",
                hint="export it again with plain tensors as example inputs, or give a factory and --weights",
            ) from None
    if not name.endswith(".json"):
        return content
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UsageError(f"model {path}: {name} is no JSON: {error}") from None
    for entry in _objects(value):
        if entry.get("use_pickle"):
            raise UsageError(f"model {path}: {name} asks for pickled weights, which are refused")
        _check_text(path, "has a shape", entry.get("expr_str"))
        if "inputs" in entry:
            _check_text(path, "calls", entry.get("target"))
    if name.startswith("models/"):
        value["guards_code"] = []  # Python text that checks inputs; the network does not need it
    return json.dumps(value).encode()


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON document."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, dict):
            yield entry
            waiting += entry.values()
        elif isinstance(entry, list):
            waiting += entry


def _check_text(path: Path, what: str, text: Any) -> None:
    """Text that torch resolves to an operation, or parses as an expression."""
    if text is None:
        return
    allowed = isinstance(text, str)
    if allowed and what == "calls":
        allowed = bool(_TARGET.fullmatch(text))
    elif allowed:
        words = re.findall(r"[A-Za-z_]\w*", text)
        allowed = bool(_EXPRESSION.fullmatch(text)) and all(_WORDS.fullmatch(w) for w in words)
    if not allowed:
        raise UsageError(f"model {path} {what} {str(text)[:80]!r}; only ATen operations and plain shapes are read")


def _pack(members: dict[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"model/{name}", content)
    file.seek(0)
    return file
