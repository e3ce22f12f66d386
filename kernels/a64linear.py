"""Linear rows for AArch64 that read every weight once, by assembly (`a64dense`): Armv8.0 and dot product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS as WEIGHTS
from xdeploy.formats import WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64asm import CHUNK, Outputs, called
from .a64chunks import DotProducts, Rows
from .a64dense import Dense
from .a64quads import Quads
from .snippets import channel_consts

FORMS: dict[str, tuple[type[Dense], ...]] = {"neon": (Quads, Rows), "dotprod": (DotProducts,)}
_MOST_CODES = 1 << 16


@dataclass(frozen=True, slots=True)
class DenseRow:
    """One row: a feature level and a weight format."""

    isa: str
    format: WeightFormat

    def applies(self, graph: LoweredGraph, node: Node, target: Target) -> bool:
        """This format, 16 codes or more, no residual; for Armv8.0 no weight of -128."""
        if node.format != self.format or has_residual(node) or not CHUNK <= node.values.shape[1] <= _MOST_CODES:
            return False
        return self.isa != "neon" or int(node.values.min(initial=0)) > -128

    def dense(self, node: Node) -> Dense:
        """The function of a layer: of the forms for the level, the one with the fewest instructions."""
        (channels, codes), after = node.values.shape, Outputs.of(node)
        forms = [form(codes, channels, after) for form in FORMS[self.isa]]
        return min(forms, key=lambda form: form.count())

    def cost(self, graph: LoweredGraph, node: Node, target: Target) -> float:
        """Instructions, counted."""
        return float(self.dense(node).count())

    def workspace(self, graph: LoweredGraph, node: Node) -> int:
        """None."""
        return 0

    def pack(self, graph: LoweredGraph, node: Node) -> Mapping[str, NDArray[Any]]:
        """Weights as they are read; where accumulators begin; half the multipliers; whole quads of channels."""
        dense, consts = self.dense(node), channel_consts(node)
        wide = -(-dense.channels // 4) * 4
        padded = np.zeros((wide, dense.codes), np.int8)
        padded[: dense.channels] = node.values
        table = np.zeros((2, wide), np.int32)
        table[:, : dense.channels] = consts["bias"], consts["multiplier"] >> 1
        blocks = [padded[i : i + dense.block] for i in range(0, wide, dense.block)]
        return {
            "weights": np.concatenate([dense.pack(b) for b in blocks]),
            "bias": dense.start(table[0]), "multiplier": table[1],
        }  # fmt: skip

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """One call."""
        dense, s = self.dense(node), called()
        blocks = s.integer("blocks", dense.channels // dense.block)
        # an address to be computed: linkers jump over functions that only jump, which then are not seen to be called
        end = f"T.address_of(X[{s.integer('looped', dense.looped)}])"
        pointers = (f"T.address_of({name}[0])" for name in ("X", "W", "B", "M", "Y"))
        s.call(dense.function(), *pointers, blocks, end, s.integer("out_zero", node.attrs["out_zero"]))
        return s.code()


for _isa in FORMS:
    # Armv8.0 has rows that look 4-bit weights up while they multiply
    for _format in WEIGHTS.values() if _isa != "neon" else (WEIGHTS["int8"],):
        _row, _name = DenseRow(_isa, _format), f"linear_s8_{_format.short}_dense__{_isa}"
        _tags = {} if _format.bits == 8 else {"extra_flash": f"8/{_format.bits}"}
        KERNELS.add(
            _name,
            Kernel(
                _name, "linear", _format.short, _isa, _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
                notes="" if _format.bits == 8 else "weights expanded to int8", tags=_tags,
            ),
        )  # fmt: skip
