"""The lowered graph: integer nodes over typed int8 tensors, saved as readable text and one npz.

Tensors are int8, per sample, channels last: (H, W, C) or (F,). Weights stand in `Node.consts` as codes
(O, kh, kw, I/groups) or (O, I), with an optional `codebook`. `Node.name` is the origin: the qualified name of the
user's layer. Nodes are in execution order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.files import read_npz, write_npz, write_text
from xdeploy.formats import Int8, QParams, Requant, WeightFormat, weight_format
from xdeploy.handover import IoSpec


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape (channels last, no batch) and quantisation of one int8 tensor."""

    shape: tuple[int, ...]
    q: QParams

    @property
    def size(self) -> int:
        """Elements, which are bytes."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Node:
    """One integer operation; `lir.ops.OPS[op]` says what `attrs` and `consts` hold and what it computes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    consts: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def format(self) -> WeightFormat | None:
        """Weight format of a conv2d or linear node, else None."""
        name = self.attrs.get("weight_format")
        return None if name is None else weight_format(name)

    @property
    def values(self) -> Int8:
        """The int8 values of the weights (codebook looked up), shaped like the codes."""
        fmt = self.format
        if fmt is None:
            raise ValueError(f"{self.name}: {self.op} has no weights")
        return fmt.values(self.consts["codes"], self.consts.get("codebook"))

    @property
    def requant(self) -> Requant:
        """The output stage of conv2d, linear and avg_pool2d nodes."""
        a = self.attrs
        return Requant(self.consts["multiplier"], a["shift"], a["out_zero"], a["low"], a["high"])


@dataclass(frozen=True, slots=True)
class LoweredGraph:
    """Nodes, the tensors they read and write, one input and one output, and the IoSpec."""

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    input: str
    output: str
    io: IoSpec

    @property
    def weights(self) -> int:
        """Of all nodes together, their number."""
        return sum(n.consts["codes"].size for n in self.nodes if n.format is not None)

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(n for n in self.nodes if n.name == name)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        """Nodes that read the tensor."""
        return tuple(n for n in self.nodes if tensor in n.inputs)

    def to_text(self) -> str:
        """One readable line per tensor and node, deterministic."""
        lines = ["# xdeploy.graph/1", f"input {self.input}", f"output {self.output}"]
        for name, t in self.tensors.items():
            shape = "x".join(map(str, t.shape))
            lines.append(f"tensor {name} {shape} int8 scale={t.q.scale:.9g} zero={t.q.zero_point}")
        for n in self.nodes:
            attrs = " ".join(f"{k}={_short(v)}" for k, v in n.attrs.items())
            consts = " ".join(f"{k}:{v.dtype}{list(v.shape)}" for k, v in n.consts.items())
            lines.append(f"{n.op} {n.name} ({', '.join(n.inputs)}) -> {n.output} {attrs} {consts}".rstrip())
        return "\n".join(lines) + "\n"

    def save(self, text: Path, arrays: Path) -> None:
        """Write graph.txt (to read) and graph.npz (everything, to load)."""
        head = {
            "schema": "xdeploy.graph/1", "input": self.input, "output": self.output, "io": self.io.to_dict(),
            "tensors": {k: [t.shape, t.q.scale, t.q.zero_point] for k, t in self.tensors.items()},
            "nodes": [[n.name, n.op, n.inputs, n.output, dict(n.attrs), list(n.consts)] for n in self.nodes],
        }  # fmt: skip
        table: dict[str, NDArray[Any]] = {"header": np.frombuffer(json.dumps(head).encode(), np.uint8)}
        for i, n in enumerate(self.nodes):
            table.update({f"{i}_{k}": v for k, v in n.consts.items()})
        write_npz(arrays, table)
        write_text(text, self.to_text())

    @staticmethod
    def load(arrays: Path) -> LoweredGraph:
        """Read graph.npz."""
        table = read_npz(arrays)
        head = json.loads(table["header"].tobytes())
        tensors = {k: Tensor(tuple(s), QParams(scale, zero)) for k, (s, scale, zero) in head["tensors"].items()}
        nodes = tuple(
            Node(
                name,
                op,
                tuple(ins),
                out,
                {k: _tuples(v) for k, v in attrs.items()},
                {k: table[f"{i}_{k}"] for k in keys},
            )
            for i, (name, op, ins, out, attrs, keys) in enumerate(head["nodes"])
        )
        return LoweredGraph(nodes, tensors, head["input"], head["output"], IoSpec.from_dict(head["io"]))


def _short(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
