"""What was linked: sections, symbols and loadable bytes of an ELF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

_WRITE, _ALLOC, _EXECUTE = 0x1, 0x2, 0x4


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes to load at an address; `size` counts the zeros after them too."""

    address: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Elf:
    """Allocated sections by name (bytes), their totals by use, symbols (address, size), segments."""

    sections: dict[str, int]
    code: int
    constants: int
    data: int
    zeros: int
    symbols: dict[str, tuple[int, int]]
    segments: tuple[Segment, ...]
    machine: str

    @property
    def flash(self) -> int:
        """Code, constants and the initial values of data."""
        return self.code + self.constants + self.data

    @property
    def static_ram(self) -> int:
        """Initialised and zeroed variables."""
        return self.data + self.zeros


def read_elf(path: Path) -> Elf:
    """Read an ELF file; Thumb addresses of functions are given without their lowest bit."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        totals = {"code": 0, "constants": 0, "data": 0, "zeros": 0}
        sections: dict[str, int] = {}
        for section in elf.iter_sections():
            if section["sh_flags"] & _ALLOC and section["sh_size"]:
                sections[section.name] = int(section["sh_size"])
                totals[_use(section)] += int(section["sh_size"])
        segments = tuple(
            Segment(int(s["p_vaddr"]), s.data(), int(s["p_memsz"]))
            for s in elf.iter_segments()
            if s["p_type"] == "PT_LOAD" and s["p_memsz"]
        )
        machine = str(elf["e_machine"])
        return Elf(sections, symbols=_symbols(elf, machine == "EM_ARM"), segments=segments, machine=machine, **totals)


def _use(section: Any) -> str:
    flags = section["sh_flags"]
    if flags & _EXECUTE:
        return "code"
    if section["sh_type"] == "SHT_NOBITS":
        return "zeros"
    return "data" if flags & _WRITE else "constants"


def _symbols(elf: ELFFile, arm: bool) -> dict[str, tuple[int, int]]:
    table = elf.get_section_by_name(".symtab")
    found: dict[str, tuple[int, int]] = {}
    for symbol in table.iter_symbols() if table is not None else ():
        kind = symbol["st_info"]["type"]
        if symbol.name and symbol["st_shndx"] != "SHN_UNDEF" and kind in ("STT_FUNC", "STT_OBJECT", "STT_NOTYPE"):
            address = int(symbol["st_value"])
            found[symbol.name] = (address & ~1 if arm and kind == "STT_FUNC" else address, int(symbol["st_size"]))
    return found
