"""The example firmware as its README has it: built by CMake around a package, run in QEMU, read over its UART."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tests.e2e.firmware import EXAMPLE, SHIFT, compiled, configure, emulated, size, symbols
from tests.networks import Drawer
from xdeploy import __version__
from xdeploy.builder import build
from xdeploy.cli import main
from xdeploy.formats import QParams
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.lir import ops
from xdeploy.lir.graph import LoweredGraph, Tensor
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

PROGRAMS = ("cmake", "ninja", "qemu-system-arm")
missing = [p for p in PROGRAMS if shutil.which(p) is None]
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
]
CORES = {"mps2-an386": "cortex-m4", "mps3-an547": "cortex-m55"}
STACK = 4096  # bytes, the default of CMakeLists.txt


def network(scale: QParams, formats: tuple[str, str, str], width: int) -> tuple[LoweredGraph, GoldenIo]:
    """A small residual network of the digits' shape: 8x8 to ten scores."""
    d = Drawer((8, 8, 1), width)
    d.tensors["x"] = Tensor((8, 8, 1), scale)
    a = d.conv("stem", "x", width, fmt=formats[0])
    b = d.conv("block", a, width, stride=1, fmt=formats[1], residual=a)
    return d.finish(d.linear("head", d.reshape("flat", d.max_pool("pool", b)), 10, fmt=formats[2]))


# the demo's own quantisation of pixels, and one in which other values fall between two codes
NETWORKS = {
    "digits": (QParams(float(np.float32(1 / 255)), -128), ("int8", "c4s8", "int4"), 8),
    "compact": (QParams(float(np.float32(0.03125)), 3), ("int4", "int2", "int8"), 12),
}


@dataclass(frozen=True)
class Packages:
    """Artifacts by core and name, graphs by name."""

    graphs: dict[str, LoweredGraph]
    artifacts: dict[tuple[str, str], Artifact]

    def folder(self, core: str, name: str = "digits") -> Path:
        return self.artifacts[core, name].folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    folder = tmp_path_factory.mktemp("with space")
    made = {name: network(*what) for name, what in NETWORKS.items()}
    artifacts = {}
    for core in CORES.values():
        for name, (graph, golden) in made.items():
            target = load_target(core)
            artifacts[core, name] = build(
                bind(graph, target, name), graph, golden, target, folder / core / name, PackageOptions(name=name), {}
            )
    return Packages({name: graph for name, (graph, _) in made.items()}, artifacts)


@dataclass(frozen=True)
class Digit:
    """A sample of the example's digits.c."""

    index: int
    label: int
    pixels: np.ndarray


def digits() -> list[Digit]:
    text = (EXAMPLE / "digits.c").read_text()
    found = re.findall(r"\{(\d+)U, (\d+)U, \{([\d,\s]+)\}\}", text)
    return [Digit(int(i), int(y), np.array([int(v) for v in p.split(",")]).reshape(8, 8)) for i, y, p in found]


def reals() -> np.ndarray:
    """The samples as the network was trained on them, (N, 1, 8, 8) in 0..1."""
    return np.stack([d.pixels for d in digits()])[:, None].astype(np.float32) / 16


def expected(packages: Packages, name: str) -> np.ndarray:
    """Codes (N, 10) by the reference."""
    graph = packages.graphs[name]
    codes = graph.tensors["x"].q.quantise(reals()).transpose(0, 2, 3, 1)
    return ops.run(graph, codes)[graph.output]


def rows(text: str, word: str) -> np.ndarray:
    """The numbers of all lines that begin with `word`."""
    return np.array(
        [[float(n) for n in line.split(word)[1].split()] for line in text.splitlines() if f"{word} " in line]
    )


@dataclass(frozen=True)
class Made:
    """A built example: its folder, its board, what the build said."""

    folder: Path
    board: str
    toolchain: str
    said: str

    def text(self, program: str = "firmware") -> str:
        return emulated(self.folder / f"{program}.elf", self.board)


QUICK = (("mps2-an386", "arm-none-eabi"), ("mps3-an547", "arm-none-eabi"), ("mps2-an386", "zig"))


@pytest.fixture(
    scope="module",
    params=[*QUICK, pytest.param(("mps3-an547", "zig"), marks=pytest.mark.slow)],
    ids=lambda p: "-".join(p),
)
def made(request: pytest.FixtureRequest, packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Made:
    board, toolchain = request.param
    folder = tmp_path_factory.mktemp("build")
    second = f"-DXDEPLOY_SECOND={packages.folder(CORES[board], 'compact')}"
    said = compiled(folder, packages.folder(CORES[board]), board, toolchain, second)
    return Made(folder, board, toolchain, said)


def test_the_samples_are_the_data_sets() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    samples = digits()
    assert [d.label for d in samples] == list(range(10))
    for d in samples:
        assert data.target[d.index] == d.label
        np.testing.assert_array_equal(data.images[d.index], d.pixels)


def test_it_tells_what_xdeploy_run_tells(
    made: Made, packages: Packages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes of real images, made from pixels on the device, bit for bit; scores, classes and virtual time too."""
    text = made.text()
    artifact = packages.artifacts[CORES[made.board], "digits"]
    np.save(tmp_path / "x.npy", reals())
    via = "unicorn" if made.board == "mps2-an386" else "qemu"  # unicorn has no Cortex-M55
    run = ["run", str(artifact.folder), "--via", via, "--inputs", str(tmp_path / "x.npy")]
    assert main([*run, "-o", str(tmp_path / "y.npy"), "--json"]) == 0
    codes = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(rows(text, "  codes"), codes)
    np.testing.assert_array_equal(codes, expected(packages, "digits"))
    q = packages.graphs["digits"].io.output_q
    assert q is not None
    np.testing.assert_allclose(rows(text, "  scores"), q.dequantise(codes), atol=0.00051)
    found = re.findall(r"^image (\d+): label (\d), class (\d), (\d+) us$", text, re.MULTILINE)
    samples = digits()
    assert [(int(i), int(y)) for i, y, _, _ in found] == [(d.index, d.label) for d in samples]
    classes = codes.argmax(1)
    assert [int(c) for _, _, c, _ in found] == classes.tolist()
    right = sum(int(c == d.label) for c, d in zip(classes, samples, strict=True))
    counted = json.loads(capsys.readouterr().out)["instructions"]
    times = np.array([int(us) for *_, us in found])
    np.testing.assert_allclose(times * 1000 / 2**SHIFT, counted, rtol=0.02)
    heads = [line for line in text.splitlines() if not line.startswith(("image", " "))]
    assert heads == [f"digits for {artifact.target}, xdeploy {__version__}", "verify: ok",
                     "selftest: ok", "run: ok", f"{right} of 10 right"]  # fmt: skip


def test_an_arena_each_or_one_for_both(made: Made, packages: Packages) -> None:
    two, shared = made.text("two_arenas"), made.text("shared_arena")
    assert two == shared
    assert two.splitlines()[-1] == "ok"
    for name in NETWORKS:
        wanted = np.column_stack([[d.index for d in digits()], expected(packages, name)])
        np.testing.assert_array_equal(rows(two.replace(": codes", ""), name), wanted)
    arenas = [packages.artifacts[CORES[made.board], n].manifest["arena"]["bytes"] for n in NETWORKS]
    saved = size(made.folder / "two_arenas.elf") - size(made.folder / "shared_arena.elf")
    assert min(arenas) > 500
    assert abs(saved - min(arenas)) < 32  # alignment


def test_the_linker_prints_the_memory(made: Made) -> None:
    if made.toolchain == "zig":
        pytest.skip("zig's linker does not print it")
    for program in ("firmware", "two_arenas", "shared_arena"):
        ram = size(made.folder / f"{program}.elf") + STACK
        assert re.search(rf"FLASH: +\d+ B .*\n +RAM: +{ram} B", made.said)


@pytest.mark.parametrize("board", CORES)
def test_code_in_fast_memory(board: str, packages: Packages, tmp_path: Path) -> None:
    """Copied by start-up from flash to where it is linked for; the answers stay."""
    compiled(tmp_path, packages.folder(CORES[board]), board, "arm-none-eabi", "-DFAST_CODE=ON")
    found = symbols(tmp_path / "firmware.elf")
    start, end, load = (found[f"fast_{n}"] for n in ("start", "end", "load"))
    assert start <= found["xd_digits_run"] & ~1 < end
    assert not start <= found["xd_digits_verify"] < end
    assert not start <= load < end
    text = emulated(tmp_path / "firmware.elf", board)
    np.testing.assert_array_equal(rows(text, "  codes"), expected(packages, "digits"))


OWN = """\
#include "board.h"
#include "console.h"
#include "uart.h"
static volatile uint32_t set = 0x12345678U;
static volatile uint32_t zero[64];
static volatile float half = 0.5f;
#ifdef OWN_DEEP
static uint32_t deep(uint32_t n)
{
    volatile uint32_t a[64];
    a[n % 64U] = n;
    return (n == 0U) ? 0U : deep(n + 1U) + a[n % 64U];
}
#endif
int main(void)
{
    uint32_t sum = 0U;
    uint32_t i;
    for (i = 0U; i < 64U; ++i) { sum |= zero[i]; }
    xd_uart_init();
    put_hex(set);
    put_text(" ");
    put_hex(sum);
    put_text(" ");
    put_number(-2147483647 - 1);
    put_text(" ");
    put_decimal(half * -3.0f);
    put_text("\\n");
#ifdef OWN_DEEP
    return (int)deep(1U);
#else
    __builtin_trap();
#endif
}
"""


# an undefined instruction; on the M55 also a stack that runs over its limit (QEMU's mps2 boards let
# accesses to nothing pass). CFSR: UNDEFINSTR, STKOF
FAULTS = [("mps2-an386", "OWN_TRAP", 0x00010000), ("mps3-an547", "OWN_TRAP", 0x00010000),
          ("mps3-an547", "OWN_DEEP", 0x00100000)]  # fmt: skip


@pytest.mark.parametrize(("board", "fault", "cause"), FAULTS)
def test_a_users_copy_of_it(board: str, fault: str, cause: int, packages: Packages, tmp_path: Path) -> None:
    """Another main in a copied folder: variables as C has them, printing, and faults that are told."""
    shutil.copytree(EXAMPLE, tmp_path / "mine")
    (tmp_path / "mine/main.c").write_text(f"#define {fault}\n{OWN}")
    compiled(tmp_path / "b", packages.folder(CORES[board]), board, "arm-none-eabi", source=tmp_path / "mine")
    lines = emulated(tmp_path / "b/firmware.elf", board, code=1).splitlines()
    assert lines == ["0x12345678 0x00000000 -2147483648 -1.500", "", f"fault: exception 3, CFSR 0x{cause:08x}"]


def test_damaged_weights_are_told(made: Made, tmp_path: Path) -> None:
    image = bytearray((made.folder / "firmware.elf").read_bytes())
    place = symbols(made.folder / "firmware.elf")["xd_digits_c0"]
    with (made.folder / "firmware.elf").open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        image[text["sh_offset"] + place - text["sh_addr"]] ^= 4
    (tmp_path / "bad.elf").write_bytes(image)
    text = emulated(tmp_path / "bad.elf", made.board, code=1)
    assert "verify: error 3\nselftest: error 3\n" in text
    assert "right" not in text


def test_a_stack_too_small_for_the_network(packages: Packages, tmp_path: Path) -> None:
    configure(tmp_path, packages.folder("cortex-m4"), "mps2-an386", "arm-none-eabi", "-DSTACK_BYTES=512")
    done = subprocess.run(["cmake", "--build", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "stack_is_large_enough" in done.stdout


def test_what_is_not_there_is_told(packages: Packages, tmp_path: Path) -> None:
    done = configure(tmp_path / "a", tmp_path / "nothing", "mps2-an386", "arm-none-eabi")
    assert done.returncode != 0
    assert "xd_digits.h is not there" in " ".join(done.stderr.split())
    done = configure(tmp_path / "b", packages.folder("cortex-m4"), "my-board", "arm-none-eabi")
    assert done.returncode != 0
    assert "BOARD is my-board: mps2-an386 and mps3-an547 are known" in " ".join(done.stderr.split())
