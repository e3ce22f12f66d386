"""TVMScript functions -> LLVM -> object file or assembly with plain C functions, without any TVM runtime.

Kernels are prim_funcs over typed raw pointers, so nothing has to be unpacked at run time. `MakePackedAPI` and
`LowerTVMBuiltin` are left out on purpose: the first adds TVM's calling convention, the second refuses local arrays
outside a device function.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdeploy.builder.script import read
from xdeploy.errors import ToolchainError
from xdeploy.files import quiet_stderr, replacing
from xdeploy.kernel import Code
from xdeploy.target import Target

# Weak half-precision helpers that TVM adds to every module; no kernel calls them.
_TVM_HELPERS = frozenset({"__truncsfhf2", "__extendhfsf2", "__gnu_f2h_ieee", "__gnu_h2f_ieee"})


@dataclass(frozen=True, slots=True)
class Compiled:
    """An LLVM module with one C function per symbol: `void symbol(args of its Code)`."""

    module: Any
    symbols: tuple[str, ...]

    def object(self, path: Path) -> Path:
        """Write an object file (atomically) and return its path."""
        with replacing(path.with_suffix(".o")) as part, quiet_stderr():
            # TVM picks the file kind by its argument, not by the suffix
            self.module.write_to_file(str(part), "o")
        return path.with_suffix(".o")

    def assembly(self) -> str:
        """GNU assembly, one section per function, without debug information and unused helpers."""
        with quiet_stderr():
            text = str(self.module.inspect_source("asm"))
        return clean_assembly(text, self.symbols)


def compile_tir(functions: Mapping[str, Code], target: Target) -> Compiled:
    """Compile TIR kernels for a target.

    Args:
        functions: C symbol -> Code with language "tir".
        target: its `tvm` dict chooses the code generator.

    Returns:
        The compiled module; two calls with equal input give equal bytes.

    Raises:
        ToolchainError: TVM is missing, or it rejects a function (named).
    """
    try:
        import tvm
        from tvm import tirx
    except ImportError as error:
        raise ToolchainError(f"apache-tvm cannot be imported: {error}", hint="pip install apache-tvm") from None
    with quiet_stderr() as log:
        try:
            machine = tvm.target.Target(dict(target.tvm))
            parsed = {s: _function(tvm, tirx, s, code, machine) for s, code in functions.items()}
            module = tvm.IRModule(parsed)
            for step in _passes(tirx.transform):
                module = step(module)
            built = tvm.get_global_func("target.build.llvm")(module, machine)
        except ToolchainError:
            raise
        except Exception as error:
            raise _failure(f"kernels {', '.join(functions)} for {target.name}", error, log) from error
    return Compiled(built, tuple(functions))


def llvm_version() -> str:
    """Major version of the LLVM inside TVM, which makes the assembly."""
    import tvm

    return str(tvm.get_global_func("target.llvm_version_major")())


def _passes(x: Any) -> list[Any]:
    return [
        x.FlattenBuffer(), x.StmtSimplify(), x.VectorizeLoop(True), x.UnrollLoop(), x.StorageRewrite(),
        x.StmtSimplify(), x.RemoveNoOp(), x.LowerIntrin(),
    ]  # fmt: skip


def _function(tvm: Any, tirx: Any, symbol: str, code: Code, machine: Any) -> Any:
    assert code.language == "tir", symbol
    try:
        function = _parse(code.text)
    except Exception as error:
        raise ToolchainError(f"kernel {symbol}: TVM cannot parse its text: {error}") from error
    if code.llvm_ir:
        # inlined into this one function, so internal names may repeat over kernels
        ir = tvm.ir.StringImm(code.llvm_ir.replace("{symbol}", symbol))
        body = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", ir, function.body)
        function = function.with_body(body)
    return function.with_attr("global_symbol", symbol).with_attr("target", machine).with_attr("tirx.noalias", True)


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> Any:
    """Parsing takes longer than compiling, and one text serves several targets."""
    return read(text.replace("{symbol}", "kernel"))


def _failure(what: str, error: Exception, log: Path) -> ToolchainError:
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    return ToolchainError(f"{what}: {error}" + "".join(f"\n  {line}" for line in said))


# ------------------------------------------------------------------------------------------------- assembly
# Besides debug information: the CPU and its attributes, which the assembler's command line states (older assemblers do
# not know every name, and float attributes would tie integer code to one float ABI).
_DROPPED = re.compile(
    r"\s*\.(loc|cfi_\w+|file|fnstart|fnend|cantunwind|save|vsave|pad|setfp|ident|addrsig\w*"
    r"|cpu|fpu|arch|eabi_attribute)\b"
)
_LABEL = re.compile(r"^(\.L(?:func_begin|func_end|tmp|debug|cu_begin|Info)\w*):")
_SECTION = re.compile(r"\s*\.(?:section\s+([^,\s]+)|(text|data|bss))\b")
# Helium spellings of LLVM that the GNU assembler (2.40) refuses, and the equal ones both take.
_SPELLINGS = (
    (re.compile(r"\b(vmlas?)\.i(\d+)(\s+q\d+, q\d+, (?:r\d+|lr))"), r"\1.s\2\3"),
    (re.compile(r"\b(vldr|vstr)(\s+)p0\b"), r"\1\2P0"),
)


def clean_assembly(text: str, symbols: tuple[str, ...]) -> str:
    """Keep the code and constants of `symbols`: drop debug sections, unwind tables, TVM's helpers and dead labels.

    Every function is put into its own section `.text.<symbol>`, for the linker's --gc-sections.
    """
    kept: list[str] = []
    keep, wanted = True, set(symbols)
    for line in text.splitlines():
        section = _SECTION.match(line)
        if section:
            name = (section[1] or f".{section[2]}").strip('"')
            keep = not name.startswith((".debug", ".text.tvm", ".eh_frame", ".ARM.exidx"))
            if name == ".text":  # replaced by the function's own section below
                continue
        begins = re.match(r"\s*\.(?:globl|weak)\s+(\w+)", line)
        if begins and begins[1] in wanted:
            keep = True
            kept.append(f'\t.section\t.text.{begins[1]},"ax",%progbits')
        elif begins and begins[1] in _TVM_HELPERS:
            keep = False
        if keep and not _DROPPED.match(line):
            kept.append(_respelled(line))
    return "\n".join(_without_dead_labels(kept)) + "\n"


def _respelled(line: str) -> str:
    for pattern, replacement in _SPELLINGS:
        line = pattern.sub(replacement, line)
    return line


def _without_dead_labels(lines: list[str]) -> list[str]:
    """Drop generated labels nothing refers to any more."""
    used = set(re.findall(r"\.L\w+", "\n".join(line for line in lines if not _LABEL.match(line))))
    return [line for line in lines if (m := _LABEL.match(line)) is None or m[1] in used]
