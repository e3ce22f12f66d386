"""Linear rows for AArch64 that read every weight once, by assembly (`a64asm`): Armv8.0 and dot product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import FORMATS, Int8, WeightFormat
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.target import Target

from .a64asm import CHUNK, Dense
from .snippets import Source, channel_consts

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
        """The function of a layer."""
        (channels, codes), a = node.values.shape, node.attrs
        shift, low, high = (int(a[k]) for k in ("shift", "low", "high"))
        return Dense(self.isa == "dotprod", codes, channels, shift, low, high, low == a["out_zero"] == -128)

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
        bias = table[0]
        if not dense.dotprod:  # the sum is spread over four lanes
            bias = np.zeros((wide, 4), np.int32)
            bias[:, 0] = table[0]
        return {
            "weights": np.concatenate([_packed(dense, b) for b in blocks]),
            "bias": bias.reshape(-1), "multiplier": table[1],
        }  # fmt: skip

    def emit(self, graph: LoweredGraph, node: Node, target: Target) -> Code:
        """One call."""
        dense, s = self.dense(node), Source()
        s.input(0, "X")
        for name, key, dtype in (("W", "weights", "int8"), ("B", "bias", "int32"), ("M", "multiplier", "int32")):
            s.const(name, key, dtype)
        s.output("Y")
        blocks = s.integer("blocks", dense.channels // dense.block)
        # an address to be computed: linkers jump over functions that only jump, which then are not seen to be called
        end = f"T.address_of(X[{s.integer('looped', dense.looped)}])"
        pointers = (f"T.address_of({name}[0])" for name in ("X", "W", "B", "M", "Y"))
        s.call(dense.function(), *pointers, blocks, end, s.integer("out_zero", node.attrs["out_zero"]))
        return s.code()


def _packed(dense: Dense, codes: Int8) -> Int8:
    """The weights (channels, codes) of a block: by 64 codes, then what follows the loop."""
    end = dense.looped
    parts = [_read(dense, codes[:, i : i + 64]) for i in range(0, end, 64)]
    pieces = []
    for piece in dense.pieces:
        some = codes[:, end + piece.start : end + piece.start + CHUNK].copy()
        some[:, : piece.new] = 0
        pieces.append(some[:, dense.first(piece) :] if dense.dotprod else some)
    for i in range(0, len(pieces), 4):
        parts.append(_read(dense, np.concatenate(pieces[i : i + 4], axis=1)))
    return np.concatenate(parts)


def _read(dense: Dense, codes: Int8) -> Int8:
    """As the products of some codes read them: by four codes of four channels, or channel after channel."""
    if not dense.dotprod:
        return np.ascontiguousarray(codes).reshape(-1)
    cut = codes.reshape(len(codes) // 4, 4, -1, 4)
    return np.ascontiguousarray(cut.transpose(2, 0, 1, 3)).reshape(-1)


for _isa in ("neon", "dotprod"):
    # Armv8.0 has rows that look 4-bit weights up while they multiply
    for _format in FORMATS.values() if _isa != "neon" else (FORMATS["int8"],):
        _row, _name = DenseRow(_isa, _format), f"linear_s8_{_format.short}_dense__{_isa}"
        _tags = {} if _format.bits == 8 else {"extra_flash": f"8/{_format.bits}"}
        KERNELS.add(
            _name,
            Kernel(
                _name, "linear", _format.short, _isa, _row.applies, _row.cost, _row.workspace, _row.pack, _row.emit,
                notes="" if _format.bits == 8 else "weights expanded to int8", tags=_tags,
            ),
        )  # fmt: skip
