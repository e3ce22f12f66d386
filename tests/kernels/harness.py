"""Runs compiled kernel functions on the host, in unicorn and in qemu-system-arm, many calls on one memory image."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from tests.kernels.cases import Case
from xdeploy.builder.link import bare_triple, static_flags
from xdeploy.builder.tir import compile_tir
from xdeploy.builder.zig import cc
from xdeploy.kernel import KERNELS, Code, Kernel
from xdeploy.target import Target, load_target

GUARD, FENCE = 64, 0xA5
STACK, DATA, RETURN = 0x7F000000, 0x60000000, 0x7E000000


class Image:
    """Memory that calls read and write; every block is surrounded by guard bytes."""

    def __init__(self, base: int, size: int = 1 << 23) -> None:
        self.base, self.used = base, 0
        self.bytes: NDArray[np.uint8] = np.full(size, FENCE, np.uint8)
        self.blocks: list[tuple[int, int, bool]] = []  # offset, size, may be written

    def put(self, array: NDArray[Any], align: int = 64, written: bool = False) -> int:
        """Place a copy and return its address."""
        start = -(-(self.used + GUARD) // align) * align
        self.bytes[start : start + array.nbytes] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.used = start + array.nbytes
        self.blocks.append((start, array.nbytes, written))
        return self.base + start

    def read(self, address: int, size: int) -> NDArray[np.int8]:
        return self.bytes[address - self.base :][:size].view(np.int8)

    def damaged(self, before: NDArray[np.uint8]) -> list[int]:
        """Addresses changed outside the blocks that may be written."""
        writable = np.zeros(len(self.bytes), bool)
        for start, size, written in self.blocks:
            writable[start : start + size] |= written
        return [self.base + int(i) for i in np.flatnonzero((before != self.bytes) & ~writable)[:8]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call: what it computes, where the answer lies, and what it must be."""

    label: str
    symbol: str
    args: tuple[int, ...]
    output: int
    expected: NDArray[np.int8]


@dataclass
class Batch:
    """Functions and calls of many rows and cases for one target."""

    target: Target
    image: Image
    functions: dict[str, Code] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    _symbols: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, row: Kernel, case: Case, samples: int | None = None) -> None:
        """Add calls of `row` on the samples of `case`; sample 1 runs in place where the row allows it."""
        graph, node = case.graph, case.node
        code = row.emit(graph, node, self.target)
        stem = f"f{len(self._symbols)}_" + row.name.replace("-", "x")
        symbol = self._symbols.setdefault((code.text, code.llvm_ir), stem)
        self.functions[symbol] = code
        align = self.target.align
        consts = {k: self.image.put(v, align) for k, v in row.pack(graph, node).items()}
        scratch = self.image.put(np.full(row.workspace(graph, node), 0x5B, np.uint8), align, written=True)
        expected = case.expected()
        for i in range(min(len(expected), samples or len(expected))):
            inputs = [self.image.put(x[i], align, written=i == 1) for x in case.inputs]
            own = row.in_place(graph, node)
            shared = i == 1 and (own or (row.op in ("conv2d", "linear") and len(inputs) == 2))
            output = inputs[0 if own else 1] if shared else self.image.put(0 * expected[i], align, written=True)
            places = {"input": inputs, "output": [output], "workspace": [scratch]}
            args = tuple(
                a.value + (0 if a.kind == "int" else consts[a.name] if a.kind == "const" else places[a.kind][a.index])
                for a in code.args
            )
            self.calls.append(Call(f"{row.name} {case.name} sample {i}", symbol, args, output, expected[i]))

    def failures(self) -> list[str]:
        """Labels of calls whose output differs from the reference."""
        wrong = []
        for call in self.calls:
            given = self.image.read(call.output, call.expected.size)
            bad = int((given != call.expected.ravel()).sum())
            if bad:
                wrong.append(f"{call.label}: {bad} of {call.expected.size} codes differ")
        return wrong


def rows(op: str, case: Case, target: Target, c99: bool = False) -> list[Kernel]:
    """TIR rows, or those of plain C, that apply to the case on the target."""
    found = [k for k in KERNELS.values() if k.op == op and k.isa in target.features and (k.isa == "c99") == c99]
    return [k for k in found if k.applies(case.graph, case.node, target)]


def fill(
    batch: Batch, cases: Mapping[str, Sequence[Case]], samples: int | None = None, c99: bool = False, step: int = 1
) -> None:
    """Add every TIR row, or every row of plain C, for every case of `cases` (op -> list), or every `step`-th of its."""
    seen: Counter[str] = Counter()
    for op, listed in cases.items():
        for case in listed:
            applicable = rows(op, case, batch.target, c99)
            assert applicable, f"no row runs {case.name} on {batch.target.name}"
            for row in applicable:
                if seen[row.name] % step == 0:
                    batch.add(row, case, samples)
                seen[row.name] += 1


# ---------------------------------------------------------------------------------------------------- host
def run_host(batch: Batch, folder: Path) -> None:
    """Link all functions into one shared library and call them in this process."""
    compile_tir(batch.functions, batch.target).object(folder / "k.o")
    cc(["-shared", "-s", "-o", "k.so", "k.o"], folder)
    call_host(batch, folder)


def call_host(batch: Batch, folder: Path) -> None:
    """Call the functions of the shared library k.so in this process."""
    library = ctypes.CDLL(str(folder / "k.so"))
    for call in batch.calls:
        code = batch.functions[call.symbol]
        values = [
            ctypes.c_int32(v) if a.kind == "int" else ctypes.c_void_p(v)
            for a, v in zip(code.args, call.args, strict=True)
        ]
        getattr(library, call.symbol)(*values)


def host_image(size: int = 1 << 23) -> Image:
    """An image that lies at its own address in this process."""
    image = Image(0, size + 64)
    image.bytes = image.bytes[-image.bytes.ctypes.data % 64 :]
    image.base = image.bytes.ctypes.data
    return image


# ----------------------------------------------------------------------------------------------- emulators
def host_level(isa: str) -> Target:
    """The x86-64 target at one of its levels; "x86": its own, AVX2."""
    target = load_target("x86-64")
    return target if isa == "x86" else target.at(next(level for level in target.levels if level.name == isa))


def check_level(batch: Batch, isa: str, folder: Path) -> None:
    """Run a batch of a level of x86-64 on this CPU; where it lacks the level the rows are compiled only."""
    if isa not in ("x86", *(level.name for level in load_target("x86-64").levels_here())):
        assert compile_tir(batch.functions, batch.target).object(folder / "k.o").stat().st_size > 0
        pytest.skip("this CPU has no AVX512-VNNI; the rows were compiled only")
    before = batch.image.bytes.copy()
    run_host(batch, folder)
    assert batch.failures() == []
    assert batch.image.damaged(before) == []


def link(batch: Batch, folder: Path, extra: Sequence[str] = ()) -> Path:
    """Link all functions into a static ELF for an emulator."""
    compile_tir(batch.functions, batch.target).object(folder / "k.o")
    compiler = batch.target.compiler
    flags = ["-target", bare_triple(str(compiler["triple"])), *compiler["flags"], "-O1", "-ffreestanding"]
    keep = [f"-Wl,-u,{s}" for s in batch.functions]
    entry = "reset" if extra else next(iter(batch.functions))
    if any("__hosted" in s for s in batch.functions):  # float parts may call the mathematical library
        flags = [*static_flags(str(compiler["triple"])), "-nostartfiles", "-lm"]
    cc([*flags, "-Wl,--gc-sections", f"-Wl,-e,{entry}", *keep, *extra, "k.o", "-o", "k.elf"], folder)
    return folder / "k.elf"


def symbols(elf: Path) -> dict[str, tuple[int, int]]:
    """Name -> (address without the Thumb bit, bytes)."""
    with elf.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return {
            s.name: (s["st_value"], s["st_size"]) for s in table.iter_symbols() if s["st_info"]["type"] == "STT_FUNC"
        }


class Unicorn:
    """An ELF in a unicorn CPU; `call` returns the executed instructions when counting is on."""

    def __init__(self, elf: Path, target: Target, image: Image, count: bool = False) -> None:
        import unicorn as uc
        import unicorn.arm64_const as a64
        import unicorn.arm_const as arm

        triple = str(target.compiler["triple"])
        self.wide, self.thumb = triple.startswith("aarch64"), triple.startswith("thumb")
        self.elf, self.image, self.symbols = elf, image, symbols(elf)
        if self.wide:
            self.cpu = uc.Uc(uc.UC_ARCH_ARM64, uc.UC_MODE_ARM)
            self.cpu.ctl_set_cpu_model(a64.UC_CPU_ARM64_A72)
            self.cpu.reg_write(a64.UC_ARM64_REG_CPACR_EL1, 3 << 20)
            self.registers = [getattr(a64, f"UC_ARM64_REG_X{i}") for i in range(8)]
            self.sp, self.link = a64.UC_ARM64_REG_SP, a64.UC_ARM64_REG_X30
        else:
            mode = uc.UC_MODE_THUMB | uc.UC_MODE_MCLASS if self.thumb else uc.UC_MODE_ARM
            self.cpu = uc.Uc(uc.UC_ARCH_ARM, mode)
            model = str(target.runner["model"]).replace("-", "_").upper()
            self.cpu.ctl_set_cpu_model(getattr(arm, f"UC_CPU_ARM_{model}"))
            self.registers = [getattr(arm, f"UC_ARM_REG_R{i}") for i in range(4)]
            self.sp, self.link = arm.UC_ARM_REG_SP, arm.UC_ARM_REG_LR
            if not self.thumb:  # VFP and NEON on
                self.cpu.reg_write(arm.UC_ARM_REG_C1_C0_2, 0xF << 20)
                self.cpu.reg_write(arm.UC_ARM_REG_FPEXC, 1 << 30)
        self._map()
        self.counts: dict[tuple[int, int], int] = {}
        if count:
            self.cpu.hook_add(uc.UC_HOOK_BLOCK, self._block)

    def _map(self) -> None:
        with self.elf.open("rb") as file:
            loads = [(s["p_vaddr"], s.data()) for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD"]
        low = min(a for a, _ in loads) & ~0xFFF
        high = max(a + len(d) for a, d in loads)
        self.cpu.mem_map(low, (high - low + 0x1FFF) & ~0xFFF)
        for address, data in loads:
            self.cpu.mem_write(address, data)
        self.cpu.mem_map(self.image.base, (len(self.image.bytes) + 0xFFF) & ~0xFFF)
        self.cpu.mem_write(self.image.base, self.image.bytes.tobytes())
        self.cpu.mem_map(STACK - 0x10000, 0x10000)
        self.cpu.mem_map(RETURN, 0x1000)

    def _block(self, _: Any, address: int, size: int, __: Any) -> None:
        self.counts[address, size] = self.counts.get((address, size), 0) + 1

    def _length(self, address: int, size: int) -> int:
        if not self.thumb:
            return size // 4
        data, at, n = bytes(self.cpu.mem_read(address, size)), 0, 0
        while at < size:
            at += 4 if data[at + 1] >> 3 >= 0x1D else 2
            n += 1
        return n

    def call(self, symbol: str, args: Sequence[int]) -> int:
        """Run one function; returns its instructions, callees included (0 when counting is off)."""
        self.counts.clear()
        in_registers = len(self.registers)
        form = f"<{len(args[in_registers:])}{'Q' if self.wide else 'I'}"
        mask = (1 << 64) - 1 if self.wide else (1 << 32) - 1
        stack = struct.pack(form, *(a & mask for a in args[in_registers:]))
        top = (STACK - len(stack) - 64) & ~15
        self.cpu.mem_write(top, stack)
        for register, value in zip(self.registers, args, strict=False):
            self.cpu.reg_write(register, value & mask)
        self.cpu.reg_write(self.sp, top)
        self.cpu.reg_write(self.link, RETURN | self.thumb)
        self.cpu.emu_start(self.symbols[symbol][0] | self.thumb, RETURN)
        return sum(self._length(*block) * n for block, n in self.counts.items())

    def read_back(self) -> None:
        """Copy the emulated memory into the image."""
        self.image.bytes[:] = np.frombuffer(self.cpu.mem_read(self.image.base, len(self.image.bytes)), np.uint8)


def run_unicorn(batch: Batch, folder: Path) -> None:
    """Run all calls in one unicorn CPU."""
    machine = Unicorn(link(batch, folder), batch.target, batch.image)
    for call in batch.calls:
        machine.call(call.symbol, call.args)
    machine.read_back()


_START = r"""
#include <stdint.h>
void reset(void);
__attribute__((section(".vectors"), used)) void *const vectors[16] = {(void *)0x20070000, (void *)reset};
static int host(int op, const void *p) {
  register int r0 __asm__("r0") = op; register const void *r1 __asm__("r1") = p;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory"); return r0;
}
typedef void (*function)(ARGS(uint32_t));
void reset(void) {
  *(volatile uint32_t *)0xE000ED88 |= 0xf << 20;
  __asm__ volatile("dsb\nisb");
  const uint32_t *b = (const uint32_t *)JOBS;
  for (uint32_t n = *b++; n; n--, b += 1 + COUNT)
    ((function)b[0])(VALUES);
  static const char name[] = "out.bin";
  uint32_t open[3] = {(uint32_t)name, 5, sizeof name - 1};
  uint32_t file = host(1, open), write[3] = {file, DATA, SIZE};
  host(5, write); host(2, &file); host(0x18, (void *)0x20026);
  for (;;) {}
}
"""
_SCRIPT = """ENTRY(reset)
SECTIONS { .vectors 0 : { KEEP(*(.vectors)) } .text 0x100 : { *(.text*) *(.rodata*) }
 .data 0x20000000 : { *(.data*) *(.bss*) }
 /DISCARD/ : { *(.ARM*) } }
"""
JOBS, MOST_ARGS = 0x68000000, 48


def has_qemu() -> bool:
    return shutil.which("qemu-system-arm") is not None


def run_qemu(batch: Batch, folder: Path, extra: Sequence[str] = ()) -> None:
    """Run all calls in one qemu-system-arm process (semihosting writes the memory back); `extra` are options of it."""
    size = -(-batch.image.used // 64) * 64 + GUARD
    types, values = ", ".join(["uint32_t"] * MOST_ARGS), ", ".join(f"b[{1 + i}]" for i in range(MOST_ARGS))
    (folder / "start.c").write_text(_START.replace("ARGS(uint32_t)", types).replace("VALUES", values))
    (folder / "q.ld").write_text(_SCRIPT)
    defines = [f"-DJOBS={JOBS}u", f"-DDATA={DATA}u", f"-DSIZE={size}u", f"-DCOUNT={MOST_ARGS}"]
    elf = link(batch, folder, ["-fno-sanitize=all", *defines, "start.c", "-Wl,-T,q.ld"])
    where = symbols(elf)
    table = [len(batch.calls)]
    for call in batch.calls:
        table += [where[call.symbol][0] | 1, *(a & 0xFFFFFFFF for a in call.args), *[0] * (MOST_ARGS - len(call.args))]
    (folder / "jobs.bin").write_bytes(np.array(table, np.uint32).tobytes())
    (folder / "data.bin").write_bytes(batch.image.bytes[:size].tobytes())
    loaders = [f"loader,file={n}.bin,addr={a:#x},force-raw=on" for n, a in (("jobs", JOBS), ("data", DATA))]
    machine = ["-M", str(batch.target.runner["machine"]), "-display", "none", "-serial", "none", "-monitor", "none"]
    options = ["-semihosting-config", "enable=on,target=native", "-kernel", elf.name]
    devices = [word for loader in loaders for word in ("-device", loader)]
    done = subprocess.run(
        ["qemu-system-arm", *machine, *options, *devices, *extra],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    batch.image.bytes[:size] = np.frombuffer((folder / "out.bin").read_bytes(), np.uint8)
