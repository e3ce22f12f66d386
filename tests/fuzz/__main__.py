"""The long run: `python -m tests.fuzz --structured 2000 --bytes 100000 --seed 0`.

Goes on where the last run with the same seed stopped; writes counts, time, peak memory and every failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import bytes as raw
from tests.fuzz import structured
from tests.fuzz.doors import FAILURES, Outcome, Worker
from tests.fuzz.seeds import all_seeds
from xdeploy.files import write_json

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = "xdeploy.fuzz/1"
_SAVE_EVERY = 500


def empty(seed: int) -> dict[str, Any]:
    """The record of a run that has not begun."""
    part = {"cases": 0, "seconds": 0.0, "outcomes": {}, "changes": {}, "failures": []}
    return {"schema": SCHEMA, "seed": seed, "peak_rss": 0,
            **{k: json.loads(json.dumps(part)) for k in ("structured", "bytes")}}  # fmt: skip


def count(record: dict[str, Any], kind: str, number: int, label: str, outcome: Outcome) -> None:
    """Enter one outcome."""
    part = record[kind]
    part["cases"] = number + 1
    part["outcomes"][outcome.kind] = part["outcomes"].get(outcome.kind, 0) + 1
    for change in label.partition(": ")[2].split(", "):
        row = part["changes"].setdefault(change, {})
        row[outcome.kind] = row.get(outcome.kind, 0) + 1
    record["peak_rss"] = max(record["peak_rss"], outcome.rss)
    if outcome.kind in FAILURES:
        part["failures"].append({"case": number, "mutant": label, "kind": outcome.kind,
                                 "detail": outcome.detail.replace(f"{ROOT}/", "")})  # fmt: skip


def run(kind: str, total: int, record: dict[str, Any], save: Callable[[], None]) -> None:
    """All cases of a kind that the record does not hold yet."""
    models = all_seeds(with_shared=True)
    files = {name: m.SerializeToString() for name, m in models.items()}
    seed, part = record["seed"], record[kind]
    with tempfile.TemporaryDirectory(prefix="xdeploy-fuzz-") as folder, Worker(Path(folder)) as worker:
        start = time.monotonic() - part["seconds"]
        for number in range(part["cases"], total):
            which = seed * 10**7 + number
            label, data = structured.mutant(which, models) if kind == "structured" else raw.mutant(which, files)
            count(record, kind, number, label, worker.run(data, compare=kind == "structured"))
            part["seconds"] = round(time.monotonic() - start, 1)
            if (number + 1) % _SAVE_EVERY == 0:
                save()
                failed = len(part["failures"])
                print(f"{kind} {number + 1}/{total}: {failed} failures, {part['seconds']} s", file=sys.stderr)
    save()


def replay(record: dict[str, Any]) -> None:
    """Run every failure on record again and enter its outcome now beside the one it had."""
    models = all_seeds(with_shared=True)
    files = {name: m.SerializeToString() for name, m in models.items()}
    with tempfile.TemporaryDirectory(prefix="xdeploy-fuzz-") as folder, Worker(Path(folder)) as worker:
        for kind in ("structured", "bytes"):
            for failure in record[kind]["failures"]:
                which = record["seed"] * 10**7 + failure["case"]
                label, data = structured.mutant(which, models) if kind == "structured" else raw.mutant(which, files)
                assert label == failure["mutant"], "the mutator has changed"
                failure["now"] = worker.run(data, compare=kind == "structured").kind


def main() -> int:
    """Run from the command line; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--structured", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="forget what was counted before")
    parser.add_argument(
        "--replay", action="store_true", help="run the failures on record again, with what they give now"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    args = parser.parse_args()
    record = empty(args.seed)
    if args.output.exists() and not args.fresh:
        before = json.loads(args.output.read_text())
        record = before if before.get("schema") == SCHEMA and before.get("seed") == args.seed else record
    if args.replay:
        replay(record)
        write_json(args.output, record)
    else:
        for kind, total in (("structured", args.structured), ("bytes", args.bytes)):
            run(kind, total, record, lambda: write_json(args.output, record))
    failures = [f for kind in ("structured", "bytes") for f in record[kind]["failures"]]
    failed = [f for f in failures if f.get("now", f["kind"]) in FAILURES]
    for f in failed[:20]:
        print(f"{f['kind']}: {f['mutant']} (case {f['case']})\n{f['detail']}\n")
    cases = " and ".join(f"{record[kind]['cases']} {kind}" for kind in ("structured", "bytes"))
    told = f"{len(failures)} failures, {len(failed)} of them not mended"
    print(f"{cases} mutants: {told}, peak {record['peak_rss'] / 2**20:.0f} MiB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
