"""The compiler behind the kernels: reproducible, clean assembly for every target, errors that name the function."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.kernels.cases import Case, conv, linear
from tests.kernels.harness import rows
from xdeploy.builder.tir import compile_tir
from xdeploy.builder.zig import cc
from xdeploy.errors import ToolchainError
from xdeploy.kernel import Code
from xdeploy.program import choose
from xdeploy.target import Target, load_target, target_names

CASES = [conv((5, 5), 8, 6, residual=True), conv((5, 5), 3, 5, fmt="c4s8"), linear(16, 7)]
# what a C runtime without any library still has
RUNTIME = {"memcpy", "memset", "__aeabi_lmul", "__aeabi_uidiv"}


def _functions(target: Target, cases: list[Case]) -> dict[str, Code]:
    found = {}
    for i, case in enumerate(cases):
        for row in rows(case.node.op, case, target):
            found[f"fn{i}_{row.name}"] = row.emit(case.graph, case.node, target)
    return found


def _symbols(path: Path) -> tuple[set[str], set[str], set[str]]:
    """Defined functions, undefined symbols, section names."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        table = list(elf.get_section_by_name(".symtab").iter_symbols())
        sections = {s.name for s in elf.iter_sections()}
    defined = {s.name for s in table if s["st_info"]["type"] == "STT_FUNC" and s["st_shndx"] != "SHN_UNDEF"}
    missing = {s.name for s in table if s["st_shndx"] == "SHN_UNDEF" and s.name}
    return defined, missing, sections


def _assembled(target: Target, text: str, folder: Path, by: str) -> Path:
    (folder / "k.S").write_text(text)
    if by == "zig":
        compiler = target.compiler
        cc(["-target", str(compiler["triple"]), *compiler["flags"], "-c", "k.S", "-o", "zig.o"], folder)
    else:
        flags = target.compiler["gcc_flags"]
        subprocess.run(["arm-none-eabi-gcc", *flags, "-c", "k.S", "-o", "gcc.o"], cwd=folder, check=True)
    return folder / f"{by}.o"


@pytest.mark.parametrize("name", target_names())
def test_assembly_holds_the_functions_and_nothing_else(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    functions = _functions(target, CASES)
    text = compile_tir(functions, target).assembly()
    assert "fp16" not in text
    assert "hfsf2" not in text
    assert not re.search(r"\.(debug|cfi|loc|eabi_attribute|cpu)", text)
    compilers = ["zig", "gcc"] if target.kind == "firmware" and shutil.which("arm-none-eabi-gcc") else ["zig"]
    for by in compilers:
        defined, missing, sections = _symbols(_assembled(target, text, tmp_path, by))
        assert {s for s in defined if not s.startswith("xd_")} == set(functions)
        assert missing <= RUNTIME
        assert {f".text.{s}" for s in functions} <= sections


@pytest.mark.parametrize("name", ["x86-64", "cortex-a72", "cortex-m4", "cortex-m55"])
def test_same_input_same_bytes(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    functions = _functions(target, CASES[:1])
    first = compile_tir(functions, target).object(tmp_path / "a.o").read_bytes()
    assert compile_tir(functions, target).object(tmp_path / "b.o").read_bytes() == first


@pytest.mark.parametrize(
    "cases",
    [
        [conv((8, 8), 16, 16), conv((5, 7), 8, 12, stride=(2, 2), in_zero=9)],
        [conv((4, 4), 4, 4, (1, 1), pads=(0, 0, 0, 0)), conv((5, 3), 16, 8, (1, 1), pads=(0, 0, 0, 0), in_zero=9)],
    ],
    ids=["windows", "pointwise"],
)
def test_equal_layers_share_one_text(cases: list[Case]) -> None:
    """Layers that differ in sizes and quantisation only give one function on Cortex-M4."""
    target, texts = load_target("cortex-m4"), set()
    for case in cases:
        best = choose(case.graph, case.node, target)
        assert best.isa == "armv7em"
        code = best.emit(case.graph, case.node, target)
        texts.add((code.text, code.llvm_ir))
    assert len(texts) == 1


@pytest.mark.parametrize("text", ["@T.prim_func\ndef {symbol}(x: T.int32):\n    y[0] = x\n", "def {symbol}(:"])
def test_bad_text_is_an_error_with_the_symbol(text: str) -> None:
    with pytest.raises(ToolchainError, match="broken"):
        compile_tir({"broken": Code("tir", text, ())}, load_target("x86-64"))
