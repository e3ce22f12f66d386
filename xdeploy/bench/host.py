"""Runs the host library in this process and measures its latency."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.bench.runner import Image, Layers, Memory, Ran, Tell, Tells, silent
from xdeploy.cpu import cpu_flags, cpu_name
from xdeploy.errors import DeviceError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact, GoldenIo

CHUNK = 64  # inputs a thread takes at once
BURST_NS = 2_000_000  # a timed repeat runs at least this long
# CPU flags (/proc/cpuinfo) that code of an ISA level or kernel family needs
_FLAGS = {
    "x86-64-v3": ("avx2", "bmi2", "fma"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "vnni": ("avx512_vnni",),
    "amx": ("amx_tile", "amx_int8"),
}


class HostRunner:
    """Runner "host": the shared library of a host artifact, called through ctypes."""

    name = "host"
    tells = Tells(
        ("outputs", "latency"),
        {
            "instructions": "this machine's counters are not read; --via qemu counts (qemu-user)",
            "stack": "the stack is this process's own; --via qemu tells it",
        },
    )

    def __init__(self, artifact: Artifact) -> None:
        self.image = Image(artifact)
        self._library: Any = None

    def available(self) -> str | None:
        """Whether the artifact has a library for this machine."""
        manifest = self.image.manifest
        if "library" not in manifest["products"]:
            return f"{manifest['target']} is not a host target: it has no shared library"
        machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
        if manifest.get("machine", machine) != machine:
            return f"the library is for {manifest['machine']}, this machine is {machine}"
        lacking = sorted(_needed(str(manifest["isa"])) - cpu_flags())
        return f"this CPU lacks {', '.join(lacking)}" if lacking and cpu_flags() else None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs; instructions are not counted here."""
        return Ran(self.name, self.run_many(codes, tell), environment={"cpu": cpu_name()})

    def run_many(self, codes: Int8, tell: Tell = silent, workers: int = 8) -> Int8:
        """Output codes (N, *output shape), worked on by as many threads as there are cores, at most `workers`.

        Raises:
            DeviceError: the library cannot be used here, or reports an error.
        """
        inputs = self.image.check(codes)
        outputs = np.empty((len(inputs), self.image.output_bytes), np.int8)
        library = self._load()

        def work(start: int) -> int:
            part = slice(start, min(start + CHUNK, len(inputs)))
            return self._batch(library, inputs[part], outputs[part])

        with ThreadPoolExecutor(min(os.cpu_count() or 1, workers)) as pool:
            for done, status in enumerate(pool.map(work, range(0, len(inputs), CHUNK)), 1):
                self.image.status(status)
                tell("host", min(done * CHUNK, len(inputs)), len(inputs))
        return self.image.shaped(outputs)

    def _load(self) -> Any:
        if self._library is None:
            reason = self.available()
            if reason is not None:
                raise DeviceError(reason)
            path = Path(self.image.artifact.folder / self.image.manifest["products"]["library"]).resolve()
            try:
                self._library = _fresh(path)
            except OSError as error:
                raise DeviceError(f"{path} cannot be loaded: {error}") from None
            names = ["", *self.image.manifest.get("levels", ())]
            self.image.level = names[getattr(self._library, f"{self.stem}_level")() if len(names) > 1 else 0]
        return self._library

    @property
    def stem(self) -> str:
        """Of the names in the library: <prefix>_<model>."""
        return str(self.image.manifest["symbols"]["run"]).removesuffix("_run")

    @property
    def level(self) -> str:
        """The feature level that the library runs; "" is the target's own.

        Raises:
            DeviceError: the library cannot be used here.
        """
        self._load()
        return self.image.level

    @property
    def isa(self) -> str:
        """The instruction set of that level; raises as `level` does."""
        level, manifest = self.level, self.image.manifest
        return str(manifest["levels"][level]["isa"] if level else manifest["isa"])

    @property
    def program(self) -> dict[str, Any]:
        """The program.json of that level; raises as `level` does."""
        self._load()
        return self.image.program

    def choose_level(self, name: str) -> None:
        """Run another feature level of the library from now on; "" is the target's own.

        Raises:
            DeviceError: the library cannot be used here, or the CPU lacks the level.
        """
        library, names = self._load(), ["", *self.image.manifest["levels"]]
        if getattr(library, f"{self.stem}_choose_level")(names.index(name)):
            raise DeviceError(f"this CPU lacks what level {name} needs")
        self.image.level = name

    @property
    def most_threads(self) -> int:
        """How many threads an inference may have: 1, or 2 where the package was built for them."""
        return int(self.image.manifest.get("threads", 1))

    def set_threads(self, threads: int) -> None:
        """Let an inference have that many threads from now on.

        Raises:
            DeviceError: the library cannot be used here, was not built for them, or the machine has one CPU.
        """
        library, built = self._load(), self.image.manifest.get("threads")
        if threads == 1 and built is None:
            return
        if built is not None and getattr(library, f"{self.stem}_set_threads")(threads) == 0:
            return
        small = "no layer is large enough to be shared" if built == 1 else "two CPUs are needed"
        why = "it was built for one thread" if built is None else small
        raise DeviceError(f"{self.image.artifact.folder} cannot run on {threads} threads here: {why}")

    def _batch(self, library: Any, inputs: Int8, outputs: Int8) -> int:
        run, stem = self.image.manifest["symbols"]["run"], self.stem
        arena = aligned(getattr(library, f"{stem}_batch_arena_bytes")(), self.image.align)
        batch = getattr(library, f"{run}_batch")
        batch.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int]
        return int(batch(inputs.ctypes.data, outputs.ctypes.data, arena.ctypes.data, len(inputs)))

    def run_layers(self, codes: Int8) -> Layers:
        """Codes (N, bytes) of every tensor that a kernel writes, taken right after its call.

        Raises:
            DeviceError: the library cannot be used here, reports an error, or has no hook.
        """
        image, inputs, library = self.image, self.image.check(codes), self._load()
        run = getattr(library, image.manifest["symbols"]["run"])
        run.argtypes = [ctypes.c_void_p] * 3
        try:
            hook = ctypes.c_void_p.in_dll(library, f"{self.stem}_layer_end")
        except ValueError:
            raise DeviceError(f"{image.artifact.folder} has no hook after its layers", hint="build it again") from None
        given, output, arena = (aligned(n, image.align) for n in (inputs.shape[1], image.output_bytes, image.arena))
        rows: dict[str, list[Int8]] = {}

        def seen(call: int) -> None:
            name, values = image.tensor(call, _reader(arena), _reader(output))
            rows.setdefault(name, []).append(values)

        told = ctypes.CFUNCTYPE(None, ctypes.c_int)(seen)
        hook.value = ctypes.cast(told, ctypes.c_void_p).value
        try:
            for row in inputs:
                given[: row.size] = row
                image.status(int(run(*(b.ctypes.data for b in (given, output, arena)))))
        finally:
            hook.value = None
        return {name: np.stack(values) for name, values in rows.items()}

    def layer_times(self, clock: Any, codes: Int8, rounds: int) -> NDArray[np.int64]:
        """The least nanoseconds of each call (K,) over `rounds` inferences of the first input.

        Args:
            clock: xd_layer_times of targets/support/roofline.c.
            codes: as for `run`.
            rounds: inferences, at least 1.

        Raises:
            DeviceError: the library reports an error.
        """
        image, library = self.image, self._load()
        x, symbol = image.check(codes)[0], image.manifest["symbols"]["run"]
        given, output, arena = (aligned(n, image.align) for n in (x.size, image.output_bytes, image.arena))
        given[: x.size] = x
        found = np.zeros(len(image.nodes), np.int64)
        hook = ctypes.c_void_p.in_dll(library, f"{self.stem}_layer_end")
        p = ctypes.c_void_p
        clock.argtypes = [p, p, p, p, p, ctypes.c_int, ctypes.c_int, p]
        run = ctypes.cast(getattr(library, symbol), p)
        places = (b.ctypes.data for b in (given, output, arena))
        image.status(clock(run, ctypes.addressof(hook), *places, len(found), rounds, found.ctypes.data))
        return found

    def selftest(self) -> None:
        """The package's own self-test: weights by CRC, outputs of its built-in inputs.

        Raises:
            DeviceError: it failed.
        """
        test = getattr(self._load(), f"{self.stem}_selftest")
        arena = aligned(self.image.arena, self.image.align)
        test.argtypes = [ctypes.c_void_p]
        status = int(test(arena.ctypes.data))
        if status:
            raise DeviceError(f"the self-test returned {status}")

    def step(self, codes: Int8) -> Callable[[], None]:
        """One inference of the first input, with its buffers at their places; it has been called once and checked."""
        x = self.image.check(codes)[:1]
        run = getattr(self._load(), self.image.manifest["symbols"]["run"])
        run.argtypes = [ctypes.c_void_p] * 3
        buffers = [aligned(n, self.image.align) for n in (x.size, self.image.output_bytes, self.image.arena)]
        buffers[0][: x.size] = x.reshape(-1)
        places = [b.ctypes.data for b in buffers]
        self.image.status(int(run(*places)))

        def step(kept: list[Int8] = buffers) -> None:  # the buffers live as long as the step
            run(*places)

        return step

    def latency(self, codes: Int8, repeats: int) -> NDArray[np.float64]:
        """Nanoseconds per inference of one input, one thread: `repeats` values, each the mean over a burst."""
        step = self.step(codes)
        start = time.perf_counter_ns()
        step()
        count = max(1, BURST_NS // max(time.perf_counter_ns() - start, 1))
        values = np.empty(repeats)
        for i in range(repeats):
            start = time.perf_counter_ns()
            for _ in range(count):
                step()
            values[i] = (time.perf_counter_ns() - start) / count
        return values


def proven(artifact: Artifact, golden: GoldenIo) -> HostRunner:
    """The library, after it gave the reference's output codes of the golden inputs.

    Raises:
        DeviceError: it cannot be used here, or gives others though all of it is integer code (compiled float code may
            round otherwise).
    """
    runner = HostRunner(artifact)
    same = np.array_equal(runner.run_many(golden.input_codes), golden.output_codes)
    if not (same or runner.image.floats):
        raise DeviceError(
            f"the library in {artifact.folder} differs from the reference",
            hint="report it with the model; with bench.accuracy = false a build does without it",
        )
    return runner


def _fresh(path: Path) -> Any:
    """The library as the file is now: under a path that was loaded before, the system's loader gives the old one."""
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".load-")
    except OSError:  # nobody can build anew in a folder that cannot be written
        return ctypes.CDLL(str(path))
    with folder as name:
        return ctypes.CDLL(str(shutil.copy(path, name)))


def _reader(buffer: Int8) -> Memory:
    return lambda at, size: buffer[at : at + size].tobytes()


def aligned(size: int, align: int) -> Int8:
    """An int8 buffer of `size` bytes (at least 1) that starts at a multiple of `align`."""
    raw = np.zeros(size + align, np.int8)
    start = -raw.ctypes.data % align
    return raw[start : start + max(size, 1)]


def _needed(isa: str) -> set[str]:
    return {flag for name, flags in _FLAGS.items() if name in isa for flag in flags}
