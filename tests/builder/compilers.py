"""The compilers and cores that a package is checked with, and what a careful project asks of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.kernels import harness
from xdeploy.target import load_target

CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
COMMON = [
    "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wundef",
    "-Wcast-qual", "-Wdouble-promotion", "-Wvla", "-Wframe-larger-than=1024", "-Wnull-dereference", "-Wformat=2",
]  # fmt: skip
C = ["-Wstrict-prototypes", "-Wmissing-prototypes"]
GCC = ["-Wcast-align=strict", "-Wstack-usage=1024"]
CLANG = [
    "-Wcast-align",
    "-fno-sanitize=all",
    "-fno-stack-protector",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
]


def command(compiler: str, core: str) -> list[str]:
    """The compiler with its flags for a core ("host" for this machine), warnings included, but for the language's."""
    if compiler == "zig":
        own = load_target(core).compiler if core != "host" else {}
        where = ["-target", str(own["triple"]), *own["flags"]] if own else []
        return [sys.executable, "-m", "ziglang", "cc", *where, *COMMON, *CLANG]
    name = "gcc" if core == "host" else "arm-none-eabi-gcc"
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    own_flags = [] if core == "host" else [str(f) for f in load_target(core).compiler["gcc_flags"]]
    return [name, *own_flags, *COMMON, *GCC]


def compile_c(words: Sequence[str], folder: Path, out: Path) -> list[Path]:
    """Compile every C and assembly file of src/ into `out`; a warning is an error, and told."""
    objects = []
    includes = [f"-I{folder / 'include'}", f"-I{folder / 'src'}"]
    out.mkdir(parents=True, exist_ok=True)
    for source in sorted(folder.glob("src/*.[cS]")):
        target = out / f"{source.stem}{source.suffix}.o"
        done = subprocess.run(
            [*words, *includes, "-c", str(source), "-o", str(target)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert not done.stderr, done.stderr[-3000:]
        objects.append(target)
    return objects


def listed(batch: harness.Batch) -> str:
    """All functions of plain C of a batch as one file, each with its prototype before it."""
    texts = ["#include <stdint.h>\n"]
    for symbol, code in batch.functions.items():
        text = code.text.removeprefix("#include <stdint.h>\n")
        found = re.search(r"static (void \{symbol\}\([^)]*\))", text)
        assert found, symbol
        texts.append((f"{found[1]};\n" + text.replace(found[0], found[1], 1)).replace("{symbol}", symbol))
    return "\n".join(texts)


def symbols(objects: Sequence[Path]) -> tuple[set[str], set[str], dict[str, int]]:
    """Names defined, names undefined beyond those, and bytes of writable data by section."""
    defined: set[str] = set()
    wanted: set[str] = set()
    writable: dict[str, int] = {}
    for path in objects:
        with path.open("rb") as file:
            elf = ELFFile(file)
            for symbol in elf.get_section_by_name(".symtab").iter_symbols():
                (wanted if symbol["st_shndx"] == "SHN_UNDEF" else defined).add(symbol.name)
            for section in elf.iter_sections():
                if section["sh_flags"] & 3 == 3 and section["sh_size"]:
                    writable[f"{path.name}{section.name}"] = int(section["sh_size"])
    return defined, wanted - defined - {""}, writable
