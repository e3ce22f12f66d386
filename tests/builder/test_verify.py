"""verify: the CRC-32 that zlib computes too; every flipped bit is found; who does not call it does not pay for it."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tests.builder import compilers
from tests.builder.guarded import Guarded
from tests.builder.test_prefix import written
from tests.networks import Drawer, residual_network
from xdeploy.builder import build
from xdeploy.builder.elf import read_elf
from xdeploy.builder.package import Package
from xdeploy.handover import Artifact
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

OK, WEIGHTS = 0, 3
FLIPS = 1000


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    graph, golden = residual_network()
    target = load_target("x86-64")
    folder = tmp_path_factory.mktemp("verify") / "x86-64"
    return build(bind(graph, target, "net", "portable"), graph, golden, target, folder, PackageOptions("portable"), {})


class Loaded:
    """The host library with its constants made writable, and what it says of them."""

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        manifest = artifact.manifest
        path = shutil.copy(artifact.folder / manifest["products"]["library"], folder / "copy.so")
        with Path(path).open("rb") as file:
            table = ELFFile(file).get_section_by_name(".dynsym")
            sizes = {s.name: s["st_size"] for s in table.iter_symbols()}
        self.loaded = ctypes.CDLL(str(path))
        self.parts = [(c, sizes[c]) for c in manifest["symbols"]["constants"]]
        self.bytes = [np.frombuffer(self._memory(n, size), np.uint8) for n, size in self.parts]
        self.arena = np.zeros(manifest["arena"]["bytes"] + 64, np.int8)

    def _memory(self, name: str, size: int) -> Any:
        memory = (ctypes.c_uint8 * size).in_dll(self.loaded, name)
        start = ctypes.addressof(memory) & -4096
        length = -(-(ctypes.addressof(memory) + size - start) // 4096) * 4096
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(length), 3) == 0, ctypes.get_errno()
        return memory

    def verify(self) -> int:
        return int(self.loaded.xd_net_verify())

    def selftest(self) -> int:
        start = self.arena.ctypes.data + -self.arena.ctypes.data % 64
        self.loaded.xd_net_selftest.argtypes = [ctypes.c_void_p]
        return int(self.loaded.xd_net_selftest(start))

    def flip(self, bit: int, mask: int) -> None:
        """Change the bits of `mask` from position `bit` of all constants, one behind the other."""
        for i in range(mask.bit_length()):
            if mask >> i & 1:
                at, part = (bit + i) // 8, 0
                while at >= len(self.bytes[part]):
                    at -= len(self.bytes[part])
                    part += 1
                self.bytes[part][at] ^= 1 << (bit + i) % 8


@pytest.fixture(scope="module")
def loaded(host: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(host, tmp_path_factory.mktemp("loaded"))


def test_checksum_is_zlibs_of_what_is_in_memory(host: Artifact, loaded: Loaded) -> None:
    crc = zlib.crc32(b"".join(b.tobytes() for b in loaded.bytes))
    assert f"{crc:08x}" == host.manifest["weights_crc32"]
    assert f"XD_NET_WEIGHTS_CRC32 0x{crc:08X}U" in (host.folder / "include/xd_net.h").read_text()
    assert sum(len(b) for b in loaded.bytes) == host.manifest["weight_bytes"]
    assert (loaded.verify(), loaded.selftest()) == (OK, OK)


@pytest.mark.parametrize("mask", [0b1, 0b11, 0b101, 0b111, 0xFFFFFFFF], ids=bin)
def test_every_flip_is_found(loaded: Loaded, mask: int) -> None:
    bits = 8 * sum(len(b) for b in loaded.bytes)
    rng = np.random.default_rng(mask)
    places = rng.choice(bits - mask.bit_length() + 1, FLIPS, replace=False)
    missed = []
    for place in places:
        loaded.flip(int(place), mask)
        missed += [place] if loaded.verify() != WEIGHTS else []
        loaded.flip(int(place), mask)
    assert not missed
    assert loaded.verify() == OK


def test_every_constant_is_covered(host: Artifact, loaded: Loaded) -> None:
    """First and last bit of each: weights, biases, multipliers, codebooks; nothing else is handed to a kernel."""
    rows = (host.folder / "src/xd_net.c").read_text()
    named = set(host.manifest["symbols"]["constants"])
    used = set(re.findall(r"\bxd_net_c\d+\b", "".join(re.findall(r"^    xd_net_\w+\(.*\);$", rows, re.MULTILINE))))
    assert used == named
    for data in loaded.bytes:
        for at, bit in ((0, 0), (len(data) - 1, 7)):
            data[at] ^= 1 << bit
            assert (loaded.verify(), loaded.selftest()) == (WEIGHTS, WEIGHTS)
            data[at] ^= 1 << bit
    assert loaded.selftest() == OK


def image(folder: Path, called: bool, there: bool = True) -> Path:
    """The tuned form for Cortex-M4, linked by GCC, with verify called or not, or without its file."""
    written(folder)
    if not there:
        (folder / "src/acme_net_verify.c").unlink()
    words = [*compilers.command("gcc", "cortex-m4"), "-std=c99", "-O2", "-ffunction-sections", "-fdata-sections"]
    objects = compilers.compile_c(words, folder, folder / "objects")
    keep = ["-Wl,-u,acme_net_verify"] if called else []
    link = ["-nostartfiles", "-Wl,--gc-sections", "-Wl,-e,acme_net_run", *keep, "-o", str(folder / "image.elf")]
    subprocess.run([*words, *map(str, objects), *link], check=True, capture_output=True)
    return folder / "image.elf"


def test_it_costs_nothing_unless_called(tmp_path: Path) -> None:
    without, called = (read_elf(image(tmp_path / str(c), c)) for c in (False, True))
    assert without.flash == read_elf(image(tmp_path / "gone", called=False, there=False)).flash
    constants = sum(n.removeprefix("acme_net_c").isdecimal() for n in called.symbols)
    assert not [n for n in without.symbols if "verify" in n or "crc32" in n]
    assert 0 < called.flash - without.flash <= 200 + 12 * constants


def test_on_the_emulated_core(tmp_path: Path) -> None:
    """Every constant's bits, flipped in the memory of a Cortex-M4 that runs the linked image."""
    artifact = _firmware(tmp_path)
    core = Guarded(artifact, tmp_path)
    rng = np.random.default_rng(5)
    assert _call(core, "acme_net_verify") == OK
    for name in artifact.manifest["symbols"]["constants"]:
        start, size = core.elf.symbols[name]
        for bit in (0, 8 * size - 1, *(int(b) for b in rng.integers(0, 8 * size, 2))):
            at = start + bit // 8
            old = bytes(core.cpu.mem_read(at, 1))
            core.cpu.mem_write(at, bytes([old[0] ^ 1 << bit % 8]))
            assert _call(core, "acme_net_verify") == WEIGHTS
            core.cpu.mem_write(at, old)
    assert _call(core, "acme_net_verify") == OK


def _firmware(folder: Path) -> Artifact:
    """An artifact whose image holds verify too."""
    graph, golden = residual_network()
    target = load_target("cortex-m4")
    program = bind(graph, target, "net", prefix="acme")
    artifact = build(program, graph, golden, target, folder / "m4", PackageOptions(prefix="acme"), {})
    where = artifact.folder
    words = [*compilers.command("gcc", "cortex-m4"), "-std=c99", "-O2", "-ffunction-sections", "-fdata-sections"]
    objects = compilers.compile_c(words, where, folder / "objects")
    link = [
        "-nostartfiles",
        "-Wl,--gc-sections",
        "-Wl,-e,acme_net_run",
        "-Wl,-u,acme_net_verify",
        "-Wl,-T,build/bare.ld",
    ]
    image = str(artifact.manifest["products"]["bare"])
    subprocess.run([*words, *map(str, objects), *link, "-o", image], cwd=where, check=True, capture_output=True)
    return artifact


def _call(core: Guarded, function: str) -> int:
    from tests.builder.guarded import STACK, STOP

    r = core.registers
    core.cpu.reg_write(r.UC_ARM_REG_SP, STACK)
    core.cpu.reg_write(r.UC_ARM_REG_LR, STOP | 1)
    core.cpu.emu_start(core.elf.symbols[function][0] | 1, STOP)
    return int(core.cpu.reg_read(r.UC_ARM_REG_R0))


def test_a_network_without_weights(tmp_path: Path) -> None:
    d = Drawer((12,))
    graph, golden = d.finish(d.clamp("only", "x"))
    target = load_target("x86-64")
    package = Package(bind(graph, target, "net", "portable"), graph, golden, target, {}, "")
    package.write(tmp_path, None)
    assert package.weights_crc == 0
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "main.c").write_text('#include "xd_net.h"\nint main(void) { return xd_net_verify(); }\n')
    sources = [str(p) for p in tmp_path.glob("src/*.c")]
    words = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Iinclude", "-Isrc", "main.c", *sources]
    subprocess.run([*words, "-o", "t"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "t"], check=False).returncode == OK
