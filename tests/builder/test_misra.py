"""The package's README lists the MISRA rules that its C text departs from: cppcheck finds just these places."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.builder.compilers import listed
from tests.builder.test_hygiene import _write
from tests.kernels import harness
from tests.kernels.cases import KERNEL_OPS, cases
from xdeploy.builder.misra import DEVIATIONS
from xdeploy.target import load_target

pytestmark = pytest.mark.skipif(shutil.which("cppcheck") is None, reason="cppcheck is not installed")


def found(folder: Path, *more: str) -> Counter[str]:
    """Places by rule, as cppcheck's MISRA add-on tells them; nothing suppressed, no other message."""
    words = ["cppcheck", "--addon=misra", "--std=c99", "--platform=unix32", "--quiet", "-D__GNUC__=12", *more]
    sources = sorted(str(p.relative_to(folder)) for p in folder.glob("src/*.c"))
    done = subprocess.run(
        [*words, "--template={id} {file}:{line}", "-Iinclude", "-Isrc", *sources],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = set(done.stderr.splitlines())
    assert all(re.match(r"misra-c2012-\d+\.\d+ ", line) for line in lines), lines
    return Counter(line.split()[0].removeprefix("misra-c2012-") for line in lines)


@pytest.mark.parametrize(("core", "form"), [("cortex-m4", "portable"), ("cortex-m55", "tuned")])
def test_the_readme_lists_what_cppcheck_finds(core: str, form: str, tmp_path: Path) -> None:
    _write(core, form, tmp_path)
    table = re.findall(r"^\| (\d+\.\d+) \| (\w+) \| (\d+) \| \S.* \|$", (tmp_path / "README.md").read_text(), re.M)
    assert len(table) >= 7
    assert found(tmp_path, "-DXD_NET_SELFTEST") == {rule: int(count) for rule, _, count in table}
    assert {rule for rule, kind, _ in table if kind == "required"} <= {"10.1"}


@pytest.mark.parametrize("ops", [KERNEL_OPS[k::3] for k in range(3)], ids=["first", "second", "third"])
@pytest.mark.slow
def test_every_portable_kernel(ops: tuple[str, ...], tmp_path: Path) -> None:
    """Every row of plain C on every case: the one rule that the table gives for kernels."""
    batch = harness.Batch(load_target("x86-64"), harness.host_image(1 << 24))
    harness.fill(batch, {op: cases(op) for op in ops}, c99=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/kernels.c").write_text(listed(batch))
    kernels = {"10.1"}
    assert kernels <= {d.rule for d in DEVIATIONS}
    assert set(found(tmp_path)) <= kernels
