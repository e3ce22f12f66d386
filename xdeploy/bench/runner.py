"""What every runner takes and gives, and what it needs to know about an artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xdeploy.builder.elf import Elf, read_elf
from xdeploy.errors import DeviceError, UsageError
from xdeploy.files import read_json
from xdeploy.formats import Int8
from xdeploy.handover import Artifact

Tell = Callable[[str, int, int], None]  # what, done, total
Memory = Callable[[int, int], bytes]  # offset, size -> content
Layers = dict[str, Int8]  # tensor -> codes (N, bytes)


def silent(what: str, done: int, total: int) -> None:
    """Progress that goes nowhere."""


@dataclass(frozen=True, slots=True)
class Block:
    """A straight piece of code: where, its bytes, how often it ran, how often it ended in a jump, in which kernel call.

    The call after the last one is the executor's own.
    """

    address: int
    size: int
    runs: int
    taken: int
    call: int = 0


@dataclass(frozen=True, slots=True)
class Waits:
    """Reads of the flash memory that no cache answered: for code after a jump, for code in sequence, for data."""

    jumps: int
    sequence: int
    data: int


def merge_blocks(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """One entry per address, size and call, counts added, sorted."""
    sums: dict[tuple[int, int, int], tuple[int, int]] = {}
    for b in blocks:
        runs, taken = sums.get((b.address, b.size, b.call), (0, 0))
        sums[b.address, b.size, b.call] = (runs + b.runs, taken + b.taken)
    return tuple(Block(at, size, *sums[at, size, call], call) for at, size, call in sorted(sums))


@dataclass(frozen=True, slots=True)
class Tells:
    """What a runner can tell, and what it cannot and why; both go into every measurement of it."""

    can: tuple[str, ...]
    cannot: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"can": list(self.can), "cannot": dict(self.cannot)}


_NO_TIMES = "an emulator has no pipeline, caches or wait states"


def emulator_tells(kind: str) -> Tells:
    """What an emulator that counts can tell of a target of this kind (Target.kind)."""
    can = ("outputs", "instructions", "instructions per layer", "mix", "stack")
    if kind == "firmware":
        return Tells(can, {"latency": f"{_NO_TIMES}: times are modelled from the instructions"})
    superscalar = "several instructions begin in a cycle, behind caches: no table of costs by class holds"
    return Tells(can, {"latency": _NO_TIMES, "cycles": superscalar, "energy": superscalar})


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What every runner is told.

    repeats: timed repetitions where it can time. remote: whether code may be sent, unprotected, to machines that are
    not this one. timeout: seconds that one call may take. wrapper: words before the program on a board, e.g. an
    emulator there. core: the CPU of a board it is pinned to; None: its fastest. ssh: the ssh program and further
    options for it; "": XDEPLOY_SSH of the environment, or `ssh`.
    """

    repeats: int = 20
    remote: bool = False
    timeout: float = 600.0
    wrapper: str = ""
    core: int | None = None
    ssh: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """The outcome of one call of a runner over N inputs.

    outputs: int8 (N, *output shape). instructions: int64 (N,) or None where the runner cannot count.
    layers: counts of the first input per kernel call, then the executor's own. blocks: over all inputs.
    stack: deepest use in bytes below the caller's frame. times: float64 (M,) measured nanoseconds per inference, or
    None where the runner cannot time. waits: reads of flash of the first input, as `layers`; empty where the target
    has no flash model. elf: the image that `blocks` lie in.
    quantities: further ones that the runner states itself.
    """

    runner: str
    outputs: Int8
    instructions: NDArray[np.int64] | None = None
    layers: tuple[int, ...] = ()
    blocks: tuple[Block, ...] = ()
    stack: int | None = None
    times: NDArray[np.float64] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    quantities: Mapping[str, Any] = field(default_factory=dict)
    elf: Elf | None = None
    waits: tuple[Waits, ...] = ()


class Runner(Protocol):
    """One way to run an artifact."""

    name: str
    tells: Tells

    def available(self) -> str | None:
        """None if it can run here, else the reason and how to mend it."""

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run int8 inputs (N, *device input shape).

        Raises:
            DeviceError: the code failed, or the emulator did.
        """


class Image:
    """The manifest of an artifact, made handy."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.manifest: Mapping[str, Any] = artifact.manifest
        self.input_bytes = int(self.manifest["input"]["bytes"])
        self.output_bytes = int(self.manifest["output"]["bytes"])
        self.output_shape = tuple(int(n) for n in self.manifest["output"]["shape"])
        self.arena = int(self.manifest["arena"]["bytes"])
        self.align = int(self.manifest["arena"]["align"])
        self.level = ""  # of the CPU, where the target has several
        self._programs: dict[str, dict[str, Any]] = {}

    @property
    def program(self) -> dict[str, Any]:
        """The program.json of the level."""
        if self.level not in self._programs:
            name = self._symbols.get("program", "program.json")
            self._programs[self.level] = read_json(self.artifact.folder / name, "xdeploy.program/1")
        return self._programs[self.level]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The kernel calls of the level in order."""
        value: list[dict[str, Any]] = self.program["nodes"]
        return value

    @property
    def floats(self) -> list[str]:
        """Names of the nodes that run in float."""
        return [str(n["name"]) for n in self.nodes if n["op"] == "float"]

    def tensor(self, call: int, arena: Memory, output: Memory) -> tuple[str, Int8]:
        """Name and codes of what the call has just written; arena and output read (offset, bytes) there.

        After the lower half of a layer it is the whole.
        """
        node = self.nodes[call]
        place = node.get("whole", node["output"])
        read = arena if place["in"] == "arena" else output
        return str(place["tensor"]), np.frombuffer(read(int(place["offset"]), int(place["bytes"])), np.int8)

    def product(self, role: str) -> Elf:
        """An ELF image that was built.

        Raises:
            DeviceError: it is not in the folder.
        """
        path = self.artifact.folder / self.manifest["products"].get(role, "none")
        if not path.is_file():
            raise DeviceError(f"{self.artifact.folder} holds no {role} image", hint="build it again")
        return read_elf(path)

    def entries(self, elf: Elf) -> list[int]:
        """Entry address of the kernel of each call."""
        return [elf.symbols[symbol][0] for symbol in self._symbols["calls"]]

    @property
    def _symbols(self) -> Mapping[str, Any]:
        """Names of the function that runs the network and of its calls; at a further level those of that level."""
        found: Mapping[str, Any] = self.manifest["levels"][self.level] if self.level else self.manifest["symbols"]
        return found

    def run_range(self, elf: Elf) -> tuple[int, int]:
        """Start and end address of xd_<m>_run; at a further level up to the end of the function it goes on in.

        What lies between is code of lower levels, which does not run then: sources are linked in the levels' order.
        """
        start, _ = elf.symbols[self.manifest["symbols"]["run"]]
        last, size = elf.symbols[self._symbols["run"]]
        if last < start:
            raise DeviceError(f"{self._symbols['run']} lies before the function that calls it: calls cannot be told")
        return start, last + size

    def check(self, codes: Int8) -> Int8:
        """The inputs as (N, bytes).

        Raises:
            UsageError: another dtype or size.
        """
        if codes.dtype != np.int8 or codes.ndim < 2 or math.prod(codes.shape[1:]) != self.input_bytes:
            shape = self.manifest["input"]["shape"]
            raise UsageError(f"inputs are {codes.dtype} {codes.shape}; the artifact takes int8 codes (N, {shape})")
        return np.ascontiguousarray(codes).reshape(len(codes), self.input_bytes)

    def shaped(self, outputs: Int8) -> Int8:
        """(N, bytes) to (N, *output shape)."""
        return outputs.reshape(len(outputs), *self.output_shape)

    def status(self, code: int) -> None:
        """Raise DeviceError unless xd_<m>_run returned 0."""
        if code:
            names = {1: "a null pointer", 2: "a pointer that is not aligned"}
            run = self.manifest["symbols"]["run"]
            raise DeviceError(f"{run} returned {code}: {names.get(code, 'unknown')}")
