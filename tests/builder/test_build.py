"""build with kernels of plain C: what is written, that it compiles cleanly and is right; a failure leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.builder.rows import LINEAR, registry
from tests.networks import Drawer
from xdeploy.builder import build
from xdeploy.errors import GateError, ToolchainError
from xdeploy.files import sha256
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import Target, load_target

PORTABLE = PackageOptions(form="portable")
PROVENANCE = {"model": {"name": "tiny */ net", "sha256": "0123abcd" * 8}, "recipe": {"seed": 0}}
# the flags of a careful project
STRICT = [
    "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wsign-conversion", "-Wshadow", "-Wundef",
    "-Wcast-qual", "-Wdouble-promotion", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wvla", "-Wformat=2",
]  # fmt: skip


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xdeploy.program.KERNELS", registry())


def network() -> tuple[LoweredGraph, GoldenIo]:
    d = Drawer((12,))
    a = d.clamp("relu */ x\\", d.linear("first", "x", 20))
    return d.finish(d.linear("first again", d.clamp("two", a), 6))


def made(folder: Path, target: Target, **changes: Any) -> Artifact:
    graph, golden = network()
    program = bind(graph, target, "tiny */ net", form="portable")
    return build(program, graph, golden, target, folder, PORTABLE, {**PROVENANCE, **changes})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xdeploy.program.KERNELS", registry())
        return made(tmp_path_factory.mktemp("build") / "x86-64", load_target("x86-64"))


def test_what_is_in_the_folder(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert manifest["target"] == "x86-64"
    assert manifest["model"] == "tiny_net"
    assert manifest["form"] == "portable"
    assert manifest["provenance"]["model"] == PROVENANCE["model"]
    assert manifest["recipe"] == {"seed": 0}
    for path, digest in manifest["files"].items():
        assert sha256(artifact.folder / path) == digest
    there = {str(f.relative_to(artifact.folder)) for f in artifact.folder.rglob("*") if f.is_file()}
    assert there == {*manifest["files"], "manifest.json"}
    assert {"program.json", "golden.npz", "include/xd_tiny_net.h", "src/xd_tiny_net.c", "CMakeLists.txt"} <= there
    assert not [p for p in artifact.folder.parent.iterdir() if p != artifact.folder]


def test_every_file_says_where_it_comes_from(artifact: Artifact) -> None:
    for path in (
        *artifact.folder.glob("src/*.[cS]"),
        *artifact.folder.glob("include/*"),
        artifact.folder / "README.md",
    ):
        head = path.read_text().splitlines()[:3]
        assert "xdeploy 0.1.0" in " ".join(head), path
        assert "x86-64" in " ".join(head), path
    for path in artifact.folder.rglob("*"):
        if path.is_file():
            assert str(artifact.folder).encode() not in path.read_bytes(), path


def test_build_files_parse(artifact: Artifact) -> None:
    pack = ElementTree.parse(artifact.folder / "xdeploy.xd_tiny_net.pdsc").getroot()
    listed = {str(f.get("name")) for f in pack.iter("file")} - {"include/", "README.md"}
    assert listed == {"include/xd_tiny_net.h", *(f"src/{p.name}" for p in artifact.folder.glob("src/*.c"))}
    library = json.loads((artifact.folder / "library.json").read_text())
    assert library["name"] == "xd_tiny_net"
    lines = (artifact.folder / "library.properties").read_text().splitlines()
    assert all("=" in line for line in lines)


def test_names_cannot_break_out_of_comments(artifact: Artifact) -> None:
    text = (artifact.folder / "src/xd_tiny_net.c").read_text()
    assert "relu */ x" not in text
    assert "relu * / x" in text


def test_sizes_are_those_of_the_image(artifact: Artifact) -> None:
    flash, weights = artifact.manifest["flash"], artifact.manifest["weight_bytes"]
    assert weights == 12 * 20 + 20 * 6 + 8 * (20 + 6)
    assert weights <= flash["constants"] <= weights + 6 * 64
    assert flash["data"] == flash["zeros"] == 0
    assert flash["code"] > 0


def test_two_builds_are_equal(artifact: Artifact, tmp_path: Path, rows: None) -> None:
    again = made(tmp_path / "elsewhere" / "x86-64", load_target("x86-64"))
    assert again.manifest == artifact.manifest


@pytest.mark.parametrize("compiler", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_no_warnings(artifact: Artifact, compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for defines in ([], ["-DXD_TINY_NET_SELFTEST"]):
        for source in sorted(artifact.folder.glob("*/*.c")):
            kernels = source.name.endswith("_kernels.c")  # their text belongs to the rows
            if source.parent.name == "src" or compiler != "arm-none-eabi-gcc":
                command = [compiler, *(STRICT if not kernels else STRICT[:5]), *defines, "-O2", "-Iinclude", "-Isrc"]
                out = ["-c", str(source.relative_to(artifact.folder)), "-o", str(tmp_path / "x.o")]
                subprocess.run([*command, *out], cwd=artifact.folder, check=True)


def test_header_is_cxx_too(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "x.cpp").write_text(
        '#include "xd_tiny_net.h"\nstatic xd_tiny_net_output y; int main() { return y[0]; }\n'
    )
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "x.cpp", "-o", "x.o"]
    subprocess.run([*command, f"-I{artifact.folder}/include"], cwd=tmp_path, check=True)


def test_cmake_takes_it_as_a_part(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("gcc") is None:
        pytest.skip("cmake and gcc are not installed")
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.13)\nproject(app C)\nadd_subdirectory({artifact.folder} net)\n"
        "add_executable(app app.c)\ntarget_link_libraries(app PRIVATE xdeploy::tiny_net)\n"
    )
    (tmp_path / "app.c").write_text(
        '#include "xd_tiny_net.h"\nstatic XD_TINY_NET_ALIGNED xd_tiny_net_arena arena;\n'
        "int main(void) { return xd_tiny_net_selftest(arena); }\n"
    )
    for command in (["cmake", "-S.", "-Bb", "-DXD_TINY_NET_SELFTEST=ON"], ["cmake", "--build", "b"], ["b/app"]):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_selftest_notices_changed_weights_and_outputs(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    src = tmp_path / "src"
    main = '#include "xd_tiny_net.h"\nstatic XD_TINY_NET_ALIGNED xd_tiny_net_arena a;\nint main(void) { return '

    def result(body: str = "xd_tiny_net_selftest(a)", file: str = "", old: str = "", new: str = "") -> int:
        shutil.copytree(artifact.folder, src, dirs_exist_ok=True)
        if file:
            path = src / file
            path.write_text(path.read_text().replace(old, new, 1))
        (src / "main.c").write_text(f"{main}{body}; }}\n")
        sources = [str(p) for p in src.glob("src/*.c")]
        command = ["gcc", "-DXD_TINY_NET_SELFTEST", "-Iinclude", "-Isrc", "main.c", *sources, "-o", "t"]
        subprocess.run(command, cwd=src, check=True)
        return subprocess.run([src / "t"], check=False).returncode

    first = artifact.folder.joinpath("src/xd_tiny_net_weights.c").read_text().split("= {\n    ")[1].split(",")[0]
    assert result() == 0
    assert result(file="src/xd_tiny_net_weights.c", old=f"{{\n    {first},", new=f"{{\n    {int(first) ^ 1},") == 3
    assert result(file="src/xd_tiny_net_kernels.c", old="sum += (", new="sum += 9 * (") == 4
    assert result("xd_tiny_net_run((const int8_t *)0, (int8_t *)a, a)") == 1
    assert result("xd_tiny_net_run((const int8_t *)a + 1, (int8_t *)a, a)") == 2
    sized = "xd_tiny_net_run_sized((const int8_t *)a, (int8_t *)a, a, sizeof a - {}U)"
    assert result(sized.format(0)) == 0
    assert result(sized.format(1)) == 5


def test_hooks_see_every_layer_in_order(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "hooks.h").write_text(
        '#include <stdio.h>\n#define XD_LAYER_BEGIN(i) printf("<%d", i)\n#define XD_LAYER_END(i) printf("%d>", i)\n'
    )
    (tmp_path / "main.c").write_text(
        '#include "xd_tiny_net.h"\nstatic XD_TINY_NET_ALIGNED xd_tiny_net_arena a;\n'
        "static XD_TINY_NET_ALIGNED xd_tiny_net_input x;\nstatic XD_TINY_NET_ALIGNED xd_tiny_net_output y;\n"
        "int main(void) { return xd_tiny_net_run(x, y, a); }\n"
    )
    sources = [str(p) for p in artifact.folder.glob("src/*.c")]
    command = ["gcc", '-DXD_TINY_NET_HOOKS="hooks.h"', "-I.", f"-I{artifact.folder}/include"]
    subprocess.run([*command, "main.c", *sources, "-o", "t"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "t"], capture_output=True, text=True, check=True)
    assert done.stdout == "<00><11><22><33>"


def test_a_broken_kernel_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: None) -> None:
    folder = tmp_path / "x86-64"
    folder.mkdir()
    (folder / "old").write_text("kept")
    monkeypatch.setattr("xdeploy.program.KERNELS", registry(LINEAR.replace("copy[i] = x[i]", "oops")))
    with pytest.raises(ToolchainError, match=r"(?s)zig cc .*\n.*oops"):
        made(folder, load_target("x86-64"))
    assert [p.name for p in tmp_path.iterdir()] == ["x86-64"]
    assert (folder / "old").read_text() == "kept"


def test_code_beyond_the_flash_is_refused(tmp_path: Path, rows: None) -> None:
    x86 = load_target("x86-64")
    limited = dataclasses.replace(x86, memory={**x86.memory, "flash": 12 * 20 + 20 * 6 + 8 * 26})
    with pytest.raises(GateError, match=r"code and constants take \d+ bytes .* its flash is 568"):
        made(tmp_path / "out", limited)
    assert not list(tmp_path.iterdir())


def test_program_says_where_everything_lies(artifact: Artifact) -> None:
    nodes = json.loads((artifact.folder / "program.json").read_text())["nodes"]
    assert [n["name"] for n in nodes] == ["first", "relu */ x\\", "two", "first again"]
    assert nodes[0]["inputs"][0]["in"] == "input"
    assert nodes[3]["output"]["in"] == "output"
    assert nodes[1]["output"] == {**nodes[2]["output"], "tensor": "relu */ x\\:out"}
    assert np.prod(artifact.manifest["output"]["shape"]) == nodes[3]["output"]["bytes"]
