"""The rows of benchmarks/results/promises.json: one per point that was tried, kept as soon as it is there.

A row names the commit it was tried at; those without are of the commit of the earliest ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from xdeploy.environment import commit
from xdeploy.files import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "promises.json"
Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every sweep takes."""
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no point after this time")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")


def work(
    section: str,
    jobs: Iterable[tuple[str, Callable[[], Row]]],
    options: argparse.Namespace,
    counts: Callable[[dict[str, Row]], Row],
) -> int:
    """Make the rows that are missing or were wrong, each kept at once; 1 if any is wrong, else 0."""
    end = time.monotonic() + options.seconds
    found: dict[str, Row] = {} if options.fresh else dict(_document().get(section, {}).get("rows", {}))
    offered = [(key, job) for key, job in jobs]
    for key, job in offered:
        if time.monotonic() > end:
            break
        if key in found and not found[key]["wrong"]:
            continue
        found[key] = {**job(), "commit": commit(ROOT)}
        told = {k: v for k, v in found[key].items() if k not in ("wrong", "file", "at", "commit")}
        print(key, found[key].get("file", ""), told, *found[key]["wrong"], flush=True)
        document = _document()  # another sweep may write its own section meanwhile
        failed = sorted(k for k, r in found.items() if r["wrong"])
        told = {"of": len(offered), **counts(found), "failed": failed, "commit": commit(ROOT)}
        write_json(RESULTS, {**document, section: {**told, "rows": found}})
    return 1 if any(r["wrong"] for r in found.values()) else 0


def _document() -> dict[str, Any]:
    if not RESULTS.exists():
        return {"schema": "xdeploy.promises/1"}
    value: dict[str, Any] = json.loads(RESULTS.read_text())
    return value
