"""bind: LoweredGraph -> Program. Chooses the cheapest kernel row for every node, packs constants, places memory.

Every decision is here as data: the builder after it decides nothing (S4). Input and output live in the caller's
buffers; the arena holds what lies between. A node whose kernel allows it writes over the input that dies there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from xdeploy.errors import GateError, UnsupportedError
from xdeploy.files import write_json
from xdeploy.kernel import KERNELS, Arg, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import macs
from xdeploy.memory import Buffer, Place, Placement, Storage, place
from xdeploy.pieces import Piece, all_places, check_threads, lifetimes, pieces, placed_as
from xdeploy.pool import Constants, Functions
from xdeploy.sharing import shared
from xdeploy.target import Target


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call. `constants` maps the row's constant names to names in Program.arrays."""

    node: str
    op: str
    kernel: str
    symbol: str
    args: tuple[Arg, ...]
    inputs: tuple[str, ...]
    output: str
    constants: Mapping[str, str]
    workspace: int
    workspace_offset: int
    macs: int
    cost: float
    half: int = 0  # 1 and 2: upper and lower rows of one node, call behind call, which may run at the same time
    whole: str = ""  # of half 2: the node's output tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """Decisions that were made before binding, by measurement.

    kernels: node -> row name. limits: flash and ram in bytes, below the target's own. notes: content of `tuned` in
    program.json.
    """

    kernels: Mapping[str, str]
    limits: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    """All that the builder prints: calls in order, their functions and constants, and the memory plan."""

    model: str  # a C identifier
    target: str
    form: str
    align: int
    calls: tuple[Call, ...]
    aliases: tuple[str, ...]  # names of the nodes without a kernel
    functions: Mapping[str, Code]
    constants: Mapping[str, NDArray[Any]]
    places: Mapping[str, Place]
    lifetimes: tuple[Buffer, ...]  # of what lies in the arena: tensors by name, workspaces as "@<node>"
    arena: int
    lower_bound: int
    found_by: str
    memory: Mapping[str, int]  # flash and ram in bytes, where the target or the user sets limits
    tuned: Mapping[str, Any] = field(default_factory=dict)  # what was measured to choose the kernels, if anything was
    prefix: str = "xd"  # of every name in C
    steps: tuple[str, ...] = ()  # all nodes in order, aliases too: what `first` and `last` of a lifetime count
    worker: str = ""  # stem of the functions of the second thread, "" where there is none
    # constants that it reads, but other programs of its package hold: the program's name -> symbol -> array
    elsewhere: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Stem of all names in C: <prefix>_<model>."""
        return f"{self.prefix}_{self.model}"

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All packed constants that it reads, wherever they are."""
        return {**self.constants, **{k: v for part in self.elsewhere.values() for k, v in part.items()}}

    @property
    def halved(self) -> bool:
        """Whether a node is computed as two halves."""
        return any(c.half for c in self.calls)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all packed constants that it holds, without the padding between them."""
        return sum(c.nbytes for c in self.constants.values())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(c.macs for c in self.calls)

    def save(self, path: Path) -> None:
        """Write program.json."""
        write_json(path, describe(self))

    def verify(self) -> None:
        """Check the plan against itself and the target's memory.

        Raises:
            GateError: it does not fit. AssertionError: the plan is wrong (our bug).
        """
        for call in self.calls:
            missing = set(call.constants.values()) - set(self.arrays)
            assert not missing, f"{call.node}: constants {missing} are not packed"
            assert call.symbol in self.functions, f"{call.node}: no function {call.symbol}"
            assert {a.name for a in call.args if a.kind == "const"} <= set(call.constants), call.node
        self._verify_memory()
        for what, need in (("flash", self.weight_bytes), ("ram", self.arena)):
            limit = self.memory.get(what)
            if limit is not None and need > limit:
                needs = "weights" if what == "flash" else "the arena"
                raise GateError(
                    f"{self.model} does not fit {self.target}: {needs} take {need} bytes, its {what} is {limit}",
                    hint="plan with a smaller budget (--flash, --ram) or choose a larger target",
                )

    def _verify_memory(self) -> None:
        starts = {b.name: self.offset_of(b) for b in self.lifetimes}
        for i, a in enumerate(self.lifetimes):
            assert starts[a.name] % self.align == 0 <= starts[a.name] <= self.arena - a.size, f"{a.name} is misplaced"
            for b in self.lifetimes[:i]:
                apart = starts[a.name] >= starts[b.name] + b.size or starts[b.name] >= starts[a.name] + a.size
                assert apart or not a.overlaps(b), f"{a.name} and {b.name} overlap in the arena"

    def offset_of(self, buffer: Buffer) -> int:
        """Where a buffer of the arena begins, in bytes."""
        if buffer.name.startswith("@"):
            return next(c.workspace_offset for c in self.calls if c.node == buffer.name[1:])
        return self.places[buffer.group or buffer.name].offset + buffer.shift


def identifier(name: str) -> str:
    """A lower-case C identifier part made of `name`, at most 40 characters."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40].strip("_")
    return word if word[:1].isalpha() else f"m{word}"


def bind(
    graph: LoweredGraph,
    target: Target,
    model_name: str,
    form: str = "tuned",
    choice: Choice | None = None,
    prefix: str = "xd",
    threads: int = 1,
) -> Program:
    """Choose kernels and place memory.

    Args:
        graph: a verified graph.
        target: whose features, memory and alignment decide.
        model_name: of the model; made into a C identifier.
        form: "tuned" (any row of the target) or "portable" (rows of C99 only).
        choice: kernels that were chosen already; a node that it does not name gets the row of least estimated cost,
            or, where the target has further levels, one that reads the weights of such a level (`sharing`).
        prefix: of every name in C, as `recipe.PackageOptions` allows it.
        threads: 2 cuts large nodes into two calls for two threads.

    Raises:
        UnsupportedError: no kernel row applies to a node. GateError: weights or arena exceed the target's memory.
        UsageError: threads that the target or form cannot have.
    """
    check_threads(threads, target, form)
    name = identifier(model_name)
    storage = Storage(graph, target.align)
    nodes = [n for n in graph.nodes if n.name not in storage.aliases]
    rows = _rows(graph, nodes, target, form, choice.kernels if choice else {})
    work = pieces(graph, list(zip(nodes, rows, strict=True)), target, threads)
    functions, constants = Functions(f"{prefix}_{name}"), Constants(f"{prefix}_{name}")
    placed = arrange(graph, storage, {n: placed_as(parts, target.align) for n, parts in work.items()})
    layout, calls = placed.layout, list[Call]()
    for node, parts in work.items():
        at = layout.offsets.get(f"@{node}", 0)
        for part in parts:
            calls.append(_call(part, target, functions, constants, at))
            at += -(-part.workspace // target.align) * target.align
    program = Program(
        name, target.name, form, target.align, tuple(calls),
        tuple(n.name for n in graph.nodes if n.name in storage.aliases),
        functions.table, constants.table, all_places(placed, work.values()), lifetimes(placed, work),
        layout.arena, layout.lower_bound, layout.found_by, limits_of(target, choice.limits if choice else {}),
        choice.notes if choice else {}, prefix, tuple(n.name for n in graph.nodes),
        f"{prefix}_{name}" if threads > 1 else "",
    )  # fmt: skip
    program.verify()
    return program


def _rows(
    graph: LoweredGraph, nodes: Sequence[Node], target: Target, form: str, chosen: Mapping[str, str]
) -> list[Kernel]:
    """The row of every node. Those that nobody chose may read weights that a further level of the target stores."""
    rows = {n.name: KERNELS[chosen[n.name]] if n.name in chosen else choose(graph, n, target, form) for n in nodes}
    sharing: dict[str, Kernel] = {}
    for node in (n for n in nodes if n.format and n.name not in chosen and form != "portable" and target.levels):
        names = {choose(graph, node, target.at(level)).name for level in target.levels}
        for row in reversed(applicable(graph, node, target, extra=True)):
            if row.tags.get("weights_of") in names:
                sharing[node.name] = row
    rows |= shared(graph, target, rows, sharing)
    return [rows[n.name] for n in nodes]


def _call(part: Piece, target: Target, functions: Functions, constants: Constants, workspace: int) -> Call:
    """The call of a piece whose workspace begins at that byte of the arena."""
    graph, node, row = part.graph, part.node, part.row
    code = row.emit(graph, node, target)
    keys = {key: constants.add(array) for key, array in row.pack(graph, node).items()}
    whole = part.parts[node.output][0] if part.half == 2 else ""
    return Call(
        node.name, node.op, row.name, functions.add(row, code), code.args, node.inputs, node.output, keys,
        part.workspace, workspace, macs(graph, node), float(row.cost(graph, node, target)), part.half, whole,
    )  # fmt: skip


def arrange(graph: LoweredGraph, storage: Storage, rows: Mapping[str, Kernel]) -> Placement:
    """Place the tensors and workspaces of a choice of rows (node -> row) in the arena."""
    return place(graph, storage, rows, {name: row.workspace(graph, graph.node(name)) for name, row in rows.items()})


def limits_of(target: Target, own: Mapping[str, int]) -> dict[str, int]:
    """Flash and ram in bytes: the target's, or those of `own` where they are smaller."""
    both = {k: [int(m[k]) for m in (target.memory, own) if k in m] for k in ("flash", "ram")}
    return {k: min(values) for k, values in both.items() if values}


def choose(graph: LoweredGraph, node: Node, target: Target, form: str = "tuned") -> Kernel:
    """The row of least estimated cost that applies to the node; ties go to the first name.

    Raises:
        UnsupportedError: none applies.
    """
    return applicable(graph, node, target, form)[0]


def applicable(
    graph: LoweredGraph, node: Node, target: Target, form: str = "tuned", extra: bool = False
) -> list[Kernel]:
    """All rows that apply to the node, by estimated cost, then name.

    Rows that grow the weights of firmware, and those that are there for sharing weights, are among them with `extra`
    only.

    Raises:
        UnsupportedError: none applies.
    """
    isas = ("c99",) if form == "portable" else target.features
    rows = [r for r in KERNELS.values() if r.op == node.op and r.isa in isas and r.applies(graph, node, target)]
    rows = [r for r in rows if extra or not unusual(r, target)]
    if form != "portable":
        rows = [r for r in rows if r.isa != "c99"] or rows  # plain C only where nothing is tuned
    if not rows:
        weights = f" with {node.format.name} weights" if node.format else ""
        told = f"{node.name}: no {form} kernel for {node.op}{weights} on {target.name}"
        raise UnsupportedError(told, hint=_hint(node, isas))
    return sorted(rows, key=lambda r: (r.cost(graph, node, target), r.name))


def unusual(row: Kernel, target: Target) -> bool:
    """Whether a row is never the cheapest: it grows the weights where flash is short, or there is for `sharing`."""
    return (target.kind == "firmware" and "extra_flash" in row.tags) or "weights_of" in row.tags


def _hint(node: Node, isas: Sequence[str]) -> str:
    """What would have a kernel there."""
    if node.op == "float":
        return "parts in float run in the tuned form on hosts and Cortex-A only"
    names = sorted({r.weight for r in KERNELS.values() if r.op == node.op and r.isa in isas})
    return f"weight formats with a kernel there: {', '.join(names) or 'none'}"


def describe(program: Program) -> dict[str, Any]:
    """The content of program.json."""
    arrays, places = program.arrays, program.places

    def place(name: str) -> dict[str, Any]:
        p = places[name]
        return {"tensor": name, "in": p.kind, "offset": p.offset, "bytes": p.size}

    nodes = [
        {
            "name": c.node, "op": c.op, "kernel": c.kernel, "symbol": c.symbol,
            "inputs": [place(t) for t in c.inputs], "output": place(c.output),
            "workspace": {"offset": c.workspace_offset, "bytes": c.workspace},
            "constants": {k: {"symbol": s, "bytes": arrays[s].nbytes, "type": str(arrays[s].dtype)}
                          for k, s in c.constants.items()},
            "bytes": sum(arrays[s].nbytes for s in c.constants.values()),
            "macs": c.macs, "estimated_instructions": c.cost,
            **({"half": c.half} if c.half else {}), **({"whole": place(c.whole)} if c.whole else {}),
        }
        for c in program.calls
    ]  # fmt: skip
    lives = [
        {"name": b.name, "offset": program.offset_of(b), "bytes": b.size, "first": b.first, "last": b.last}
        for b in program.lifetimes
    ]
    return {
        "schema": "xdeploy.program/1",
        "model": program.model, "target": program.target, "form": program.form,
        "arena": {"bytes": program.arena, "lower_bound": program.lower_bound,
                  "gap": program.arena - program.lower_bound, "align": program.align, "found_by": program.found_by},
        "weight_bytes": program.weight_bytes, "macs": program.macs,
        "shared_bytes": sum(a.nbytes for part in program.elsewhere.values() for a in part.values()),
        "functions": len(program.functions), "aliases": list(program.aliases), "nodes": nodes,
        "steps": list(program.steps), "lifetimes": lives,
        **({"tuned": dict(program.tuned)} if program.tuned else {}),
        **({"threads": 2} if program.worker else {}),
    }  # fmt: skip
