"""Where code and weights lie is the user's to say, by macros: read back from what two linkers made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.builder.test_prefix import written
from xdeploy.target import load_target

# flash, fast memory for code, a second flash for weights
SCRIPT = """\
SECTIONS
{
  .text 0x08000000 : { *(.text .text.*) }
  .rodata : { *(.rodata .rodata.*) }
  .weights 0x90000000 : { *(.weights) }
  .fast 0x00010000 : { *(.fast) }
  .data 0x20000000 : { *(.data .data.*) }
  .bss : { *(.bss .bss.*) }
  /DISCARD/ : { *(.ARM.exidx* .ARM.extab* .comment .note*) }
}
"""
MAIN = """\
#include "acme_net.h"
static ACME_NET_ALIGNED acme_net_arena arena;
static ACME_NET_ALIGNED acme_net_input x;
static ACME_NET_ALIGNED acme_net_output y;
int begin(void);
int begin(void) { return acme_net_verify() + acme_net_run(x, y, arena); }
"""
PLACES = {".text": 0x08000000, ".fast": 0x00010000, ".weights": 0x90000000}


def linked(folder: Path, compiler: str, form: str, defines: list[str]) -> dict[str, str]:
    """Function or object -> section of the linked image it lies in."""
    written(folder, form=form)
    (folder / "main.c").write_text(MAIN)
    (folder / "link.ld").write_text(SCRIPT)
    words = ["arm-none-eabi-gcc", *map(str, load_target("cortex-m4").compiler["gcc_flags"]), "-nostartfiles"]
    if compiler == "zig":
        target = load_target("cortex-m4").compiler
        words = [sys.executable, "-m", "ziglang", "cc", "-target", str(target["triple"]), *map(str, target["flags"])]
        words += ["-fno-sanitize=all", "-ffreestanding"]
    elif shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    sources = [str(p.relative_to(folder)) for p in sorted(folder.glob("src/*.[cS]"))]
    options = ["-std=c99", "-O2", "-ffunction-sections", "-fdata-sections", "-Iinclude", "-Isrc", *defines]
    link = ["-Wl,--gc-sections", "-Wl,-e,begin", "-Wl,-T,link.ld", "-o", "image.elf"]
    subprocess.run([*words, *options, "main.c", *sources, *link], cwd=folder, check=True, capture_output=True)
    with (folder / "image.elf").open("rb") as file:
        elf = ELFFile(file)
        for section in elf.iter_sections():
            assert PLACES.get(section.name, section["sh_addr"]) == section["sh_addr"]
        return {
            s.name: elf.get_section(s["st_shndx"]).name
            for s in elf.get_section_by_name(".symtab").iter_symbols()
            if isinstance(s["st_shndx"], int) and s["st_info"]["type"] in ("STT_FUNC", "STT_OBJECT")
        }


def kinds(places: dict[str, str]) -> tuple[set[str], set[str]]:
    """Sections of the package's functions (verify, called once in a while, is none of them) and of its constants."""
    own = {n: s for n, s in places.items() if n.startswith("acme_") and n != "acme_net_verify"}
    constants = {s for n, s in own.items() if n.removeprefix("acme_net_c").isdecimal()}
    code = {s for n, s in own.items() if not n.removeprefix("acme_net_c").isdecimal()}
    return code, constants


@pytest.mark.parametrize("form", ["tuned", "portable"])
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_macros_place_code_and_weights(compiler: str, form: str, tmp_path: Path) -> None:
    places = linked(tmp_path / "plain", compiler, form, [])
    assert kinds(places) == ({".text"}, {".rodata"})
    both = ['-DACME_NET_CODE_SECTION=".fast"', '-DACME_NET_WEIGHTS_SECTION=".weights"']
    moved = linked(tmp_path / "moved", compiler, form, both)
    assert kinds(moved) == ({".fast"}, {".weights"})
    assert {"acme_net_run", "acme_net_c0"} <= set(moved)
    assert moved["begin"] == moved["acme_net_verify"] == ".text"


def test_attributes_of_other_compilers(tmp_path: Path) -> None:
    """The macros that stand before definitions may be given whole."""
    whole = [
        '-DACME_NET_CODE=__attribute__((section(".fast")))',
        '-DACME_NET_SECTION=__attribute__((section(".weights")))',
    ]
    assert kinds(linked(tmp_path, "gcc", "portable", whole)) == ({".fast"}, {".weights"})
