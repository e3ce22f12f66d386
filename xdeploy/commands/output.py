"""Where commands print: one JSON document or a text on stdout."""

from __future__ import annotations

import argparse
import json
from typing import Any


def emit(args: argparse.Namespace, document: dict[str, Any], text: str | None) -> None:
    """Print the document with --json, else the text unless --quiet."""
    if args.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    elif text and not args.quiet:
        print(text)


def columns(rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart; the last one is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[-1]]).rstrip() for r in rows)
