"""Readings of boards that are not here: Raspberry Pi, big.LITTLE, x86, and nonsense."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import numpy as np
import pytest

from xdeploy.bench.board import STATE, State, environment, parse_perf, perf_obstacle, throttling

CPU = "/sys/devices/system/cpu/cpu"


def reading(**values: object) -> State:
    return State.parse("\n".join(f"{k}:{v}" for k, v in values.items()).encode())


def state(lines: Mapping[str, object]) -> State:
    return State.parse("\n".join(f"{k}:{v}" for k, v in lines.items()).encode())


PI = {
    "uname": "aarch64", "model": "Raspberry Pi 4 Model B Rev 1.4", "cpus": "Cpus_allowed_list: 0-3",
    **{f"{CPU}{i}/cpufreq/scaling_governor": "ondemand" for i in range(4)},
    **{f"{CPU}{i}/cpufreq/scaling_cur_freq": 600000 for i in range(4)},
    **{f"{CPU}{i}/cpufreq/scaling_max_freq": 1800000 for i in range(4)},
    **{f"{CPU}{i}/cpufreq/cpuinfo_max_freq": 1800000 for i in range(4)},
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal", "/sys/class/thermal/thermal_zone0/temp": 61345,
}  # fmt: skip


def test_raspberry_pi() -> None:
    before, after = state(PI), state(PI | {f"{CPU}3/cpufreq/scaling_cur_freq": 1800000})
    assert after.fastest() == 3
    told = environment(before, after, 3)
    assert told["machine"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert told["governor"] == "ondemand"
    assert told["frequency_khz"] == {"before": 600000, "after": 1800000, "limit": 1800000, "maximum": 1800000}
    assert told["temperature_celsius"] == {"before": 61.345, "after": 61.345}
    assert told["throttling"] == "none seen (frequency limit)"


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("throttled=0x0", "none seen (firmware)"),
        ("throttled=0x50005", "undervoltage now; throttled now; undervoltage since it was switched on; "
         "throttled since it was switched on"),
        ("throttled=0x80000", "soft temperature limit since it was switched on"),
        ("VCHI initialization failed", "cannot be told"),
    ],
)  # fmt: skip
def test_firmware_of_a_raspberry_pi(word: str, told: str) -> None:
    s = state({"vcgencmd": word})
    assert throttling(s, s, None).startswith(told)


def test_limits_counters_and_cooling() -> None:
    before = state({f"{CPU}1/thermal_throttle/core_throttle_count": 7})
    lines = {
        f"{CPU}1/thermal_throttle/core_throttle_count": 9, f"{CPU}1/cpufreq/scaling_max_freq": 1000,
        f"{CPU}1/cpufreq/cpuinfo_max_freq": 2000, "/sys/class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "/sys/class/thermal/cooling_device0/cur_state": 2, "/sys/class/thermal/cooling_device1/type": "pwm-fan",
        "/sys/class/thermal/cooling_device1/cur_state": 3,
    }  # fmt: skip
    told = throttling(before, state(lines), 1)
    assert told.split("; ") == [
        "cpu1 was throttled meanwhile", "cooling device cpufreq-cpu0 is active",
        "the frequency is limited to 1000 of 2000 kHz",
    ]  # fmt: skip


def test_fastest_core_of_big_little() -> None:
    """By capacity, else frequency; only among those a program may use."""
    sizes = {0: 381, 1: 381, 4: 1024, 5: 1024}
    lines: dict[str, object] = {f"{CPU}{i}/cpu_capacity": c for i, c in sizes.items()}
    assert state(lines | {"cpus": "Cpus_allowed_list:\t0-1,4-5"}).fastest() == 5
    assert state(lines | {"cpus": "Cpus_allowed_list: 0-1"}).fastest() == 1
    lines = {f"{CPU}0/cpufreq/cpuinfo_max_freq": 2000, f"{CPU}1/cpufreq/cpuinfo_max_freq": 1000}
    assert state(lines | {"cpus": "Cpus_allowed_list: 0-1"}).fastest() == 0
    assert state({}).fastest() is None


def test_cpus_that_run_programs() -> None:
    assert reading(uname="aarch64").runs("aarch64")
    assert reading(uname="aarch64").runs("arm")
    assert reading(uname="armv7l").runs("arm")
    assert not reading(uname="armv7l").runs("aarch64")
    assert not reading(uname="x86_64").runs("aarch64")
    assert reading(uname="riscv64").runs("riscv64")


def test_emulator_in_the_kernel() -> None:
    s = state({"/proc/sys/fs/binfmt_misc/qemu-aarch64": "interpreter /usr/libexec/qemu-binfmt/qemu-aarch64-static"})
    assert s.emulator("aarch64") == "/usr/libexec/qemu-binfmt/qemu-aarch64-static"
    assert s.emulator("arm") is None


def test_nonsense_is_left_out() -> None:
    rng = np.random.default_rng(3)
    for size in (0, 1, 100, 100_000):
        s = State.parse(rng.integers(0, 256, size).astype(np.uint8).tobytes())
        environment(s, s, s.fastest())
    hostile = {"uname": "a\x1b[2Jb", "cpus": "Cpus_allowed_list: 9-1,3-3,x", f"{CPU}3/cpu_capacity": "1e999",
               "/sys/class/thermal/thermal_zone0/temp": "nan"}  # fmt: skip
    s = state(hostile)
    assert "\x1b" not in s.machine
    assert s.cores == [3]
    assert s.temperature() is None
    assert len(state({"cpus": "Cpus_allowed_list: 0-9999"}).cores) == 10_000


def test_reading_of_this_machine() -> None:
    """The script is POSIX sh, and what it prints is understood."""
    done = subprocess.run(["sh", "-c", STATE], capture_output=True, check=False)
    s = State.parse(done.stdout)
    assert s.machine == subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    assert s.cores
    assert done.stderr == b""
    assert "'" not in STATE


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("123,,instructions:u,9,100.00,,", {"instructions": 123}),
        ("<not supported>,,instructions:u,0,100.00,,", {}),
        ("<not counted>,,cycles:u,0,100.00,,", {}),
        ("5,,armv8_cortex_a72/instructions/u,1,1\n7,,armv8_cortex_a53/instructions/u,1,1", {"instructions": 12}),
        ("5,,cpu_core/cycles/u,1,1\n<not counted>,,cpu_atom/cycles/u,1,1", {"cycles": 5}),
        ("nan,,cycles:u\n1e9,,cycles:u\n-4,,cycles:u\n,,\n5,,recycles", {}),
    ],
)
def test_perf_output(line: str, counts: dict[str, int]) -> None:
    assert parse_perf(line.encode()) == counts


def test_perf_that_may_not_count() -> None:
    paranoid = "/proc/sys/kernel/perf_event_paranoid"
    assert "not installed" in str(perf_obstacle(state({})))
    assert perf_obstacle(state({"perf": "/usr/bin/perf", paranoid: 2, "user": 1000})) is None
    assert "perf_event_paranoid is 3" in str(perf_obstacle(state({"perf": "/usr/bin/perf", paranoid: 3, "user": 1000})))
    assert perf_obstacle(state({"perf": "/usr/bin/perf", paranoid: 3, "user": 0})) is None
