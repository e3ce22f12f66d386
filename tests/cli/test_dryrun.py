"""`xdeploy build --dry-run`: says what a build will do, and leaves what is there alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from xdeploy.cli import main
from xdeploy.forecast.estimate import Facts
from xdeploy.forecast.rates import TYPICAL, Rates


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def document(capsys, *words: object) -> dict:
    assert main(["build", *map(str, words), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_predictions_of_a_quantised_file(kept, first, tmp_path, capsys):
    """Sizes are those that the build then has; the build goes on from the stage that is done."""
    out = tmp_path / "out"
    found = document(capsys, kept, "--target", "cortex-m4", "-o", out)
    assert found["schema"] == "xdeploy.dryrun/1"
    assert found["done"] == ["lower"]
    assert not (out / "report.json").exists()
    assert not (out / "cortex-m4").exists()
    built = json.loads((kept.parent / "out" / "cortex-m4" / "program.json").read_text())
    target = found["targets"]["cortex-m4"]
    assert target["flash"]["value"] == built["weight_bytes"]
    assert target["ram"]["value"] == built["arena"]["bytes"]
    counted = json.loads((kept.parent / "out" / "report.json").read_text())["targets"]["cortex-m4"]["instructions"]
    assert 0.5 < target["instructions"]["value"] / counted["value"] < 2.0
    assert [x["weight_format"] for x in found["layers"]] == ["int8", "int8"]
    assert found["layers"][0]["bytes"] == 8 * 3 * 9 + 8 * 8  # codes, then multiplier and bias of each channel
    assert found["seconds"]["total"]["value"] > 0


def test_a_finished_run_is_left_alone(kept, first, capsys):
    out = kept.parent / "out"
    before = contents(out)
    document(capsys, kept, "--target", "cortex-m4", "-o", out)
    assert contents(out) == before
    document(capsys, kept, "--target", "cortex-m7", "--set", "data.golden=2", "-o", out)
    after = contents(out)
    assert {k: v for k, v in after.items() if not k.startswith("unfinished/")} == before


def test_as_text(kept, tmp_path, capsys):
    assert main(["build", str(kept), "--target", "cortex-m4", "--dry-run", "-o", str(tmp_path / "o")]) == 0
    text = capsys.readouterr().out
    assert "a build in" in text
    assert "cortex-m4" in text
    assert all(len(x) <= 120 for x in text.splitlines() if str(tmp_path) not in x)


def test_a_budget_that_cannot_be_met(kept, tmp_path, capsys):
    """The exit code and the words of the build itself."""
    said = []
    for more in (["--dry-run"], []):
        words = [
            "build",
            str(kept),
            "--target",
            "cortex-m4",
            "--ram",
            "8",
            "-o",
            str(tmp_path / f"o{len(said)}"),
            *more,
        ]
        assert main([*words, "--quiet"]) == 4
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]


@pytest.mark.slow
def test_predictions_of_a_float_file(tmp_path, capsys):
    """Plan, sizes on two targets and coded bytes beside those of the build that goes on from there."""
    from tests.e2e.files import blobs, float_onnx  # loads torch

    float_onnx(tmp_path / "net.onnx", 0)
    blobs(tmp_path / "data.npz", 0)
    out, targets = tmp_path / "out", ("cortex-m4", "cortex-m3")
    words = [str(tmp_path / "net.onnx"), "--data", str(tmp_path / "data.npz"), "-o", str(out)]
    words += ["--set", "plan.max_drop=100", "--set", "relevance.samples=32", "--set", "plan.channels=0.7"]
    words += [x for name in targets for x in ("--target", name)]
    found = document(capsys, *words)
    assert found["done"] == ["source", "score", "plan"]
    made = (out / "plan.json").read_bytes()
    assert main(["build", *words, "--quiet"]) == 0
    assert (out / "plan.json").read_bytes() == made
    report = json.loads((out / "report.json").read_text())
    layers = {x["origin"]: x for x in report["layers"]}
    assert any(x["channels_before"] > x["channels_after"] for x in found["layers"])
    for x in found["layers"]:
        assert x["channels_after"] == layers[x["origin"]]["channels_after"]
        assert x["weight_format"] == layers[x["origin"]]["weight_format"]
    for name in targets:
        built = json.loads((out / name / "program.json").read_text())
        assert found["targets"][name]["flash"]["value"] == built["weight_bytes"]
        assert found["targets"][name]["ram"]["value"] == built["arena"]["bytes"]
    packed = report["weights"]["packed_bytes"]["value"]
    assert found["weights"]["packed_bytes"]["value"] == packed
    assert abs(found["weights"]["coded_bytes"]["value"] / report["weights"]["coded_bytes"]["value"] - 1) < 0.5


# --------------------------------------------------------------------------------------------- how long it takes
def test_rates_follow_the_runs_of_this_machine(tmp_path):
    rates = Rates(tmp_path / "rates.json")
    fixed, each = TYPICAL["compress"]
    assert rates.expect("compress", "compress", 1e9).seconds == pytest.approx(fixed + each * 1e9)
    assert rates.expect("compress", "compress", 1e9).runs == 0
    for factor in (2.0, 3.0, 100.0):  # one of them disturbed
        rates.note("compress", 1e9, factor * (fixed + each * 1e9))
    again = Rates(tmp_path / "rates.json").expect("compress", "compress", 4e9)
    assert again.runs == 3
    assert again.seconds == pytest.approx(3.0 * (fixed + each * 4e9), rel=1e-3)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "xdeploy.rates/1", "machines": {"x": 3}}', "[" * 100_000])
def test_a_broken_file_of_rates_is_none(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    rates = Rates(path)
    rates.known = rates.known or {rates.machine: {"score": [[1], "x"]}}
    assert rates.expect("score", "score", 1.0).runs == 0
    rates.note("score", 1.0, 2.0)
    assert Rates(path).expect("score", "score", 1.0).runs == 1


def test_fine_tuning_is_work():
    few = Facts(1000, 10, 100, 20, 20, 30, 30, 0)
    many = Facts(1000, 10, 100, 20, 20, 30, 30, 7)
    assert many.work("compress") - few.work("compress") == 7 * 3 * 100 * 1000
    assert many.work("score") == 30 * 1000
    assert many.work("cortex-m4") == 1000
