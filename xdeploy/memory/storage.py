"""Which tensors share memory, and how long each byte of it is needed.

Tensors that share memory form a group, each at a fixed distance from the group's beginning: a reshape is its input
under another name, a cut of whole rows is a part of its input, stacked parts are written where the whole shall lie,
and an output may be written over an input that dies. A byte is needed from the first write to the last read of the
tensors that cover it, so a group is a set of byte ranges, each with its own lifetime.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.rows import row_cut
from xdeploy.memory.buffers import Buffer, Layout

ALIASES = frozenset({"reshape"})  # ops that only rename memory, whatever their attributes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: in the caller's input or output buffer, or in the arena; at `offset`, `size` bytes."""

    kind: Literal["input", "output", "arena"]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes low..high of a group, needed from step `first` to step `last`."""

    low: int
    high: int
    first: int
    last: int


class Storage:
    """The groups of a graph. `aliases` names the nodes that need no code: their outputs are views of other tensors."""

    def __init__(self, graph: LoweredGraph, align: int) -> None:
        self.graph, self.align = graph, align
        self.group = {name: name for name in graph.tensors}
        self.at = dict.fromkeys(graph.tensors, 0)  # bytes from the group's beginning
        self.members = {name: [name] for name in graph.tensors}
        self._sizes = {name: tensor.size for name, tensor in graph.tensors.items()}
        self._ranges: dict[str, list[_Range]] = {}
        self._renamed = {graph.output}  # tensors that are the output under another name
        for n in reversed(graph.nodes):
            if n.op in ALIASES and n.output in self._renamed:
                self._renamed.add(n.inputs[0])
        self.aliases = frozenset([n.name for n in graph.nodes if self._view(n)])
        self.steps: dict[str, list[int]] = {name: [] for name in graph.tensors}  # of the write and of all reads
        for i, n in enumerate(graph.nodes):
            if n.name not in self.aliases:
                for name in (*n.inputs, n.output):
                    self.steps[name].append(i)
        self.steps[graph.output].append(len(graph.nodes))

    def copy(self) -> Storage:
        """The same groups, to be merged further without changing these."""
        other = copy(self)
        other.group, other.at, other._ranges = dict(self.group), dict(self.at), dict(self._ranges)
        other.members = {g: list(names) for g, names in self.members.items()}
        return other

    # ------------------------------------------------------------------------------------------------- groups
    def size(self, tensor: str) -> int:
        """Bytes of a tensor."""
        return self._sizes[tensor]

    def _extent(self, group: str) -> int:
        return max(self.at[t] + self.size(t) for t in self.members[group])

    def _join(self, a: str, b: str, shift: int) -> None:
        """Tie the groups of two tensors together so that `b` begins `shift` bytes after `a` does."""
        g, h = self.group[a], self.group[b]
        base = self.at[a] + shift - self.at[b]
        for group, offset in ((g, max(-base, 0)), (h, max(base, 0))):
            self._ranges.pop(group, None)
            for t in self.members[group]:
                self.at[t] += offset
                self.group[t] = g
        self.members[g] += self.members.pop(h)

    def ranges(self, group: str) -> list[_Range]:
        """The byte ranges of a group with their lifetimes, from its beginning on; neighbours differ in lifetime."""
        if group not in self._ranges:
            spans = [(self.at[t], self._up(self.at[t] + self.size(t)), self.steps[t]) for t in self.members[group]]
            spans = [s for s in spans if s[2] and s[0] < s[1]]
            found: list[_Range] = []
            points = sorted({p for low, high, _ in spans for p in (low, high)})
            for low, high in pairwise(points):
                steps = [i for start, end, at in spans if start <= low and high <= end for i in at]
                if steps:
                    new = _Range(low, high, min(steps), max(steps))
                    before = found[-1] if found else None
                    if before and (before.high, before.first, before.last) == (low, new.first, new.last):
                        new = _Range(found.pop().low, high, new.first, new.last)
                    found.append(new)
            self._ranges[group] = found
        return self._ranges[group]

    def _up(self, size: int) -> int:
        return -(-size // self.align) * self.align

    # -------------------------------------------------------------------------------------------------- views
    def _view(self, node: Node) -> bool:
        """Make the output a view where it can be one."""
        if node.op in ALIASES:
            self._join(node.inputs[0], node.output, 0)
            return True
        cut = row_cut(self.graph, node)
        if cut is not None and cut % self.align == 0 and node.output not in self._renamed:
            self._join(node.inputs[0], node.output, cut)
            return True
        if node.op != "stack" or not self._stackable(node):
            return False
        at = 0
        for part in node.inputs:
            self._join(node.output, part, at)
            at += self.size(part)
        return True

    def _stackable(self, node: Node) -> bool:
        """Whether all parts can be written where the whole shall lie: none is a part of anything else."""
        groups = [self.group[t] for t in node.inputs]
        fixed = {self.group[self.graph.input], self.group[self.graph.output]}
        return (
            1 < len(groups) == len(set(groups))
            and not fixed & set(groups)
            and not self._renamed & set(node.inputs)
            and all(self.at[t] == 0 and self._extent(self.group[t]) == self.size(t) for t in node.inputs)
            and all(self.size(t) % self.align == 0 for t in node.inputs[:-1])
        )

    # ------------------------------------------------------------------------------------------------ in place
    def mergeable(self, step: int, node: Node, index: int) -> bool:
        """Whether the node's output may lie where its input `index` does, which dies at this step."""
        name, out = node.inputs[index], node.output
        g, h, start, size = self.group[name], self.group[out], self.at[name], self.size(out)
        if g == h or g == self.group[self.graph.input] or self.size(name) < size:
            return False
        for other in (t for i, t in enumerate(node.inputs) if i != index and self.group[t] == g):
            if self.at[other] < start + size and start < self.at[other] + self.size(other):
                return False  # it is still read while the output is written
        shift = start - self.at[out]
        if h == self.group[self.graph.output] and (shift > 0 or self._extent(g) > shift + self._extent(h)):
            return False  # the caller's output buffer has no room for more
        return all(
            r.low >= s.high + shift or s.low + shift >= r.high
            or r.last < s.first or s.last < r.first or r.last == step == s.first
            for r in self.ranges(g) for s in self.ranges(h)
        )  # fmt: skip

    def merge(self, node: Node, index: int) -> None:
        """Let the output lie where the input `index` does."""
        self._join(node.inputs[index], node.output, 0)

    # ------------------------------------------------------------------------------------------------- results
    def kind(self, tensor: str) -> Literal["input", "output", "arena"]:
        """Whose memory a tensor lies in; a view of the input that is the output has to be copied: it is its own."""
        if self.group[tensor] == self.group[self.graph.input]:
            return "output" if tensor == self.graph.output else "input"
        return "output" if self.group[tensor] == self.group[self.graph.output] else "arena"

    def _key(self, group: str) -> str:
        """The largest tensor at the group's beginning."""
        return max((t for t in self.members[group] if self.at[t] == 0), key=self.size)

    def buffers(self) -> list[Buffer]:
        """What the arena has to hold: one buffer for every byte range, tied together where they are one group."""
        found = []
        for group in self.members:
            ranges = self.ranges(group) if self.kind(group) == "arena" else []
            key = self._key(group)
            for r in ranges:
                alone = len(ranges) == 1 and not r.low
                name = f"{key}+{r.low}" if r.low else key
                size = min(r.high, self._extent(group)) - r.low
                found.append(Buffer(name, size, r.first, r.last, "" if alone else key, r.low))
        return found

    def places(self, layout: Layout) -> dict[str, Place]:
        """Where each tensor lies."""
        found = {}
        for group, names in self.members.items():
            ranges = self.ranges(group) if self.kind(group) == "arena" else []
            first = ranges[0].low if ranges else 0
            key = self._key(group)
            base = layout.offsets.get(f"{key}+{first}" if first else key, 0) - first
            for t in names:
                kind = self.kind(t)
                found[t] = Place(kind, self.at[t] + base if t != self.graph.output else 0, self.size(t))
        return {t: found[t] for t in self.graph.tensors}
