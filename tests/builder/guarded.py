"""The code of a package in an emulated core that maps its buffers alone, each between unmapped pages, and its code."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.kernels.fences import READ, WRITE, Access, Fence
from xdeploy.bench.unicorn import _MODELS
from xdeploy.builder.elf import Elf, read_elf
from xdeploy.formats import Int8
from xdeploy.handover import Artifact
from xdeploy.target import load_target

PAGE = 0x1000
STOP, STACK, BUFFERS = 0x0FF00000, 0x30000000, 0x38000000
Side = Literal["start", "end"]


class FaultError(Exception):
    """The emulated core touched unmapped memory."""


@dataclass
class Guarded:
    """One core with the package's code, and input, output and arena at one side of their pages.

    missing: bytes cut from the arena's end.
    """

    artifact: Artifact
    folder: Path
    side: Side = "end"
    missing: int = 0
    at: dict[str, int] = field(default_factory=dict)
    fences: list[Fence] = field(default_factory=list)

    def __post_init__(self) -> None:
        import unicorn
        from unicorn import arm_const

        self.registers = arm_const
        self.error = unicorn.UcError
        model = str(load_target(str(self.artifact.manifest["target"])).runner["model"])
        self.cpu: Any = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self.cpu.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_{_MODELS[model]}"))
        self.elf = read_elf(self.artifact.folder / self.artifact.manifest["products"]["bare"])
        self._code()
        self._buffers()
        self.cpu.mem_map(STACK - 0x10000, 0x10000)
        self.cpu.mem_map(STOP, PAGE)

    def _code(self) -> None:
        """Map the image; every constant may be read to its last byte, and literals between instructions."""
        low = min(s.address for s in self.elf.segments) & -PAGE
        high = -(-max(s.address + s.size for s in self.elf.segments) // PAGE) * PAGE
        self.cpu.mem_map(low, high - low)
        allowed = np.zeros(high - low, np.uint8)
        for s in self.elf.segments:
            self.cpu.mem_write(s.address, s.data)
        # code and constants are the image's two read-only parts, in this order (targets/support/bare.ld)
        allowed[: self.elf.code] = READ
        for at, size in self.elf.symbols.values():
            if low + self.elf.code <= at < high:
                allowed[at - low : at - low + size] = READ
        self.fences.append(Fence(self.cpu, low, allowed, self.folder))

    def _buffers(self) -> None:
        manifest, at = self.artifact.manifest, BUFFERS
        sizes = {"input": manifest["input"]["bytes"], "output": manifest["output"]["bytes"]}
        sizes["arena"] = manifest["arena"]["bytes"] - self.missing
        align, spans = int(manifest["arena"]["align"]), []
        for name, size in sizes.items():
            whole = -(-max(size, 1) // PAGE) * PAGE
            self.cpu.mem_map(at, whole)
            self.at[name] = at + ((whole - size) // align * align if self.side == "end" else 0)
            spans.append((self.at[name] - BUFFERS, size, READ if name == "input" else READ | WRITE))
            at += whole + PAGE
        allowed: NDArray[np.uint8] = np.zeros(at - BUFFERS, np.uint8)
        for start, size, ways in spans:
            allowed[start : start + size] = ways
        self.fences.append(Fence(self.cpu, BUFFERS, allowed, self.folder))

    def run(self, codes: Int8, **moved: int) -> tuple[int, Int8]:
        """Status and output codes of one call; `moved` adds to a pointer, or makes it null where that is negative.

        Raises:
            FaultError: memory was touched that is not mapped.
        """
        self.cpu.mem_write(self.at["input"], codes.tobytes())
        r = self.registers
        names = (("input", r.UC_ARM_REG_R0), ("output", r.UC_ARM_REG_R1), ("arena", r.UC_ARM_REG_R2))
        for name, register in names:
            move = moved.get(name, 0)
            self.cpu.reg_write(register, self.at[name] + move if move >= 0 else 0)
        self.cpu.reg_write(r.UC_ARM_REG_SP, STACK)
        self.cpu.reg_write(r.UC_ARM_REG_LR, STOP | 1)
        try:
            self.cpu.emu_start(self.elf.symbols[self.artifact.manifest["symbols"]["run"]][0] | 1, STOP)
        except self.error as error:
            raise FaultError(str(error)) from None
        size = self.artifact.manifest["output"]["bytes"]
        data = bytes(self.cpu.mem_read(self.at["output"], size))
        return int(self.cpu.reg_read(r.UC_ARM_REG_R0)), np.frombuffer(data, np.int8)

    def violations(self) -> list[Access]:
        """Accesses beyond the buffers and constants, to the byte."""
        return [a for fence in self.fences for a in fence.violations()]


def symbol_at(elf: Elf, address: int) -> str:
    """The symbol nearest below an address."""
    return max((a, n) for n, (a, _) in elf.symbols.items() if a <= address)[1]
