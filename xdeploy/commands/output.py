"""Where commands print: one JSON document or a text on stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError, XdeployError


def emit(args: argparse.Namespace, document: dict[str, Any], text: str | None) -> None:
    """Print the document with --json, else the text unless --quiet.

    Raises:
        XdeployError: stdout cannot be written. A reader that has seen enough, such as `head`, is no error.
    """
    if args.json:
        say(json.dumps(document, indent=1, allow_nan=False))
    elif text and not args.quiet:
        say(text)


def say(text: str) -> None:
    """Print on stdout; see `emit`."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered still goes somewhere
        if not isinstance(error, BrokenPipeError):
            raise XdeployError(f"standard output cannot be written: {error.strerror}") from None


def write_file(path: Path, text: str) -> None:
    """Write a file that a flag names.

    Raises:
        UsageError: it cannot be written.
    """
    from xdeploy.files import write_text  # loads numpy, for which no help text has to wait

    try:
        write_text(path, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None


def columns(rows: list[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart; the last one is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(r, widths, strict=False)), r[-1]]).rstrip() for r in rows)
