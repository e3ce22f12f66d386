"""No compiler has anything to say: both forms, self-test on, as C99, C11 and C++17, on four compilers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builder.compilers import listed
from tests.builder.test_hygiene import _write
from tests.kernels import harness
from tests.kernels.cases import KERNEL_OPS, cases
from xdeploy.target import load_target

BOTH = [
    "-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wcast-align", "-Wcast-qual",
    "-Wundef", "-Wdouble-promotion", "-Wswitch-enum", "-Wvla", "-Werror", "-O2", "-c", "-o", "out.o",
]  # fmt: skip
C = ["-Wstrict-prototypes", "-Wmissing-prototypes"]
CPP = ["-x", "c++", "-std=c++17", "-Wmissing-declarations", "-Wno-deprecated"]
M4 = ["-mcpu=cortex-m4", "-mthumb"]
COMPILERS = {
    "arm-none-eabi-gcc": (["arm-none-eabi-gcc", *M4], ["arm-none-eabi-g++", *M4]),
    "gcc": (["gcc"], ["g++"]),
    "clang": (["clang"], ["clang++"]),
    "zig": ([sys.executable, "-m", "ziglang", "cc"], [sys.executable, "-m", "ziglang", "c++"]),
}
LANGUAGES = ("c99", "c11", "c++17")


def compile_all(sources: list[Path], compiler: str, language: str, out: Path, *more: str) -> None:
    c, cpp = COMPILERS[compiler]
    words = [*cpp, *BOTH, *CPP] if language == "c++17" else [*c, *BOTH, *C, f"-std={language}"]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    for source in sources:
        done = subprocess.run([*words, *more, str(source)], cwd=out, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr[:3000]


@pytest.fixture(scope="module", params=[("cortex-m4", "portable"), ("cortex-m4", "tuned")], ids=["portable", "tuned"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warnings")
    _write(*request.param, folder)
    return folder


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("compiler", [pytest.param(c, marks=pytest.mark.slow) if c == "zig" else c for c in COMPILERS])
def test_whole_package(package: Path, compiler: str, language: str, tmp_path: Path) -> None:
    more = ["-DXD_NET_SELFTEST", f"-I{package / 'include'}", f"-I{package / 'src'}"]
    compile_all(sorted(package.glob("src/*.c")), compiler, language, tmp_path, *more)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every row of plain C on every case, in one file."""
    batch = harness.Batch(load_target("x86-64"), harness.host_image(1 << 24))
    harness.fill(batch, {op: cases(op) for op in KERNEL_OPS}, c99=True)
    path = tmp_path_factory.mktemp("kernels") / "kernels.c"
    path.write_text(listed(batch))
    return path


@pytest.mark.parametrize("language", ["c99", "c++17"])
@pytest.mark.parametrize(
    "compiler", ["gcc", *(pytest.param(c, marks=pytest.mark.slow) for c in COMPILERS if c != "gcc")]
)
def test_every_portable_kernel(kernels: Path, compiler: str, language: str, tmp_path: Path) -> None:
    compile_all([kernels], compiler, language, tmp_path, "-O1")
