"""Targets: one TOML file each, found in the `targets` folder (or given as a path)."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from xdeploy.errors import UsageError, choose_from

FAMILIES: dict[str, tuple[str, ...]] = {
    "arm": ("cortex-a72", "cortex-m4", "cortex-m55"),
    "cortex-m": ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"),
}
_KEYS = {
    "name": str, "description": str, "kind": str, "isa": str, "features": list, "tvm": dict, "compiler": dict,
    "memory": dict, "runner": dict, "cycles": dict, "energy": dict,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What the compiler, the planner and the runners need to know about one CPU.

    kind: "host" (shared library for this machine), "linux" (static program), "firmware" (C package).
    features: ISA names of kernels that run there (`c99` and `tir` on all), e.g. `armv7em`, `mve`, `neon`.
    tvm: the TVM target dict. compiler: `triple` and `flags` for `zig cc`. memory: flash/ram in bytes, `align`.
    runner: `emulator` = "unicorn" | "qemu" | "none" with its machine or cpu model. cycles, energy: tables, each with
    `source`.
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


def _parse(text: str, where: str) -> Target:
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"target {where}: {error}") from None
    unknown = sorted(set(value) - set(_KEYS))
    if unknown:
        raise choose_from(f"key in target {where}", unknown[0], _KEYS)
    for key, kind in _KEYS.items():
        if key not in value and key not in ("cycles", "energy"):
            raise UsageError(f"target {where}: key {key!r} is missing")
        if key in value and not isinstance(value[key], kind):
            raise UsageError(f"target {where}: {key!r} must be a {kind.__name__}, got {value[key]!r}")
    if value["kind"] not in ("host", "linux", "firmware"):
        raise UsageError(f"target {where}: kind must be host, linux or firmware, got {value['kind']!r}")
    return Target(**{**value, "features": tuple(value["features"])})
