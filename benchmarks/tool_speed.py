"""How long the tool itself takes: --help, a rebuild of what is built, the demo, ResNet-20 for three targets.

Every case is a process of its own, as a user starts it. Writes results/tool_speed.json with median, least and most;
cases that were measured at the same commit stay.
ResNet-20 (no fine-tuning, kernels tuned and their figures from the cache, which a first run fills) needs --shared.

Run: python benchmarks/tool_speed.py [--repeats 5] [--shared DIR] [--only help,rebuild,demo,resnet20] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdeploy.environment import commit
from xdeploy.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("cortex-m4", "cortex-m55", "cortex-a72")
SCHEMA = "xdeploy.toolspeed/1"
BARS = {"help": 0.3, "rebuild": 2.0, "demo": None, "resnet20": 90.0}  # seconds
FEWER = {"demo": 3, "resnet20": 2}  # repeats at the most


def xdeploy(*words: str | Path) -> float:
    """Seconds of one command; it must succeed."""
    command = [sys.executable, "-m", "xdeploy.cli", *map(str, words)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def demo(folder: Path) -> list[str | Path]:
    """The words of the demo's build."""
    return ["build", "--target", "arm", "-o", folder, "--quiet"]


def resnet20(shared: Path, folder: Path) -> list[str | Path]:
    """The words of ResNet-20's build."""
    targets = [word for name in TARGETS for word in ("--target", name)]
    data = shared / "data"
    return [
        "build", "xdeploy.model.zoo:resnet20", "--weights", shared / "models" / "resnet20-cifar10-jpeg.safetensors",
        "--data", data / "cifar10-jpeg-train.zip", "--test-data", data / "cifar10-jpeg-test.zip", *targets,
        "--tune", "quick", "-o", folder, "--quiet",
    ]  # fmt: skip


def afresh(words: list[str | Path], folder: Path) -> float:
    """A build into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return xdeploy(*words)


def measured(name: str, repeats: int, once: Callable[[], float]) -> dict[str, Any]:
    """Median and spread of a case in seconds, with its bar where it has one."""
    count = max(1, min(repeats, FEWER.get(name, repeats)))
    seconds = [once() for _ in range(count)]
    row = {
        "median": round(statistics.median(seconds), 3),
        "low": round(min(seconds), 3),
        "high": round(max(seconds), 3),
    }
    bar = BARS[name]
    print(f"{name:10} {row['median']:8.2f} s  ({row['low']} .. {row['high']}, {count} runs)", file=sys.stderr)
    return {**row, "unit": "s", "how": "measured", "n": count, "bar": bar, "met": bar is None or row["median"] < bar}


def stages(folder: Path) -> dict[str, Any]:
    """Seconds and most memory of each stage of the last run."""
    rows = read_json(folder / "run.json", "xdeploy.run/1")["stages"]
    return {name: {"seconds": r["seconds"], "peak_rss": r.get("peak_rss")} for name, r in rows.items()}


def kept(path: Path) -> dict[str, Any]:
    """The cases that were measured before at this commit."""
    if not path.exists():
        return {}
    before = read_json(path, SCHEMA)
    return dict(before["cases"]) if before["commit"] == commit(ROOT) else {}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shared", type=Path, help="folder with data and models")
    parser.add_argument("--only", default="help,rebuild,demo,resnet20", help="cases, with commas between")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "tool_speed.json")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(BARS):
        parser.error(f"unknown case {min(unknown)!r}; allowed: {', '.join(BARS)}")
    cases = kept(options.output)
    with tempfile.TemporaryDirectory(prefix="xdeploy-speed-") as scratch:
        folder = Path(scratch) / "demo"
        if "help" in wanted:
            xdeploy("--help")  # compiled modules are there afterwards, as they are for a user
            cases["help"] = measured("help", 4 * options.repeats, lambda: xdeploy("--help"))
        if "demo" in wanted:
            cases["demo"] = measured("demo", options.repeats, lambda: afresh(demo(folder), folder))
        if "rebuild" in wanted:
            xdeploy(*demo(folder))
            cases["rebuild"] = measured("rebuild", options.repeats, lambda: xdeploy(*demo(folder)))
            cases["rebuild"]["stages_of_the_build"] = stages(folder)
        if "resnet20" in wanted and options.shared is not None:
            folder = Path(scratch) / "resnet20"
            words = resnet20(options.shared, folder)
            afresh(words, folder)  # fills the cache of tuned kernels
            cases["resnet20"] = measured("resnet20", options.repeats, lambda: afresh(words, folder))
            cases["resnet20"]["stages"] = stages(folder)
    value = {
        "schema": SCHEMA, "cases": cases, "targets": list(TARGETS), "cores": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()], "python": platform.python_version(), "commit": commit(ROOT),
    }  # fmt: skip
    write_json(options.output, value)
    missed = [name for name, row in cases.items() if not row["met"]]
    print(f"{options.output}: {'all bars met' if not missed else 'missed: ' + ', '.join(missed)}", file=sys.stderr)


if __name__ == "__main__":
    main()
