"""A seal at the end of report.html: what the page was made of, and what it is, so that neither is made or kept wrongly.

A page is drawn again when anything that goes into it has changed, or the page itself; charts take a second.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_CODE = (".py", ".css", ".js")  # of this package: another version of it makes other pages
_SEAL = re.compile(r"<!-- made of ([0-9a-f]{64}), page ([0-9a-f]{64}) -->\n$")


def source(report: str, *pictures: Path) -> str:
    """Hash of what a page is made of.

    Args:
        report: the text of report.json.
        pictures: files that it shows; those that do not exist count as absent.
    """
    digest = hashlib.sha256(report.encode())
    for path in (*pictures, *sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in _CODE)):
        digest.update(b"\0" + (hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b""))
    return digest.hexdigest()


def sealed(page: str, made_of: str) -> str:
    """The page with its seal."""
    return f"{page}<!-- made of {made_of}, page {hashlib.sha256(page.encode()).hexdigest()} -->\n"


def is_current(path: Path, made_of: str) -> bool:
    """Whether the file is the undamaged page made of this."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    found = _SEAL.search(text)
    return found is not None and sealed(text[: found.start()], made_of) == text
