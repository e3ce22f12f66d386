"""The package as CMake users take it: in the tree, fetched, installed; two compilers, every core, C and C++."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.builder import compilers
from tests.builder.test_hygiene import _write
from xdeploy.target import load_target

pytestmark = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("ninja") is None, reason="cmake or ninja is not installed"
)
MAIN = """\
#include "xd_net.h"
static XD_NET_ALIGNED xd_net_arena arena;
static XD_NET_ALIGNED xd_net_input input;
static XD_NET_ALIGNED xd_net_output output;
int main(void)
{
    return xd_net_run(input, output, arena) + xd_net_verify();
}
"""
HEAD = "cmake_minimum_required(VERSION 3.14...3.31)\nproject(app LANGUAGES C CXX)\n"
APP = """\
add_executable(app_c main.c)
target_link_libraries(app_c PRIVATE xdeploy::net)
add_executable(app_cpp main.cpp)
target_link_libraries(app_cpp PRIVATE xdeploy::net)
"""
FETCH = "FetchContent_MakeAvailable(net)\n"
FINDS = {
    "add_subdirectory": "add_subdirectory({package} net)\n",
    "source": "include(FetchContent)\nFetchContent_Declare(net SOURCE_DIR {package})\n" + FETCH,
    "url": 'include(FetchContent)\nFetchContent_Declare(net URL "file://{archive}")\n' + FETCH,
    "find_package": "find_package(xd_net 0.1 CONFIG REQUIRED)\n",
}


def cmake(*words: str | Path) -> str:
    done = subprocess.run(["cmake", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def toolchain(compiler: str, core: str, folder: Path, flags: str | None = None) -> list[str]:
    """Options for a compiler and a core as a firmware project has them: a file that names both, no start-up code."""
    folder.mkdir(parents=True, exist_ok=True)
    target = load_target(core)
    words = target.compiler["gcc_flags"] if compiler == "gcc" else target.compiler["flags"]
    flags = " ".join(map(str, words)) if flags is None else flags
    c, cxx = "arm-none-eabi-gcc", "arm-none-eabi-g++"
    if compiler == "zig":
        flags += f" -target {target.compiler['triple']} -fno-sanitize=all"
        for verb in ("cc", "c++"):
            script = folder / f"zig-{verb}"
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang {verb} "$@"\n')
            script.chmod(0o755)
        c, cxx = str(folder / "zig-cc"), str(folder / "zig-c++")
    elif shutil.which(c) is None or shutil.which(cxx) is None:
        pytest.skip(f"{c} or {cxx} is not installed")
    # no start-up code of a board: main is where the program begins
    link = "-Wl,-e,main" + (" --specs=nosys.specs -Wl,--no-warnings" if compiler == "gcc" else "")
    (folder / "toolchain.cmake").write_text(
        "set(CMAKE_SYSTEM_NAME Generic)\nset(CMAKE_SYSTEM_PROCESSOR arm)\n"
        f'set(CMAKE_C_COMPILER "{c}")\nset(CMAKE_CXX_COMPILER "{cxx}")\n'
        "set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)\n"
        + "".join(f'set(CMAKE_{kind}_FLAGS_INIT "{flags}")\n' for kind in ("C", "CXX", "ASM"))
        + f'set(CMAKE_EXE_LINKER_FLAGS_INIT "{link}")\n'
    )
    return [f"-DCMAKE_TOOLCHAIN_FILE={folder / 'toolchain.cmake'}"]


def consumer(folder: Path, find: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.c").write_text(MAIN)
    (folder / "main.cpp").write_text(MAIN)
    (folder / "CMakeLists.txt").write_text(HEAD + find + APP)
    return folder


def built(app: Path, build: Path, *options: str, generator: str = "Ninja") -> Path:
    cmake("-S", app, "-B", build, "-G", generator, *options)
    cmake("--build", build)
    assert (build / "app_c").is_file()
    assert (build / "app_cpp").is_file()
    return build


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with space") / "net"
    _write("cortex-m4", "portable", folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "net"
    _write("cortex-m4", "tuned", folder)
    return folder


@pytest.mark.parametrize("generator", ["Ninja", "Unix Makefiles"])
@pytest.mark.parametrize("way", ["add_subdirectory", "source", "url", "find_package"])
def test_on_this_machine(portable: Path, way: str, generator: str, tmp_path: Path) -> None:
    """Every way in, with both generators; the programs run and verify their weights."""
    if shutil.which("gcc") is None or shutil.which("g++") is None:
        pytest.skip("gcc or g++ is not installed")
    compiler, options = ["-DCMAKE_C_COMPILER=gcc", "-DCMAKE_CXX_COMPILER=g++"], []
    archive = tmp_path / "net.tar.gz"
    if way == "url":
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(portable, "net")
    if way == "find_package":
        cmake("-S", portable, "-B", tmp_path / "p", "-G", generator, compiler[0])
        cmake("--build", tmp_path / "p")
        cmake("--install", tmp_path / "p", "--prefix", tmp_path / "first")
        (tmp_path / "first").rename(tmp_path / "moved")  # nothing in it names the folder it was installed to
        options = [f"-DCMAKE_PREFIX_PATH={tmp_path / 'moved'}"]
    find = FINDS[way].format(package=f'"{portable}"', archive=archive)
    build = built(consumer(tmp_path / "app", find), tmp_path / "b", *compiler, *options, generator=generator)
    for program in ("app_c", "app_cpp"):
        assert subprocess.run([build / program], check=False).returncode == 0
    if way != "find_package":  # a part of another project installs nothing by itself
        cmake("--install", build, "--prefix", tmp_path / "none")
        assert not list(tmp_path.glob("none/**/*.a"))


def test_versions_that_do_not_fit_are_refused(portable: Path, tmp_path: Path) -> None:
    cmake("-S", portable, "-B", tmp_path / "p", "-G", "Ninja")
    cmake("--build", tmp_path / "p")
    cmake("--install", tmp_path / "p", "--prefix", tmp_path / "i")
    app = consumer(tmp_path / "app", "find_package(xd_net 9.0 CONFIG REQUIRED)\n")
    words = ["cmake", "-S", app, "-B", tmp_path / "b", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={tmp_path / 'i'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "version: 0.1.0" in done.stderr


def test_pkg_config(portable: Path, tmp_path: Path) -> None:
    """A compiler command made of what pkg-config says, from a tree that was moved; the self-test passes."""
    if shutil.which("pkg-config") is None or shutil.which("gcc") is None:
        pytest.skip("pkg-config or gcc is not installed")
    cmake("-S", portable, "-B", tmp_path / "p", "-G", "Ninja", "-DXD_NET_SELFTEST=ON", "-DCMAKE_C_COMPILER=gcc",
          "-DCMAKE_INSTALL_LIBDIR=lib/deep")  # fmt: skip
    cmake("--build", tmp_path / "p")
    cmake("--install", tmp_path / "p", "--prefix", tmp_path / "first")
    (tmp_path / "first").rename(tmp_path / "moved")
    where = {"PKG_CONFIG_PATH": str(tmp_path / "moved/lib/deep/pkgconfig"), "PATH": "/usr/bin:/bin"}
    said = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "xd_net"], env=where, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "-DXD_NET_SELFTEST" in said
    (tmp_path / "t.c").write_text(
        '#include "xd_net.h"\nstatic XD_NET_ALIGNED xd_net_arena a;\nint main(void) { return xd_net_selftest(a); }\n'
    )
    subprocess.run(["gcc", "t.c", *said, "-o", "t"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "t"], check=False).returncode == 0
    version = ["pkg-config", "--modversion", "xd_net"]
    assert subprocess.run(version, env=where, capture_output=True, text=True, check=True).stdout.strip() == "0.1.0"


QUICK = {("gcc", "cortex-m4"), ("zig", "cortex-m4")}
GRID = [
    pytest.param(compiler, core, marks=[] if (compiler, core) in QUICK else pytest.mark.slow)
    for compiler in ("gcc", "zig")
    for core in compilers.CORES
]


@pytest.mark.parametrize(("compiler", "core"), GRID)
def test_for_every_core(compiler: str, core: str, tuned: Path, tmp_path: Path) -> None:
    """The tuned form below a firmware project: no flag comes from the package, nothing else is needed to link."""
    if core == "cortex-m4":
        (tmp_path / "net").symlink_to(tuned)
    else:
        _write(core, "tuned", tmp_path / "net")
    app = consumer(tmp_path / "app", FINDS["add_subdirectory"].format(package=tmp_path / "net"))
    build = built(app, tmp_path / "b", *toolchain(compiler, core, tmp_path / "t"))
    commands = subprocess.run(
        ["ninja", "-C", build, "-t", "commands"], capture_output=True, text=True, check=True
    ).stdout
    own = [line for line in commands.splitlines() if " -c " in line and "xd_net.c" in line]
    assert own
    assert all(line.count("-mcpu=") == 1 for line in own)


def test_hard_float_projects_link(tuned: Path, tmp_path: Path) -> None:
    """The assembly takes no side between the floating-point ABIs, so a project with either links."""
    flags = "-mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard"
    app = consumer(tmp_path / "app", FINDS["add_subdirectory"].format(package=tuned))
    built(app, tmp_path / "b", *toolchain("gcc", "cortex-m4", tmp_path / "t", flags))


def test_a_toolchain_file_without_a_core(tuned: Path, tmp_path: Path) -> None:
    """Told in a sentence, with the flags to give; XD_NET_CORE_FLAGS gives them."""
    options = toolchain("gcc", "cortex-m4", tmp_path / "t", "")
    cmake("-S", tuned, "-B", tmp_path / "b", "-G", "Ninja", *options)
    done = subprocess.run(["cmake", "--build", tmp_path / "b"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "these kernels are for cortex-m4: compile with -mcpu=cortex-m4 -mthumb" in done.stdout
    cmake("-S", tuned, "-B", tmp_path / "b", "-DXD_NET_CORE_FLAGS=ON")
    cmake("--build", tmp_path / "b")
    assert (tmp_path / "b/libxd_net.a").is_file()
