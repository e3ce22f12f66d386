"""Runs the board image in QEMU (qemu-system-arm): Cortex-M55 with Helium, and a second opinion on the other cores.

Inputs are loaded into the board's memory, outputs come back as a file by semihosting. A small plugin, compiled on
first use, counts the instructions of every kernel call.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from xdeploy.bench.flash import Flash
from xdeploy.bench.native import native_library
from xdeploy.bench.runner import Block, Image, Ran, Tell, Tells, Waits, merge_blocks, silent
from xdeploy.builder.elf import Elf
from xdeploy.builder.link import BOARDS
from xdeploy.errors import DeviceError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact
from xdeploy.process.child import tied
from xdeploy.process.lock import scratch_folder

PROGRAM = "qemu-system-arm"
SLOT = 64  # board.c puts every input at a multiple of it
BATCH = 64  # inputs per start of QEMU
BLOB_LIMIT = 8 << 20  # bytes of inputs the smallest board takes at once
TIME_LIMIT = 600


class QemuRunner:
    """Runner "qemu" of a firmware artifact; `board` is the target's runner.machine.

    With `flash`, the reads of flash for the first input are counted too.
    """

    name = "qemu"
    tells = Tells(
        ("outputs", "instructions", "instructions per layer", "mix", "stack"),
        {"latency": "an emulator has no pipeline, caches or wait states: times are modelled from the instructions"},
    )

    def __init__(self, artifact: Artifact, board: str, flash: Flash | None = None) -> None:
        self.image, self.board, self.flash = Image(artifact), board, flash

    def available(self) -> str | None:
        """Whether QEMU is there and the artifact has an image for a board of its."""
        if self.board not in BOARDS:
            return f"no QEMU board is known for {self.image.manifest['target']}"
        if "board" not in self.image.manifest["products"]:
            return f"the artifact holds no image for {self.board}; build it again"
        if shutil.which(PROGRAM) is None:
            return f"{PROGRAM} is not installed: apt-get install qemu-system-arm"
        return None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs, counting."""
        inputs = self.image.check(codes)
        elf = self.image.product("board")
        outputs, counts, stacks = [], [], []
        blocks: list[Block] = []
        waits: tuple[Waits, ...] = ()
        step = max(1, min(BATCH, BLOB_LIMIT // _slot(self.image.input_bytes)))
        for start in range(0, len(inputs), step):
            part = inputs[start : start + step]
            with scratch_folder("qemu") as folder:
                got, stack = self._start(part, elf, Path(folder), self.flash if start == 0 else None)
                runs, found = read_counts(Path(folder) / "counts.txt")
                waits = waits or read_waits(Path(folder) / "counts.txt")
            if len(runs) != len(part):
                raise DeviceError(f"{PROGRAM}: {len(runs)} of {len(part)} runs were counted")
            outputs.append(got)
            counts += runs
            stacks.append(stack)
            blocks += found
            tell("qemu", start + len(part), len(inputs))
        totals = np.array([sum(c) for c in counts], np.int64)
        environment = {"emulator": f"qemu {version()}", "board": self.board}
        merged = np.concatenate(outputs) if outputs else np.empty((0, self.image.output_bytes), np.int8)
        return Ran(self.name, self.image.shaped(merged), totals, counts[0] if counts else (),
                   merge_blocks(blocks), max(stacks, default=0), waits=waits, environment=environment,
                   elf=elf)  # fmt: skip

    def _start(self, inputs: Int8, elf: Elf, folder: Path, flash: Flash | None) -> tuple[Int8, int]:
        """One start of QEMU: output codes (n, bytes) and the stack's high-water mark."""
        slot = _slot(self.image.input_bytes)
        rows = np.zeros((len(inputs), slot), np.int8)
        rows[:, : self.image.input_bytes] = inputs
        (folder / "blob.bin").write_bytes(struct.pack("<I", len(inputs)).ljust(SLOT, b"\0") + rows.tobytes())
        (folder / "spec.txt").write_text(self._spec(elf), encoding="ascii")
        arguments = "spec=spec.txt,out=counts.txt"
        if flash is not None:
            (folder / "flash.txt").write_text(" ".join(f"{n:x}" for n in flash.numbers(elf)) + "\n", encoding="ascii")
            arguments += ",flash=flash.txt"
        plugin = native_library("count_qemu.c", f"-DXD_PLUGIN_VERSION={plugin_version()}", "-Wl,-z,lazy")
        kernel = (self.image.artifact.folder / self.image.manifest["products"]["board"]).resolve()
        command = [
            PROGRAM, "-M", self.board, "-display", "none", "-serial", "none", "-monitor", "none",
            "-semihosting-config", "enable=on,target=native", "-kernel", str(kernel),
            "-device", f"loader,file=blob.bin,addr={BOARDS[self.board]['blob']:#x},force-raw=on",
            "-plugin", f"{plugin},{arguments}",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                tied(command), cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT, stdin=subprocess.DEVNULL,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{PROGRAM} -M {self.board}: no end after {TIME_LIMIT} s") from None
        return self._results(folder, len(inputs), done)

    def _results(self, folder: Path, count: int, done: subprocess.CompletedProcess[str]) -> tuple[Int8, int]:
        path, size = folder / "outputs.bin", count * self.image.output_bytes
        data = path.read_bytes() if path.exists() else b""
        if len(data) < 8:
            said = " ".join(done.stderr.split()[-40:])
            raise DeviceError(f"{PROGRAM} -M {self.board} ended with {done.returncode} and no outputs: {said}")
        status, stack = struct.unpack("<iI", data[-8:])
        self.image.status(status)
        if len(data) != size + 8:
            raise DeviceError(f"{PROGRAM}: {len(data) - 8} bytes of outputs came back, {size} were expected")
        return np.frombuffer(data[:-8], np.int8).reshape(count, -1), int(stack)

    def _spec(self, elf: Elf) -> str:
        entries = self.image.entries(elf)
        harness = [elf.symbols[f"xd_harness_{end}"][0] for end in ("start", "end")]
        numbers = [*self.image.run_range(elf), *harness, len(entries), *entries]
        return " ".join(f"{n:x}" for n in numbers) + "\n"


def read_waits(path: Path) -> tuple[Waits, ...]:
    """What count_qemu.c wrote of the first run's reads of flash, by kernel call; empty where it was not asked."""
    rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()] if path.exists() else []
    return tuple(Waits(*(int(n) for n in row[1:])) for row in rows if row[:1] == ["waits"])


def _slot(size: int) -> int:
    return -(-size // SLOT) * SLOT


def read_counts(path: Path) -> tuple[list[tuple[int, ...]], list[Block]]:
    """What count_qemu.c wrote: counts per run, each by kernel call, and the blocks of all runs."""
    runs, blocks = [], []
    for line in path.read_text(encoding="ascii").splitlines() if path.exists() else ():
        word, *rest = line.split()
        if word == "run":
            runs.append(tuple(int(n) for n in rest))
        elif word == "block":
            blocks.append(Block(int(rest[0], 16), *(int(n) for n in rest[1:])))
    return runs, blocks


@cache
def version(program: str = PROGRAM) -> str:
    """Version of an installed QEMU program, "0" if it does not tell."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+(?:\.\d+)*)", done.stdout)
    return found[1] if found else "0"


def plugin_version(program: str = PROGRAM) -> int:
    """The plugin interface of an installed QEMU program: 2 since 8.2, 1 before."""
    major, minor = (int(n) for n in (*version(program).split("."), "0")[:2])
    return 2 if (major, minor) >= (8, 2) else 1
