"""Which nodes of a program are computed as two halves, so that a second thread may take one of them.

Handing work over and waiting for it costs about half a microsecond where both threads are awake, and the rows between
the halves go from one core's cache to the other's. So only a node whose smaller half is much longer than that is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xdeploy.errors import UsageError
from xdeploy.kernel import Kernel, never
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.halves import halves
from xdeploy.memory import Buffer, Place, Placement
from xdeploy.target import Target

MOST_THREADS = 2
# Estimated instructions of the smaller half, some 2 us: measured on x86-64, at both levels, convolutions take 1 ns for
# 9 to 13 estimated instructions. That is five times what handing over costs.
LEAST_HALF = 20_000.0
# Share of the whole network's estimated instructions that the second thread takes over. One layer of MobileNetV1 on
# AVX512-VNNI, 2 %, did not pay for keeping a thread awake: 1.04 of the time.
LEAST_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Piece:
    """What one kernel call computes: a node (half 0), or its upper (1) or lower (2) rows; else as `lir.halves.Half`."""

    graph: LoweredGraph
    node: Node
    row: Kernel
    half: int = 0
    parts: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def workspace(self) -> int:
        """Bytes of scratch."""
        return self.row.workspace(self.graph, self.node)


def check_threads(threads: int, target: Target, form: str) -> None:
    """Refuse threads where the package cannot have any.

    Raises:
        UsageError: not 1 or 2, or 2 for firmware or in the portable form.
    """
    allowed = "1 or 2 for hosts and Cortex-A under Linux, in the tuned form; else 1"
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"build.threads = {threads}: it can be {allowed}")
    if threads == 1 or (target.kind != "firmware" and form != "portable"):
        return
    why = f"{target.name} is firmware" if target.kind == "firmware" else "the portable form knows no operating system"
    raise UsageError(
        f"build.threads = {threads} for {target.name}: it can be {allowed}, and {why}",
        hint="leave build.threads out, or build the Linux targets on their own with it",
    )


def pieces(
    graph: LoweredGraph, rows: Sequence[tuple[Node, Kernel]], target: Target, threads: int
) -> dict[str, tuple[Piece, ...]]:
    """The calls of every node: one, or two that may run at the same time where that pays.

    Args:
        graph: a verified graph.
        rows: its nodes and what computes each.
        target: that they are computed on.
        threads: 1 or 2.
    """
    whole: dict[str, tuple[Piece, ...]] = {node.name: (Piece(graph, node, row),) for node, row in rows}
    if threads == 1:
        return whole
    cut = {node.name: found for node, row in rows if (found := _cut(graph, node, row, target))}
    taken_over = sum(_smaller(parts, target) for parts in cut.values())
    if taken_over < LEAST_SHARE * sum(row.cost(graph, node, target) for node, row in rows):
        return whole
    return whole | cut


def _cut(graph: LoweredGraph, node: Node, row: Kernel, target: Target) -> tuple[Piece, ...] | None:
    """The node's halves, if each takes long enough."""
    found = halves(graph, node, target.align)
    if found is None or not all(row.applies(h.graph, h.node, target) for h in found):
        return None
    parts = tuple(Piece(h.graph, h.node, row, i, h.parts) for i, h in enumerate(found, 1))
    return parts if _smaller(parts, target) >= LEAST_HALF else None


def _smaller(parts: Sequence[Piece], target: Target) -> float:
    """Estimated instructions of the smaller half."""
    return min(float(p.row.cost(p.graph, p.node, target)) for p in parts)


def placed_as(parts: Sequence[Piece], align: int) -> Kernel:
    """The row of a node as memory sees it: two halves need the scratch of both, and read what the other might write.

    A residual input is the exception: each half reads the rows that it writes, and no others.
    """
    row = parts[0].row
    if len(parts) == 1:
        return row
    scratch = sum(-(-p.workspace // align) * align for p in parts)
    return replace(row, workspace=lambda g, n: scratch, in_place=never)


def all_places(placed: Placement, work: Iterable[Sequence[Piece]]) -> dict[str, Place]:
    """Where all tensors lie, those of halves too."""
    found = dict(placed.places)
    for part in (p for parts in work for p in parts):
        for name, (whole, start) in part.parts.items():
            of = placed.places[whole]
            found[name] = Place(of.kind, of.offset + start, part.graph.tensors[name].size)
    return found


def lifetimes(placed: Placement, work: Mapping[str, Sequence[Piece]]) -> tuple[Buffer, ...]:
    """What lies in the arena; the workspaces of a node's halves are needed in the same step, each on its own."""
    found = list[Buffer]()
    for b in placed.buffers:
        parts = work.get(b.name[1:], ()) if b.name.startswith("@") else ()
        split = [replace(b, name=f"@{p.node.name}", size=p.workspace) for p in parts if len(parts) > 1]
        found += [x for x in split if x.size] or [b]
    return tuple(found)
