"""Runs the Linux program of an artifact in QEMU's user mode: 64- and 32-bit Arm, and x86-64 for its counts.

Inputs and outputs are files. The plugin that counts firmware's instructions counts these too; a run ends where
xd_<m>_run returns to. Stack: from the stack pointer at the entry of xd_<m>_run, which QEMU's log tells, down to the
lowest address that was stored to before it returned. A repeated string instruction of x86 counts once per repetition.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np

from xdeploy.bench.native import native_library
from xdeploy.bench.qemu import plugin_version, read_counts, version
from xdeploy.bench.runner import Block, Image, Ran, Tell, emulator_tells, merge_blocks, silent
from xdeploy.bench.static import static_program
from xdeploy.builder.elf import Elf, read_elf
from xdeploy.errors import DeviceError
from xdeploy.formats import Int8
from xdeploy.handover import Artifact
from xdeploy.process.child import tied
from xdeploy.process.lock import scratch_folder
from xdeploy.target import Target

BATCH = 64  # inputs per start of QEMU
_PACKAGE = "apt-get install qemu-user"
_STACK_POINTER = {"aarch64": r"\bSP=([0-9a-f]+)", "arm": r"\bR13=([0-9a-f]+)", "x86_64": r"\bRSP=([0-9a-f]+)"}
_PUSHED = {"x86_64": 8}  # bytes that the call itself puts on the stack


class QemuUserRunner:
    """Runner "qemu" of a Linux or host artifact; the CPU is the target's runner.user_cpu.

    A host artifact holds a shared library: its files are compiled once more, to a static program.
    """

    name = "qemu"

    def __init__(self, artifact: Artifact, target: Target, timeout: float = 600.0) -> None:
        self.image, self.target, self.timeout = Image(artifact), target, timeout
        self.cpu = str(target.runner.get("user_cpu", "max"))
        self.image.level = target.level_of(self.cpu) if self.image.manifest.get("levels") else ""
        self.machine = str(self.image.manifest["machine"])
        self.tells = emulator_tells(target.kind)

    @property
    def program(self) -> str:
        """Name of the emulator."""
        return f"qemu-{self.machine}"

    def available(self) -> str | None:
        """Whether QEMU's user mode is there for this machine, and takes plugins."""
        if self.machine not in _STACK_POINTER:
            return f"no emulator of user programs is known for {self.machine}"
        if self.target.kind == "linux" and "program" not in self.image.manifest["products"]:
            return "the artifact holds no program; build it again"
        if shutil.which(self.program) is None:
            also = " (a static one is, but it cannot load the counting plugin)"
            return f"{self.program} is not installed{also * bool(shutil.which(f'{self.program}-static'))}: {_PACKAGE}"
        if not _takes_plugins(self.program):
            return f"this {self.program} was built without plugins, so it cannot count: {_PACKAGE}"
        return None

    def run(self, codes: Int8, tell: Tell = silent) -> Ran:
        """Run all inputs, counting."""
        inputs = self.image.check(codes)
        outputs, counts, stacks = [], [], []
        blocks: list[Block] = []
        with scratch_folder("qemu") as scratch:
            path = self._program(Path(scratch))
            elf = read_elf(path)
            for start in range(0, len(inputs), BATCH):
                part = inputs[start : start + BATCH]
                outputs.append(self._start(part, path, elf, Path(scratch)))
                runs, found = read_counts(Path(scratch) / "counts.txt")
                if len(runs) != len(part):
                    raise DeviceError(f"{self.program}: {len(runs)} of {len(part)} runs were counted")
                stacks.append(self._stack(Path(scratch)))
                counts += runs
                blocks += found
                tell("qemu", start + len(part), len(inputs))
        totals = np.array([sum(c) for c in counts], np.int64)
        environment = {"emulator": f"{self.program} {version(self.program)}", "cpu": self.cpu}
        merged = np.concatenate(outputs) if outputs else np.empty((0, self.image.output_bytes), np.int8)
        return Ran(
            self.name, self.image.shaped(merged), totals, counts[0] if counts else (), merge_blocks(blocks),
            stack=max(stacks, default=0), environment=environment, elf=elf,
        )  # fmt: skip

    def _program(self, scratch: Path) -> Path:
        products = self.image.manifest["products"]
        if "program" not in products:
            return static_program(self.image.artifact, self.target, scratch)
        path = Path(self.image.artifact.folder / products["program"]).resolve()
        if not path.is_file():
            raise DeviceError(f"{self.image.artifact.folder} holds no program", hint="build it again")
        return path

    def _start(self, inputs: Int8, path: Path, elf: Elf, folder: Path) -> Int8:
        """One start of QEMU: output codes (n, bytes); counts and log are left in the folder."""
        (folder / "inputs.bin").write_bytes(inputs.tobytes())
        run, end = self.image.run_range(elf)
        entries = self.image.entries(elf)
        spec = " ".join(f"{n:x}" for n in (run, end, 0, 0, len(entries), *entries))
        (folder / "spec.txt").write_text(spec + "\n", encoding="ascii")
        for left in ("outputs.bin", "counts.txt", "log.txt"):
            (folder / left).unlink(missing_ok=True)
        options = f"-DXD_PLUGIN_VERSION={plugin_version(self.program)}"
        plugin = native_library("count_qemu.c", options, "-Wl,-z,lazy")
        above = max(s.address + s.size for s in elf.segments)  # what is stored to beyond the image lies on the stack
        command = [
            self.program, "-cpu", self.cpu, "-d", "cpu", "-D", "log.txt", "-dfilter", f"{run:#x}+1",
            "-plugin", f"{plugin},spec=spec.txt,out=counts.txt,floor={above:x}",
            str(path), "inputs.bin", "outputs.bin",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                tied(command), cwd=folder, capture_output=True, text=True, errors="replace", timeout=self.timeout,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeviceError(f"{self.program}: no end after {self.timeout:g} s") from None
        return self._outputs(folder / "outputs.bin", len(inputs), done)

    def _outputs(self, path: Path, count: int, done: subprocess.CompletedProcess[str]) -> Int8:
        said = " ".join(done.stderr.split()[-40:])
        if found := re.search(r"_run returned (-?\d+)", done.stderr):
            self.image.status(int(found[1]))
        if done.returncode:
            raise DeviceError(f"{self.program} -cpu {self.cpu} ended with {done.returncode}: {said}")
        data = path.read_bytes() if path.exists() else b""
        if len(data) != count * self.image.output_bytes:
            wanted = count * self.image.output_bytes
            raise DeviceError(f"{self.program}: {len(data)} bytes of outputs came back, {wanted} were expected")
        return np.frombuffer(data, np.int8).reshape(count, -1)

    def _stack(self, folder: Path) -> int:
        """Deepest use in bytes below the caller's frame."""
        counts = (folder / "counts.txt").read_text(encoding="ascii")
        if re.search(r"^open$", counts, re.MULTILINE):
            raise DeviceError(f"{self.program}: {self.image.manifest['symbols']['run']} was not seen to return")
        lowest = re.search(r"^lowest ([0-9a-f]+)$", counts, re.MULTILINE)
        log = folder / "log.txt"
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        entry = [int(m, 16) for m in re.findall(_STACK_POINTER[self.machine], text)]
        if not entry:
            raise DeviceError(f"{self.program}: its log does not tell the stack pointer")
        return entry[0] + _PUSHED.get(self.machine, 0) - int(lowest[1], 16) if lowest else 0


@cache
def _takes_plugins(program: str) -> bool:
    done = subprocess.run([program, "--help"], capture_output=True, text=True, errors="replace", check=False)
    return "-plugin" in done.stdout + done.stderr
