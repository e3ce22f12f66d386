"""One thread and two for an inference on x86-64; writes results/threads.json.

Three libraries take turns in one process, at every feature level of this CPU: built without the option, built for
two threads and run on one (what cutting layers into halves costs), and run on two. Beside them what handing an empty
half to the second thread and waiting for it costs. Networks are those of host.py. Rows are told apart by CPU.

Run: python benchmarks/threads.py [--shared DIR] [--output DIR] [--only NAME ...] [--rounds N]
Two CPUs that nothing else uses: on a busy machine the library stays at one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from host import RESULT as HOST_RESULT
from host import ROOT, SCHEMA, ZOO, cpu_of, request

from xdeploy.bench.compare import BURST_NS
from xdeploy.bench.host import HostRunner
from xdeploy.bench.model import significant
from xdeploy.bench.threads import SETTLING, outputs_of_two, ratio
from xdeploy.builder import build
from xdeploy.builder.zig import cc
from xdeploy.console import Console
from xdeploy.environment import commit, environment
from xdeploy.files import read_json, write_json
from xdeploy.formats import Float64, Int8
from xdeploy.handover import Artifact, GoldenIo, quantity
from xdeploy.lir.graph import LoweredGraph
from xdeploy.pipeline import run
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

RESULT = HOST_RESULT.with_name("threads.json")
NETWORKS = ("ResNet-20", "MobileNetV1 0.25, 96x96", "VGG16")
TARGET = "x86-64"


def built(name: str, shared: Path, output: Path) -> tuple[Artifact, Artifact, GoldenIo]:
    """The network without the option and with it."""
    asked = request(name, shared, output, (TARGET,))
    with Console() as console:
        run(asked, until="lower", progress=console)
    graph, golden = LoweredGraph.load(asked.output / "graph.npz"), GoldenIo.load(asked.output / "golden.npz")
    target, made = load_target(TARGET), list[Artifact]()
    for threads in (1, 2):
        program = bind(graph, target, "net", threads=threads)
        folder = asked.output / f"threads-{threads}"
        made.append(build(program, graph, golden, target, folder, PackageOptions(), {}))
    return made[0], made[1], golden


def turns(whole: HostRunner, halves: HostRunner, codes: Int8, rounds: int) -> Float64:
    """Nanoseconds per inference, float64 (3, rounds): without the option, with it on one thread, on two."""
    steps: list[tuple[Callable[[], None], int]] = [
        (whole.step(codes), 1), (step := halves.step(codes), 1), (step, 2),
    ]  # fmt: skip
    count, times = max(1, int(BURST_NS // max(_timed(step, 3), 1.0))), np.empty((3, rounds))
    halves.set_threads(2)
    for _ in range(SETTLING):
        step()
    for i in range(rounds):
        for k, (step, threads) in enumerate(steps):
            halves.set_threads(threads)
            step()
            times[k, i] = _timed(step, count)
    halves.set_threads(1)
    return times


def _timed(step: Callable[[], None], count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        step()
    return (time.perf_counter_ns() - start) / count


def _seconds(times: Float64, note: str) -> dict[str, Any]:
    low, middle, high = (significant(float(v) * 1e-9) for v in np.percentile(times, (10, 50, 90)))
    return quantity(middle, "s", "measured", low=low, high=high, n=len(times), note=note)


def row(name: str, level: str, whole: HostRunner, halves: HostRunner, golden: GoldenIo, rounds: int) -> dict[str, Any]:
    """One network at one feature level."""
    for runner in (whole, halves):
        runner.choose_level(level)
    two = outputs_of_two(halves, golden.input_codes)
    assert two is not None, "two CPUs are needed"
    equal = bool((two == golden.output_codes).all() and (whole.run_many(golden.input_codes) == two).all())
    times, nodes = turns(whole, halves, golden.input_codes, rounds), halves.program["nodes"]
    low, middle, high = (significant(float(v)) for v in np.percentile(times[1] / times[0], (10, 50, 90)))
    cost = "time of the halves on one thread over that of the library without the option"
    return {
        "network": name, "target": TARGET, "isa": halves.isa, "verdict": "bit-exact" if equal else "differs",
        "macs": sum(n["macs"] for n in nodes), "macs_in_halves": sum(n["macs"] for n in nodes if n.get("half")),
        "layers_in_halves": sum(n.get("half") == 1 for n in nodes),
        "latency_without": _seconds(times[0], "built without the option"),
        "latency": _seconds(times[1], "built for two threads, run on one"),
        "latency_two_threads": _seconds(times[2], "built for two threads, which it may use"),
        "ratio_two_threads": ratio(times[1:]),
        "ratio_to_without": ratio(times[[0, 2]]),
        "cost_of_halves": quantity(middle, "1", "measured", low=low, high=high, n=rounds, note=cost),
        "arena": {kind: quantity(r.program["arena"]["bytes"], "byte", "measured")
                  for kind, r in (("without", whole), ("halves", halves))},
    }  # fmt: skip


def fork_join(artifact: Artifact, rounds: int = 20_000) -> dict[str, Any]:
    """What handing over costs, by the package's own code."""
    name, source = artifact.manifest["symbols"]["run"].removesuffix("_run"), ROOT / "benchmarks" / "forkjoin.c"
    words = [f"-D{x.upper()}={name}_{x}" for x in ("begin", "end", "offer", "done", "set_threads")]
    words += [f'-DHEADER="{name}_both.h"', "-I.", *(f"-I{artifact.folder.resolve() / x}" for x in ("include", "src"))]
    with tempfile.TemporaryDirectory() as folder:
        both = f'#include "{name}.h"\n#include "{name}_threads.h"\n'
        (Path(folder) / f"{name}_both.h").write_text(both, encoding="utf-8")
        worker = artifact.folder.resolve() / "src" / f"{name}_threads.c"
        cc(["-O2", *words, source, worker, "-lpthread", "-o", "forkjoin"], Path(folder))
        done = subprocess.run([f"{folder}/forkjoin", str(rounds)], capture_output=True, text=True, check=True)
    notes = {
        "handed_over": "offer an empty half, wait until the spinning worker has done it",
        "taken_back": "offer a half and take it back at once",
    }
    return {
        key: quantity(middle * 1e-9, "s", "measured", low=low * 1e-9, high=high * 1e-9, n=rounds, note=notes[key])
        for key, (low, middle, high) in json.loads(done.stdout).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--output", type=Path, default=Path("out-benchmarks") / "threads")
    parser.add_argument("--only", nargs="+", choices=tuple(ZOO), default=NETWORKS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    document: dict[str, Any] = read_json(RESULT, SCHEMA) if RESULT.exists() else {"schema": SCHEMA, "rows": []}
    for name in args.only:
        plain, cut, golden = built(name, args.shared, args.output)
        whole, halves = HostRunner(plain), HostRunner(cut)
        for level in ("", *(x.name for x in load_target(TARGET).levels_here())):
            found = row(name, level, whole, halves, golden, args.rounds) | {
                "fork_join": fork_join(cut), "commit": commit(ROOT), "environment": environment(),
            }  # fmt: skip
            keys = [(r["network"], r["isa"], cpu_of(r)) for r in document["rows"]]
            others = [r for r, key in zip(document["rows"], keys, strict=True)
                      if key != (name, found["isa"], cpu_of(found))]  # fmt: skip
            document["rows"] = [*others, found]
            write_json(RESULT, document)
            print(told(found), flush=True)


def told(found: dict[str, Any]) -> str:
    """A line for the terminal."""
    two, cost = found["ratio_two_threads"], found["cost_of_halves"]
    us = [found[k]["value"] * 1e6 for k in ("latency_without", "latency", "latency_two_threads")]
    return (
        f"{found['network']} ({found['isa']}): {us[0]:.1f} us without, {us[1]:.1f} on one, {us[2]:.1f} on two, "
        f"{found['verdict']}; two/one {two['value']} ({two['low']} to {two['high']}), halves/whole {cost['value']}; "
        f"handed over in {found['fork_join']['handed_over']['value'] * 1e6:.2f} us"
    )


if __name__ == "__main__":
    main()
