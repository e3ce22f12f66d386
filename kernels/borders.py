"""Where a float part begins and ends: TIR functions that make values of int8 codes, and codes of values.

They are built, not read from text: TVM's reader looks at all of its callers' source first, which takes longer than all
else about a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def dequantise(shape: tuple[int, ...], scale: float, zero: int) -> Any:
    """(codes, values): values (1, *shape) float32 of codes (count,) int8."""

    def element(T: Any, codes: Any, values: Any, index: Sequence[Any], at: Any) -> None:  # noqa: N803 (its usual name)
        T.buffer_store(values, (T.Cast("float32", codes[at]) - T.float32(zero)) * _step(T, scale), index)

    return _border("dequantise", ("codes", "values"), shape, element)


def quantise(shape: tuple[int, ...], scale: float, zero: int) -> Any:
    """(values, codes): codes (count,) int8 of values (1, *shape) float32; halves go to the even one."""

    def element(T: Any, values: Any, codes: Any, index: Sequence[Any], at: Any) -> None:  # noqa: N803
        code = T.nearbyint(values[tuple(index)] / _step(T, scale)) + T.float32(zero)
        T.buffer_store(codes, T.Cast("int8", T.max(T.min(code, T.float32(127)), T.float32(-128))), [at])

    return _border("quantise", ("values", "codes"), shape, element)


def _step(T: Any, scale: float) -> Any:  # noqa: N803
    return T.float32(float(np.float32(scale)))


def _border(name: str, order: Sequence[str], shape: tuple[int, ...], element: Callable[..., None]) -> Any:
    """A function over all elements of a tensor of the model: at least two axes, as a grid needs them."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script import builder as T  # noqa: N812 (its name in every text)

    wide = (1, *shape)
    kinds = {"codes": T.buffer((int(np.prod(shape)),), "int8"), "values": T.buffer(wide, "float32")}
    loops, index = ([f"{stem}{k}" for k in range(len(wide))] for stem in "iv")
    with IRBuilder() as builder, T.prim_func(is_private=False, s_tir=True, persistent=False):
        T.func_name(name)
        buffers = [T.arg(n, kinds[n]) for n in order]
        with T.grid(*(T.int64(n) for n in wide)) as found:
            for variable, label in zip(found, loops, strict=True):
                IRBuilder.name(label, variable)
            with T.sblock(name):
                axes = T.axis.remap("S" * len(wide), list(found))
                at = T.int64(0)
                for axis, label, size in zip(axes, index, wide, strict=True):
                    IRBuilder.name(label, axis)
                    at = at * T.int64(size) + axis
                element(T, *buffers, axes, at)
    return builder.get()
