"""Runs Arm code in this process (unicorn): Cortex-M0 to M33, Armv7-A and AArch64 without Helium and matrix extensions.

xd_<m>_run is called directly. Input, output and arena each end at an unmapped page, so a write or read beyond them
stops the run. A native block hook counts instructions; the stack is painted before and searched after.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from xdeploy.bench.flash import Flash
from xdeploy.bench.native import native_library
from xdeploy.bench.runner import Block, Image, Layers, Memory, Ran, Tell, Waits, emulator_tells, merge_blocks, silent
from xdeploy.builder.elf import Elf
from xdeploy.errors import DeviceError, UsageError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact

PAGE = 0x1000
STACK = 0x40000
PAINT = 0xA5
ENOUGH = 4  # inputs that are worth another thread
TIME_LIMIT = 600_000_000  # microseconds per inference
_STOP, _STACK_AT, _BUFFERS_AT = 0x0FF00000, 0x30000000, 0x38000000
_MODELS = {
    "cortex-m0": "CORTEX_M0", "cortex-m3": "CORTEX_M3", "cortex-m4": "CORTEX_M4", "cortex-m7": "CORTEX_M7",
    "cortex-m33": "CORTEX_M33", "cortex-a53": "A53", "cortex-a57": "A57", "cortex-a72": "A72", "max": "MAX",
    "cortex-a7": "CORTEX_A7", "cortex-a15": "CORTEX_A15",
}  # fmt: skip


class _Block(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("size", ctypes.c_uint32), ("instructions", ctypes.c_uint32),
                ("call", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("runs", ctypes.c_uint64),
                ("taken", ctypes.c_uint64)]  # fmt: skip


class _Flash(ctypes.Structure):
    """struct xd_flash of flash.h."""

    _fields_ = [
        ("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("read", ctypes.c_uint32), ("line", ctypes.c_uint32),
        ("code_sets", ctypes.c_uint32), ("data_sets", ctypes.c_uint32), ("code_ways", ctypes.c_uint32),
        ("data_ways", ctypes.c_uint32), ("follows", ctypes.c_uint64), ("waits", ctypes.c_void_p),
        ("lines", ctypes.c_uint64 * 4096),
    ]  # fmt: skip


class _Hook(ctypes.Structure):
    """struct xd_hook of count_unicorn.c."""

    _fields_ = [
        ("run", ctypes.c_uint64), ("run_end", ctypes.c_uint64), ("harness", ctypes.c_uint64),
        ("harness_end", ctypes.c_uint64), ("layers", ctypes.c_uint32), ("next", ctypes.c_uint32),
        ("where", ctypes.c_uint32), ("active", ctypes.c_uint32), ("entries", ctypes.c_void_p),
        ("counts", ctypes.c_void_p), ("last", ctypes.c_void_p), ("last_end", ctypes.c_uint64),
        ("code", ctypes.c_char_p), ("code_at", ctypes.c_uint64), ("code_size", ctypes.c_uint64),
        ("thumb", ctypes.c_uint32), ("lost", ctypes.c_uint32), ("waits", ctypes.c_uint32), ("pad", ctypes.c_uint32),
        ("flash", _Flash), ("blocks", _Block * 65536),
    ]  # fmt: skip


class UnicornRunner:
    """Runner "unicorn" of an artifact for Arm; `model` is the target's runner.model.

    With `flash`, the reads of flash for the first input are counted too.
    """

    name = "unicorn"

    def __init__(self, artifact: Artifact, model: str, flash: Flash | None = None) -> None:
        self.image, self.model, self.flash = Image(artifact), model, flash
        self.tells = emulator_tells(str(self.image.manifest["kind"]))

    def available(self) -> str | None:
        """Whether unicorn is there and has this CPU."""
        try:
            import unicorn  # noqa: F401
        except ImportError:
            return "the Python package 'unicorn' is not installed: pip install unicorn"
        if self.model not in _MODELS:
            return f"unicorn has no {self.model}; it has {', '.join(_MODELS)}"
        return None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs, counting; many inputs on as many emulated CPUs as this machine has cores."""
        inputs = self.image.check(codes)
        role = "program" if "program" in self.image.manifest["products"] else "bare"
        elf = self.image.product(role)
        outputs = np.empty((len(inputs), self.image.output_bytes), np.int8)
        totals = np.empty(len(inputs), np.int64)
        done = itertools.count(1)

        def work(rows: range) -> tuple[tuple[int, ...], _Machine]:
            machine = _Machine(self.image, elf, self.model, self.flash if rows.start == 0 else None)
            first: tuple[int, ...] = ()
            for i in rows:
                machine.wait(i == 0)
                outputs[i] = np.frombuffer(machine.infer(inputs[i].tobytes()), np.int8)
                counts = machine.counts()
                totals[i], first = sum(counts), first or counts
                tell("unicorn", next(done), len(inputs))
            return first, machine

        count = max(1, min(os.cpu_count() or 1, len(inputs) // ENOUGH))
        native_library("count_unicorn.c")  # before the threads would all compile it
        with ThreadPoolExecutor(count) as pool:
            parts = list(pool.map(work, (range(i, len(inputs), count) for i in range(count))))
        machines = [machine for _, machine in parts]
        environment = {"emulator": f"unicorn {machines[0].version}", "cpu": self.model}
        blocks = merge_blocks(b for m in machines for b in m.blocks())
        stack = max(m.stack() for m in machines)
        return Ran(self.name, self.image.shaped(outputs), totals, parts[0][0], blocks, stack, environment=environment,
                   elf=elf, waits=machines[0].waits())  # fmt: skip

    def run_layers(self, codes: Int8) -> Layers:
        """Codes (N, bytes) of every tensor that a kernel writes, taken when the executor goes on after its call.

        Raises:
            DeviceError: the emulator fails, or not every call was seen.
        """
        inputs = self.image.check(codes)
        role = "program" if "program" in self.image.manifest["products"] else "bare"
        machine = _Machine(self.image, self.image.product(role), self.model)
        rows: dict[str, list[Int8]] = {}
        for row in inputs:
            for name, values in machine.trace(row.tobytes()):
                rows.setdefault(name, []).append(values)
        return {name: np.stack(values) for name, values in rows.items()}


class _Machine:
    """One emulated CPU with the image loaded."""

    def __init__(self, image: Image, elf: Elf, model: str, flash: Flash | None = None) -> None:
        import unicorn
        from unicorn import arm64_const, arm_const

        self.uc, self.image, self.elf, self.flash = unicorn, image, elf, flash
        self.version = unicorn.__version__
        self.wide = elf.machine == "EM_AARCH64"
        self.thumb = str(image.manifest["machine"]).startswith("thumb")
        if not self.wide and elf.machine != "EM_ARM":
            raise UsageError(f"unicorn runs Arm code; this artifact is for {elf.machine}")
        if self.wide:
            self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
            self.cpu.ctl_set_cpu_model(getattr(arm64_const, f"UC_CPU_ARM64_{_MODELS[model]}"))
            names, prefix = ("X0", "X1", "X2", "SP", "LR", "PC"), "UC_ARM64_REG_"
            self.reg = {n: getattr(arm64_const, prefix + n) for n in names}
            self.cpu.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        else:
            mode = unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS if self.thumb else unicorn.UC_MODE_ARM
            self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM, mode)
            self.cpu.ctl_set_cpu_model(getattr(arm_const, f"UC_CPU_ARM_{_MODELS[model]}"))
            self.reg = {n.replace("R", "X"): getattr(arm_const, f"UC_ARM_REG_{n}") for n in ("R0", "R1", "R2")}
            self.reg |= {n: getattr(arm_const, f"UC_ARM_REG_{n}") for n in ("SP", "LR", "PC")}
            if not self.thumb:  # VFP and NEON on, as under an operating system
                self.cpu.reg_write(arm_const.UC_ARM_REG_C1_C0_2, 0xF << 20)
                self.cpu.reg_write(arm_const.UC_ARM_REG_FPEXC, 1 << 30)
        self._load()
        self._hook()

    def _load(self) -> None:
        pages: set[int] = {_STOP}
        for s in self.elf.segments:
            pages |= set(range(s.address & -PAGE, s.address + s.size, PAGE))
        for page in sorted(pages):
            self.cpu.mem_map(page, PAGE)
        for s in self.elf.segments:
            self.cpu.mem_write(s.address, s.data)
        self.cpu.mem_map(_STACK_AT, STACK)
        self.cpu.mem_write(_STACK_AT, bytes([PAINT]) * STACK)
        at, self.at = _BUFFERS_AT, []
        for size in (self.image.input_bytes, self.image.output_bytes, self.image.arena):
            whole = -(-max(size, 1) // PAGE) * PAGE
            self.cpu.mem_map(at, whole)
            # at the end of the mapping, as far as the alignment allows
            self.at.append(at + (whole - size) // self.image.align * self.image.align)
            at += whole + PAGE

    def _hook(self) -> None:
        library = ctypes.CDLL(str(native_library("count_unicorn.c")))
        library.xd_hook_size.restype = ctypes.c_uint64
        assert library.xd_hook_size() == ctypes.sizeof(_Hook), "count.h and its mirror differ"
        entries = self.image.entries(self.elf)
        self._entries = (ctypes.c_uint64 * (len(entries) + 1))(*entries)
        self._counts = (ctypes.c_uint64 * (len(entries) + 1))()
        hook = self._state = _Hook()
        hook.run, hook.run_end = self.image.run_range(self.elf)
        hook.layers = len(entries)
        hook.entries = ctypes.addressof(self._entries)
        hook.counts = ctypes.addressof(self._counts)
        code = next(s for s in self.elf.segments if s.address <= hook.run < s.address + s.size)
        hook.code, hook.code_at, hook.code_size = code.data, code.address, len(code.data)
        hook.thumb = int(self.thumb)
        self._library, self._loads = library, ctypes.c_size_t()
        self._waits = (ctypes.c_uint64 * (3 * len(self._counts)))()
        hook.flash.waits = ctypes.addressof(self._waits)
        if self.flash is not None:
            f, numbers = hook.flash, self.flash.numbers(self.elf)
            f.start, f.end, f.read, f.line, f.code_sets, f.code_ways, f.data_sets, f.data_ways = numbers
        self._add_hook(self.uc.UC_HOOK_BLOCK, library.xd_on_block)

    def wait(self, on: bool) -> None:
        """Whether the reads of flash are counted from now on, as far as there is a flash model; that is slower."""
        on = on and self.flash is not None
        if on and not self._state.waits:
            start, end = self._state.flash.start, self._state.flash.end - 1
            self._loads = self._add_hook(self.uc.UC_HOOK_MEM_READ, self._library.xd_on_load, start, end)
        elif self._state.waits and not on:
            from unicorn.unicorn_py3 import unicorn as binding

            binding.uclib.uc_hook_del(self.cpu._uch, self._loads)
        self._state.waits = int(on)

    def waits(self) -> tuple[Waits, ...]:
        """Reads of flash that were counted, per kernel call, then the executor's own; empty without a flash model."""
        numbers = [int(n) for n in self._waits]
        return tuple(Waits(*numbers[i : i + 3]) for i in range(0, len(numbers), 3)) if self.flash else ()

    def _add_hook(self, kind: int, function: Any, start: int = 1, end: int = 0) -> ctypes.c_size_t:
        """uc_hook_add with a native function: unicorn's Python binding offers Python functions only."""
        from unicorn.unicorn_py3 import unicorn as binding

        handle = ctypes.c_size_t()
        status = binding.uclib.uc_hook_add(
            self.cpu._uch, ctypes.byref(handle), kind, ctypes.cast(function, ctypes.c_void_p),
            ctypes.cast(ctypes.addressof(self._state), ctypes.c_void_p), ctypes.c_uint64(start), ctypes.c_uint64(end),
        )  # fmt: skip
        if status:
            raise DeviceError(f"unicorn refuses a hook: status {status}")
        return handle

    def infer(self, codes: bytes) -> bytes:
        """One call of xd_<m>_run."""
        self.cpu.mem_write(self.at[0], codes)
        for name, value in zip(("X0", "X1", "X2"), self.at, strict=True):
            self.cpu.reg_write(self.reg[name], value)
        self.cpu.reg_write(self.reg["SP"], _STACK_AT + STACK)
        thumb = int(self.thumb)
        self.cpu.reg_write(self.reg["LR"], _STOP | thumb)
        try:
            self.cpu.emu_start(self._state.run | thumb, _STOP, timeout=TIME_LIMIT)
        except self.uc.UcError as error:
            raise DeviceError(f"unicorn: {error} {self._where()}") from None
        if self.cpu.reg_read(self.reg["PC"]) & ~1 != _STOP:
            raise DeviceError(f"unicorn: no end after {TIME_LIMIT // 10**6} s {self._where()}")
        self.image.status(int(self.cpu.reg_read(self.reg["X0"])) & 0xFFFFFFFF)
        return bytes(self.cpu.mem_read(self.at[1], self.image.output_bytes))

    def trace(self, codes: bytes) -> list[tuple[str, Int8]]:
        """One call of xd_<m>_run: name and codes of the tensor that each kernel call has written."""
        state, image = self._state, self.image
        found: list[tuple[str, Int8]] = []
        arena, output = self._reader(self.at[2]), self._reader(self.at[1])

        def seen(*_: Any) -> None:  # a block of the executor begins: the last call that was counted is over
            if len(found) < state.next:
                found.append(image.tensor(len(found), arena, output))

        state.next = 0
        hook = self.cpu.hook_add(self.uc.UC_HOOK_BLOCK, seen, begin=state.run, end=state.run_end - 1)
        try:
            self.infer(codes)
        finally:
            self.cpu.hook_del(hook)
        if len(found) != state.layers:
            raise DeviceError(f"only {len(found)} of {state.layers} kernel calls were seen")
        return found

    def _reader(self, base: int) -> Memory:
        return lambda at, size: bytes(self.cpu.mem_read(base + at, size))

    def _where(self) -> str:
        pc = int(self.cpu.reg_read(self.reg["PC"]))
        inside = [n for n, (at, size) in self.elf.symbols.items() if at <= pc < at + size]
        return f"at {pc:#x}{f' in {inside[0]}' if inside else ''}"

    def counts(self) -> tuple[int, ...]:
        """Instructions of the last call: per kernel call, then the executor's own."""
        if self._state.lost:
            raise DeviceError("the code has more blocks than the counter's table holds")
        if self._state.next != self._state.layers:
            raise DeviceError(f"only {self._state.next} of {self._state.layers} kernel calls were seen")
        return tuple(self._counts)

    def blocks(self) -> tuple[Block, ...]:
        """All blocks that ran."""
        return tuple(Block(b.address, b.size, b.runs, b.taken, b.call) for b in self._state.blocks if b.runs)

    def stack(self) -> int:
        """Deepest stack use in bytes so far."""
        memory: Any = np.frombuffer(bytes(self.cpu.mem_read(_STACK_AT, STACK)), np.uint8)
        touched = np.flatnonzero(memory != PAINT)
        return int(STACK - touched[0]) if len(touched) else 0
