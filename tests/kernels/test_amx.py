"""AMX rows against the reference, bit for bit: on a CPU with AMX, or on one with AVX512-VNNI by tests/kernels/amx.c."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from xdeploy.kernels.conv import Shape
from xdeploy.kernels.tiling import Runs
from xdeploy.kernels.x86amx import Cut, tile_shapes

from tests.kernels import harness
from tests.kernels.cases import Case, cases, conv
from tests.kernels.test_vnni import DIRECT, NONE, scaled
from tests.networks import residual_network
from xdeploy import cpu
from xdeploy.bench import host
from xdeploy.bench.host import HostRunner
from xdeploy.bench.native import native_library
from xdeploy.builder import build
from xdeploy.builder.zig import cc
from xdeploy.cpu import cpu_flags
from xdeploy.kernel import KERNELS
from xdeploy.program import Choice, bind, choose
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

TARGET = load_target("x86-64-v4-amx")
NEEDED = {"amx_tile", "amx_int8"}
OWN = [
    *(case for case in DIRECT if case.node.op == "conv2d"),
    conv((32, 32), 16, 16, residual=True),
    conv((16, 16), 32, 32, stride=(2, 2)),
    conv((8, 8), 64, 64, residual=True, relu=True),
    conv((8, 8), 64, 128, (1, 1), pads=NONE),
    conv((2, 2), 256, 64, (3, 3)),
    conv((7, 7), 20, 24, (5, 3), stride=(1, 2), pads=(2, 1, 2, 1)),
    conv((6, 34), 16, 96, (3, 3), dilation=(2, 2), pads=(2, 2, 2, 2)),
    conv((3, 19), 3, 16, (3, 3), fmt="int4"),
    scaled(conv((8, 16), 32, 64, residual=True), 700.0),
]  # fmt: skip


def row_of(case: Case, isa: str = "amx") -> str:
    return f"conv2d_s8_{case.node.format.short}_direct__{isa}"


def at_their_ends() -> Iterator[Case]:
    """All codes and weights at their ends."""
    for weight in (-128, 127):
        for code in (-128, 127):
            case = conv((4, 5), 64, 64, in_zero=-128 if code == 127 else 127)
            case.node.consts["codes"][:] = weight
            case.inputs[0][:] = code
            yield case


@contextmanager
def unit(folder: Path) -> Iterator[ctypes.CDLL | None]:
    """AMX, of the CPU (None), or done by a signal handler for the time being."""
    if cpu_flags() >= NEEDED:
        ctypes.CDLL(None).syscall(158, 0x1023, 18)
        yield None
        return
    if not load_target("x86-64").levels_here():
        pytest.skip("this CPU has neither AMX nor AVX512-VNNI")
    cc(["-shared", "-fPIC", "-O2", "-o", str(folder / "amx.so"), str(Path(__file__).with_name("amx.c"))], folder)
    library = ctypes.CDLL(str(folder / "amx.so"))
    library.amx_begin()
    try:
        yield library
    finally:
        library.amx_end()


def counted(library: ctypes.CDLL | None, name: str) -> int:
    return -1 if library is None else ctypes.c_uint64.in_dll(library, f"amx_{name}").value


def check(batch: harness.Batch, folder: Path) -> None:
    before = batch.image.bytes.copy()
    with unit(folder) as library:
        harness.run_host(batch, folder)
        assert batch.failures() == []
        assert batch.image.damaged(before) == []
        if library is not None:  # every function released its tiles
            assert counted(library, "products") > len(batch.calls) == counted(library, "releases")


def test_rows_equal_the_reference(tmp_path: Path) -> None:
    batch = harness.Batch(TARGET, harness.host_image(1 << 24))
    further = [case for case in cases("conv2d") if row_of(case) in KERNELS][::6]
    for case in [*OWN, *further]:
        row = KERNELS[row_of(case)]
        fits = row.applies(case.graph, case.node, TARGET)
        assert fits or case not in OWN, case.name
        if fits:
            batch.add(row, case)
    check(batch, tmp_path)


def test_nothing_saturates_on_the_way(tmp_path: Path) -> None:
    batch = harness.Batch(TARGET, harness.host_image(1 << 24))
    for case in at_their_ends():
        batch.add(KERNELS[row_of(case)], case, samples=1)
    check(batch, tmp_path)


def test_shapes_drawn_at_random(tmp_path: Path) -> None:
    seed = 11
    print(f"seed {seed}")
    rng, batch = np.random.default_rng(seed), harness.Batch(TARGET, harness.host_image(1 << 24))
    for _ in range(24):
        kernel, stride = (tuple(int(n) for n in rng.integers(1, most, 2)) for most in (4, 3))
        size = tuple(int(n) for n in rng.integers(3, 20, 2))
        pads = tuple(int(n) for n in rng.integers(0, 2, 4))
        channels, residual = int(rng.choice([3, 4, 8, 12, 16, 24, 40])), bool(rng.integers(2))
        wide = int(rng.choice([16, 32, 48]) if residual else rng.integers(1, 70))
        case = conv(size, channels, wide, kernel, stride, pads=pads, residual=residual, relu=bool(rng.integers(2)))
        batch.add(KERNELS[row_of(case)], case, samples=2)
    check(batch, tmp_path)


@pytest.mark.parametrize("case", OWN[:12], ids=lambda c: c.name)
def test_one_copy_of_all_constants_serves_vnni_too(case: Case) -> None:
    mine, other = (KERNELS[row_of(case, isa)].pack(case.graph, case.node) for isa in ("amx", "vnni"))
    assert mine.keys() - other.keys() == {"shapes"}
    assert all(np.array_equal(mine[key], other[key]) for key in other)


@pytest.mark.parametrize("case", OWN, ids=lambda c: c.name)
def test_tiles_cover_every_pixel_once(case: Case) -> None:
    shape = Shape.of(case.graph, case.node)
    cut = Cut.of(shape, Runs.of(shape, True))
    shapes = tile_shapes(cut)
    assert shapes[16:32:2].max() <= 64
    assert 1 <= shapes[48:56].min() <= shapes[48:56].max() <= 16
    for groups in (1, 2, 4):
        together = cut.together(groups)
        assert together * groups <= 4
        found = []
        for step in range(cut.tiles // together):
            for tile in range(together):
                places = [re.sub(r"T\.floor(mod|div)\(", r"floor\1(", x) for x in cut.place(str(step), tile, together)]
                named = {"floordiv": lambda a, b: a // b, "floormod": lambda a, b: a % b}
                y, x = (eval(place, named) for place in places)  # an index made by Cut
                found += [(y, x + i) for i in range(cut.pixels)]
        wide = cut.across * cut.pixels
        assert sorted(found) == [divmod(i, wide) for i in range(shape.pixels)]


@pytest.mark.parametrize(
    ("case", "isa"),
    [
        (conv((32, 32), 16, 16), "amx"),
        (conv((8, 8), 64, 64, residual=True), "amx"),
        (conv((12, 12), 64, 128, (1, 1), pads=NONE), "amx"),
        (conv((1, 1), 64, 64, (1, 1), pads=NONE), "vnni"),
        (conv((17, 17), 4, 16, (1, 1), pads=NONE), "vnni"),
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_what_is_chosen(case: Case, isa: str) -> None:
    assert choose(case.graph, case.node, TARGET).name.endswith(f"__{isa}")


def test_a_library_gives_the_codes_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a user has: a package of this level, whose host runner is told that the CPU has AMX."""
    graph, golden = residual_network()
    program = bind(graph, TARGET, "net")
    wanted = {c.node: f"{c.kernel.rpartition('__')[0]}__amx" for c in program.calls if c.op == "conv2d"}
    chosen = {node: name for node, name in wanted.items() if name in KERNELS}
    assert len(chosen) > 1
    program = bind(graph, TARGET, "net", choice=Choice(chosen))
    artifact = build(program, graph, golden, TARGET, tmp_path / "out", PackageOptions(), {})
    with unit(tmp_path) as library:
        monkeypatch.setattr(host, "cpu_flags", lambda: cpu.cpu_flags() | NEEDED)
        runner = HostRunner(artifact)
        assert (runner.run(golden.input_codes).outputs == golden.output_codes).all()
        runner.selftest()
        assert counted(library, "products") != 0


def test_the_limit_multiplies_what_it_says(tmp_path: Path) -> None:
    helper, turns, total = ctypes.CDLL(str(native_library("roofline.c"))), 50, ctypes.c_int32()
    helper.xd_multiply_amx.restype = ctypes.c_double
    helper.xd_multiply_amx.argtypes = [ctypes.c_int64, ctypes.c_void_p]
    with unit(tmp_path) as library:
        assert helper.xd_multiply_amx(turns, ctypes.byref(total)) > 0.0
        assert total.value == 64 * turns
        assert counted(library, "products") in (-1, 4 * turns)
