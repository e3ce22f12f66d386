"""Executed instructions of two small networks: they are deterministic, so a regression shows here and not in a timing.

A change for the better is entered below: the counts are upper limits, with 3 % of room above and none to hide below.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.harness import has_qemu
from tests.networks import residual_network, separable_network
from xdeploy.bench import bench
from xdeploy.bench.runner import RunOptions
from xdeploy.builder import build
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

NETWORKS = {"residual": residual_network, "separable": separable_network}
EXPECTED = {
    ("residual", "cortex-m0plus"): 538_656,
    ("residual", "cortex-m3"): 248_188,
    ("residual", "cortex-m4"): 182_412,
    ("residual", "cortex-m55"): 46_657,
    ("residual", "cortex-a72"): 78_967,
    ("separable", "cortex-m0plus"): 451_810,
    ("separable", "cortex-m3"): 189_071,
    ("separable", "cortex-m4"): 130_446,
    ("separable", "cortex-m55"): 45_137,
    ("separable", "cortex-a72"): 90_482,
}


@pytest.mark.parametrize(("network", "name"), EXPECTED)
def test_no_more_than_before(network: str, name: str, tmp_path: Path) -> None:
    target = load_target(name)
    if target.runner.get("emulator") == "qemu" and not has_qemu():
        pytest.skip("qemu-system-arm is not installed")
    graph, golden = NETWORKS[network]()
    artifact = build(bind(graph, target, "net"), graph, golden, target, tmp_path, PackageOptions(), {})
    measured = bench(artifact, golden, target, options=RunOptions(repeats=1))
    assert measured.verdict == "bit-exact", measured.reason
    count, before = measured.quantities["instructions"]["value"], EXPECTED[network, name]
    assert 0.97 * before <= count <= 1.03 * before, f"{count} instructions, {before} before"
