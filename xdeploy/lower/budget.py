"""How much lowering may spend on one graph: a small file must not grow without end while constants are folded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from xdeploy.errors import ModelError, shown
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.ops import macs
from xdeploy.lower.values import Codes, QConstant, Real, Value
from xdeploy.onnxfile import Constant

FOLDED_BYTES = 2**28  # of constants computed from the file's, on top of eight bytes for each byte of those
INDEX_BYTES = 2**29  # of arrangements of activations, eight bytes an element
MAC_LIMIT = 2**35
ELEMENT_VISITS = 2**30  # elements of activations, summed over the nodes: the time


class Budget:
    """Counts arrays as nodes make them; views of an array that has been counted are free.

    Arrays are told apart by identity, which is safe as long as the values of a pass are all kept.
    """

    def __init__(self, given: Iterable[Constant]) -> None:
        constants = [c.array for c in given]
        self._seen = {id(_root(a)) for a in constants}
        self.folded = FOLDED_BYTES + 8 * sum(a.nbytes for a in constants)
        self.index, self.visits = INDEX_BYTES, ELEMENT_VISITS

    def charge(self, node: str, value: Value) -> None:
        """Count what a node made.

        Raises:
            ModelError: more than a graph may take.
        """
        if isinstance(value, Constant | QConstant):
            self.folded -= self._new(value.array if isinstance(value, Constant) else value.codes)
        elif isinstance(value, Codes | Real):
            self.index -= self._new(value.index)
            self.visits -= value.index.size
        for left, what in (
            (self.folded, "constants computed in the graph"),
            (self.index, "activations"),
            (self.visits, "activations of all nodes"),
        ):
            if left < 0:
                raise ModelError(
                    f"node {shown(node)}: the {what} are too large altogether",
                    hint="a smaller input, or constants computed when exporting",
                )

    def _new(self, array: NDArray[Any]) -> int:
        root = _root(array)
        if id(root) in self._seen:
            return 0
        self._seen.add(id(root))
        return int(root.nbytes)


def _root(array: Any) -> Any:
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array


def limit_work(graph: LoweredGraph, path: Path | str) -> None:
    """Refuse what no run of the reference, on any machine, would finish in reasonable time.

    Raises:
        ModelError: more multiply-accumulates per sample than `MAC_LIMIT`.
    """
    total = sum(macs(graph, n) for n in graph.nodes)
    if total > MAC_LIMIT:
        raise ModelError(f"{path} takes {total:.2g} multiply-accumulates per input; at most {MAC_LIMIT:.2g}")
