"""The contract between the planner, the builder and the kernels; knows no TVM.

A kernel is one registered row. Selection (`program`), tests, benchmarks and the support matrix read the rows;
nobody lists kernels a second time. `applies` and `workspace` stand in the same row, so they share one predicate.

Name grammar: `<op>_<act>_<weight>_<tile>__<isa>`, e.g. `conv2d_s8_c4s8_4x1__tir`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.registry import Registry
from xdeploy.target import Target


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument of a kernel call.

    kind "input": pointer to input tensor `index` of the node; "const": pointer to the packed constant `name`;
    "output": pointer to the output tensor; "workspace": pointer to byte `value` of the kernel's scratch; "int": the
    int32 `value`.
    """

    kind: Literal["input", "const", "output", "workspace", "int"]
    index: int = 0
    name: str = ""
    value: int = 0


@dataclass(frozen=True, slots=True)
class Code:
    """The source of one C function `void <symbol>(<args>)` and the call that runs the node.

    language "tir": `text` is TVMScript of one plain `T.prim_func` whose name is `{symbol}` (filled in by the
    builder), with typed pointer parameters (`T.handle("int8")`) and `T.int32` scalars in the order of `args`;
    `llvm_ir` is LLVM IR to import into it. language "c99": `text` is the C text of a `static void {symbol}(...)`.
    Two nodes whose text is equal share one function.
    """

    language: Literal["tir", "c99"]
    text: str
    args: tuple[Arg, ...]
    llvm_ir: str = ""


def never(graph: LoweredGraph, node: Node) -> bool:
    """The output needs memory of its own."""
    return False


def always(graph: LoweredGraph, node: Node) -> bool:
    """Every output element depends on the input element in its place, and is written after that was read."""
    return True


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row. All callables take the graph because shapes and quantisation stand on its tensors."""

    name: str
    op: str
    weight: str  # short weight format (s8, s4, c4s8), "-" for ops without weights
    isa: str  # a feature in Target.features
    applies: Callable[[LoweredGraph, Node, Target], bool]
    cost: Callable[[LoweredGraph, Node, Target], float]  # estimated executed instructions
    workspace: Callable[[LoweredGraph, Node], int]  # bytes of scratch
    pack: Callable[[LoweredGraph, Node], Mapping[str, NDArray[Any]]]  # constants in read order
    emit: Callable[[LoweredGraph, Node, Target], Code]
    in_place: Callable[[LoweredGraph, Node], bool] = never  # output may begin where input 0 does
    residual_in_place: bool = True  # output may share memory with the residual input, where the node has one
    notes: str = ""
    # form: of the computation; extra_flash: bytes of packed weights by those of the format, a fraction; weights_of: the
    # row, of a further level of a target, whose array `weights` this one packs too
    tags: Mapping[str, str] = field(default_factory=dict)


KERNELS: Registry[Kernel] = Registry("kernel", "xdeploy.kernels")
