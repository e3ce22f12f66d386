"""What each ecosystem calls the cores that tuned assembly runs on, and the check that a compiler was told of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdeploy.target import Target


@dataclass(frozen=True, slots=True)
class Core:
    """One instruction set that kernels are written for.

    macro: what GCC and Clang predefine where its instructions may be used (ACLE, Arm IHI 0053); of several, one
    suffices: zig's Clang tells of a Cortex-M55 only the architecture.
    zephyr: the Kconfig expression that is true on such cores (Zephyr, arch/arm/core/Kconfig); "" where it has none.
    pack: attributes of CMSIS-Pack conditions, one of which must hold (PACK.xsd, ConditionType).
    """

    macro: str
    zephyr: str = ""
    pack: tuple[dict[str, str], ...] = ()


_NOTE = re.compile(r'^(\s*\.section\s+"?\.note\.GNU-stack[^\n]*)$', re.MULTILINE)


def _cores(*names: str, **more: str) -> tuple[dict[str, str], ...]:
    return tuple({"Dcore": f"Cortex-{name}", **more} for name in names)


# by the feature of the target that decides, the most demanding first
_CORES = {
    "mve": Core("__ARM_FEATURE_MVE __ARM_ARCH_8_1M_MAIN__", "ARMV8_1_M_MVEI", (
        *_cores("M52", "M55", "M85", Dmve="MVE"), *_cores("M52", "M55", "M85", Dmve="FP_MVE"))),
    "armv7em": Core("__ARM_FEATURE_DSP", "CPU_CORTEX_M4 || CPU_CORTEX_M7 || ARMV8_M_DSP", (
        *_cores("M4", "M7", "M52", "M55", "M85"), *_cores("M33", "M35P", Ddsp="DSP"))),
    "armv7m": Core("__thumb2__", "ARMV7_M_ARMV8_M_MAINLINE", _cores(
        "M3", "M4", "M7", "M33", "M35P", "M52", "M55", "M85")),
    "armv6m": Core("__thumb__", "CPU_CORTEX_M", _cores(
        "M0", "M0+", "M3", "M4", "M7", "M23", "M33", "M35P", "M52", "M55", "M85")),
    "neon": Core("__aarch64__"),
    "x86": Core("__x86_64__"),
}  # fmt: skip


def core_of(target: Target) -> Core | None:
    """The instruction set of the target's tuned kernels; None where the table knows none."""
    return next((core for feature, core in _CORES.items() if feature in target.features), None)


def guarded(target: Target, assembly: str) -> str:
    """The assembly as a project may compile it: a wrong core is told in a sentence, and its linker has no complaint."""
    # bare-metal compilers leave the note out, and GNU's linker warns of every object without it as soon as one has it
    return _guard(target) + _NOTE.sub(r"#ifdef __linux__\n\1\n#endif", assembly)


def _guard(target: Target) -> str:
    core = core_of(target)
    if core is None:
        return ""
    flags = " ".join(target.compiler.get("gcc_flags", ())) or "the flags of that CPU"
    absent = " && ".join(f"!defined({macro})" for macro in core.macro.split())
    return f'#if {absent}\n#error "these kernels are for {target.name}: compile with {flags}"\n#endif\n'
