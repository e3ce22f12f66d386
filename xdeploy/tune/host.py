"""Kernels of this machine's kind: compiled into one library, called in turns and timed.

A kernel that is called again and again would find its weights nearer than an inference does, so that one that reads
fewer bytes would gain nothing: each call takes the next of a job's copies of its constants.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from xdeploy.bench.host import HostRunner, aligned
from xdeploy.builder.elf import read_elf
from xdeploy.builder.zig import cc
from xdeploy.errors import DeviceError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact
from xdeploy.process.lock import scratch_folder
from xdeploy.program import Call
from xdeploy.target import Target
from xdeploy.tune.batch import Batch, sizes_of
from xdeploy.tune.jobs import Figures, Job

ROUNDS = 15  # every kernel once per round, so that a busy moment of the machine strikes all alike
BURST_NS = 500_000


def measured(jobs: Sequence[Job], target: Target) -> list[Figures]:
    """Compile the jobs, compare their outputs and time them; figures in order.

    Raises:
        ToolchainError: they do not compile. DeviceError: this machine cannot run them.
    """
    with scratch_folder("tune") as scratch:
        return _timed(Batch(jobs, target), Path(scratch))


def _timed(batch: Batch, folder: Path) -> list[Figures]:
    path = _library(batch, folder)
    library, elf = ctypes.CDLL(str(path)), read_elf(path)
    calls = [_Call(batch, i, getattr(library, c.symbol)) for i, c in enumerate(batch.program.calls)]
    outputs = [[call.run(sample) for sample in (1, 0)] for call in calls]  # the random one last: it is timed
    bursts = [call.burst() for call in calls]
    times = np.array([[call.time(n) for call, n in zip(calls, bursts, strict=True)] for _ in range(ROUNDS)])
    values = [batch.values[f"y{i}"] for i in range(len(calls))]
    return [
        Figures(None, None, float(np.median(times[:, i])), *sizes_of(elf, [call.symbol]),
                sum(int((got != values[i][s]).sum()) for got, s in zip(outputs[i], (1, 0), strict=True)))
        for i, call in enumerate(batch.program.calls)
    ]  # fmt: skip


def _library(batch: Batch, folder: Path) -> Path:
    """The kernels as a shared library, all of them visible."""
    package, target = batch.package(), batch.target
    path = folder / "libtune.so"
    manifest = {"target": target.name, "isa": target.isa, "products": {"library": path.name}, "input": {"bytes": 0},
                "output": {"bytes": 0, "shape": []}, "arena": {"bytes": 0, "align": target.align}}  # fmt: skip
    reason = HostRunner(Artifact(folder, manifest)).available()
    if reason is not None:
        raise DeviceError(f"{target.name} cannot be tuned here: {reason}")
    package.write(folder, None)
    sources = [s for s in package.sources if "_kernels." in s]
    flags = [*(str(f) for f in target.compiler.get("flags", ())), "-O2", "-std=c99", "-fno-sanitize=all"]
    triple = str(target.compiler["triple"])
    cc(["-target", triple, *flags, "-Iinclude", "-Isrc", "-shared", "-fPIC", *sources, "-o", path.name], folder)
    return path


class _Call:
    """One kernel with its buffers."""

    def __init__(self, batch: Batch, index: int, function: Any) -> None:
        call, align = batch.program.calls[index], batch.target.align
        self.function, self.batch = function, batch
        self.inputs = {name: aligned(batch.places[name].size, align) for name in call.inputs}
        self.output = aligned(batch.places[call.output].size, align)
        self.scratch = aligned(call.workspace, align)
        self.constants: list[dict[str, Int8]] = [{} for _ in range(batch.jobs[index].copies)]
        for key, symbol in call.constants.items():
            raw = batch.program.constants[symbol].view(np.int8)
            for copy in self.constants:
                copy[key] = aligned(raw.size, align)
                copy[key][: raw.size] = raw
        self.turns = cycle([self._args(call, copy) for copy in self.constants])

    def _args(self, call: Call, constants: Mapping[str, Int8]) -> list[Any]:
        """Of a call with one copy of the constants."""
        buffers: dict[str, list[Int8]] = {"input": list(self.inputs.values()), "output": [self.output]}
        args: list[Any] = []
        for arg in call.args:
            if arg.kind == "int":
                args.append(ctypes.c_int32(arg.value))
                continue
            at = {"const": constants.get(arg.name, self.scratch), "workspace": self.scratch}
            buffer = buffers[arg.kind][arg.index] if arg.kind in buffers else at[arg.kind]
            args.append(ctypes.c_void_p(buffer.ctypes.data + (arg.value if arg.kind == "workspace" else 0)))
        return args

    def run(self, sample: int) -> Int8:
        """The output codes of a sample."""
        for name, buffer in self.inputs.items():
            value = self.batch.values[name][sample]
            buffer[: value.size] = value
        self.function(*next(self.turns))
        return self.output.copy()

    def burst(self) -> int:
        """How many calls are worth timing."""
        return max(1, round(BURST_NS / max(self.time(1), 1.0)))

    def time(self, count: int) -> float:
        """Nanoseconds per call, over `count` calls."""
        function, turns = self.function, [next(self.turns) for _ in range(count)]
        start = time.perf_counter_ns()
        for args in turns:
            function(*args)
        return (time.perf_counter_ns() - start) / count
