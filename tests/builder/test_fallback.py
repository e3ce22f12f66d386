"""Parts in float through the command line: built for hosts and Cortex-A by name, refused everywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.lower.test_fallback import last_axis, net, norm, rows
from xdeploy.bench import _difference
from xdeploy.cli import main

BODIES = {"instance": norm, "layer": last_axis, "softmax": rows}


def _build(path: Path, *words: str) -> int:
    return main(["build", str(path), "--quiet", "-o", str(path.parent / "out"), "--set", "bench.repeats=2", *words])


@pytest.mark.parametrize("body", BODIES)
def test_built_and_run_on_host_and_cortex_a(body: str, tmp_path: Path) -> None:
    path = net(BODIES[body], tmp_path / "net.onnx", 0.004 if body == "softmax" else 0.04)
    assert _build(path, "--target", "x86-64", "--target", "cortex-a72", "--fallback", "norm") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    for name, target in report["targets"].items():
        # one code of float rounding may travel on through the convolution after it
        if target["verdict"] != "bit-exact":
            assert target["verdict"] == "differs", name
            assert "in float" in target["reason"]
            assert "norm" in target["reason"]
    (row,) = [x for x in report["layers"] if x["op"] == "float"]
    assert {t["kernel"] for t in row["targets"].values()} == {"float_f32_-_1x1__hosted"}
    assert row["targets"]["cortex-a72"]["instructions"]["value"] > 0
    assert report["fallback"][0]["node"] == row["origin"]
    share = report["fallback"][0]["share"]
    assert {(t, q["how"]) for t, q in share.items()} == {("x86-64", "measured"), ("cortex-a72", "emulated")}
    counts = [x["targets"]["cortex-a72"]["instructions"]["value"] for x in report["layers"]]
    own = row["targets"]["cortex-a72"]["instructions"]["value"]
    assert (
        own / sum(counts) * 0.9 < share["cortex-a72"]["value"] <= round(own / sum(counts), 4)
    )  # the executor's besides
    assert 0 < share["x86-64"]["value"] < 1
    told = (tmp_path / "out/report.md").read_text()
    assert f"on cortex-a72 {100 * share['cortex-a72']['value']:.1f} % of the instructions of an inference" in told
    package = tmp_path / "out/x86-64"
    assert "target_link_libraries(xd_net PUBLIC m)" in (package / "CMakeLists.txt").read_text()
    from xdeploy.bench.host import HostRunner
    from xdeploy.handover import Artifact

    HostRunner(Artifact.load(package)).selftest()


def test_a_whole_network_in_float(tmp_path: Path) -> None:
    """No layer has integer weights: the report has no ratio of their bytes, and names every part's share."""
    path = net(norm, tmp_path / "net.onnx")
    words = [w for name in ("first", "norm", "second") for w in ("--fallback", name)]
    assert _build(path, "--target", "x86-64", *words) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["weights"]["ratio_to_float"]["value"] is None
    assert [part["ops"] for part in report["fallback"]] == [["Conv"], ["InstanceNormalization"], ["Conv"]]
    assert sum(part["share"]["x86-64"]["value"] for part in report["fallback"]) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--target", "x86-64"], 3, "norm (InstanceNormalization)"),
        (["--target", "cortex-m4", "--fallback", "norm"], 3, "cortex-m4 has no float kernels"),
        (["--target", "x86-64", "--target", "cortex-m4", "--fallback", "norm"], 3, "cortex-m4 has no float kernels"),
        (["--target", "x86-64", "--fallback", "norm", "--fail-on-fallback"], 3, "fail_on_fallback"),
        (["--target", "x86-64", "--fallback", "nor"], 2, "did you mean 'norm'"),
        (["--target", "x86-64", "--fallback", "norm", "--form", "portable"], 3, "no portable kernel for float"),
    ],
)
def test_refused(words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _build(net(norm, tmp_path / "net.onnx"), *words) == code
    assert said in capsys.readouterr().err


def test_a_difference_names_the_parts_in_float() -> None:
    a, b = np.array([[1, 2, 3]], np.int8), np.array([[1, 3, 3]], np.int8)
    assert _difference(a, a, ["n"]) is None
    told = _difference(a, b, ["n", "m"])
    assert told is not None
    assert "1 of 3" in told
    assert told.endswith("in float, where compiled code rounds differently: n, m")
    assert "float" not in str(_difference(a, b, []))
