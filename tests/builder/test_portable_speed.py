"""The portable form, compiled by GCC -O2 for Cortex-M4, against the tuned form: instructions, and the same bits."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.networks import Drawer
from xdeploy.bench.unicorn import UnicornRunner
from xdeploy.builder import build
from xdeploy.cli import main
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.lir.graph import LoweredGraph
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

MOST_TIMES, MOST_PER_MAC = 6.0, 8.6
MODELS = Path(__file__).parents[3] / "shared/models"


def instructions(artifact: Artifact, golden: GoldenIo) -> int:
    """Of one inference, which must give the reference's codes."""
    ran = UnicornRunner(artifact, "cortex-m4").run(golden.input_codes[:1])
    np.testing.assert_array_equal(ran.outputs, golden.output_codes[:1])
    assert ran.instructions is not None
    return int(ran.instructions[0])


def with_gcc(artifact: Artifact, folder: Path) -> Artifact:
    """A copy of the artifact whose image GCC has made, with its own C library's memcpy and memset."""
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    shutil.copytree(artifact.folder, folder)
    image = str(artifact.manifest["products"]["bare"])
    flags = [str(f) for f in load_target("cortex-m4").compiler["gcc_flags"]]
    sources = [str(p.relative_to(folder)) for p in sorted(folder.glob("src/*.c"))]
    link = ["-nostdlib", "-lc", "-lgcc", "-Wl,--gc-sections", f"-Wl,-e,{Path(image).stem}_run", "-Wl,-T,build/bare.ld"]
    words = ["arm-none-eabi-gcc", *flags, "-std=c99", "-O2", "-ffunction-sections", "-fdata-sections", "-Iinclude"]
    subprocess.run([*words, "-Isrc", *sources, *link, "-o", image], cwd=folder, check=True)
    return Artifact.load(folder)


def _check(tuned: Artifact, portable: Artifact, golden: GoldenIo, folder: Path) -> None:
    fast, plain = instructions(tuned, golden), instructions(with_gcc(portable, folder), golden)
    assert plain <= MOST_TIMES * fast, f"{plain} instructions, {plain / fast:.2f} times the tuned form's {fast}"
    assert plain < MOST_PER_MAC * int(portable.manifest["macs"])


def network() -> tuple[LoweredGraph, GoldenIo]:
    """An image's first layer, a depthwise and a pointwise one, a residual block."""
    d = Drawer((16, 16, 3))
    a = d.conv("point", d.conv("wise", d.conv("stem", "x", 16), 16, groups=16), 16, k=1)
    b = d.conv("second", d.conv("first", a, 16), 16, residual=a)
    return d.finish(d.linear("head", d.reshape("flat", d.max_pool("pool", b, 8)), 10))


def test_small_network(tmp_path: Path) -> None:
    graph, golden = network()
    target = load_target("cortex-m4")
    built = {
        form: build(bind(graph, target, "net", form=form), graph, golden, target, tmp_path / form,
                    PackageOptions(form=form), {})
        for form in ("tuned", "portable")
    }  # fmt: skip
    _check(built["tuned"], built["portable"], golden, tmp_path / "gcc")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["ic-resnet8", "kws-dscnn"])
def test_reference_networks(name: str, tmp_path: Path) -> None:
    path = MODELS / f"mlperf-tiny-{name}.int8.onnx"
    if not path.exists():
        pytest.skip(f"{path.name} is not in ../shared/models")
    for form in ("tuned", "portable"):
        words = ["build", str(path), "--target", "cortex-m4", "--form", form, "-o", str(tmp_path / form), "--quiet"]
        assert main(words) == 0
    artifacts = [Artifact.load(tmp_path / form / "cortex-m4") for form in ("tuned", "portable")]
    assert json.loads((artifacts[1].folder / "manifest.json").read_text())["form"] == "portable"
    golden = GoldenIo.load(artifacts[0].folder / "golden.npz")
    _check(artifacts[0], artifacts[1], golden, tmp_path / "gcc")
