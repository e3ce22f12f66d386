"""Two threads for one inference: the reference's outputs whoever computes a half, and a worker that ends well."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.builder.test_warnings import compile_all
from tests.networks import Drawer, residual_network
from xdeploy import pieces, pipeline
from xdeploy.bench.host import HostRunner, aligned
from xdeploy.bench.threads import outputs_of_two, with_two
from xdeploy.builder import build
from xdeploy.builder.package import Package
from xdeploy.builder.zig import cc
from xdeploy.errors import DeviceError, UsageError
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.lir.graph import LoweredGraph
from xdeploy.lir.ops import run
from xdeploy.program import Choice, Program, applicable, bind
from xdeploy.recipe import PackageOptions, Recipe
from xdeploy.report.tables import targets
from xdeploy.request import Request
from xdeploy.target import load_target

HOST = platform.machine() in ("x86_64", "AMD64")
Made = tuple[Artifact, LoweredGraph, GoldenIo]
x86 = pytest.mark.skipif(not HOST, reason="the host target is x86-64")


def network() -> tuple[LoweredGraph, GoldenIo]:
    """Convolution, residual with a codebook, depthwise, strided: odd heights, rows of multiples of 64 bytes."""
    d = Drawer((13, 16, 4))
    a = d.conv("stem", "x", 16)
    b = d.conv("block", a, 16, residual=a, fmt="c4s8")
    c = d.conv("depth", b, 16, groups=16)
    e = d.conv("down", c, 32, stride=2)
    return d.finish(d.linear("head", d.reshape("flat", d.max_pool("pool", e)), 10))


def _bound(target: str, choice: Choice | None = None) -> tuple[Program, LoweredGraph, GoldenIo]:
    (graph, golden), before = network(), pieces.LEAST_HALF
    pieces.LEAST_HALF = 0.0  # these layers are small
    try:
        return bind(graph, load_target(target), "net", choice=choice, threads=2), graph, golden
    finally:
        pieces.LEAST_HALF = before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    if not HOST:
        pytest.skip("the host target is x86-64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "LEAST_HALF", 0.0)
        program, graph, golden = _bound("x86-64")
        folder = tmp_path_factory.mktemp("threads") / "x86-64"
        return build(program, graph, golden, load_target("x86-64"), folder, PackageOptions(), {}), graph, golden


def test_every_convolution_is_cut_near_its_middle() -> None:
    program, graph, _ = _bound("x86-64")
    halves = {c.node: program.places[c.output].size for c in program.calls if c.half}
    for node in (n for n in graph.nodes if n.op == "conv2d"):
        rows = [halves[f"{node.name} [band {k} of 2]"] for k in (1, 2)]
        height = graph.tensors[node.output].shape[0]
        assert sum(rows) == graph.tensors[node.output].size
        assert abs(rows[0] - rows[1]) <= sum(rows) // height
    assert [c.half for c in program.calls if c.op != "conv2d"] == [0, 0]
    assert program.macs == bind(graph, load_target("x86-64"), "net").macs
    assert program.constants.keys() == bind(graph, load_target("x86-64"), "net").constants.keys()


def test_halves_that_run_together_share_no_memory() -> None:
    program, _, _ = _bound("x86-64")

    def spans(call: object) -> list[tuple[str, int, int]]:
        places = [program.places[t] for t in (*call.inputs, call.output)]  # type: ignore[attr-defined]
        found = [(p.kind, p.offset, p.offset + p.size) for p in places]
        start = call.workspace_offset  # type: ignore[attr-defined]
        return [*found, ("arena", start, start + call.workspace)]  # type: ignore[attr-defined]

    for upper, lower in zip(program.calls[:-1], program.calls[1:], strict=True):
        if upper.half != 1:
            continue
        for mine, other in ((upper, lower), (lower, upper)):
            for kind, start, stop in spans(mine)[-2:]:  # what it writes: output and workspace
                assert all(k != kind or b <= start or stop <= a for k, a, b in spans(other)), mine.node


def test_small_layers_stay_whole() -> None:
    graph, _ = residual_network()
    assert not bind(graph, load_target("x86-64"), "net", threads=2).halved


def test_nothing_is_cut_where_little_would_be_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    (graph, _), target = network(), load_target("x86-64")
    monkeypatch.setattr(pieces, "LEAST_HALF", 0.0)
    cut = bind(graph, target, "net", threads=2)
    cost = {c.node: c.cost for c in cut.calls}
    gain = sum(min(cost[f"{c} [band {k} of 2]"] for k in (1, 2)) for c in ("stem", "block", "depth", "down"))
    whole = sum(c.cost for c in bind(graph, target, "net").calls)
    monkeypatch.setattr(pieces, "LEAST_SHARE", 0.99 * gain / whole)
    assert bind(graph, target, "net", threads=2).calls == cut.calls
    monkeypatch.setattr(pieces, "LEAST_SHARE", 1.01 * gain / whole)
    assert not bind(graph, target, "net", threads=2).halved


@pytest.mark.parametrize(
    ("target", "form", "reason"), [("cortex-m4", "tuned", "firmware"), ("x86-64", "portable", "operating system")]
)
def test_it_is_refused_where_there_are_no_threads(target: str, form: str, reason: str) -> None:
    graph, _ = residual_network()
    with pytest.raises(UsageError, match=reason) as error:
        bind(graph, load_target(target), "net", form, threads=2)
    assert "1 or 2" in error.value.message
    assert error.value.hint
    with pytest.raises(UsageError, match=r"1\.\.2"):
        Recipe().with_options({"build.threads": 3})


def test_without_the_option_nothing_of_it_is_in_the_package() -> None:
    graph, golden = network()
    target = load_target("x86-64")
    package = Package(bind(graph, target, "net"), graph, golden, target, {}, "")
    assert not [path for path, text in package.files().items() if "_threads" in path or "set_threads" in text]


@pytest.mark.parametrize("language", ["c99", "c++17"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_compiler_has_anything_to_say(compiler: str, language: str, tmp_path: Path) -> None:
    (program, graph, golden), target = _bound("x86-64-v3"), load_target("x86-64-v3")
    Package(program, graph, golden, target, {}, "").write(tmp_path, None)
    sources = [tmp_path / "src" / f"xd_net{part}.c" for part in ("", "_threads")]
    more = [f"-I{tmp_path / 'include'}", f"-I{tmp_path / 'src'}"]
    for alone in ([], ["-DXD_NET_ONE_THREAD"]):
        compile_all(sources, compiler, language, tmp_path, *more, *alone)


@x86
@pytest.mark.parametrize("level", ["", *(x.name for x in load_target("x86-64").levels)])
def test_every_level_gives_the_codes_of_the_reference(made: Made, level: str) -> None:
    artifact, graph, golden = made
    runner = HostRunner(artifact)
    if level not in ("", *(x.name for x in load_target("x86-64").levels_here())):
        pytest.skip(f"this CPU lacks what level {level} needs")
    runner.choose_level(level)
    assert all(n.get("half") for n in runner.image.nodes if n["op"] == "conv2d")
    assert runner.run(golden.input_codes).outputs.tolist() == golden.output_codes.tolist()
    two = outputs_of_two(runner, golden.input_codes)
    if two is None:
        pytest.skip("this machine has one CPU")
    assert two.tolist() == golden.output_codes.tolist()
    layers, expected = runner.run_layers(golden.input_codes), run(graph, golden.input_codes, keep=True)
    for node in graph.nodes:
        if node.op != "reshape":
            assert (layers[node.output] == expected[node.output].reshape(len(golden.input_codes), -1)).all()
    runner.selftest()


@x86
def test_the_number_of_threads_is_checked(made: Made) -> None:
    runner = HostRunner(made[0])
    library = runner._load()
    assert [library.xd_net_set_threads(n) for n in (-1, 0, 3)] == [-1, -1, -1]
    assert library.xd_net_threads() == 1
    with pytest.raises(DeviceError, match="3 threads"):
        runner.set_threads(3)
    done = library.xd_net_set_threads(2)
    assert library.xd_net_threads() == 2 + done
    assert library.xd_net_set_threads(1) == 0
    assert library.xd_net_threads() == 1


PROGRAM = Path(__file__).with_name("scenes.c").read_text(encoding="utf-8")
SCENES = ("many", "together", "toggled", "forked", "taken", "idle")
ALWAYS = "-DXD_NET_BLOCK=1000000000"  # no inference goes back to one thread because it was faster


def _golden_file(folder: Path, golden: GoldenIo) -> None:
    (folder / "golden.bin").write_bytes(golden.input_codes[0].tobytes() + golden.output_codes[0].tobytes())
    (folder / "scenes.c").write_text(PROGRAM, encoding="utf-8")


def _told(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode == 77:
        pytest.skip("this machine has one CPU")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def scenes(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, out = made[0].folder, tmp_path_factory.mktemp("scenes")
    _golden_file(out, made[2])
    sources = [str(p) for p in sorted((folder / "src").iterdir()) if p.suffix in (".c", ".S")]
    paths = [f"-I{folder / part}" for part in ("include", "src")]
    words = ["-O2", "-D_GNU_SOURCE", ALWAYS, *paths, "scenes.c", *sources, "-lpthread", "-o", "scenes"]
    cc(["-target", "x86_64-linux-gnu", "-march=x86_64_v3", *words], out)
    return out


@x86
@pytest.mark.parametrize("scene", SCENES)
def test_scene(scenes: Path, scene: str) -> None:
    words = [str(scenes / "scenes"), scene]
    _told(subprocess.run(words, cwd=scenes, capture_output=True, text=True, timeout=60, check=False))


UNLOADING = r"""
#include <dlfcn.h>
#include <unistd.h>
static _Alignas(64) char arena[1 << 20];
int main(int count, char **words)
{
    for (int i = 0; i < 20; ++i) {
        void *library = count == 2 ? dlopen(words[1], RTLD_NOW) : 0;
        if (library == 0) return 1;
        int (*set)(int) = (int (*)(int))dlsym(library, "xd_net_set_threads");
        int (*test)(void *) = (int (*)(void *))dlsym(library, "xd_net_selftest");
        if (set(2)) return 77;
        if (test(arena)) return 2;
        if (i % 2) usleep(1000); /* asleep; else it spins */
        if (dlclose(library) || dlopen(words[1], RTLD_NOW | RTLD_NOLOAD)) return 3;
    }
    return 0;
}
"""


@x86
def test_the_library_is_unloaded_while_the_worker_waits(made: Made, tmp_path: Path) -> None:
    (tmp_path / "unloading.c").write_text(UNLOADING, encoding="utf-8")
    cc(["-O1", "unloading.c", "-o", "unloading"], tmp_path)
    words = [str(tmp_path / "unloading"), str(made[0].folder / made[0].manifest["products"]["library"])]
    _told(subprocess.run(words, capture_output=True, text=True, timeout=60, check=False))


@x86
@pytest.mark.slow
def test_nothing_races(tmp_path: Path) -> None:
    """The executor, the worker and kernels of plain C under ThreadSanitizer."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (graph, _), target = network(), load_target("x86-64-v3")
    nodes = [n for n in graph.nodes if n.op != "reshape"]
    rows = {n.name: applicable(graph, n, target, "portable")[0].name for n in nodes}
    program, graph, golden = _bound("x86-64-v3", Choice(rows))
    Package(program, graph, golden, target, {}, "").write(tmp_path, None)
    _golden_file(tmp_path, golden)
    text = PROGRAM.replace("many(2000)", "many(300)").replace("together(500", "together(100")
    (tmp_path / "scenes.c").write_text(text, encoding="utf-8")
    sources = [str(p) for p in sorted((tmp_path / "src").glob("*.c"))]
    words = ["gcc", "-O1", "-g", "-D_GNU_SOURCE", "-fsanitize=thread", ALWAYS, "-Iinclude", "-Isrc", "scenes.c"]
    done = subprocess.run(
        [*words, *sources, "-lpthread", "-o", "scenes"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "cannot find" in done.stderr:
        pytest.skip("gcc has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    for scene in ("many", "together", "toggled", "taken"):
        ran = subprocess.run(
            ["./scenes", scene], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        if "unexpected memory mapping" in ran.stderr:
            pytest.skip("ThreadSanitizer cannot run on this kernel")
        _told(ran)
        assert "WARNING" not in ran.stderr


@pytest.mark.slow
@pytest.mark.qemu
def test_aarch64_under_qemu(tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed")
    target = load_target("cortex-a72")
    program, graph, golden = _bound("cortex-a72")
    artifact = build(program, graph, golden, target, tmp_path / "a72", PackageOptions(), {})
    _golden_file(tmp_path, golden)
    archive = artifact.folder / artifact.manifest["products"]["archive"]
    paths = [f"-I{artifact.folder / part}" for part in ("include", "src")]
    flags = ["-target", "aarch64-linux-musl", "-static", "-O2", *paths]
    cc([*flags, "scenes.c", str(archive), "-o", "scenes"], tmp_path)
    for scene in ("many", "together", "toggled"):
        words = ["qemu-aarch64", "-cpu", "cortex-a72", "./scenes", scene]
        _told(subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False))


@x86
def test_many_inferences_that_choose_their_threads_are_equal(made: Made) -> None:
    """As the library is: the second thread comes and goes as the times tell."""
    artifact, _, golden = made
    runner = HostRunner(artifact)
    try:
        runner.set_threads(2)
    except DeviceError:
        pytest.skip("this machine has one CPU")
    codes = np.tile(golden.input_codes, (700, 1, 1, 1))
    outputs = np.empty((len(codes), runner.image.output_bytes), np.int8)
    arena = aligned(runner._load().xd_net_batch_arena_bytes(), runner.image.align)
    batch = runner._load().xd_net_run_batch
    batch.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int]
    start = time.monotonic()
    assert batch(codes.ctypes.data, outputs.ctypes.data, arena.ctypes.data, len(codes)) == 0
    assert time.monotonic() - start < 30
    runner.set_threads(1)
    assert (outputs == np.tile(golden.output_codes.reshape(3, -1), (700, 1))).all()


@x86
def test_both_are_measured_and_the_report_shows_it(made: Made) -> None:
    runner = HostRunner(made[0])
    found = with_two(runner, made[2].input_codes, rounds=3)
    ratio = found["ratio_two_threads"]
    assert (ratio["unit"], ratio["how"]) == ("1", "measured")
    if ratio["value"] is None:
        pytest.skip("this machine has one CPU")
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert re.search(r"(two threads are|one thread is) faster, in [0-3] of 3 rounds", ratio["note"])
    assert found["latency_two_threads"]["unit"] == "s"
    assert runner._load().xd_net_threads() == 1
    row = {"isa": "x", "verdict": "bit-exact", "reason": None, "cycles": None, **dict.fromkeys(("flash", "ram"))}
    told = targets({"targets": {"x86-64": row | found}})
    assert told.columns[-2:] == ("with two threads, us", "two threads over one")
    assert told.rows[0][-1].endswith(" measured")
    assert len(targets({"targets": {"x86-64": row}}).columns) == len(told.columns) - 2


@x86
def test_where_no_layer_is_large_enough_it_is_said(tmp_path: Path) -> None:
    d, target = Drawer((8, 8, 8)), load_target("x86-64-v3")
    graph, golden = d.finish(d.conv("small", "x", 8))
    program = bind(graph, target, "net", threads=2)
    runner = HostRunner(build(program, graph, golden, target, tmp_path / "out", PackageOptions(), {}))
    assert [runner._load().xd_net_set_threads(n) for n in (2, 1)] == [-1, 0]
    found = with_two(runner, golden.input_codes)["ratio_two_threads"]
    assert found["value"] is None
    assert "no layer is large enough" in found["note"]


def test_a_build_refuses_before_it_writes_anything(tmp_path: Path) -> None:
    recipe = Recipe().with_options({"build.threads": 2})
    asked = Request(targets=("x86-64", "cortex-m4"), output=tmp_path / "out", recipe=recipe)
    with pytest.raises(UsageError, match="cortex-m4 is firmware"):
        pipeline.run(asked)
    assert not (tmp_path / "out").exists()
