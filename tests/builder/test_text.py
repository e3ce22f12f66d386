"""Text that goes into C files, and the stack bound read from assembly."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from xdeploy.builder.ctext import comment, numbers, string
from xdeploy.builder.stack import RUNTIME_FRAME, stack_bound


@pytest.mark.parametrize(
    "text",
    ["*/", "/*", "a*//*b", "**//", "??/\n", "\\", "\x00\u202e", "x" * 500, "*" + "/" * 9, "日本語", "/*/*/", "?" * 7],
)
def test_comments_stay_closed(text: str) -> None:
    safe = comment(text)
    assert "*/" not in safe
    assert "/*" not in safe
    assert "??" not in safe
    assert "\\" not in safe
    assert safe.isascii()
    assert "\n" not in safe
    assert len(safe) <= 80


def test_strings_survive_a_compiler(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    text = 'a"b\\c??/d\né\t\x01' + "9"
    (tmp_path / "x.c").write_text(
        f"#include <stdio.h>\nint main(void) {{ return fputs({string(text)}, stdout) < 0; }}\n"
    )
    subprocess.run(["gcc", "-std=c99", "-trigraphs", "x.c", "-o", "x"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "x"], capture_output=True, check=True).stdout.decode() == text


def test_numbers_hold_the_extremes() -> None:
    words = numbers(np.array([-(2**31), 2**31 - 1, 0], np.int32)).replace(" ", "").split(",")
    assert words[:3] == ["(-2147483647-1)", "2147483647", "0"]
    assert numbers(np.array([255], np.uint8)).strip() == "255U,"


THUMB = """
\t.type\tf,%function
f:
\tpush.w\t{r4, r5, r6, r7, r8, lr}
\tsub\tsp, #24
.LBB0_1:
\tbl\tg
\tbl\t__aeabi_lmul
\tadd\tsp, #24
\tpop.w\t{r4, r5, r6, r7, r8, pc}
\t.type\tg,%function
g:
\tstr\tlr, [sp, #-8]!
\tvpush\t{d8, d9}
\tldr\tr7, .LCPI1_0
\tadd\tsp, r7
\tldr\tpc, [sp], #8
.LCPI1_0:
\t.long\t-1000
"""


def test_stack_of_thumb_code() -> None:
    assert stack_bound([THUMB], "f") == 24 + 24 + max(8 + 16 + 1000, RUNTIME_FRAME)
    assert stack_bound([THUMB], "g") == 8 + 16 + 1000


def test_stack_of_aarch64_code() -> None:
    body = "\tstp\tx29, x30, [sp, #-32]!\n\tsub\tsp, sp, #1, lsl #12\n\tsub\tsp, sp, #16\n\tret\n"
    text = f"\t.type\tf,@function\nf:\n{body}"
    assert stack_bound([text], "f") == 32 + 4096 + 16


def test_stack_of_arm_code_with_a_frame_pointer() -> None:
    body = "\tpush\t{r4, r11, lr}\n\tadd\tr11, sp, #4\n\tsub\tsp, sp, #44\n\tsub\tsp, r11, #4\n\tpop\t{r4, r11, pc}\n"
    assert stack_bound([f"\t.type\tf,%function\nf:\n{body}"], "f") == 12 + 44


def test_stack_that_cannot_be_told() -> None:
    loop = "\t.type\tf,%function\nf:\n\tpush\t{r4, lr}\n\tbl\tf\n"
    dynamic = "\t.type\tf,%function\nf:\n\tsub.w\tsp, sp, r3\n"
    assert stack_bound([loop], "f") is None
    assert stack_bound([dynamic], "f") is None
    assert stack_bound([loop], "missing") is None
