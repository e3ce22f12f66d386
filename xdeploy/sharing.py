"""Which kernels of a package's first feature level read weights that a further level stores anyway.

A package of several levels holds a program for each, and every level's fastest row packs weights in its own way. Rows
that read another row's packed weights name it in their tag `weights_of`. Such a row takes the place of the fastest one
where a level's choice is the row that it names. A copy is kept only where it saves LEAST of a layer, first where it
saves most for its bytes, as long as all copies fit into COPIES: the further level loses nothing, the first one little.
A level after that keeps the rows whose weights are smaller than its own would be: those are stored anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from xdeploy.kernel import Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.target import Target

COPIES = 64 << 10  # bytes of weights; with it and with code a library stays within 300 kB more than the weights
LEAST = 0.1  # of a layer's estimated instructions: what a copy saves at least


def stored(node: Node, row: Kernel) -> int:
    """Bytes of a node's weights as a row packs them, by its tag, without padding."""
    assert node.format is not None, f"{node.name} has no weights"
    each = Fraction(row.tags.get("extra_flash", "1")) * node.format.bits / 8
    return int(node.consts["codes"].size * each)


def shared(
    graph: LoweredGraph, target: Target, fastest: Mapping[str, Kernel], sharing: Mapping[str, Kernel]
) -> dict[str, Kernel]:
    """Those nodes of `sharing` that take its row.

    Args:
        graph: the nodes.
        target: of the first level.
        fastest: node -> the row of least estimated cost.
        sharing: node -> a row that reads the weights of a further level.
    """
    taken, copies = {}, []
    for name, row in sharing.items():
        node, own = graph.node(name), fastest[name]
        cost = row.cost(graph, node, target)
        saved, size = cost - own.cost(graph, node, target), stored(node, own)
        if saved >= LEAST * cost:
            copies.append((saved / size, name, size))
        else:
            taken[name] = row
    room = COPIES
    for _, name, size in sorted(copies, reverse=True):
        if size <= room:
            room -= size
        else:
            taken[name] = sharing[name]
    return taken


def smaller(graph: LoweredGraph, own: Mapping[str, Kernel], before: Mapping[str, Kernel]) -> dict[str, Kernel]:
    """Those nodes whose weights the row of the level before packs smaller than the own one, with that row.

    Args:
        graph: the nodes.
        own: node -> row of a level.
        before: node -> row of the level before it.
    """
    weighted = (n for n in graph.nodes if n.format and n.name in own)
    return {n.name: before[n.name] for n in weighted if stored(n, before[n.name]) < stored(n, own[n.name])}
