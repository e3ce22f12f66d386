"""What a Linux board says about itself: its CPUs, clock frequencies, temperature, throttling and event counters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xdeploy.errors import shown

_CPU = "/sys/devices/system/cpu/cpu"
_FILES = (
    "/sys/devices/system/cpu/cpu[0-9]*/cpu_capacity",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
    "/sys/class/thermal/thermal_zone[0-9]*/type",
    "/sys/class/thermal/thermal_zone[0-9]*/temp",
    "/sys/class/thermal/cooling_device[0-9]*/type",
    "/sys/class/thermal/cooling_device[0-9]*/cur_state",
    "/sys/devices/platform/soc/soc:firmware/get_throttled",
    "/proc/sys/kernel/perf_event_paranoid",
)
# lines "name:value"; grep puts the path before the value, and /dev/null makes it do so for one file too
STATE = (
    "{ echo uname:$(uname -m); echo kernel:$(uname -sr); echo user:$(id -u); echo perf:$(command -v perf); "
    "echo vcgencmd:$(vcgencmd get_throttled); echo cpus:$(grep Cpus_allowed_list /proc/self/status); "
    'echo model:$(tr -d "\\000" < /proc/device-tree/model || grep -m1 "model name" /proc/cpuinfo); '
    f"grep interpreter /dev/null /proc/sys/fs/binfmt_misc/*; grep . /dev/null {' '.join(_FILES)}; }} 2>/dev/null"
)
_LINES, _WIDTH = 4096, 200  # of a reading, more is not looked at
# get_throttled of Raspberry Pi's firmware: bits of now; the same, 16 higher, since it was switched on
_PI = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
# machines (uname -m) that run programs for a CPU, as the first word of its triple
_RUNS = {"aarch64": {"aarch64", "arm64"}, "x86_64": {"x86_64", "amd64"},
         "arm": {"armv7l", "armv8l", "aarch64"}, "thumb": {"armv7l", "armv8l", "aarch64"}}  # fmt: skip
_QEMU = {"thumb": "arm"}


@dataclass(frozen=True, slots=True)
class State:
    """One reading of a board: what `STATE` printed, by name or path; frequencies in kHz."""

    values: Mapping[str, str]

    @staticmethod
    def parse(text: bytes) -> State:
        """Whatever cannot be understood is left out."""
        values = {}
        for line in text.decode("utf-8", "replace").splitlines()[:_LINES]:
            # a path may hold a colon, its value does not
            name, _, value = line.rpartition(":") if line.startswith("/") else line.partition(":")
            if name and value.strip():
                values[name] = shown(value.strip()[:_WIDTH], _WIDTH, quote=False)
        return State(values)

    def number(self, name: str) -> int | None:
        """A whole number, or None where it is missing or is none."""
        text = self.values.get(name, "")
        return int(text) if re.fullmatch(r"-?[0-9]{1,15}", text) else None

    def frequency(self, core: int, kind: str) -> int | None:
        """Frequency of a core in kHz: "scaling_cur", "scaling_max" or "cpuinfo_max"."""
        return self.number(f"{_CPU}{core}/cpufreq/{kind}_freq")

    @property
    def machine(self) -> str:
        """`uname -m`."""
        return self.values.get("uname", "unknown")

    @property
    def model(self) -> str:
        """What the board or its CPU is called."""
        return self.values.get("model", "").removeprefix("model name").strip(" :\t") or self.machine

    @property
    def cores(self) -> list[int]:
        """CPUs that a program may run on."""
        found: set[int] = set()
        listed = self.values.get("cpus", "").rpartition(":")[2]
        for part in re.findall(r"[0-9]{1,4}(?:-[0-9]{1,4})?", listed):
            low, _, high = part.partition("-")
            found |= set(range(int(low), int(high or low) + 1))
        return sorted(found)

    def fastest(self) -> int | None:
        """The core of the largest capacity, then frequency; of equal ones the last: the first serves interrupts."""

        def rank(core: int) -> tuple[int, int, int]:
            return self.number(f"{_CPU}{core}/cpu_capacity") or 0, self.frequency(core, "cpuinfo_max") or 0, core

        return max(self.cores, key=rank, default=None)

    def temperature(self) -> float | None:
        """Degrees Celsius of the hottest thermal zone."""
        zones = [self.number(name) for name in self.values if re.search(r"/thermal_zone\d+/temp$", name)]
        return max((z / 1000 for z in zones if z is not None), default=None)

    def runs(self, machine: str) -> bool:
        """Whether its CPU runs programs for `machine`, the first word of a triple."""
        return self.machine in machines_for(machine)

    def emulator(self, machine: str) -> str | None:
        """The program that its kernel starts (binfmt_misc) for programs of `machine`, if there is one."""
        found = (v.removeprefix("interpreter").strip() for n, v in self.values.items() if "/binfmt_misc/" in n)
        wanted = rf"qemu-{_QEMU.get(machine, machine)}(-static)?"
        return next((v for v in found if re.fullmatch(wanted, v.rpartition("/")[2])), None)


def machines_for(machine: str) -> list[str]:
    """CPUs, by `uname -m`, that run programs for `machine`, the first word of a triple."""
    return sorted(_RUNS.get(machine, {machine}))


def throttling(before: State, after: State, core: int | None) -> str:
    """What was seen of throttling between two readings, or that nothing was, or that the board does not tell."""
    seen, read = [], []
    for name in ("vcgencmd", "/sys/devices/platform/soc/soc:firmware/get_throttled"):
        found = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", after.values.get(name, ""))
        if found and "firmware" not in read:
            read.append("firmware")
            bits = int(found[1], 16)
            seen += [f"{told} now" for bit, told in _PI.items() if bits >> bit & 1]
            seen += [f"{told} since it was switched on" for bit, told in _PI.items() if bits >> (bit + 16) & 1]
    for name, kind in after.values.items():
        if name.endswith("/core_throttle_count"):
            read.append("counters")
            if (after.number(name) or 0) > (before.number(name) or 0):
                seen.append(f"{name.split('/')[5]} was throttled meanwhile")
        elif "/cooling_device" in name and name.endswith("/type") and re.search("cpu|processor", kind, re.I):
            read.append("cooling devices")
            if (after.number(name.removesuffix("type") + "cur_state") or 0) > 0:
                seen.append(f"cooling device {kind} is active")
    if core is not None:
        limit, most = after.frequency(core, "scaling_max"), after.frequency(core, "cpuinfo_max")
        if limit is not None and most is not None:
            read.append("frequency limit")
            if limit < most:
                seen.append(f"the frequency is limited to {limit} of {most} kHz")
    if not read:
        return "cannot be told: the board shows no throttle counter, cooling device or frequency limit"
    return "; ".join(seen) or f"none seen ({', '.join(dict.fromkeys(read))})"


def environment(before: State, after: State, core: int | None) -> dict[str, Any]:
    """What belongs beside a time that was measured on the board."""
    values: dict[str, Any] = {"machine": after.model, "cpu": after.machine, "kernel": after.values.get("kernel")}
    values["throttling"] = throttling(before, after, core)
    values["temperature_celsius"] = {"before": before.temperature(), "after": after.temperature()}
    if core is not None:
        values["governor"] = after.values.get(f"{_CPU}{core}/cpufreq/scaling_governor", "unknown: no cpufreq")
        values["frequency_khz"] = {
            "before": before.frequency(core, "scaling_cur"), "after": after.frequency(core, "scaling_cur"),
            "limit": after.frequency(core, "scaling_max"), "maximum": after.frequency(core, "cpuinfo_max"),
        }  # fmt: skip
    return values


# ------------------------------------------------------------------------------------------------- counters
EVENTS = ("instructions", "cycles")


def perf_obstacle(state: State) -> str | None:
    """Why `perf stat` cannot count there, or None."""
    if "perf" not in state.values:
        return "perf is not installed on the board"
    paranoid = state.number("/proc/sys/kernel/perf_event_paranoid")
    if paranoid is not None and paranoid > 2 and state.values.get("user") != "0":
        return f"perf_event_paranoid is {paranoid} on the board: `sysctl kernel.perf_event_paranoid=2` allows counting"
    return None


def parse_perf(text: bytes) -> dict[str, int]:
    """Counts by event of `perf stat -x,`; CPUs of several kinds are added, what was not counted is left out."""
    sums: dict[str, int] = {}
    for line in text.decode("utf-8", "replace").splitlines()[:_LINES]:
        fields = line.split(",")
        if len(fields) < 3 or not re.fullmatch(r"[0-9]{1,18}", fields[0]):
            continue
        for event in EVENTS:
            if re.fullmatch(rf"(?:[\w-]+/)?{event}[/:u]*", fields[2]):
                sums[event] = sums.get(event, 0) + int(fields[0])
    return sums
