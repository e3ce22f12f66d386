"""A package's own list: `manifest.json` holds the SHA-256 of every other file and, as its last entry, its own.

That entry, `sha256`, is the SHA-256 of the file's bytes with the 64 digits of this value as zeros. So a changed bit
anywhere in a package is found, by other tools too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError, not_there
from xdeploy.files import sha256, write_text

NAME = "manifest.json"
_ZEROS = "0" * 64
_OWN = re.compile(rb'\n "sha256": "([0-9a-f]{64})"\n\}\n\Z')
_HINT = f"build it again; {NAME} lists the SHA-256 of every file"


def write(folder: Path, value: Mapping[str, Any]) -> None:
    """Write the manifest of a package atomically, with its own hash."""
    text = json.dumps({**value, "sha256": _ZEROS}, indent=1, allow_nan=False) + "\n"
    head, end, tail = text.rpartition(_ZEROS)
    write_text(folder / NAME, head + hashlib.sha256(f"{head}{end}{tail}".encode()).hexdigest() + tail)


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that every file is the one that was built: a few milliseconds per megabyte.

    Files that the manifest does not list (measurements, notes) may lie beside them.

    Args:
        folder: of the package.
        manifest: content of its manifest.json.

    Raises:
        UsageError: the first files that are missing or have another SHA-256 than the manifest says, by name, or the
            manifest itself is not as it was written.
    """
    files = manifest.get("files", {})
    if not isinstance(files, dict):
        raise UsageError(f"{folder / NAME}: files must be an object of names and hashes")
    told = [] if _is_own(folder / NAME) else [f"{NAME} was changed"]  # then what it says of others means nothing
    if not told:
        found = {name: _changed(folder / name, str(digest)) for name, digest in files.items()}
        told = [f"{name} {what}" for name, what in found.items() if what]
    if told:
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        raise UsageError(f"{folder} is not as it was built: {', '.join(told[:5])}{more}", hint=_HINT)


def _changed(path: Path, digest: str) -> str:
    """What has become of a file, "" if nothing."""
    try:
        if not path.is_file():
            return "is missing"
        return "" if sha256(path) == digest else "was changed"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _is_own(path: Path) -> bool:
    """Whether the file's last entry is its own hash."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    found = _OWN.search(data)
    if found is None:
        return False
    start, end = found.span(1)
    return hashlib.sha256(data[:start] + _ZEROS.encode() + data[end:]).hexdigest().encode() == found[1]


def not_built(folder: Path) -> UsageError:
    """The error for a folder that is none of a built target."""
    if not folder.exists():
        return not_there(folder)
    built = sorted(p.parent for p in folder.glob("[!.]*/manifest.json")) if folder.is_dir() else []
    hint = f"give one of the targets in it: {', '.join(map(str, built))}" if built else "give OUT/<target> of a build"
    return UsageError(f"{folder} is not the folder of a built target: it has no manifest.json", hint=hint)
