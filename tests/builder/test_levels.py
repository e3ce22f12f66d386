"""One x86-64 library holds every feature level: all give the reference's codes, and one that is built alone does."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.networks import residual_network
from xdeploy.bench.host import HostRunner
from xdeploy.bench.roofline import multiply_limit
from xdeploy.bench.runner import Image
from xdeploy.builder import build
from xdeploy.builder.levels import _BITS
from xdeploy.builder.zig import cc
from xdeploy.cpu import cpu_flags
from xdeploy.errors import DeviceError
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.program import Choice, applicable, bind, choose
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")
NAMES = ["", *(level.name for level in load_target("x86-64").levels)]
Made = tuple[Artifact, GoldenIo]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    (graph, golden), target = residual_network(), load_target("x86-64")
    folder = tmp_path_factory.mktemp("levels") / "x86-64"
    return build(bind(graph, target, "net"), graph, golden, target, folder, PackageOptions(), {}), golden


def _has(name: str) -> bool:
    return name in ("", *(level.name for level in load_target("x86-64").levels_here()))


def test_the_best_level_is_chosen_when_it_is_loaded(made: Made) -> None:
    runner = HostRunner(made[0])
    runner.run(made[1].input_codes)
    assert runner.image.level == next(name for name in reversed(NAMES) if _has(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_level_gives_the_codes_of_the_reference(made: Made, name: str) -> None:
    artifact, golden = made
    runner = HostRunner(artifact)
    if not _has(name):
        with pytest.raises(DeviceError, match=f"lacks what level {name}"):
            runner.choose_level(name)
        pytest.skip(f"this CPU lacks what level {name} needs")
    runner.choose_level(name)
    assert (runner.run(golden.input_codes).outputs == golden.output_codes).all()
    layers = runner.run_layers(golden.input_codes)
    assert list(layers) == [node["output"]["tensor"] for node in runner.image.nodes]
    runner.selftest()


def test_kernels_of_a_level_may_be_chosen_before(tmp_path: Path) -> None:
    """As tuning does at every level that this machine runs."""
    (graph, golden), target = residual_network(), load_target("x86-64")
    at = target.at(target.levels[0])
    node = next(n for n in graph.nodes if n.op == "linear")
    own = choose(graph, node, at).name
    other = next(k.name for k in applicable(graph, node, at) if k.name != own)
    program, options = bind(graph, target, "net"), PackageOptions()
    for chosen, wanted in (({}, own), ({"vnni": Choice({node.name: other})}, other)):
        artifact = build(program, graph, golden, target, tmp_path / "out", options, {}, chosen)
        image = Image(artifact)
        image.level = "vnni"
        assert next(n["kernel"] for n in image.nodes if n["name"] == node.name) == wanted
    assert (HostRunner(artifact).run(golden.input_codes).outputs == golden.output_codes).all()


def test_targets_of_one_level_are_the_same_code() -> None:
    target = load_target("x86-64")
    for one, name in ((target, "x86-64-v3"), *((target.at(x), f"x86-64-v4-{x.name}") for x in target.levels)):
        alone = load_target(name)
        assert (one.isa, one.features, dict(one.tvm)) == (alone.isa, alone.features, dict(alone.tvm))
        assert not alone.levels


def test_the_instruction_set_is_that_of_the_level(made: Made) -> None:
    runner = HostRunner(made[0])
    assert ("__vnni" in str(HostRunner(made[0]).program)) == _has("vnni")
    runner.choose_level("")
    assert runner.isa == "x86-64-v3"
    if _has("vnni"):
        runner.choose_level("vnni")
        assert runner.isa == "x86-64-v4+vnni"
        assert "vpdpbusd" in multiply_limit(runner.isa)["note"]


CALLER = """
#include <dlfcn.h>
#include <stdio.h>
static _Alignas(64) char arena[1 << 20];
int main(int count, char **words) {
  void *library = count == 2 ? dlopen(words[1], RTLD_NOW) : 0;
  if (library == 0) return 1;
  int (*level)(void) = (int (*)(void))dlsym(library, "STEM_level");
  int (*choose)(int) = (int (*)(int))dlsym(library, "STEM_choose_level");
  int (*test)(void *) = (int (*)(void *))dlsym(library, "STEM_selftest");
  printf("%d", level());
  printf(" %d %d\\n", choose(1), test(arena));
  return 0;
}
"""


@pytest.mark.qemu
def test_a_cpu_without_the_instructions_takes_the_lower_level(made: Made, tmp_path: Path) -> None:
    """The very same library in QEMU, which has AVX2 and no AVX-512."""
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("qemu-x86_64 is not installed")
    artifact, stem = made[0], HostRunner(made[0]).stem
    (tmp_path / "caller.c").write_text(CALLER.replace("STEM", stem), encoding="utf-8")
    cc(["-O1", "caller.c", "-o", "caller"], tmp_path)
    words = [str(tmp_path / "caller"), str(artifact.folder / artifact.manifest["products"]["library"])]
    emulated = subprocess.run(["qemu-x86_64", "-cpu", "max", *words], capture_output=True, text=True, check=True)
    assert emulated.stdout.split() == ["0", "-1", "0"]
    if _has("vnni"):
        here = subprocess.run(words, capture_output=True, text=True, check=True)
        assert here.stdout.split() == [str(max(i for i, name in enumerate(NAMES) if _has(name))), "0", "0"]


def test_levels_that_do_not_exist_are_refused(made: Made) -> None:
    runner = HostRunner(made[0])
    choose = getattr(runner._load(), f"{runner.stem}_choose_level")
    before = getattr(runner._load(), f"{runner.stem}_level")()
    assert choose(-1) == choose(len(NAMES)) == -1
    assert getattr(runner._load(), f"{runner.stem}_level")() == before


@pytest.mark.parametrize("number", range(len(NAMES)), ids=[name or "own" for name in NAMES])
def test_a_level_is_built_alone(made: Made, number: int, tmp_path: Path) -> None:
    """One object of it calls the level's kernels and no other's."""
    folder, stem = made[0].folder, HostRunner(made[0]).stem
    flags = ["-target", "x86_64-linux-gnu", "-O2", "-march=x86_64_v3", "-Iinclude", "-Isrc"]
    out = tmp_path / "run.s"
    cc([*flags, f"-D{stem.upper()}_LEVEL={number}", "-S", f"src/{stem}.c", "-o", out], folder)
    text = out.read_text(encoding="utf-8")
    for name, info in made[0].manifest["levels"].items():
        assert (info["run"] in text) == (NAMES[number] == name)
    own = made[0].manifest["symbols"]["calls"]
    assert all(symbol in text for symbol in own) == (number == 0)


def test_cpuid_tells_what_linux_tells(tmp_path: Path) -> None:
    """The places of the bits, asked of this CPU through another way than the library's."""
    source = "#include <cpuid.h>\n#include <stdio.h>\nint main(void) {\n"
    for name, (leaf, register, bit) in _BITS.items():
        source += (
            f"{{ unsigned r[4] = {{0}}; __cpuid_count({leaf}, 0, r[0], r[1], r[2], r[3]);\n"
            f'  printf("{name} %u\\n", r[{register}] >> {bit} & 1); }}\n'
        )
    (tmp_path / "ask.c").write_text(source + "return 0; }\n", encoding="utf-8")
    cc(["ask.c", "-o", "ask"], tmp_path)
    told = subprocess.run([f"{tmp_path}/ask"], capture_output=True, text=True, check=True).stdout.split()
    found = {name: bool(int(value)) for name, value in zip(told[::2], told[1::2], strict=True)}
    assert found == {name: name in cpu_flags() for name in _BITS}
