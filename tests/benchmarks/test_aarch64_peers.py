"""The counting of other engines on AArch64: the plugin on a program whose instructions are known, and what is made of
its marks. The engines themselves need an arm64 root, and are run by the program alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import aarch64_peers
import numpy as np
import pytest

from xdeploy.builder.zig import cc
from xdeploy.formats import QParams

TURNS = 1000
LOOP = {
    "i8mm": ("smmla v0.4s, v1.16b, v2.16b", "usmmla v0.4s, v1.16b, v2.16b"),
    "dot": ("sdot v0.4s, v1.16b, v2.16b", "udot v3.2s, v1.8b, v2.8b", "usdot v0.4s, v1.16b, v2.16b"),
    "dot_element": ("sdot v0.4s, v1.16b, v2.4b[3]", "udot v31.2s, v1.8b, v30.4b[1]"),
    "multiply_long": ("smlal v0.4s, v1.4h, v2.4h", "smlal2 v0.8h, v1.16b, v2.16b", "umull v0.8h, v1.8b, v2.8b"),
    "multiply_long_element": ("smlal v0.4s, v1.4h, v2.h[5]", "smull2 v0.4s, v1.8h, v2.h[1]"),
    "float_multiply_add": ("fmla v0.4s, v1.4s, v2.4s",),
    "float_multiply_add_element": ("fmla v0.4s, v1.4s, v2.s[1]", "fmla v0.4s, v1.4s, v30.s[3]"),
    "": ("add v0.4s, v1.4s, v2.4s", "smlsl v0.4s, v1.4h, v2.4h", "sshll v0.8h, v1.8b, #0", "mul v0.4s, v1.4s, v2.4s"),
}
needs_qemu = pytest.mark.skipif(
    shutil.which(aarch64_peers.QEMU) is None, reason=f"{aarch64_peers.QEMU} is not installed (Debian's qemu-user)"
)


@needs_qemu
def test_the_plugin_counts_every_instruction_between_marks(tmp_path: Path) -> None:
    lines = [i for kind in LOOP.values() for i in kind]
    text = [
        "mov x8, #173", "svc #0", f"mov x9, #{TURNS}", "1:", *lines, "subs x9, x9, #1", "b.ne 1b", "svc #0",
    ]  # fmt: skip
    text += ["mov x0, #0", "mov x8, #93", "svc #0"]  # exit(0)
    (tmp_path / "p.S").write_text("\n".join([".globl _start", "_start:", *text]) + "\n")
    cc(["-target", "aarch64-freestanding", "-mcpu=cortex_a76+i8mm", "-nostdlib", "-static", "p.S", "-o", "p"], tmp_path)
    plugin = aarch64_peers.plugin(tmp_path)
    command = [aarch64_peers.QEMU, "-cpu", "max", "-plugin", f"{plugin},out={tmp_path / 'counts'}", str(tmp_path / "p")]
    subprocess.run(command, check=True)
    head, marks = aarch64_peers.read_marks(tmp_path / "counts")
    assert len(marks) == 2
    found = dict(zip(head, (marks[1] - marks[0]).tolist(), strict=True))
    assert found.pop("all") == 1 + TURNS * (len(lines) + 2) + 1
    assert found.pop("outside") == 0, "all of it is the program's own"
    assert found == {kind: TURNS * len(i) for kind, i in LOOP.items() if kind}


def test_an_inference_is_the_difference_between_more_and_one() -> None:
    overhead, one, dots, n = 700, 5000, 3, 1 + aarch64_peers.MORE
    first = np.array([overhead + one, one, dots])
    longer = np.array([overhead + n * one, n * one, n * dots])
    marks = 9 + np.stack([np.zeros(3, np.int64), first, first + longer] * aarch64_peers.ROUNDS)
    told = [{"form": "a"}, {"form": "b", "reason": "no such operator"}]
    counted, refused = aarch64_peers.columns(told, ["all", "outside", "dot"], marks)
    assert counted == {"spread": [one, one], "all": one, "outside": one, "dot": dots}
    assert refused["reason"] == "no such operator"


def test_marks_that_no_form_made_are_told() -> None:
    with pytest.raises(RuntimeError, match="9 marks were counted, 0 were expected"):
        aarch64_peers.columns([{"form": "a", "reason": "x"}], ["all", "outside"], np.zeros((9, 2), np.int64))


def test_the_host_s_own_proc_is_not_written_to(tmp_path: Path) -> None:
    host, root = tmp_path / "host", tmp_path / "root"
    host.mkdir()
    root.mkdir()
    (root / "proc").symlink_to(host)
    for level in aarch64_peers.CPUS.values():
        aarch64_peers.show_cpu(root, level)
        said = (root / "proc" / "cpuinfo").read_text()
        assert level.part in said
        assert ("asimddp" in said) == (level is not aarch64_peers.CPUS["v8.0"])
        assert ("i8mm" in said) == ("max" in level.cpu)
    assert not list(host.iterdir())


def test_codes_become_real_by_either_kind_of_parameters() -> None:
    codes = np.array([[-3, 5]], np.int8)
    for q in (QParams(0.5, 1), (0.5, 1)):
        assert aarch64_peers.Given("", b"", codes, q).real(codes).tolist() == [[-2.0, 2.0]]
    assert aarch64_peers.Given("", b"", codes, None).real(codes).tolist() == [[-3.0, 5.0]]


def test_ratios_are_to_the_peer_with_the_fewest_instructions() -> None:
    peers = {
        "a": {"instructions": {"value": 400}, "ratio": 9.9},
        "b": {"instructions": {"value": 250}},
        "c": {"reason": "-"},
    }  # fmt: skip
    found = aarch64_peers.compared(100, peers)
    assert (found["best_peer"], found["ratio_to_best_peer"]) == ("b", 0.4)
    assert found["peers"]["a"]["ratio"] == 0.25
    assert "ratio" not in found["peers"]["c"]
    assert aarch64_peers.compared(100, {"c": {}})["ratio_to_best_peer"] is None
