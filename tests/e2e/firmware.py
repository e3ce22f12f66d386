"""Building and running the example firmware of targets/support/example, for its tests."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

EXAMPLE = Path(__file__).resolve().parents[2] / "targets/support/example"
RAM = {"mps2-an386": 0x20000000, "mps3-an547": 0x30000000}
ZIG = f"-DZIG={sys.executable};-m;ziglang"
WARNINGS = "-Wall -Wextra -pedantic -Wconversion -Wsign-conversion -Wshadow -Wundef -Wmissing-prototypes -Wcast-qual"
SHIFT = 10  # of QEMU's -icount: an instruction takes 2^10 ns


def configure(folder: Path, package: Path, board: str, toolchain: str, *options: str, source: Path = EXAMPLE
              ) -> subprocess.CompletedProcess[str]:  # fmt: skip
    if toolchain == "arm-none-eabi" and shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    words = ["cmake", "-S", source, "-B", folder, "-G", "Ninja", f"-DXDEPLOY_PACKAGE={package}", f"-DBOARD={board}",
             f"-DCMAKE_TOOLCHAIN_FILE={source / (toolchain + '.cmake')}", f"-DCMAKE_C_FLAGS_RELEASE=-O2 {WARNINGS}",
             *([ZIG] if toolchain == "zig" else []), "-DEND_BY_SEMIHOSTING=ON",
             *options]  # fmt: skip
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)


def compiled(folder: Path, package: Path, board: str, toolchain: str, *options: str, source: Path = EXAMPLE) -> str:
    """What cmake --build says; there is no warning in it."""
    done = configure(folder, package, board, toolchain, *options, source=source)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    done = subprocess.run(["cmake", "--build", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def flashed(image: Path) -> Path:
    """A copy without the memory that only the program itself clears: QEMU would clear it on loading."""
    data = bytearray(image.read_bytes())
    (start,), (step, count) = struct.unpack_from("<I", data, 28), struct.unpack_from("<HH", data, 42)
    for header in range(start, start + step * count, step):
        data[header + 20 : header + 24] = data[header + 16 : header + 20]  # no more memory than there are bytes
    path = image.with_suffix(".flashed")
    path.write_bytes(data)
    return path


def emulated(image: Path, board: str, code: int = 0) -> str:
    """The serial port's text; RAM holds noise at the start, as a device's does, and QEMU ends with `code`."""
    noise = image.parent / "noise.bin"
    noise.write_bytes(np.random.default_rng(0).bytes(1 << 16))
    words = ["qemu-system-arm", "-M", board, "-nographic", "-semihosting", "-icount", f"shift={SHIFT}",
             "-kernel", flashed(image),
             "-device", f"loader,file={noise},addr={RAM[board]:#x},force-raw=on"]  # fmt: skip
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, check=False,
                          stdin=subprocess.DEVNULL)  # fmt: skip
    assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
    return done.stdout


def symbols(image: Path) -> dict[str, int]:
    with image.open("rb") as file:
        return {s.name: s["st_value"] for s in ELFFile(file).get_section_by_name(".symtab").iter_symbols() if s.name}


def size(image: Path) -> int:
    """Bytes of .bss."""
    with image.open("rb") as file:
        return int(ELFFile(file).get_section_by_name(".bss")["sh_size"])
