"""Streaming: the first layers of a network run band by band, so that their large tensors never exist whole.

Patch-based inference (MCUNetV2, Lin et al. 2021) over bands of whole rows. Nothing is computed twice: the rows that
later bands still read are kept, each by one copy. Every band of a layer is the same op on fewer rows with the padding
that falls to it, so the outputs are those of the whole graph by construction.

The input is read up to a row that grows from band to band, and each layer computes all rows that this allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xdeploy.lir.graph import LoweredGraph, Node, Tensor
from xdeploy.lir.ops import verify
from xdeploy.lir.rows import BAND, RowWindow, row_window


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is streamed: the first `nodes` nodes, reading the input up to row `ends[k]` in band k."""

    nodes: int
    ends: tuple[int, ...]

    @property
    def bands(self) -> int:
        """How many bands there are."""
        return len(self.ends)


def cuts(graph: LoweredGraph) -> list[int]:
    """How many of the first nodes may be streamed: all work on rows, and none reads what a later node reads too."""
    found, inside = [], set[str]()
    for count, node in enumerate(graph.nodes, 1):
        if row_window(graph, node) is None:
            break
        inside |= set(node.inputs)
        outgoing = _outgoing(graph, count)
        if not outgoing & inside and graph.output not in outgoing:
            found.append(count)
    return found


def _outgoing(graph: LoweredGraph, count: int) -> set[str]:
    """Tensors of the first `count` nodes that are read after them."""
    made = {n.output for n in graph.nodes[:count]}
    later = {t for n in graph.nodes[count:] for t in n.inputs} | {graph.output}
    return made & later | {n.output for n in graph.nodes[:count] if not graph.consumers(n.output)}


def evenly(graph: LoweredGraph, count: int, first: int, step: int) -> Schedule:
    """Bands of `step` input rows after the first one, which has `first`."""
    height = graph.tensors[graph.input].shape[0]
    return Schedule(count, (*range(first, height, step), height))


def stream(graph: LoweredGraph, schedule: Schedule, check: bool = True) -> LoweredGraph:
    """The same network with its first layers cut into bands.

    Args:
        graph: a verified graph.
        schedule: `nodes` from `cuts(graph)`; `ends` ascending, the last one the input's height.
        check: verify the result; a search over schedules verifies the one it chooses.

    Raises:
        ValueError: the schedule does not fit the graph.
    """
    height = graph.tensors[graph.input].shape[0]
    if (
        schedule.nodes not in cuts(graph)
        or schedule.ends[-1] != height
        or list(schedule.ends) != sorted(set(schedule.ends))
    ):
        raise ValueError(f"{schedule} does not fit a graph with an input of {height} rows")
    result = _Streamer(graph, schedule).run()
    if check:
        verify(result)
    return result


@dataclass(slots=True)
class _Rows:
    """Rows start..stop of a tensor that are there now, as the tensor `name`."""

    name: str
    start: int
    stop: int


class _Streamer:
    """Writes the graph band by band."""

    def __init__(self, graph: LoweredGraph, schedule: Schedule) -> None:
        self.graph, self.schedule = graph, schedule
        self.region = graph.nodes[: schedule.nodes]
        self.windows = {n.name: _window(graph, n) for n in self.region}
        self.outgoing = _outgoing(graph, schedule.nodes)
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {graph.input: graph.tensors[graph.input]}
        self.done = {n.output: 0 for n in self.region}  # rows computed so far
        self.held: dict[str, _Rows] = {}
        self.parts: dict[str, list[str]] = {t: [] for t in self.outgoing}
        self.band = 0

    def run(self) -> LoweredGraph:
        for band, end in enumerate(self.schedule.ends):
            self.band = band
            self.done[self.graph.input] = end
            self.held[self.graph.input] = _Rows(self.graph.input, 0, self.graph.tensors[self.graph.input].shape[0])
            for i, node in enumerate(self.region):
                self._compute(node)
                for tensor in dict.fromkeys((*node.inputs, node.output)):
                    if tensor != self.graph.input and not any(tensor in n.inputs for n in self.region[i + 1 :]):
                        self._keep(tensor)
        for tensor, parts in self.parts.items():
            self._whole(tensor, parts)
        rest = self.graph.nodes[self.schedule.nodes :]
        self.tensors |= {n.output: self.graph.tensors[n.output] for n in rest}
        return replace(self.graph, nodes=(*self.nodes, *rest), tensors=self.tensors)

    def _name(self, node: Node, what: str = "") -> str:
        return f"{node.name}{BAND}{self.band + 1}{what}]"

    def _compute(self, node: Node) -> None:
        """All new rows of the node's output that the rows of its inputs allow."""
        window, output = self.windows[node.name], self.graph.tensors[node.output]
        start, stop = self.done[node.output], self.done[node.output]
        while stop < output.shape[0] and self._ready(node, stop + 1):
            stop += 1
        if start == stop:
            return
        first = self._view(node, node.inputs[0], window.begin(start), window.end(stop), 0)
        others = [self._view(node, t, start, stop, i) for i, t in enumerate(node.inputs[1:], 1)]
        attrs = dict(node.attrs)
        if "pads" in attrs:
            above, below = window.pads(start, stop)
            attrs["pads"] = (above, attrs["pads"][1], below, attrs["pads"][3])
        new = self._emit(
            replace(
                node,
                name=self._name(node),
                inputs=(first, *others),
                output=f"{node.output}{BAND}{self.band + 1}]",
                attrs=attrs,
            ),
            stop - start,
            node.output,
        )
        self.done[node.output] = stop
        self._arrive(node, new, start, stop)

    def _ready(self, node: Node, rows: int) -> bool:
        needs = [self.windows[node.name].end(rows), *(rows for _ in node.inputs[1:])]
        return all(self.done[t] >= need for t, need in zip(node.inputs, needs, strict=True))

    def _arrive(self, node: Node, new: str, start: int, stop: int) -> None:
        """Put new rows below those that are held; a tensor that leaves the streamed part only collects them."""
        tensor = node.output
        if tensor in self.outgoing:
            self.parts[tensor].append(new)
            return
        held = self.held.get(tensor)
        if held is not None:
            name = f"{tensor}{BAND}{self.band + 1}, with kept rows]"
            stacked = Node(self._name(node, ", with kept rows"), "stack", (held.name, new), name)
            new, start = self._emit(stacked, stop - held.start, tensor), held.start
        self.held[tensor] = _Rows(new, start, stop)

    def _view(self, node: Node, tensor: str, start: int, stop: int, index: int) -> str:
        """The rows start..stop of what is held of a tensor."""
        held = self.held[tensor]
        if (start, stop) == (held.start, held.stop):
            return held.name
        return self._cut(self._name(node, f", rows of input {index}"), tensor, held, start, stop)

    def _cut(self, name: str, tensor: str, held: _Rows, start: int, stop: int) -> str:
        shape = self.tensors[held.name].shape
        attrs = {
            "starts": (start - held.start, 0, 0), "stops": (stop - held.start, *shape[1:]), "steps": (1, 1, 1),
        }  # fmt: skip
        return self._emit(Node(name, "slice", (held.name,), name, attrs), stop - start, tensor)

    def _keep(self, tensor: str) -> None:
        """After the last reader of this band: keep the rows that later bands read."""
        held = self.held.get(tensor)
        if held is None:
            return
        need = min(self._next(n, tensor) for n in self.region if tensor in n.inputs)
        if need <= held.start:
            return
        del self.held[tensor]
        if need < held.stop:
            node = next(n for n in self.region if n.output == tensor)
            view = self._cut(self._name(node, ", last rows"), tensor, held, need, held.stop)
            name = self._name(node, ", kept")
            self.held[tensor] = _Rows(
                self._emit(Node(name, "stack", (view,), name), held.stop - need, tensor), need, held.stop
            )

    def _next(self, node: Node, tensor: str) -> int:
        """The first row of a tensor that the rest of a node reads."""
        done = self.done[node.output]
        if done == self.graph.tensors[node.output].shape[0]:
            return self.graph.tensors[tensor].shape[0]
        starts = [self.windows[node.name].begin(done), *(done for _ in node.inputs[1:])]
        return min(s for t, s in zip(node.inputs, starts, strict=True) if t == tensor)

    def _whole(self, tensor: str, parts: Sequence[str]) -> None:
        node = next(n for n in self.region if n.output == tensor)
        self.tensors[tensor] = self.graph.tensors[tensor]
        if len(parts) > 1:
            self.nodes.append(Node(f"{node.name}{BAND}all]", "stack", tuple(parts), tensor))
            return
        del self.tensors[parts[0]]
        self.nodes = [replace(n, output=tensor) if n.output == parts[0] else n for n in self.nodes]

    def _emit(self, node: Node, rows: int, like: str) -> str:
        whole = self.graph.tensors[like]
        self.tensors[node.output] = Tensor((rows, *whole.shape[1:]), whole.q)
        self.nodes.append(node)
        return node.output


def _window(graph: LoweredGraph, node: Node) -> RowWindow:
    window = row_window(graph, node)
    assert window is not None, f"{node.name} does not work on rows"
    return window
