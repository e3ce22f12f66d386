"""What can happen to a file on a disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def damages(path: Path, other: bytes) -> Iterator[tuple[str, bytes]]:
    """The file's content truncated to nothing, with one bit flipped at three places, and another file's."""
    data = path.read_bytes()
    yield "empty", b""
    yield "half", data[: len(data) // 2]
    for share in (0.05, 0.5, 0.95):
        at = int(share * (len(data) - 1))
        yield f"bit {at}", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    if other != data:
        yield "swapped", other
