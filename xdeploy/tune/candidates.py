"""Which rows compete for which node, and the keys their figures are kept under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xdeploy
from xdeploy.bench.qemu import version as qemu_version
from xdeploy.builder.zig import tool_versions
from xdeploy.cpu import cpu_name
from xdeploy.kernel import Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.memory import Storage
from xdeploy.pool import function_key
from xdeploy.program import applicable, choose, unusual
from xdeploy.store import digest
from xdeploy.target import Target
from xdeploy.tune.jobs import Job

QUICK_WITHIN = 1.5  # of the least estimated cost
QUICK_MOST = 4  # rows per node
MOST_COPIES = 256
COPIED = 8 << 20  # weights of a node and its copies: more than a core's own caches hold, also at half a byte each
# Attributes that change values but no instruction: a kernel that is specialised on one shows it in its text.
_SCALED = ("a", "b", "const", "shift", "low", "high")
_ZEROS = ("in_zero", "out_zero", "a_zero", "b_zero", "value", "tie")
_VALUES = frozenset((*_ZEROS, *_SCALED, *(f"add_{k}" for k in _SCALED)))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row on one node. `parts` are what it adds to the flash and may share with others: key -> bytes.

    `extra`: formulas leave it out (`program.unusual`).
    """

    row: Kernel
    cost: float  # estimated
    job: Job
    function: str  # key of its code
    parts: Mapping[str, int]  # of its constants, bytes rounded up to the alignment
    extra: bool


def candidates(graph: LoweredGraph, target: Target, form: str, effort: str) -> dict[str, list[Candidate]]:
    """Node -> its candidates, by estimated cost; nodes that are only aliases or run in float have none.

    Args:
        graph: the nodes with their constants.
        target: whose rows.
        form: "tuned" or "portable".
        effort: "full" (all rows that apply), "quick" (4 at most: those estimated within 1.5 times the best, the one
            that formulas choose and the one with the fewest bytes of constants) or "off" (the one formulas choose).

    Raises:
        UnsupportedError: no row applies to a node.
    """
    found, aliases = {}, Storage(graph, target.align).aliases
    for node in graph.nodes:
        if node.name in aliases or node.op == "float":
            continue
        off = effort == "off"
        rows = [choose(graph, node, target, form)] if off else applicable(graph, node, target, form, extra=True)
        every = [_candidate(graph, node, row, target) for row in rows]
        found[node.name] = _likely(every) if effort == "quick" else every
    return found


def _likely(every: list[Candidate]) -> list[Candidate]:
    """The fast ones by estimate, among them always the one that formulas choose and the one of least constants."""
    usual = next((c for c in every if not c.extra), every[0])
    smallest = min(every, key=lambda c: sum(c.parts.values()))  # the fastest of several
    kept = [c for c in every if c.cost <= QUICK_WITHIN * every[0].cost]
    names = list(dict.fromkeys(c.row.name for c in (usual, smallest, *kept)))[:QUICK_MOST]
    return [c for c in every if c.row.name in names]


def _candidate(graph: LoweredGraph, node: Node, row: Kernel, target: Target) -> Candidate:
    code, constants = row.emit(graph, node, target), dict(row.pack(graph, node))
    shapes = tuple(graph.tensors[t].shape for t in node.inputs)
    space, copies = row.workspace(graph, node), _copies(graph, node, target)
    work = digest(
        row.name, node.op, shapes, graph.tensors[node.output].shape, sorted(_shape_of(node)), _text(code), space,
        {k: (str(v.dtype), v.size) for k, v in constants.items()}, _machine(target),
    )  # fmt: skip
    step = target.align
    parts = {_content(v): -(-v.nbytes // step) * step for v in constants.values()}
    key = digest(work, copies, _measuring())
    job = Job(key, work, row.name, node, shapes, code, constants, space, copies)
    return Candidate(
        row,
        float(row.cost(graph, node, target)),
        job,
        digest(function_key(row.name, code)),
        parts,
        unusual(row, target),
    )


def _copies(graph: LoweredGraph, node: Node, target: Target) -> int:
    """How many layers like this one have as many weights as the network, where time is measured.

    Their weights, read in turns, are in those caches in which an inference finds the layer's own. The number is the
    same for all rows of a node, so that a row that reads fewer bytes gets what it is worth.
    """
    if target.kind != "host" or node.format is None:
        return 1
    own = node.consts["codes"].size
    return min(-(-min(graph.weights, max(own, COPIED)) // own), MOST_COPIES)


def _shape_of(node: Node) -> Iterator[tuple[str, Any]]:
    """What decides how often a kernel's loops run."""
    yield from ((k, v) for k, v in node.attrs.items() if k not in _VALUES)
    yield from ((k, v.shape) for k, v in node.consts.items())


def _text(code: Code) -> list[Any]:
    return [code.language, code.text, code.llvm_ir, [(a.kind, a.index, a.name) for a in code.args]]


def _content(array: NDArray[Any]) -> str:
    return sha256(str(array.dtype).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def _machine(target: Target) -> list[Any]:
    """All of the target and the tools that figures depend on."""
    parts = (target.isa, target.features, target.tvm, target.compiler, target.runner, target.cycles, target.align)
    return [repr(parts), _runner(target), tool_versions()]


def _runner(target: Target) -> str:
    if target.kind == "host":
        return cpu_name()
    return qemu_version() if target.runner.get("emulator") == "qemu" else version("unicorn")


@cache
def _measuring() -> str:
    """Changes when the code that builds and measures does."""
    folder = Path(xdeploy.__file__).parent
    files = (p for part in ("builder", "bench", "tune") for p in sorted((folder / part).rglob("*.py")))
    return digest([(p.name, sha256(p.read_bytes()).hexdigest()) for p in files])
