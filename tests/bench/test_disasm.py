"""Instruction classes by capstone: against lists of assembly with their classes, and against the decoder for Thumb."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.bench.test_model import CASES as THUMB
from tests.bench.test_model import assemble as assemble_thumb
from xdeploy.bench import thumb
from xdeploy.bench.disasm import decoder, disassembler
from xdeploy.bench.thumb import Instruction
from xdeploy.builder.zig import cc
from xdeploy.errors import ToolchainError

A64 = """
add x0, x1, x2                | alu
csel w0, w1, w2, eq           | alu
nop                           | alu
mul w0, w1, w2                | multiply
madd w0, w1, w2, w3           | mac
msub x0, x1, x2, x3           | mac
smull x0, w1, w2              | multiply_long
smulh x0, x1, x2              | multiply_long
smaddl x0, w1, w2, x3         | mac_long
sdiv w0, w1, w2               | divide
ldr x0, [x1]                  | load
ldrsb w0, [x1, #3]            | load
ldur w0, [x1, #-4]            | load
prfm pldl1keep, [x0]          | load
str w0, [x1], #4              | store
strb wzr, [x1]                | store
ldp x0, x1, [sp]              | load_double
stp x29, x30, [sp, #-16]!     | store_double
ldr q0, [x0]                  | vector_memory
ldr d1, [x0, x2]              | vector_memory
ldp q0, q1, [x0]              | vector_memory
stp d8, d9, [sp, #16]         | vector_memory
ld1 {v0.16b}, [x0]            | vector_memory
ld1r {v0.4s}, [x0]            | vector_memory
st1 {v0.b}[3], [x0]           | vector_memory
smull v0.8h, v1.8b, v2.8b     | vector
sdot v0.4s, v1.16b, v2.16b    | vector
sqrdmulh v0.4s, v1.4s, v2.4s  | vector
tbl v0.16b, {v1.16b}, v2.16b  | vector
addv s0, v0.4s                | vector
fmov w0, s0                   | vector
umov w0, v0.b[1]              | vector
dup v0.16b, w0                | vector
b 0f                          | branch jump
b.ne 0f                       | branch jump
bl 0f                         | branch jump
blr x1                        | branch jump
ret                           | branch jump
cbnz w0, 0f                   | branch jump
tbz w0, #3, 0f                | branch jump
"""
A32 = """
add r0, r1, r2                | alu
addne r0, r1, r2, lsl #3      | alu
ssat r0, #8, r1               | alu
mul r0, r1, r2                | multiply
mla r0, r1, r2, r3            | mac
smlabb r0, r1, r2, r3         | mac
smmlar r0, r1, r2, r3         | mac
smulbb r0, r1, r2             | multiply
smull r0, r1, r2, r3          | multiply_long
smlal r0, r1, r2, r3          | mac_long
udiv r0, r1, r2               | divide
ldr r0, [r1]                  | load
ldrsbne r0, [r1, #3]          | load
pld [r0]                      | load
strh r0, [r1], #2             | store
ldrd r0, r1, [r2]             | load_double
strd r0, r1, [r2]             | store_double
push {r4, r5, r11, lr}        | store_multiple 4
pop {r4, pc}                  | load_multiple 2 jump
ldm r0!, {r1, r2, r3}         | load_multiple 3
stmib sp, {r0, r7}            | store_multiple 2
ldr pc, [r0]                  | load jump
mov pc, lr                    | branch jump
vld1.8 {d0, d1}, [r0]!        | vector_memory
vst1.32 {d0[0]}, [r0]         | vector_memory
vldr s0, [r0]                 | vector_memory
vpush {d8, d9}                | vector_memory
vmlal.s16 q0, d2, d3          | vector
vqrdmulh.s32 q0, q1, q2       | vector
vmov r0, s0                   | vector
b 0f                          | branch jump
bne 0f                        | branch jump
bl 0f                         | branch jump
bx lr                         | branch jump
bxeq lr                       | branch jump
"""
X86 = """
add eax, ecx                      | alu
add eax, dword ptr [rdi]          | alu
lea rax, [rdi + 4*rsi]            | alu
cmp dword ptr [rdi], 3            | alu
cmovl eax, ecx                    | alu
mov eax, dword ptr [rdi]          | load
movsx eax, byte ptr [rdi]         | load
pop rbx                           | load
mov byte ptr [rdi], al            | store
mov qword ptr [rsp + 8], rcx      | store
push rbx                          | store
stosq                             | store
imul eax, ecx                     | multiply
imul eax, dword ptr [rdi], 12     | multiply
imul rcx                          | multiply_long
mul rcx                           | multiply_long
idiv ecx                          | divide
vmovdqu ymm0, ymmword ptr [rdi]   | vector_memory
vmovdqu ymmword ptr [rdi], ymm0   | vector_memory
vpmovsxbw ymm0, xmmword ptr [rdi] | vector_memory
vpbroadcastd ymm0, dword ptr [rdi] | vector_memory
movss xmm0, dword ptr [rdi]       | vector_memory
vpmaddwd ymm0, ymm1, ymm2         | vector
vpmaddwd ymm0, ymm1, ymmword ptr [rdi] | vector
vpshufb xmm0, xmm1, xmm2          | vector
vmovd eax, xmm0                   | vector
vzeroupper                        | vector
jmp 0f                            | branch jump
jne 0f                            | branch jump
call 0f                           | branch jump
ret                               | branch jump
"""
ISAS = {
    "aarch64": (A64, ["-target", "aarch64-freestanding", "-mcpu=cortex_a76"], ""),
    "arm": (A32, ["-target", "arm-freestanding-eabihf", "-mcpu=cortex_a7"], ".syntax unified\n.arm"),
    "x86_64": (X86, ["-target", "x86_64-freestanding"], ".intel_syntax noprefix"),
}


def read(cases: str) -> list[tuple[str, str]]:
    return [
        (text.strip(), wanted.strip()) for text, _, wanted in (r.partition("|") for r in cases.strip().splitlines())
    ]


def assemble(lines: list[str], flags: list[str], head: str, folder: Path) -> bytes:
    body = "".join(f"\t{line}\n" for line in lines)
    (folder / "x.S").write_text(f"{head}\n\t.text\n{body}0:\n")
    cc([*flags, "-c", "x.S", "-o", "x.o"], folder)
    with (folder / "x.o").open("rb") as file:
        data: bytes = ELFFile(file).get_section_by_name(".text").data()
    return data


@pytest.mark.parametrize("machine", ISAS)
def test_classes(machine: str, tmp_path: Path) -> None:
    cases, flags, head = ISAS[machine]
    rows = read(cases)
    found = list(decoder(machine)(assemble([text for text, _ in rows], flags, head, tmp_path)))
    assert len(found) == len(rows)
    wrong = {}
    for (text, wanted), got in zip(rows, found, strict=True):
        kind, *rest = wanted.split()
        count = next((int(w) for w in rest if w.isdigit()), got.registers)
        if got != Instruction(kind, count, "jump" in rest):  # type: ignore[arg-type]
            wrong[text] = got
    assert wrong == {}


def test_two_decoders_of_thumb_agree(tmp_path: Path) -> None:
    code = assemble_thumb([text for text, _ in read(THUMB)], "cortex_m4", tmp_path)
    assert list(disassembler("thumb")(code)) == list(thumb.decode(code))
    assert decoder("thumb") is thumb.decode


@pytest.mark.parametrize(
    ("machine", "code"), [("aarch64", b"\xff\xff\xff\xff\x1f\x20\x03\xd5"), ("x86_64", b"\x06\x90")]
)
def test_the_unknown_is_told_and_passed_over(machine: str, code: bytes) -> None:
    assert [i.kind for i in decoder(machine)(code)] == ["other", "alu"]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolchainError, match="no decoder for code of riscv64"):
        decoder("riscv64")
    monkeypatch.setitem(sys.modules, "capstone", None)
    with pytest.raises(ToolchainError, match="capstone"):
        decoder("aarch64")
