"""Pieces of TVMScript shared by the rows: a line builder, the two rounding rules, constants with folded zero points.

A generated function takes typed pointers and int32 scalars in the order they were asked for. Shapes are baked into the
text; zero points and residual factors are scalars, so that layers of one shape share one function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.formats import Int32
from xdeploy.kernel import Arg, Code
from xdeploy.lir.graph import Node
from xdeploy.lir.ops import has_residual

# Views declare no real size: it would tell functions apart that are otherwise the same.
_ANY_SIZE = 1 << 30


class Source:
    """Collects parameters, views and lines of one prim_func, and the arguments of its call."""

    def __init__(self) -> None:
        self._args: list[Arg] = []
        self._params: list[str] = []
        self._views: list[str] = []
        self._lines: list[str] = []
        self._depth = 1
        self._lets = 0
        self._turns: set[str] = set()
        self._functions: dict[str, str] = {}  # assembly functions that are called: name -> LLVM IR

    def _pointer(self, arg: Arg, name: str, dtype: str) -> str:
        if arg in self._args:  # asked for again, under the same name
            return name
        self._args.append(arg)
        self._params.append(f'p{name}: T.handle("{dtype}")')
        return self.view(name, name, dtype)

    def view(self, name: str, pointer: str, dtype: str) -> str:
        """Another typed view `name` of the memory behind the parameter `pointer`."""
        self._views.append(f'{name} = T.decl_buffer(({_ANY_SIZE},), "{dtype}", data=p{pointer})')
        return name

    def input(self, index: int, name: str) -> str:
        """Parameter: input tensor `index`, viewed as int8."""
        return self._pointer(Arg("input", index=index), name, "int8")

    def output(self, name: str) -> str:
        """Parameter: the output tensor, viewed as int8."""
        return self._pointer(Arg("output"), name, "int8")

    def const(self, name: str, key: str, dtype: str) -> str:
        """Parameter: the packed constant `key`."""
        return self._pointer(Arg("const", name=key), name, dtype)

    def workspace(self, name: str, dtype: str) -> str:
        """Parameter: the scratch memory."""
        return self._pointer(Arg("workspace"), name, dtype)

    def integer(self, name: str, value: int) -> str:
        """Parameter: an int32 scalar; also keeps LLVM from unrolling a loop over it."""
        self._args.append(Arg("int", value=int(value)))
        self._params.append(f"{name}: T.int32")
        return name

    def local(self, name: str, size: int, dtype: str = "int32") -> str:
        """Registers: a local array, to be indexed by constants only."""
        self._views.append(f'{name} = T.alloc_local(({size},), "{dtype}")')
        return name

    def turns(self, count: int) -> str:
        """Bound of a loop, a scalar, which keeps LLVM from writing it out and loading ahead what does not change."""
        name = f"n{count}"
        if name not in self._turns:
            self._turns.add(self.integer(name, count))
        return f"T.max({name}, 1)"

    def let(self, value: str) -> str:
        """A name for an int32 expression: indices that are repeated take long to parse."""
        self._lets += 1
        self(f"i{self._lets}: T.let[T.int32] = {value}")
        return f"i{self._lets}"

    def __call__(self, *lines: str) -> None:
        """Add lines at the current indentation."""
        self._lines.extend("    " * self._depth + line for line in lines)

    def call(self, function: tuple[str, str], *args: str) -> None:
        """Call an assembly function (LLVM IR, name) and bring it along, once however often it is called."""
        text, name = function
        self._functions[name] = text
        self(f'T.evaluate(T.call_extern("int32", "{name}", {", ".join(args)}))')

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Indent what follows below `head` (a for or if line)."""
        self(head)
        self._depth += 1
        yield
        self._depth -= 1

    def code(self, llvm_ir: str = "") -> Code:
        """The finished function."""
        head = ["@T.prim_func", f"def {{symbol}}({', '.join(self._params)}):"]
        text = "\n".join([*head, *(f"    {view}" for view in self._views), *self._lines]) + "\n"
        return Code("tir", text, tuple(self._args), llvm_ir + "".join(self._functions.values()))


def clamp(value: str, low: int, high: int) -> str:
    """Clamp an int32 expression and cast it to int8."""
    return f'T.cast(T.max(T.min({value}, {high}), {low}), "int8")'


class OutputStage:
    """Requantisation (formats.Requant), then the residual addition where the node has one.

    Declares its scalars on `source`; `__call__` gives the statements that write one output.
    """

    def __init__(self, source: Source, node: Node) -> None:
        a = node.attrs
        self.shift, self.low, self.high = int(a["shift"]), int(a["low"]), int(a["high"])
        self.zero = source.integer("out_zero", a["out_zero"])
        self.residual = has_residual(node)
        if self.residual:
            source.input(1, "R")
            self.add = {k: source.integer(f"add_{k}", a[f"add_{k}"]) for k in ("a", "b", "const")}
            self.add_shift, self.add_low, self.add_high = (int(a[f"add_{k}"]) for k in ("shift", "low", "high"))

    def code(self, acc: str, multiplier: str) -> str:
        """int32 expression of the unclamped output code."""
        shifted = f"T.shift_left({acc}, {self.shift})" if self.shift else acc
        product = f'T.cast({shifted}, "int64") * T.cast({multiplier}, "int64")'
        return f'T.cast(T.shift_right({product} + T.int64(2147483648), T.int64(32)), "int32") + {self.zero}'

    def __call__(self, source: Source, acc: str, multiplier: str, at: str) -> None:
        """Write output element `at` from the accumulator expression."""
        value = self.code(acc, multiplier)
        if not self.residual:
            source(f"Y[{at}] = {clamp(value, self.low, self.high)}")
            return
        bounded = f"T.max(T.min({value}, {self.high}), {self.low})"
        total = f'{bounded} * add_a + T.cast(R[{at}], "int32") * add_b + add_const'
        source(f"Y[{at}] = {clamp(f'T.shift_right({total}, {self.add_shift})', self.add_low, self.add_high)}")


def folded_bias(node: Node, offset: int = 0) -> Int32:
    """bias[o] - (in_zero + offset) * sum(w[o]): lets the kernel multiply codes + offset, padding with in_zero + offset.

    Modulo 2^32, as in the register.
    """
    sums = node.values.astype(np.int64).reshape(len(node.values), -1).sum(axis=1)
    folded = node.consts["bias"].astype(np.int64) - (int(node.attrs["in_zero"]) + offset) * sums
    result: Int32 = folded.astype(np.int32)
    return result


def channel_consts(node: Node, offset: int = 0) -> dict[str, NDArray[Any]]:
    """The per-channel constants every weighted kernel reads: folded bias and multiplier, int32 (O,).

    offset: as of `folded_bias`.
    """
    multiplier = np.broadcast_to(node.consts["multiplier"].astype(np.int32), len(node.values))
    return {"bias": folded_bias(node, offset), "multiplier": np.ascontiguousarray(multiplier)}


def weight_consts(node: Node, packed: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """All constants of a weighted kernel: its packed weights, folded bias, multiplier, and the codebook if any."""
    consts = {"weights": packed, **channel_consts(node)}
    if node.format is not None and node.format.codebook:
        consts["codebook"] = node.consts["codebook"]
    return consts


def cut(total: int, size: int) -> list[tuple[int, int]]:
    """(size, how many of them), then the rest."""
    whole, rest = divmod(total, size)
    return [part for part in ((size, whole), (rest, 1)) if part[0] and part[1]]
