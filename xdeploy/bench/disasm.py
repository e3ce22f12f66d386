"""Machine code of AArch64, Armv7 (A32, T32) and x86-64 by class, read with capstone.

The classes are those of `thumb`, which reads the code of Cortex-M (with Helium, which capstone does not know) without
capstone. One instruction is counted once, by what it does first: an x86 instruction that computes on an operand in
memory counts as the computation. Prefetches count as loads, everything of NEON, VFP, SSE and AVX as vector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from xdeploy.bench import thumb
from xdeploy.bench.thumb import Instruction, Kind
from xdeploy.errors import ToolchainError

Decoder = Callable[[bytes], Iterator[Instruction]]

_KINDS_A64: dict[str, Kind] = {
    **dict.fromkeys(("mul", "mneg"), "multiply"),
    **dict.fromkeys(("madd", "msub"), "mac"),
    **dict.fromkeys(("smull", "umull", "smnegl", "umnegl", "smulh", "umulh"), "multiply_long"),
    **dict.fromkeys(("smaddl", "umaddl", "smsubl", "umsubl"), "mac_long"),
    **dict.fromkeys(("sdiv", "udiv"), "divide"),
    **dict.fromkeys(("ldp", "ldnp", "ldpsw", "ldxp", "ldaxp"), "load_double"),
    **dict.fromkeys(("stp", "stnp"), "store_double"),
}
_JUMPS_A64 = re.compile(r"(?:b|bl|br|blr|ret|eret|[ct]bn?z|(?:bra|blra|ret)[ab]+z?)(?:\..*)?")
_VECTOR_A64 = re.compile(r"(?<![\w#])[vbhsdqzp]\d+\b")

_KINDS_ARM: dict[str, Kind] = {
    **dict.fromkeys(("mul", "smmul", "smmulr", "smuad", "smuadx", "smusd", "smusdx", "usad8"), "multiply"),
    **dict.fromkeys(("smull", "umull"), "multiply_long"),
    **dict.fromkeys(("mla", "mls", "smlad", "smladx", "smlsd", "smlsdx", "usada8"), "mac"),
    **dict.fromkeys(("smmla", "smmlar", "smmls", "smmlsr"), "mac"),
    **dict.fromkeys(("umlal", "umaal"), "mac_long"),
    **dict.fromkeys(("sdiv", "udiv"), "divide"),
    **dict.fromkeys(("ldrd", "ldrexd"), "load_double"),
    **dict.fromkeys(("strd",), "store_double"),
    **dict.fromkeys(("push",), "store_multiple"),
    **dict.fromkeys(("pop",), "load_multiple"),
}
_JUMPS_ARM = frozenset({"b", "bl", "blx", "bx", "bxj", "cbz", "cbnz", "tbb", "tbh"})
# by how the name begins, the first that fits
_STEMS_ARM: tuple[tuple[str, Kind], ...] = (
    ("vld", "vector_memory"), ("vst", "vector_memory"), ("vpush", "vector_memory"), ("vpop", "vector_memory"),
    ("v", "vector"), ("smlal", "mac_long"), ("smlsld", "mac_long"), ("smla", "mac"), ("smul", "multiply"),
    ("ldm", "load_multiple"), ("stm", "store_multiple"), ("ldr", "load"), ("pld", "load"), ("lda", "load"),
    ("str", "store"), ("stl", "store"),
)  # fmt: skip

_KINDS_X86: dict[str, Kind] = {
    **dict.fromkeys(("mul", "mulx"), "multiply_long"),
    **dict.fromkeys(("div", "idiv"), "divide"),
    **dict.fromkeys(("push", "pushfq"), "store"),
    **dict.fromkeys(("pop", "popfq", "leave"), "load"),
}
_JUMPS_X86 = re.compile(r"j\w+|call|ret|loop\w*")
_VECTOR_X86 = re.compile(r"\b(?:[xyz]?mm\d+|k\d)\b")
_MOVES_X86 = re.compile(r"mov|cmov|stos|lods|xchg")
_VECTOR_MOVES_X86 = re.compile(
    r"v?(?:p?mov|lddqu|p?broadcast|p?gather|p?scatter|p?maskmov|p?compress|p?expand|pinsr|pextr|insert|extract|kmov)|kmov"
)
MACHINES = ("aarch64", "arm", "thumb", "x86_64")  # the first word of a compiler's triple


def decoder(machine: str) -> Decoder:
    """What reads the code of a target; `machine` is its manifest's: aarch64, arm, thumb or x86_64.

    Raises:
        ToolchainError: capstone is missing, or there is no decoder for the machine.
    """
    return thumb.decode if machine.startswith("thumb") else disassembler(machine)


def disassembler(machine: str) -> Decoder:
    """As `decoder`, but always by capstone, also for Thumb.

    Raises:
        ToolchainError: see `decoder`.
    """
    try:
        import capstone as c
    except ImportError:
        raise ToolchainError("the Python package 'capstone' is not installed", hint="pip install capstone") from None
    rows: dict[str, tuple[int, int, Callable[[str, str], Instruction]]] = {
        "aarch64": (c.CS_ARCH_ARM64, c.CS_MODE_ARM, _a64),
        "arm": (c.CS_ARCH_ARM, c.CS_MODE_ARM, _arm),
        "thumb": (c.CS_ARCH_ARM, c.CS_MODE_THUMB, _arm),
        "x86_64": (c.CS_ARCH_X86, c.CS_MODE_64, _x86),
    }
    if machine not in rows:
        raise ToolchainError(f"no decoder for code of {machine}; there is one for {', '.join(MACHINES)}")
    architecture, mode, classify = rows[machine]
    engine = c.Cs(architecture, mode)
    engine.skipdata = True  # goes on behind what it does not know, which comes as a pseudo-instruction

    def decode(code: bytes) -> Iterator[Instruction]:
        for found in engine.disasm(code, 0):
            yield classify(_name(found), found.op_str) if found.id else Instruction("other")

    return decode


def _name(found: Any) -> str:
    """Without the condition, but with x86's string instructions and jumps in full."""
    return str(found.insn_name() or found.mnemonic)


def _a64(name: str, operands: str) -> Instruction:
    if _JUMPS_A64.fullmatch(name):
        return Instruction("branch", jumps=True)
    if name.startswith(("ld", "prf", "st")):
        if _VECTOR_A64.match(operands.lstrip("{ ")):
            return Instruction("vector_memory")
        kind: Kind = _KINDS_A64.get(name) or ("store" if name.startswith("st") else "load")
        return Instruction(kind, 2 if kind in ("load_double", "store_double") else 1)
    return Instruction("vector") if _VECTOR_A64.search(operands) else Instruction(_KINDS_A64.get(name, "alu"))


def _arm(name: str, operands: str) -> Instruction:
    first = operands.partition(",")[0].strip()
    if name in _JUMPS_ARM:
        return Instruction("branch", jumps=True)
    by_stem: list[Kind] = [k for stem, k in _STEMS_ARM if name.startswith(stem)]
    kind: Kind = _KINDS_ARM.get(name) or (by_stem[0] if by_stem else "alu")
    if kind in ("load_multiple", "store_multiple"):
        listed = operands.partition("{")[2].rstrip("}^ ").split(", ")
        return Instruction(kind, len(listed), kind == "load_multiple" and "pc" in listed)
    if kind in ("load_double", "store_double"):
        return Instruction(kind, 2)
    if first == "pc" and kind in ("alu", "load"):  # written to: a jump
        return Instruction("branch" if kind == "alu" else kind, jumps=True)
    return Instruction(kind)


def _x86(name: str, operands: str) -> Instruction:
    if _JUMPS_X86.fullmatch(name):
        return Instruction("branch", jumps=True)
    memory = "[" in operands
    if _VECTOR_X86.search(operands) or (name.startswith("v") and name not in ("verr", "verw")):
        return Instruction("vector_memory" if memory and _VECTOR_MOVES_X86.match(name) else "vector")
    if name == "imul":
        return Instruction("multiply" if "," in operands else "multiply_long")
    if memory and _MOVES_X86.match(name):
        return Instruction("store" if "[" in operands.partition(",")[0] else "load")
    return Instruction(_KINDS_X86.get(name, "alu"))
