"""An ONNX model as one plain TIR function: TVM's importer and Relax passes, a generic CPU schedule, no TVM runtime.

Relax leaves a chain of calls of small TIR functions. Each is tiled, flattened and put behind the other in one function
over raw pointers: the workspace, inputs and constants. Pointers are promised not to overlap, so tensors between two
functions, which share memory, are views of the one pointer to the workspace.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdeploy.errors import UnsupportedError
from xdeploy.files import quiet_stderr
from xdeploy.kernel import Arg
from xdeploy.memory import Buffer, plan_memory

from .nestcode import Constants
from .nesttiles import Machine
from .tiled import tiled

LINE = 64  # bytes: where tensors begin in the workspace
_FLOAT = 4  # bytes
# channels last, and output channels last in weights: both lie side by side for the lanes of a register
_LAYOUTS = {
    "relax.nn.conv1d": ["NWC", "WIO"],
    "relax.nn.conv2d": ["NHWC", "HWIO"],
    "relax.nn.conv3d": ["NDHWC", "DHWIO"],
}
CHEAP = 8  # operations per element that are repeated rather than stored; more would multiply in chains of functions


@dataclass(frozen=True, slots=True)
class Flat:
    """The function: TVMScript text, its arguments, constants by name, bytes of workspace, float operations."""

    text: str
    args: tuple[Arg, ...]
    consts: Mapping[str, NDArray[Any]]
    workspace: int
    operations: float


def flatten(model: bytes, before: Any, after: Any, machine: Machine) -> Flat:
    """Compile an ONNX model of one float32 input and output with fixed shapes.

    Args:
        model: the serialised ModelProto.
        before: TIR function (int8 codes, float32 values) that makes the model's input.
        after: TIR function (float32 values, int8 codes) that makes codes of its output.
        machine: for which the loops are cut; constants and workspace do not depend on it.

    Raises:
        UnsupportedError: TVM's importer or a pass refuses it, with what it said.
    """
    try:
        import onnx  # noqa: F401
        import tvm  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(f"a float part needs the Python packages onnx and apache-tvm: {error}") from None
    try:
        with quiet_stderr():
            return _Chain(machine).run(_relax(model), before, after)
    except UnsupportedError:
        raise
    except Exception as error:  # TVM raises many types, among them bare Exception
        said = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), type(error).__name__)
        raise UnsupportedError(f"TVM cannot compile the float part: {said.strip()[:300]}") from None


@functools.lru_cache(maxsize=32)
def _relax(model: bytes) -> Any:
    """The imported module after legalisation and fusion: `main` calls TIR functions only."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    x = relax.transform
    steps = [
        x.ConvertLayout(_LAYOUTS), x.Normalize(), x.FoldConstant(),
        x.FastMathTransform(),  # exp, tanh and erf as polynomials: they vectorise, and need no library
        x.LegalizeOps(), x.AnnotateTIROpPattern(), x.FoldConstant(), x.FuseOps(), x.FuseTIR(), x.DeadCodeElimination(),
    ]  # fmt: skip
    return tvm.ir.transform.Sequential(steps)(from_onnx(onnx.load_model_from_string(model), keep_params_in_input=False))


# ------------------------------------------------------------------------------------------------- schedule
def _inlined(function: Any) -> Any:
    """The function with all that is read once and cheap in the place where it is read."""
    import tvm
    from tvm.s_tir import Schedule

    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    schedule = Schedule(module, error_render_level="none")
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        with contextlib.suppress(tvm.s_tir.schedule.ScheduleError):  # a block that resists stays as it is
            _inline(schedule, block)
    return schedule.mod["main"]


def _inline(schedule: Any, block: Any) -> None:
    from tvm.s_tir.analysis import estimate_tir_flops

    readers = schedule.get_consumers(block)
    cheap = estimate_tir_flops(schedule.get(block).body) <= CHEAP
    if cheap and len(readers) == 1 and _pure(schedule, block) and _once(schedule, block, readers[0]):
        schedule.compute_inline(block)


def _once(schedule: Any, block: Any, reader: Any) -> bool:
    """Whether a function reads it, or a sum that goes through every element once."""

    def turns(of: Any) -> int:
        return math.prod(int(v.dom.extent) for v in schedule.get(of).iter_vars)

    return _pure(schedule, reader) or turns(block) == turns(reader)


def _pure(schedule: Any, block: Any) -> bool:
    return all(v.iter_type == 0 for v in schedule.get(block).iter_vars)


# ------------------------------------------------------------------------------------------------ one function
def _lowered(function: Any) -> Any:
    """Loops over flat buffers: parameters are declared first, then temporary buffers are allocated."""
    import tvm
    from tvm import s_tir, tirx

    s, x = s_tir.transform, tirx.transform
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    for step in (
        s.CanonicalizeLoop(), s.LowerInitBlock(), s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(), s.CompactBufferAllocation(), s.LowerMatchBuffer(),
        s.LowerOpaqueBlock(), x.FlattenBuffer(), x.NarrowDataType(32), x.StmtSimplify(),
    ):  # fmt: skip
        module = step(module)
    return module["main"]


@dataclass(slots=True)
class _Chain:
    """The function so far: parameters with what is passed for them, statements, constants, workspace."""

    machine: Machine
    params: list[Any] = field(default_factory=list)
    args: list[Arg] = field(default_factory=list)  # without those of tensors that share memory
    body: list[Any] = field(default_factory=list)
    consts: dict[str, NDArray[Any]] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)  # by key, used or not
    known: dict[str, Any] = field(default_factory=dict)  # key of a tensor -> its pointer
    shared: dict[str, tuple[int, list[int]]] = field(default_factory=dict)  # bytes, first and last piece with it
    pieces: int = 0
    workspace: int = 0  # bytes of the other part
    operations: float = 0.0

    def run(self, module: Any, before: Any, after: Any) -> Flat:
        """All pieces in order, printed."""
        from tvm.tirx import PrimFunc, SeqStmt

        main = module["main"]
        self.piece(before, ["input", "w:x"])
        tensors: list[tuple[Any, Any]] = [(main.params[0], "w:x")]
        for count, binding in enumerate(b for block in main.body.blocks for b in block.bindings):
            tensors.append((binding.var, self.bound(module, binding, tensors, f"w:t{count}")))
        self.piece(after, [_look_up(tensors, main.body.body), "output"])
        merged = PrimFunc(self.params, SeqStmt(self.body), None, None).with_attr("global_symbol", "kernel")
        lines = [line for line in merged.script().splitlines() if not line.startswith("#")]
        text = "\n".join(lines).strip().replace("def kernel(", "def {symbol}(", 1) + "\n"
        layout = plan_memory(
            [Buffer(name, size, first, last) for name, (size, (first, last)) in self.shared.items()], LINE
        )
        behind = (replace(a, value=layout.arena + a.value) if a.kind == "workspace" else a for a in self.args)
        text = _in_one_place(text, {name: at // _FLOAT for name, at in layout.offsets.items()})
        return Flat(
            text, (Arg("workspace"), *behind), self.consts, layout.arena + self.workspace, self.operations
        )  # fmt: skip

    def bound(self, module: Any, binding: Any, tensors: Sequence[tuple[Any, Any]], name: str) -> Any:
        """Add what one Relax binding computes; gives the key of its value, or a list of keys of a tuple."""
        value = binding.value
        kind, op = type(value).__name__, getattr(getattr(value, "op", None), "name", "")
        if kind == "TupleGetItem":
            return _look_up(tensors, value.tuple_value)[int(value.index)]
        if kind == "Tuple":
            return [_look_up(tensors, f) for f in value.fields]
        if op != "relax.call_tir":
            known = _look_up(tensors, value) if not op else None
            if known is None:
                raise UnsupportedError(f"TVM left {op or kind} in the float part, which has no kernel")
            return known
        function = module[value.args[0]]
        keys = [self.operand(tensors, a) for a in value.args[1].fields]
        count = len(function.params) - len(keys)
        outputs = [f"{name}_{k}" for k in range(count)]
        self.piece(function, [*keys, *outputs])
        return outputs[0] if type(binding.var.ty).__name__ != "TupleType" else outputs

    def operand(self, tensors: Sequence[tuple[Any, Any]], value: Any) -> str:
        """The key of an argument; constants are collected."""
        array = getattr(value, "value", None)
        if array is None:
            return str(_look_up(tensors, value))
        return self.constant(np.ascontiguousarray(array.numpy()))

    def constant(self, array: NDArray[Any]) -> str:
        """The key of an array; it is kept once it is read."""
        key = f"c:k{len(self.arrays)}"
        self.arrays[key] = array
        return key

    def piece(self, function: Any, keys: Sequence[str]) -> None:
        """Append one function whose buffers are the tensors of these keys."""
        from tvm import tirx
        from tvm.s_tir.analysis import estimate_tir_flops

        self.operations += float(estimate_tir_flops(function.body))
        self.pieces += 1
        inlined = _inlined(function)
        names = dict(zip((p.name for p in inlined.params), keys, strict=True))
        packed = dict[str, Any]()  # by name of their buffer

        def array(buffer: Any) -> NDArray[Any] | None:
            return self.arrays.get(names.get(buffer.name, ""))

        def add(values: NDArray[Any]) -> Any:
            buffer = tirx.decl_buffer(values.shape, "float32", name=f"packed{len(packed)}")
            packed[buffer.name], names[buffer.name] = buffer, self.constant(values)
            return buffer

        function = tiled(inlined, self.machine, Constants(array, add))
        function = tirx.PrimFunc([*function.params, *packed.values()], function.body, function.ret_type, function.attrs)
        flat = _lowered(function)
        for s in flat.body.seq if isinstance(flat.body, tirx.SeqStmt) else [flat.body]:
            if isinstance(s, tirx.DeclBuffer) and getattr(s.data, "args", None):
                s = tirx.DeclBuffer(s.buffer, data=self.pointer(names[s.data.args[0].name], s.buffer))
            elif isinstance(s, tirx.AllocBuffer) and s.buffer.scope() != "local":  # sums stay in registers
                s = tirx.DeclBuffer(s.buffer, data=self.pointer(f"w:a{len(self.params)}", s.buffer))
            self.body.append(s)

    def pointer(self, key: str, buffer: Any) -> Any:
        """The parameter that points to a tensor; a tensor of the workspace is placed when all have been seen."""
        from tvm.tirx import Var

        if key in self.known:
            variable = self.known[key]
            if variable.name in self.shared:
                self.shared[variable.name][1][1] = self.pieces
            return variable
        kind, _, name = key.partition(":")
        variable = self.known[key] = Var(f"p{len(self.params)}", buffer.data.ty)
        self.params.append(variable)
        if kind == "c":
            self.consts[name] = _bits(self.arrays[key])
        if kind != "w":
            self.args.append({"input": Arg("input"), "output": Arg("output")}.get(kind) or Arg("const", name=name))
            return variable
        size = math.prod(int(n) for n in buffer.shape) * np.dtype(str(buffer.dtype)).itemsize
        if str(buffer.dtype) == "float32":
            self.shared[variable.name] = size, [self.pieces, self.pieces]
        else:
            self.args.append(Arg("workspace", value=self.workspace))
            self.workspace += -(-size // LINE) * LINE
        return variable


def _in_one_place(text: str, offsets: Mapping[str, int]) -> str:
    """The function with one pointer for the tensors whose offsets (in floats) are given, as its first parameter."""
    kept = re.sub(r"\b(p\d+): T\.handle\([^()]*\)(, )?", lambda m: "" if m[1] in offsets else m[0], text)
    kept = kept.replace("def {symbol}(", 'def {symbol}(workspace: T.handle("float32", "global"), ', 1)

    def placed(found: re.Match[str]) -> str:
        at = offsets.get(found[1])
        return found[0] if at is None else f"data=workspace, elem_offset={at}"

    return re.sub(r"\bdata=(p\d+)\b", placed, kept).replace(", ):", "):", 1)


def _look_up(tensors: Sequence[tuple[Any, Any]], variable: Any) -> Any:
    return next((key for known, key in _backwards(tensors) if known.same_as(variable)), None)


def _backwards(tensors: Sequence[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    return iter(reversed(tensors))


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """The bit patterns, as C prints them exactly."""
    flat = array.reshape(-1)
    return flat.view(np.uint32 if flat.nbytes % 4 == 0 else np.uint8)
