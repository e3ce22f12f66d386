"""Every name of a package begins with its prefix; packages of one prefix or of several link into one program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from tests.builder import compilers
from tests.builder.test_portable import network
from tests.networks import residual_network, separable_network
from xdeploy.builder import _assembly, build
from xdeploy.builder.package import Package
from xdeploy.commands.options import FLAGS
from xdeploy.errors import UsageError
from xdeploy.handover import GoldenIo
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions, Recipe, load_recipe
from xdeploy.target import load_target

# what LLVM emits for position-independent x86 code; no name of the package's own
FOREIGN = {"_GLOBAL_OFFSET_TABLE_"}
OLD = re.compile(r"\b_?(?:xd|XD)_\w+")


def written(
    folder: Path, core: str = "cortex-m4", form: str = "tuned", prefix: str = "acme", name: str = "net"
) -> GoldenIo:
    graph, golden = separable_network() if form == "tuned" else network()
    target = load_target(core)
    program = bind(graph, target, name, form, prefix=prefix)
    Package(program, graph, golden, target, {}, _assembly(program, target)).write(folder, 64)
    return golden


def global_symbols(paths: list[Path]) -> dict[str, list[str]]:
    """Name -> files that define it for other files to see."""
    found: dict[str, list[str]] = {}
    for path in paths:
        with path.open("rb") as file:
            for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols():
                if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL":
                    found.setdefault(symbol.name, []).append(path.name)
    return found


@pytest.mark.parametrize(
    ("core", "form"),
    [("cortex-m4", "portable"), *((c, "tuned") for c in ("cortex-m0plus", "cortex-m4", "cortex-m55", "cortex-a72"))],
)
def test_every_global_symbol_begins_with_it(core: str, form: str, tmp_path: Path) -> None:
    written(tmp_path / "net", core, form)
    objects = compilers.compile_c(
        [*compilers.command("zig", core), "-std=c99", "-O1", "-DACME_NET_SELFTEST"], tmp_path / "net", tmp_path
    )
    names = set(global_symbols(objects)) - FOREIGN
    assert {"acme_net_run", "acme_net_verify", "acme_net_selftest"} <= names
    assert not [n for n in names if not n.startswith("acme_")]


def test_no_file_knows_another_prefix(tmp_path: Path) -> None:
    written(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not OLD.search(path.name), path
            assert not OLD.search(path.read_text()), path


def test_library_and_images_use_it(tmp_path: Path) -> None:
    graph, golden = residual_network()
    for core in ("x86-64", "cortex-m4"):
        target = load_target(core)
        program = bind(graph, target, "net", prefix="my_co")
        artifact = build(program, graph, golden, target, tmp_path / core, PackageOptions(prefix="my_co"), {})
        assert artifact.manifest["prefix"] == "my_co"
        assert artifact.manifest["symbols"]["run"] == "my_co_net_run"
        assert all(
            Path(p).name.removeprefix("lib").startswith("my_co_net") for p in artifact.manifest["products"].values()
        )
    library = tmp_path / "x86-64" / "lib/libmy_co_net.so"
    with library.open("rb") as file:
        names = {
            s.name for s in ELFFile(file).get_section_by_name(".dynsym").iter_symbols() if s["st_shndx"] != "SHN_UNDEF"
        }
    api = {f"my_co_net_{n}" for n in ("run", "run_batch", "batch_arena_bytes", "layer_end", "verify", "selftest")}
    assert api <= names
    assert not [n for n in names if not n.startswith("my_co_")]


TWO = """\
#include "{a}.h"
#include "{b}.h"
#include "{a}.h"
#include <stdio.h>
static {A}_ALIGNED {a}_input x;
static {A}_ALIGNED {a}_output y;
static {A}_ALIGNED {a}_arena s;
static {B}_ALIGNED {b}_input u;
static {B}_ALIGNED {b}_output v;
static {B}_ALIGNED {b}_arena t;
int main(void)
{{
    if (fread(x, sizeof x, 1, stdin) != 1 || fread(u, sizeof u, 1, stdin) != 1) return 9;
    if ({a}_run(x, y, s) != {A}_OK || {b}_run_sized(u, v, t, sizeof t) != {B}_OK) return 8;
    if ({a}_verify() != {A}_OK || {b}_verify() != {B}_OK) return 7;
    return fwrite(y, sizeof y, 1, stdout) != 1 || fwrite(v, sizeof v, 1, stdout) != 1;
}}
"""
PAIRS = {"other prefixes": (("acme", "net"), ("beta", "net")), "other names": (("xd", "one"), ("xd", "two"))}


@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize("pair", PAIRS)
def test_two_in_one_program(pair: str, language: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("g++") is None:
        pytest.skip("gcc and g++ are not installed")
    names = [f"{prefix}_{name}" for prefix, name in PAIRS[pair]]
    goldens = [written(tmp_path / n, "cortex-m4", "portable", *p) for n, p in zip(names, PAIRS[pair], strict=True)]
    include = [f"-I{tmp_path / n / part}" for n in names for part in ("include", "src")]
    objects = []
    for source in (p for n in names for p in sorted((tmp_path / n).glob("src/*.c"))):
        objects.append(tmp_path / f"{source.stem}.o")
        subprocess.run(["gcc", "-std=c99", "-O1", *include, "-c", source, "-o", objects[-1]], check=True)
    (tmp_path / "main.c").write_text(TWO.format(a=names[0], A=names[0].upper(), b=names[1], B=names[1].upper()))
    words = ["gcc", "-std=c99"] if language == "c" else ["g++", "-std=c++17"]
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-Wundef", "-Wredundant-decls"]
    link = ["-x", language, "main.c", "-x", "none", *objects, "-o", "two"]
    subprocess.run([*words, *strict, *include, *link], cwd=tmp_path, check=True)
    given = b"".join(g.input_codes[i].tobytes() for i, g in enumerate(goldens))
    done = subprocess.run([tmp_path / "two"], input=given, capture_output=True, check=True)
    wanted = np.concatenate([g.output_codes[i].reshape(-1) for i, g in enumerate(goldens)])
    np.testing.assert_array_equal(np.frombuffer(done.stdout, np.int8), wanted)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_tuned_ones_share_assembly_of_one_prefix_only(pair: str, tmp_path: Path) -> None:
    names = [f"{prefix}_{name}" for prefix, name in PAIRS[pair]]
    words = [*compilers.command("gcc", "cortex-m4"), "-std=c99", "-O2", "-ffunction-sections", "-fdata-sections"]
    objects = []
    for n, p in zip(names, PAIRS[pair], strict=True):
        written(tmp_path / n, "cortex-m4", "tuned", *p)
        objects += compilers.compile_c(words, tmp_path / n, tmp_path / f"{n}-objects")
    keep = [f"-Wl,-u,{n}_run" for n in names]
    link = ["-nostartfiles", "-Wl,--gc-sections", f"-Wl,-e,{names[0]}_run", *keep, "-o", str(tmp_path / "two.elf")]
    subprocess.run([*words, *map(str, objects), *link], check=True, capture_output=True)
    there = global_symbols([tmp_path / "two.elf"])
    helpers = [n for n in there if re.fullmatch(r"[a-z]+_\w+_[0-9a-f]{12}", n)]
    assert helpers
    assert {n.partition("_")[0] for n in helpers} == {prefix for prefix, _ in PAIRS[pair]}
    sizes = [len({n.partition("_")[2] for n in helpers}), len(helpers)]
    assert sizes[1] == sizes[0] * len({prefix for prefix, _ in PAIRS[pair]})


@pytest.mark.parametrize(
    "prefix",
    ["", "Acme", "1a", "_a", "a_", "a__b", "a-b", "a b", "é", "a" * 17, "a;rm", "../x", "int*", "a\n", "atomic"],
)
def test_what_cannot_be_one(prefix: str) -> None:
    with pytest.raises(UsageError, match=r"package\.prefix"):
        Recipe().with_options({"package.prefix": prefix})


@pytest.mark.parametrize("prefix", ["x", "xd", "acme2", "my_co", "a" * 16])
def test_what_can_be_one(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'[package]\nprefix = "{prefix}"\n')
    assert load_recipe(tmp_path / "r.toml").package.prefix == prefix
    assert FLAGS["--prefix"][0] == "package.prefix"
