"""Targets: one TOML file each, found in the `targets` folder (or given as a path)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from xdeploy.cpu import cpu_flags
from xdeploy.errors import UsageError, choose_from, not_there
from xdeploy.files import read_toml

FAMILIES: dict[str, tuple[str, ...]] = {
    "arm": ("cortex-a72", "cortex-m4", "cortex-m55"),
    "cortex-m": ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"),
}
_KEYS = {
    "name": str, "description": str, "kind": str, "isa": str, "features": list, "tvm": dict, "compiler": dict,
    "memory": dict, "runner": dict, "cycles": dict, "energy": dict, "levels": list,
}  # fmt: skip

_FOUND_BY = ("hwcap", "hwcap2", "cpuid")  # how a level is found
_COSTS = {"alu", "multiply", "mac", "multiply_long", "mac_long", "divide", "load", "load_pipelined", "load_double",
          "store", "branch_taken", "branch_not_taken", "vector", "vector_overlap", "gather", "issue"}  # fmt: skip
# tables of numbers with their source: required and further numbers, required texts, required lists
_TABLES: dict[str, tuple[set[str], set[str], set[str], set[str]]] = {
    "cycles": ({"alu", "load", "store", "branch_taken", "branch_not_taken"}, _COSTS, {"source"}, set()),
    "cycles.flash": (
        {"wait_states", "read", "line", "code_sets", "code_ways"}, {"data_sets", "data_ways", "prefetch"}, {"source"},
        set(),
    ),
    "cycles.calibration": (
        {"factor", "low", "high"}, {"residuals"}, {"board", "engine", "source"}, {"fitted", "checked"},
    ),
    "energy": (set(), set(), set(), {"boards"}),
    "energy.boards": ({"clock_hz"}, {"pj_per_cycle", "low", "high"}, {"name", "source"}, set()),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """Instructions that some CPUs of a target have on top of it.

    Found under Linux in one of three ways. hwcap, hwcap2: number of a bit of AT_HWCAP or AT_HWCAP2, else -1. cpuid:
    names of x86-64's features as /proc/cpuinfo has them, all of which the CPU must have (`builder.levels` knows where
    CPUID tells them). features: of kernels, added to the target's. mcpu, mattr: for TVM. user_cpus: CPUs of QEMU's user
    mode whose best level it is.
    """

    name: str
    isa: str
    features: tuple[str, ...]
    mcpu: str
    mattr: tuple[str, ...]
    hwcap: int = -1
    hwcap2: int = -1
    cpuid: tuple[str, ...] = ()
    user_cpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What the compiler, the planner and the runners need to know about one CPU.

    kind: "host" (shared library for this machine), "linux" (static program), "firmware" (C package).
    features: ISA names of kernels that run there (`c99` and `tir` on all), e.g. `armv7em`, `mve`, `neon`.
    tvm: the TVM target dict. compiler: `triple` and `flags` for `zig cc`. memory: flash/ram in bytes, `align`.
    runner: `emulator` = "unicorn" | "qemu" | "none" with its machine or cpu model. cycles: cost per class of
    instructions in cycles, with `flash` (wait states and caches) and `calibration` (the fitted factor and what it was
    found to be off by); energy: `boards`, the first is the default; each of these tables with `source`.
    levels: further instructions that some of its CPUs have, the best last; a package holds kernels for all of them.
    """

    name: str
    description: str
    kind: str
    isa: str
    features: tuple[str, ...]
    tvm: Mapping[str, Any]
    compiler: Mapping[str, Any]
    memory: Mapping[str, Any]
    runner: Mapping[str, Any]
    cycles: Mapping[str, Any] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)
    levels: tuple[Level, ...] = ()

    def at(self, level: Level) -> Target:
        """This target on CPUs that have a level."""
        tvm = {**self.tvm, "mcpu": level.mcpu, "mattr": list(level.mattr)}
        return replace(self, isa=level.isa, features=(*self.features, *level.features), tvm=tvm, levels=())

    def levels_here(self) -> tuple[Level, ...]:
        """Those levels of an x86-64 target that this machine's CPU has."""
        flags = cpu_flags()
        return tuple(level for level in self.levels if level.cpuid and set(level.cpuid) <= flags)

    def level_of(self, cpu: str) -> str:
        """Name of the level that a CPU of QEMU's user mode runs; "" is the target's own."""
        return next((level.name for level in self.levels if cpu in level.user_cpus), "")

    @property
    def align(self) -> int:
        """Alignment in bytes of every tensor in the arena and of packed constants."""
        return int(self.memory.get("align", 16))


def target_names() -> list[str]:
    """Names of the bundled targets."""
    folder = files("xdeploy.targets")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_target(name: str) -> Target:
    """A bundled target by name, or one of the user's by the path of its TOML file.

    Raises:
        UsageError: unknown name, unreadable file, unknown or missing key.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise not_there(path, "target file") from None
        except OSError as error:
            raise UsageError(f"target file {name}: {error.strerror}") from None
        return _parse(text, name)
    if name not in target_names():
        raise choose_from("target", name, [*target_names(), *FAMILIES])
    return _parse((files("xdeploy.targets") / f"{name}.toml").read_text(encoding="utf-8"), name)


def resolve_targets(names: list[str]) -> list[Target]:
    """Targets for a list of names and families, in order, without repeats."""
    flat = [member for name in names for member in FAMILIES.get(name, (name,))]
    return [load_target(name) for name in dict.fromkeys(flat)]


def host_target() -> Target:
    """The target of the machine this runs on.

    Raises:
        UsageError: no bundled target fits.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise UsageError(
            f"no host target for {platform.machine()} yet", hint="set bench.accuracy = false in the recipe"
        )
    return load_target("x86-64")


def measuring_target() -> Target:
    """A target of one feature level, the best that this machine has: half the work of building `host_target`.

    Raises:
        UsageError: no bundled target fits.
    """
    here = host_target().levels_here()
    return load_target(f"x86-64-v4-{here[-1].name}" if here else "x86-64-v3")


def _parse(text: str, where: str) -> Target:
    try:
        value = read_toml(text)
    except ValueError as error:
        raise UsageError(f"target {where}: {error}") from None
    unknown = sorted(set(value) - set(_KEYS))
    if unknown:
        raise choose_from(f"key in target {where}", unknown[0], _KEYS)
    for key, kind in _KEYS.items():
        if key not in value and key not in ("cycles", "energy", "levels"):
            raise UsageError(f"target {where}: key {key!r} is missing")
        if key in value and not isinstance(value[key], kind):
            raise UsageError(f"target {where}: {key!r} must be a {kind.__name__}, got {value[key]!r}")
    if value["kind"] not in ("host", "linux", "firmware"):
        raise UsageError(f"target {where}: kind must be host, linux or firmware, got {value['kind']!r}")
    _check_tables(value, where)
    levels = tuple(_level(level, where) for level in value.get("levels", ()))
    return Target(**{**value, "features": tuple(value["features"]), "levels": levels})


def _level(value: Any, where: str) -> Level:
    """One of the tables [[levels]]."""
    if not isinstance(value, dict):
        raise UsageError(f"target {where}: a level must be a table, got {value!r}")
    kinds = {"name": str, "isa": str, "features": list, "mcpu": str, "mattr": list, "hwcap": int, "hwcap2": int,
             "cpuid": list, "user_cpus": list}  # fmt: skip
    unknown = sorted(set(value) - set(kinds))
    if unknown:
        raise choose_from(f"key in a level of target {where}", unknown[0], kinds)
    for key, kind in kinds.items():
        if key in value and not isinstance(value[key], kind):
            raise UsageError(f"target {where}: {key!r} of a level must be a {kind.__name__}, got {value[key]!r}")
        if key not in value and key not in (*_FOUND_BY, "user_cpus"):
            raise UsageError(f"target {where}: a level has no {key!r}")
    if sum(key in value for key in _FOUND_BY) != 1:
        raise UsageError(f"target {where}: level {value['name']!r} wants one of {', '.join(_FOUND_BY)}")
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Level(**lists)


def _check_tables(value: Mapping[str, Any], where: str) -> None:
    """The tables of costs: known keys only, all numbers positive, and none without its source."""
    costs, energy = value.get("cycles", {}), value.get("energy", {})
    if costs:
        _check_table({k: v for k, v in costs.items() if k not in ("flash", "calibration")}, "cycles", where)
    for name in ("flash", "calibration"):
        if name in costs:
            _check_table(costs[name], f"cycles.{name}", where)
    if energy:
        _check_table(energy, "energy", where)
    for board in energy.get("boards", ()):
        _check_table(board, "energy.boards", where)
    enclosed = [(costs["calibration"], 1.0)] if "calibration" in costs else []
    enclosed += [(board, board["pj_per_cycle"]) for board in energy.get("boards", ()) if "pj_per_cycle" in board]
    for table, middle in enclosed:
        low, high = table.get("low", middle), table.get("high", middle)
        if not low <= middle <= high:
            raise UsageError(f"target {where}: low and high must enclose {middle:g}, got {low:g} and {high:g}")


def _check_table(table: Any, name: str, where: str) -> None:
    required, further, texts, lists = _TABLES[name]
    if not isinstance(table, dict):
        raise UsageError(f"target {where}: {name} must be a table, got {table!r}")
    missing = sorted((required | texts | lists) - set(table))
    if missing:
        raise UsageError(f"target {where}: table {name} has no {missing[0]!r}", hint="a number without source is none")
    unknown = sorted(set(table) - required - further - texts - lists)
    if unknown:
        raise choose_from(
            f"key in table {name} of target {where}", unknown[0], sorted(required | further | texts | lists)
        )
    for key, given in table.items():
        wanted: type | tuple[type, ...] = str if key in texts else list if key in lists else (int, float)
        wanted = dict if key == "residuals" else wanted
        if not isinstance(given, wanted) or given == "" or (isinstance(given, int | float) and given < 0):
            raise UsageError(f"target {where}: {key!r} of table {name} cannot be {given!r}")
