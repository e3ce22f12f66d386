"""Instruction classes against an assembler, and the cycle model against sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from xdeploy.bench.model import UNKNOWN, instruction_mix, modelled
from xdeploy.bench.runner import Block
from xdeploy.bench.thumb import Instruction, decode
from xdeploy.builder.elf import Elf, Segment
from xdeploy.builder.zig import cc

CASES = """
adds r0, r1, r2          | alu
movw r0, #1234           | alu
sxtb16 r0, r1, ror #8    | alu
ssat r0, #8, r1          | alu
it eq                    | alu
moveq r0, r1             | alu
muls r0, r1, r0          | multiply
mul r8, r9, r10          | multiply
mla r0, r1, r2, r3       | mac
smlad r0, r1, r2, r3     | mac
smmlar r0, r1, r2, r3    | mac
smull r0, r1, r2, r3     | multiply_long
smlal r0, r1, r2, r3     | mac_long
sdiv r0, r1, r2          | divide
ldr r0, [r1]             | load
ldrb.w r0, [r1, #200]    | load
ldrsb r0, [r1, r2]       | load
ldr r0, [sp, #4]         | load
ldrd r0, r1, [r2]        | load_double
ldm r0!, {r1, r2, r3}    | load_multiple 3
pop {r4, r5, pc}         | load_multiple 3 jump
ldm.w r0, {r4, r8, r9}   | load_multiple 3
str r0, [r1]             | store
strb r0, [r1, #3]!       | store
strd r0, r1, [r2]        | store_double
push {r4, lr}            | store_multiple 2
push.w {r4, r8, lr}      | store_multiple 3
bx lr                    | branch jump
bl 0f                    | branch jump
beq 0f                   | branch jump
bne.w 0f                 | branch jump
b 0f                     | branch jump
cbz r0, 0f               | branch jump
dsb                      | alu
tbb [pc, r0]             | branch jump
"""
HELIUM = """
vldrb.8 q0, [r0], #16        | vector_memory
vmladava.s8 r0, q0, q1       | vector
vadd.i32 q0, q0, q1          | vector
vstrb.32 q0, [r0]            | vector_memory
vldrb.u8 q0, [r0, q1]        | vector_gather
vldrw.u32 q0, [r0, q1, uxtw #2] | vector_gather
vldrw.u32 q0, [q1, #4]       | vector_gather
vstrb.8 q0, [r0, q1]         | vector_gather
vldrh.s32 q0, [r0, #4]       | vector_memory
vldmia r0, {s0, s1}          | vector_memory
dls lr, lr                   | alu
"""
TABLE = {"alu": 1, "multiply": 1, "mac": 2, "load": 2, "load_pipelined": 1, "load_double": 3, "store": 1,
         "branch_taken": 3, "branch_not_taken": 1, "source": "by hand"}  # fmt: skip


def assemble(lines: list[str], cpu: str, folder: Path) -> bytes:
    body = "".join(f"\t{line}\n" for line in lines)
    (folder / "x.S").write_text(f"\t.syntax unified\n\t.thumb\n\t.text\n{body}0:\n")
    cc(["-target", "thumb-freestanding-eabi", f"-mcpu={cpu}", "-c", "x.S", "-o", "x.o"], folder)
    with (folder / "x.o").open("rb") as file:
        data: bytes = ELFFile(file).get_section_by_name(".text").data()
    return data


@pytest.mark.parametrize(("cases", "cpu"), [(CASES, "cortex_m4"), (HELIUM, "cortex_m55+mve")])
def test_classes(cases: str, cpu: str, tmp_path: Path) -> None:
    rows = [tuple(part.strip() for part in line.split("|")) for line in cases.strip().splitlines()]
    found = list(decode(assemble([row[0] for row in rows], cpu, tmp_path)))
    assert len(found) == len(rows)
    for (text, wanted), got in zip(rows, found, strict=True):
        kind, *rest = wanted.split()
        numbers = [int(w) for w in rest if w.isdigit()] or [got.registers]
        assert got == Instruction(kind, numbers[0], "jump" in rest), text  # type: ignore[arg-type]


def image(code: bytes) -> Elf:
    return Elf({}, 0, 0, 0, 0, {}, (Segment(0x1000, code, len(code)),), "EM_ARM")


def test_cycles_by_hand(tmp_path: Path) -> None:
    # load 2, pipelined load 1, mac 2, store 1, loop branch 1 and 2 more for each of the 9 jumps back
    lines = ["0:", "ldr r0, [r1]", "ldr r2, [r1, #4]", "mla r3, r0, r2, r3", "str r3, [r1]", "bne 0b"]
    code = assemble(lines, "cortex_m4", tmp_path)
    loop = (Block(0x1000, len(code), 10, 9),)
    board = {"name": "b", "pj_per_cycle": 100, "low": 50, "high": 200, "clock_hz": 1_000_000, "source": "by hand"}
    energy = {"boards": [board, {**board, "name": "other", "pj_per_cycle": 10}]}
    result = modelled(loop, image(code), 1, TABLE, energy)
    assert result["cycles"]["value"] == 10 * (2 + 1 + 2 + 1 + 1) + 9 * 2
    assert result["cycles"]["low"] == round(UNKNOWN[0] * (10 * (1 + 1 + 2 + 1 + 1) + 9 * 1))
    assert result["cycles"]["high"] == round(UNKNOWN[1] * (10 * (2 + 2 + 2 + 2 + 1) + 9 * 3))
    assert result["latency"]["value"] == pytest.approx(88e-6)
    assert result["energy"]["value"] == pytest.approx(88 * 100e-12)
    assert result["boards"]["other"]["value"] == pytest.approx(88 * 10e-12)
    assert "uncalibrated" in result["cycles"]["note"]
    assert result["cycles"]["how"] == result["energy"]["how"] == "modelled"
    mix = instruction_mix(loop, image(code), 2)
    assert mix == {"branch": 5.0, "load": 10.0, "mac": 5.0, "store": 5.0}


def test_no_table_no_number(tmp_path: Path) -> None:
    assert modelled((Block(0x1000, 2, 1, 0),), image(b"\x00\xbf"), 1, {}, {}) == {}
