"""Energy counters of the CPU, on a made-up sysfs tree: closed form, wrap-around, several packages, no permission."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xdeploy.bench import rapl
from xdeploy.bench.rapl import BURST_S, IDLE_S, ROUNDS, Zone, measure, packages, quantities, with_rapl
from xdeploy.handover import Measurement

IDLE_W, BUSY_W, STEP_S = 10.0, 35.0, 0.1
RANGE = 25_000_000  # microjoules: the counters wrap in every run, but not twice in a burst


class Machine:
    """Counters that move as time does: a clock that only `sleep` and `step` move, each at its power."""

    def __init__(self, root: Path, names: dict[str, str], start: int = 0) -> None:
        self.now, self.folders = 0.0, []
        for folder, name in names.items():
            at = root / folder
            at.mkdir(parents=True)
            (at / "name").write_text(f"{name}\n")
            (at / "max_energy_range_uj").write_text(f"{RANGE}\n")
            (at / "energy_uj").write_text(f"{start}\n")
            self.folders.append(at)

    def spend(self, seconds: float, watts: float) -> None:
        self.now += seconds
        for at in self.folders:
            before = int((at / "energy_uj").read_text())
            (at / "energy_uj").write_text(f"{(before + round(seconds * watts * 1e6)) % RANGE}\n")

    def sleep(self, seconds: float) -> None:
        self.spend(seconds, IDLE_W)

    def step(self) -> None:
        self.spend(STEP_S, BUSY_W)

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("start", [0, RANGE - 5, RANGE // 2])
def test_energy_in_closed_form(tmp_path: Path, start: int) -> None:
    """Whatever the counters hold in the beginning, and wherever they wrap."""
    machine = Machine(tmp_path, {"intel-rapl:0": "package-0"}, start)
    zones = packages(tmp_path)
    assert not isinstance(zones, str)
    found = measure(machine.step, zones, machine.clock, machine.sleep)
    assert found.idle == pytest.approx([IDLE_W] * ROUNDS)
    assert found.gross == pytest.approx([BUSY_W * STEP_S] * ROUNDS)
    assert found.net == pytest.approx([(BUSY_W - IDLE_W) * STEP_S] * ROUNDS)
    assert found.inferences == ROUNDS * round(BURST_S / STEP_S)
    assert machine.now == pytest.approx(ROUNDS * (IDLE_S + BURST_S) + STEP_S)
    q = quantities(found)
    assert q["energy"]["value"] == pytest.approx(2.5)
    assert "package energy of the whole CPU (package-0)" in q["energy"]["note"]


def test_packages_add_up_and_their_parts_do_not(tmp_path: Path) -> None:
    names = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "uncore", "intel-rapl:1": "package-1",
        "intel-rapl-mmio:0": "package-0", "intel-rapl:2": "psys",
    }  # fmt: skip
    machine = Machine(tmp_path, names)
    zones = packages(tmp_path)
    assert not isinstance(zones, str)
    assert [z.name for z in zones] == ["package-0", "package-1"]
    found = measure(machine.step, zones, machine.clock, machine.sleep)
    assert found.gross == pytest.approx([2 * BUSY_W * STEP_S] * ROUNDS)


def test_wrapping_by_hand(tmp_path: Path) -> None:
    (tmp_path / "energy_uj").write_text("7\n")
    zone = Zone(tmp_path, "package-0", 100)
    assert zone.since(3) == 4
    assert zone.since(90) == 17


def test_no_counters_are_told(tmp_path: Path) -> None:
    assert "shows no energy counters" in str(packages(tmp_path / "none"))
    Machine(tmp_path / "psys", {"intel-rapl:2": "psys"})
    assert "shows no energy counters" in str(packages(tmp_path / "psys"))
    Machine(tmp_path / "broken", {"intel-rapl:0": "package-0"})
    (tmp_path / "broken/intel-rapl:0/energy_uj").write_text("many\n")
    assert "cannot be read" in str(packages(tmp_path / "broken"))


def test_no_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(tmp_path, {"intel-rapl:0": "package-0"})
    (tmp_path / "intel-rapl:0/energy_uj").chmod(0)
    if os.geteuid() == 0:  # root may read everything: the refusal is made up

        def refused(zone: Zone) -> int:
            raise PermissionError

        monkeypatch.setattr(Zone, "read", refused)
    assert "run as root" in str(packages(tmp_path))


def measurement() -> Measurement:
    return Measurement("x86-64", "host", "bit-exact", None, {}, tells={"can": ["outputs"], "cannot": {"stack": "own"}})


def test_what_the_measurement_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def step() -> None:
        machine.step()

    def steps() -> Callable[[], None]:
        made.append(1)
        return step

    without = with_rapl(measurement(), steps, tmp_path / "none")
    assert "shows no energy counters" in without.tells["cannot"]["energy"]
    assert without.tells["cannot"]["stack"] == "own"
    assert not made  # nothing was loaded for a machine without counters
    machine = Machine(tmp_path, {"intel-rapl:0": "package-0"})
    monkeypatch.setattr(rapl, "measure", lambda s, z: measure(s, z, machine.clock, machine.sleep))
    found = with_rapl(measurement(), steps, tmp_path)
    assert found.tells == {"can": ["outputs", "energy"], "cannot": {"stack": "own"}}
    assert found.quantities["energy_gross"]["value"] == pytest.approx(3.5)
