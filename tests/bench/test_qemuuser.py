"""QEMU's user mode: bits, counts by another emulator, by single steps and by hand, the stack, and what goes wrong."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.bench.conftest import Built
from tests.networks import separable_network
from xdeploy.bench import bench, qemuuser, run_codes
from xdeploy.bench.qemuuser import QemuUserRunner
from xdeploy.bench.runner import RunOptions
from xdeploy.bench.via import runner_for
from xdeploy.builder import build
from xdeploy.builder.link import PROGRAM, link_alone, program_flags
from xdeploy.errors import DeviceError
from xdeploy.handover import Artifact
from xdeploy.lir import ops
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

SUPPORT = Path(__file__).resolve().parents[2] / "targets" / "support"
pytestmark = pytest.mark.qemu


def needs(*programs: str) -> pytest.MarkDecorator:
    absent = [p for p in programs if shutil.which(p) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (Debian's qemu-user)")


needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the host target is x86-64")


# the first build for Armv7 compiles a C library for two minutes
@needs("qemu-aarch64", "qemu-arm")
@pytest.mark.parametrize("name", ["cortex-a72", pytest.param("cortex-a7", marks=pytest.mark.slow)])
def test_two_emulators_one_count(built: Built, name: str) -> None:
    artifact, golden = built(name)
    target = load_target(name)
    here, other = (bench(artifact, golden, target, via=via) for via in ("qemu", "unicorn"))
    assert (here.verdict, here.reason, here.runner) == ("bit-exact", None, "qemu")
    assert [row.instructions for row in here.layers] == [row.instructions for row in other.layers]
    for key in ("instructions", "mix", "stack"):
        assert here.quantities[key] == other.quantities[key], key
    count = here.quantities["instructions"]["value"]
    assert sum(v["value"] for v in here.quantities["mix"].values()) == count
    assert "other" not in here.quantities["mix"]
    assert here.quantities["mix"]["vector"]["value"] > 0
    assert here.quantities["stack"]["value"] <= artifact.manifest["stack_bound"]
    assert "cycles" not in here.quantities
    assert set(here.tells["cannot"]) == set(other.tells["cannot"]) == {"latency", "cycles", "energy"}


@needs_x86
@needs("qemu-x86_64")
def test_host_code_and_single_steps(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU in its mode of one instruction per block must count the same; there no instruction is listed twice."""
    artifact, golden = built("x86-64")
    target = load_target("x86-64")
    by_blocks = bench(artifact, golden, target, via="qemu")
    assert (by_blocks.verdict, by_blocks.reason) == ("bit-exact", None)
    for variable in ("QEMU_SINGLESTEP", "QEMU_ONE_INSN_PER_TB"):  # before and since QEMU 8.1
        monkeypatch.setenv(variable, "1")
    by_steps = bench(artifact, golden, target, via="qemu")
    assert [row.instructions for row in by_blocks.layers] == [row.instructions for row in by_steps.layers]
    assert by_blocks.quantities["mix"] == by_steps.quantities["mix"]
    mix = {k: v["value"] for k, v in by_blocks.quantities["mix"].items()}
    assert sum(mix.values()) == by_blocks.quantities["instructions"]["value"]
    assert mix.keys() >= {"load", "store", "branch", "vector", "vector_memory", "multiply"}
    assert "other" not in mix
    assert by_blocks.quantities["stack"]["value"] <= artifact.manifest["stack_bound"]


@pytest.mark.slow
@needs("qemu-arm")
def test_portable_form_on_armv7(tmp_path: Path) -> None:
    graph, golden = separable_network()
    target = load_target("cortex-a7")
    program = bind(graph, target, "net", form="portable")
    assert {c.kernel.rpartition("__")[2] for c in program.calls} == {"c99"}
    artifact = build(program, graph, golden, target, tmp_path / "a", PackageOptions(form="portable"), {})
    codes = np.random.default_rng(3).integers(-128, 128, (70, *golden.input_codes.shape[1:])).astype(np.int8)
    seen: list[int] = []
    result = run_codes(artifact, "qemu", codes, lambda what, done, total: seen.append(done))
    assert np.array_equal(result.outputs, ops.run(graph, codes)[graph.output])
    assert result.instructions is not None
    assert len(result.instructions) == 70
    assert seen == [64, 70]  # more inputs than one start of QEMU takes


# ---------------------------------------------------------------------------------------------------- by hand
HEADER = """#include <stdint.h>
#define XD_T_ALIGNED
typedef int8_t xd_t_input[4]; typedef int8_t xd_t_output[4]; typedef int8_t xd_t_arena[4];
int xd_t_run(const int8_t *in, int8_t *out, void *arena);
"""
# the executor: 8 instructions, 32 bytes of stack
RUN = """
.macro function name
    .globl \\name
    .type \\name,%function
\\name:
.endm
.text
function xd_t_run
    stp x29, x30, [sp, #-32]!
    bl first
    bl second
    ldr w2, [x0]
    str w2, [x1]
    mov w0, #STATUS
    ldp x29, x30, [sp], #32
    ret
.size xd_t_run, .-xd_t_run
"""
# 2 + 3 * 10 instructions; then 5 with a deeper frame and a helper of 2 that is part of the second call
CALLS = """
function first
    mov w3, #10
0:  madd w4, w3, w3, w4
    subs w3, w3, #1
    b.ne 0b
    ret
.size first, .-first
function second
    mov x9, x30
    sub sp, sp, #48
    str q0, [sp]
    bl helper
    add sp, sp, #48
    ret x9
.size second, .-second
function helper
    nop
    ret
.size helper, .-helper
"""


def by_hand(folder: Path, calls: str = CALLS, status: int = 0) -> QemuUserRunner:
    """A runner of a program written in assembly; its manifest says what the runner reads."""
    (folder / "xd_t.h").write_text(HEADER)
    (folder / "run.S").write_text(RUN.replace("STATUS", str(status)) + calls)
    for name in ("count_main.c", "linux.h"):
        (folder / name).write_text((SUPPORT / name).read_text())
    names = ['-DXD_HEADER="xd_t.h"', "-DXD(x)=xd_t_##x", "-DXD_UPPER(x)=XD_T_##x"]
    target = load_target("cortex-a72")
    triple = str(target.compiler["triple"])
    sources = ["count_main.c", "run.S"]
    link_alone(lambda t: [*program_flags(target, t), "-I.", *names], sources, triple, "xd_t", folder, PROGRAM)
    manifest = {
        "target": "cortex-a72", "kind": "linux", "machine": "aarch64", "products": {"program": "xd_t"},
        "input": {"bytes": 4, "shape": [4]}, "output": {"bytes": 4, "shape": [4]},
        "arena": {"bytes": 4, "align": 4}, "symbols": {"run": "xd_t_run", "calls": ["first", "second"]},
    }  # fmt: skip
    return QemuUserRunner(Artifact(folder, manifest), target, timeout=20.0)


CODES = np.arange(12, dtype=np.int8).reshape(3, 4)


@needs("qemu-aarch64")
def test_counts_by_hand(tmp_path: Path) -> None:
    ran = by_hand(tmp_path).run(CODES)
    assert np.array_equal(ran.outputs, CODES)
    assert ran.layers == (2 + 3 * 10, 6 + 2, 8)
    assert ran.instructions is not None
    assert ran.instructions.tolist() == [32 + 8 + 8] * 3
    assert ran.stack == 32 + 48
    assert sum(b.runs * b.size // 4 for b in ran.blocks) == 3 * 48
    # per run: two calls, first's 9 turns and its return, second's call and return, helper's return, run's own return
    assert sum(b.taken for b in ran.blocks) == 3 * (2 + 9 + 1 + 1 + 1 + 1)


@needs("qemu-aarch64")
def test_an_error_of_the_code_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="xd_t_run returned 2: a pointer that is not aligned"):
        by_hand(tmp_path, status=2).run(CODES)


@needs("qemu-aarch64")
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("str w0, [xzr, x9]", "ended with -11"),
        ("mov x8, #94; mov x0, #0; svc #0", "0 bytes of outputs came back, 12 were expected"),
        ("0: b 0b", "no end after 1 s"),
    ],
    ids=["crash", "exit", "hang"],
)
def test_code_that_does_not_come_back(body: str, said: str, tmp_path: Path) -> None:
    body = body.replace("[xzr, x9]", "[x9]")
    calls = CALLS.replace("    mov w3, #10\n", f"    mov x9, #0\n    {body}\n    mov w3, #10\n")
    runner = by_hand(tmp_path, calls)
    runner.timeout = 1.0 if "no end" in said else 20.0
    with pytest.raises(DeviceError, match=said):
        runner.run(CODES)


def test_absent_emulator_is_a_verdict(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, golden = built("cortex-a72")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    m = bench(artifact, golden, load_target("cortex-a72"), via="qemu")
    assert m.verdict == "not run"
    assert str(m.reason) == "qemu-aarch64 is not installed: apt-get install qemu-user"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name.endswith("-static") else None)
    m = bench(artifact, golden, load_target("cortex-a72"), via="qemu")
    assert "a static one is, but it cannot load the counting plugin" in str(m.reason)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(qemuuser, "_takes_plugins", lambda program: False)
    with pytest.raises(DeviceError, match="cannot run via qemu: this qemu-aarch64 was built without plugins"):
        run_codes(artifact, "qemu", golden.input_codes)


def test_wrong_artifacts(built: Built) -> None:
    artifact, _ = built("cortex-a72")
    target = load_target("cortex-a72")
    bare = Artifact(artifact.folder, {**artifact.manifest, "products": {}})
    assert runner_for(bare, target, "qemu").available() == "the artifact holds no program; build it again"
    other = Artifact(artifact.folder, {**artifact.manifest, "machine": "riscv64"})
    assert "no emulator" in str(runner_for(other, target, "qemu").available())
    slow = runner_for(artifact, target, "qemu", RunOptions(timeout=7.0))
    assert isinstance(slow, QemuUserRunner)
    assert (slow.timeout, slow.cpu, slow.program) == (7.0, "cortex-a72", "qemu-aarch64")
    unnamed = dataclasses.replace(target, runner={})
    assert QemuUserRunner(artifact, unnamed).cpu == "max"
