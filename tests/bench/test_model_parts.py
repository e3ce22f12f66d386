"""The cycle model's parts: loops in closed form, flash against a slow twin, sums, the energy proxy, the tables."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.bench.test_model import assemble, image
from xdeploy.bench import bench
from xdeploy.bench.classes import CLASSES, grouped
from xdeploy.bench.flash import Flash
from xdeploy.bench.model import call_mixes, cycles, instruction_mix, issue_cycles, modelled
from xdeploy.bench.native import native_library
from xdeploy.bench.proxy import add_energy, layer_energy, multiply_energy, sram_energy, weight_energy
from xdeploy.bench.runner import Block, Waits
from xdeploy.bench.thumb import Kind
from xdeploy.errors import UsageError
from xdeploy.target import load_target

# the inner loop of a dot product: 11 instructions, which llvm-mca gives 11 cycles on the M4 when loads overlap
SMLAD = """
ldr r2, [r0], #4
ldr r3, [r1], #4
ldr r4, [r1], #4
sxtb16 r5, r2
sxtb16 r2, r2, ror #8
sxtb16 r6, r3
sxtb16 r3, r3, ror #8
smlad r7, r5, r6, r7
smlad r7, r2, r3, r7
subs r8, r8, #1
"""


def test_loop_of_eleven_on_the_m4(tmp_path: Path) -> None:
    table = {k: v for k, v in load_target("cortex-m4").cycles.items() if k not in ("flash", "calibration")}
    code = assemble(["0:", *SMLAD.strip().splitlines(), "bne.w 0b"], "cortex_m4", tmp_path)
    runs, jumps = 100, 99
    total = issue_cycles([Block(0x1000, len(code), runs, jumps)], image(code), table)[0]
    # one more cycle for the first load, two per jump back
    assert total == runs * (11 + 1) + jumps * 2
    assert issue_cycles([Block(0x1000, len(code), runs, 0)], image(code), {**table, "load": 1})[0] == runs * 11


def test_m3_long_multiplications(tmp_path: Path) -> None:
    table = load_target("cortex-m3").cycles
    code = assemble(["mla r0, r1, r2, r3", "smull r0, r1, r2, r3", "smlal r0, r1, r2, r3"], "cortex_m3", tmp_path)
    assert issue_cycles([Block(0x1000, len(code), 1, 0)], image(code), table)[0] == 2 + 5 + 7


def test_gather_costs_more(tmp_path: Path) -> None:
    table = load_target("cortex-m55").cycles
    code = assemble(["vldrb.u8 q0, [r0, q1]"], "cortex_m55+mve", tmp_path)
    plain = assemble(["vldrb.u8 q0, [r0]"], "cortex_m55+mve", tmp_path)
    one, other = (issue_cycles([Block(0x1000, len(c), 1, 0)], image(c), table)[0] for c in (code, plain))
    assert (one, other) == (6, 2)


def test_where_a_block_is_parted_does_not_matter(tmp_path: Path) -> None:
    table = load_target("cortex-m4").cycles
    code = assemble(SMLAD.strip().splitlines(), "cortex_m4", tmp_path)
    whole = issue_cycles([Block(0x1000, len(code), 7, 7)], image(code), table)[0]
    for at in (4, 8, 12):  # between the loads, and behind them
        parts = [Block(0x1000, at, 7, 0), Block(0x1000 + at, len(code) - at, 7, 7)]
        assert issue_cycles(parts, image(code), table)[0] == pytest.approx(whole)
    # entered by a jump as well: that entry's load finds none before it
    parts = [Block(0x1000, 4, 7, 0), Block(0x1004, len(code) - 4, 10, 10)]
    assert issue_cycles(parts, image(code), table)[0] == pytest.approx(whole + 3 * (whole / 7 - 1))


def test_calls_add_up(tmp_path: Path) -> None:
    code = assemble(SMLAD.strip().splitlines(), "cortex_m4", tmp_path)
    blocks = [Block(0x1000, len(code), 5, 1, call) for call in (0, 0, 1, 3)]
    blocks[1] = Block(0x1008, len(code) - 8, 2, 1, 0)
    table = load_target("cortex-m4").cycles
    waits = [Waits(10, 20, 30), Waits(0, 0, 1), Waits(0, 0, 0), Waits(1, 1, 1)]
    found = cycles(blocks, image(code), 2, table, waits)
    assert found is not None
    assert sum(found.calls.values()) == pytest.approx(found.total)
    flash = table["flash"]
    ahead = flash["wait_states"] - flash["read"] / 4
    factor = table["calibration"]["factor"]
    assert sum(found.waited.values()) == pytest.approx(factor * (5 * (10 + 30 + 1 + 1 + 1) + ahead * 21))
    assert found.low == pytest.approx(found.total * table["calibration"]["low"])
    whole = instruction_mix(blocks, image(code), 2)
    parts = call_mixes(blocks, image(code), 2)
    assert {k: sum(p.get(k, 0) for p in parts.values()) for k in whole} == pytest.approx(whole)
    told = modelled(blocks, image(code), 2, table, {}, waits)
    assert sum(q["value"] for q in told["cycles_parts"].values()) == pytest.approx(told["cycles"]["value"], abs=1)


def test_every_kind_has_one_class() -> None:
    kinds = [kind for group in CLASSES.values() for kind in group]
    assert sorted(kinds) == sorted(set(kinds)) == sorted(Kind.__args__)
    assert grouped({"load": 1, "load_double": 2, "alu": 4}) == {
        "load": 3, "store": 0, "mac": 0, "branch": 0, "vector": 0, "other": 4,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------ flash
class _Twin:
    """The same caches, slowly: a list of lines per set in order of use."""

    def __init__(self, flash: Flash, start: int, end: int) -> None:
        self.f, self.start, self.end, self.follows = flash, start, end, 0
        shapes = [flash.code, flash.data if flash.data[1] else flash.code]
        self.caches: list[dict[int, list[tuple[int, set[int]]]]] = [{}, {}]
        if not flash.data[1]:
            self.caches[1] = self.caches[0]
        self.shapes, self.counts = shapes, [0, 0, 0]

    def use(self, kind: int, at: int, size: int) -> None:
        for number in range(at // self.f.read, (at + size - 1) // self.f.read + 1):
            line = number * self.f.read // self.f.line
            sets, ways = self.shapes[kind]
            content = self.caches[kind].setdefault(line % sets, [])
            old = next((x for x in content if x[0] == line), (line, set()))
            if number not in old[1]:
                self.counts[2 if kind else int(number == self.follows)] += 1
            content[:] = [(line, old[1] | {number}), *(x for x in content if x[0] != line)][:ways]
            if not kind:
                self.follows = number + 1


@pytest.fixture(scope="module")
def simulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Flash, list[tuple[int, int, int]]], list[int]]:
    from xdeploy.bench.unicorn import _Flash
    from xdeploy.builder.zig import cc

    folder = tmp_path_factory.mktemp("flash")
    native_library("count_unicorn.c")  # the header is installed where the runners take it from
    from importlib.resources import files

    (folder / "flash.h").write_text(files("xdeploy.targets.support").joinpath("flash.h").read_text())
    (folder / "x.c").write_text(
        '#include "flash.h"\nunsigned size(void) { return sizeof(struct xd_flash); }\n'
        "void use(struct xd_flash *f, uint32_t c, uint64_t at, uint32_t n) { xd_use(f, c, at, n, 0U); }\n"
    )
    cc(["-shared", "-fPIC", "-O1", "x.c", "-o", "x.so"], folder)
    library = ctypes.CDLL(str(folder / "x.so"))
    assert library.size() == ctypes.sizeof(_Flash)
    library.use.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32]

    def run(flash: Flash, trace: list[tuple[int, int, int]]) -> list[int]:
        state, waits = _Flash(), (ctypes.c_uint64 * 3)()
        state.start, state.end, state.read, state.line = 0, 1 << 20, flash.read, flash.line
        (state.code_sets, state.code_ways), (state.data_sets, state.data_ways) = flash.code, flash.data
        state.waits = ctypes.addressof(waits)
        for kind, at, size in trace:
            library.use(ctypes.addressof(state), kind, at, size)
        return [int(n) for n in waits]

    return run


@pytest.mark.parametrize(
    "flash",
    [
        Flash(5, 8, 32, (1, 4), (1, 2), True),
        Flash(3, 16, 16, (8, 2), (1, 0), False),
        Flash(2, 8, 8, (1, 2), (1, 1), True),
    ],
)
def test_flash_against_a_slow_twin(
    flash: Flash, simulate: Callable[[Flash, list[tuple[int, int, int]]], list[int]]
) -> None:
    rng = np.random.default_rng(3)
    trace, at = [], 64
    for _ in range(3000):  # mostly straight on, sometimes back, loads here and there
        at = at + int(rng.integers(2, 12)) if rng.random() < 0.8 else int(rng.integers(0, 512))
        trace.append((0, at, int(rng.integers(2, 40))))
        if rng.random() < 0.5:
            trace.append((1, int(rng.integers(1000, 1200)), int(rng.choice([1, 2, 4]))))
    twin = _Twin(flash, 0, 1 << 20)
    for step in trace:
        twin.use(*step)
    assert simulate(flash, trace) == twin.counts
    assert min(twin.counts[0], twin.counts[2]) > 0


def test_flash_loop_in_closed_form(simulate: Callable[[Flash, list[tuple[int, int, int]]], list[int]]) -> None:
    flash = Flash(5, 8, 32, (1, 4), (1, 2), True)
    small = [(0, 0, 128)] * 10  # fits: 16 reads once, all but the first in sequence
    assert simulate(flash, small) == [0, 16, 0]
    large = [(0, 0, 160)] * 10  # one line more than fits: all reads miss every time, the first after a jump
    assert simulate(flash, large) == [9, 10 * 20 - 9, 0]
    weights = [(1, at, 4) for at in range(4096, 8192, 4)]  # streamed: one read per 8 bytes
    assert simulate(flash, weights) == [0, 0, 512]
    assert flash.cycles(Waits(9, 191, 512)) == 9 * 5 + 191 * 3 + 512 * 5


def test_the_emulators_waits_are_counted_by_layer(built: Built) -> None:
    artifact, golden = built("cortex-m4")
    m = bench(artifact, golden, load_target("cortex-m4"))
    assert sum(x.cycles or 0 for x in m.layers) == pytest.approx(m.quantities["cycles"]["value"], rel=1e-4)
    assert sum(x.energy or 0 for x in m.layers) == pytest.approx(m.quantities["energy"]["value"], rel=1e-3)
    assert sum(x.accelerator or 0 for x in m.layers) == pytest.approx(m.quantities["accelerator"]["value"], rel=1e-3)
    assert m.quantities["cycles_parts"]["flash"]["value"] > 0
    for name, q in m.quantities["classes"].items():
        assert sum(x.mix[name] for x in m.layers) == pytest.approx(q["value"], abs=len(m.layers))
    assert all(x.cycles is not None and x.cycles >= x.instructions * 0.9 for x in m.layers)


# ------------------------------------------------------------------------------------------------------ proxy
def test_proxy_at_the_published_points() -> None:
    assert [64 * sram_energy(n) for n in (8 << 10, 32 << 10, 1 << 20)] == pytest.approx([10, 20, 100], rel=0.01)
    assert 64 * weight_energy(2 << 20) == pytest.approx(1300)
    assert weight_energy(1 << 20) == sram_energy(1 << 20)
    assert (add_energy(8), add_energy(32)) == pytest.approx((0.03, 0.1), abs=0.006)
    assert (multiply_energy(8, 8), multiply_energy(32, 32)) == pytest.approx((0.2, 3.1), rel=0.01)
    assert sram_energy(100) == sram_energy(8 << 10)
    energies = [sram_energy(1 << k) for k in range(13, 21)]
    assert energies == sorted(energies)
    assert multiply_energy(8, 2) < multiply_energy(8, 3) < multiply_energy(8, 8)


@pytest.mark.parametrize(("kernel", "bits"), [("conv2d_s8_s8_3x2__armv7em", 8), ("conv2d_s8_s4_1x1__tir", 4),
                                              ("conv2d_s8_c4s8_4x2__armv7em", 8)])  # fmt: skip
def test_proxy_of_a_layer(kernel: str, bits: int) -> None:
    node = {"op": "conv2d", "kernel": kernel, "macs": 1000, "inputs": [{"bytes": 100}], "output": {"bytes": 50},
            "constants": {"weights": {"bytes": 72}}}  # fmt: skip
    mac = 0.0029948 * 8 * bits + 0.0010417 * math.sqrt(8 * bits) + 0.1
    wanted = 1000 * mac + 8 * 150 * sram_energy(32768) + 8 * 72 * sram_energy(65536)
    assert layer_energy(node, 32768, 65536) == pytest.approx(wanted * 1e-12)


# ------------------------------------------------------------------------------------------------------ tables
def _with(tmp_path: Path, old: str, new: str) -> str:
    text = (Path(__file__).resolve().parents[2] / "targets" / "cortex-m4.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new))
    return str(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('source = "Arm DDI', 'note = "Arm DDI', "table cycles has no 'source'"),
        ('source = "ST RM0432', 'sauce = "ST RM0432', "table cycles.flash has no 'source'"),
        ('source = "benchmarks', '# "benchmarks', "table cycles.calibration has no 'source'"),
        ('source = "MLPerf Tiny v1.2', '# "MLPerf', "table energy.boards has no 'source'"),
        ('source = "Arm DDI 0439 table 3-1 (Cortex-M4, zero wait states)"', 'source = ""', "'source' of table cycles"),
        ("mac = 1", "macs = 1", "macs"),
        ("alu = 1", 'alu = "one"', "'alu' of table cycles cannot be 'one'"),
        ("wait_states = 5", "wait_states = -5", "cannot be -5"),
        ("high = 365", "high = 300", "must enclose 347"),
    ],
)
def test_tables_without_source_are_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        load_target(_with(tmp_path, old, new))


def test_calibrated_boards_name_their_networks() -> None:
    for name in ("cortex-m4", "cortex-m33"):
        fit = load_target(name).cycles["calibration"]
        assert not set(fit["fitted"]) & set(fit["checked"])
        assert {*fit["fitted"], *fit["checked"]} == set(fit["residuals"])
        assert all(fit["low"] - 1 - 0.001 <= r <= fit["high"] - 1 for r in fit["residuals"].values())
    assert "calibration" not in load_target("cortex-m55").cycles
