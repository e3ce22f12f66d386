"""`xdeploy check` as a gate, through the command line, on artifacts that were really built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

from tests.e2e.conftest import BUILT, FrontDoor
from tests.e2e.files import hindered_quantised
from tests.gate.formats import junit_errors, rules_agree, sarif_errors
from xdeploy.cli import main


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["check", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def bench(door: FrontDoor) -> dict[str, Any]:
    """The quantities of the Cortex-M4."""
    found: dict[str, Any] = json.loads((door.out / "cortex-m4" / "bench.json").read_text())["quantities"]
    return found


def test_one_gate_passes_and_one_fails(
    door: FrontDoor, bench: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The limits are the measured figures themselves, then a byte and an instruction less."""
    folder, flash, count = door.out / "cortex-m4", bench["flash"]["value"], bench["instructions"]["value"]
    assert flash == sum(x["value"] for x in bench["flash_parts"].values())
    code, text, _ = check(capsys, folder, "--max-flash", flash, "--max-instructions", count)
    assert code == 0
    assert text.splitlines()[-1] == "passed: 3 gates"
    code, text, _ = check(capsys, folder, "--max-flash", flash - 1, "--max-instructions", count)
    assert code == 4
    outputs, size, instructions, last = text.splitlines()
    assert outputs.startswith("ok ")
    assert size.split()[:3] == ["FAILED", "cortex-m4", "flash"]
    assert f"{flash:,} B" in size
    assert size.endswith("measured")
    assert instructions.split()[:3] == ["ok", "cortex-m4", "instructions"]
    assert instructions.endswith("emulated")
    assert last == "FAILED: 1 of 3 gates"


def test_every_flag_on_all_targets(door: FrontDoor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The host library has no cycle model, so that its limits on cycles and energy fail as not measured."""
    files = {k: tmp_path / f"{k}.out" for k in ("junit", "sarif", "summary")}
    limits = {
        "flash": "128K", "ram": "32K", "stack": "64K", "arena": "32K", "cycles": "20M", "instructions": "30M",
        "latency": "50ms", "energy": "5mJ", "drop": "100",
    }  # fmt: skip
    arguments = [x for k, v in limits.items() for x in (f"--max-{k}", v)] + ["--min-accuracy", "0.01"]
    arguments += [x for k, v in files.items() for x in (f"--{k}", str(v))]
    code, text, _ = check(capsys, door.out, *arguments, "--json")
    document = json.loads(text)
    failed = {(t["target"], g["rule"]) for t in document["targets"] for g in t["gates"] if g["status"] == "failed"}
    assert {t["target"] for t in document["targets"]} == set(BUILT)
    assert {t for t, _ in failed} <= {"x86-64"}
    assert (code == 4) is bool(failed) is not document["passed"]
    accuracy = json.loads((door.out / "accuracy.json").read_text())["deployed"]
    gates = [g for t in document["targets"] for g in t["gates"] if g["rule"] == "min-accuracy"]
    assert [g["value"]["value"] for g in gates] == [accuracy["value"]] * 2
    xml, log = Xml.parse(files["junit"]).getroot(), json.loads(files["sarif"].read_text())
    assert junit_errors(xml) == []
    assert sarif_errors(log) == []
    assert rules_agree(log)
    assert int(xml.get("failures", "")) == len(failed) == sum(r["level"] == "error" for r in log["runs"][0]["results"])
    assert files["summary"].read_text().startswith("### xdeploy check: ")
    code, text, _ = check(capsys, door.out, *arguments, "--target", "cortex-m4")
    assert code == 0


def test_against_itself_nothing_changed(door: FrontDoor, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = check(
        capsys, door.out, "--baseline", door.out, "--max-growth", "0", "--max-drop", "100", "--summary", "-"
    )
    assert code == 0
    assert text.startswith("### xdeploy check: passed: ")
    assert text.count("No layer changed.") == len(BUILT)
    assert "Not comparable" not in text


def test_a_layer_that_grew(door: FrontDoor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(door.out, old)
    path = old / "cortex-m4" / "bench.json"
    document = json.loads(path.read_text())
    document["quantities"]["instructions"]["value"] -= 5000
    document["layers"][0]["instructions"] -= 5000
    path.write_text(json.dumps(document))
    arguments = (door.out / "cortex-m4", "--baseline", old / "cortex-m4", "--max-growth", "2%", "--summary", "-")
    code, text, _ = check(capsys, *arguments)
    assert code == 4
    name, count = document["layers"][0]["node"], document["layers"][0]["instructions"]
    assert f"| `{name}` | {count:,} → {count + 5000:,} (+{500000 / count:.1f} %) |" in text
    assert check(capsys, *arguments[:-4], "--max-growth", "50%")[0] == 0


def test_the_accuracy_is_that_which_the_run_counted(door: FrontDoor, capsys: pytest.CaptureFixture[str]) -> None:
    """The share of right answers that the run counted, as a limit in shares and in percent."""
    from xdeploy.files import read_json

    found = read_json(door.out / "accuracy.json", "xdeploy.accuracy/1")["deployed"]
    hits = round(found["value"] * found["n"] / 100)
    share = np.float64(hits) / found["n"]
    assert check(capsys, door.out, "--min-accuracy", f"{share:.6f}")[0] == (0 if round(share, 6) <= share else 4)
    assert check(capsys, door.out, "--min-accuracy", f"{share + 1e-4:.6f}")[0] == 4
    assert check(capsys, door.out, "--min-accuracy", f"{100 * share - 0.01:.4f}")[0] == 0


def test_without_the_run_folder_the_accuracy_is_unknown(
    door: FrontDoor, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(door.out / "cortex-m4", tmp_path / "alone")
    assert check(capsys, tmp_path / "alone")[0] == 0
    code, text, _ = check(capsys, tmp_path / "alone", "--min-accuracy", "0")
    assert code == 4
    assert "not measured: there is no accuracy.json" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-flash", "many"], "size"), (["--max-flash", "-1"], "flash"), (["--max-flash", "nan"], "size"),
        (["--max-latency", "50"], "time"), (["--max-latency", "nan"], "time"), (["--max-energy", "5"], "energy"),
        (["--max-cycles", "-3"], "count"), (["--min-accuracy", "101"], "accuracy"), (["--max-drop", "nan"], "drop"),
        (["--max-growth", "2%"], "baseline"), (["--baseline", "nowhere"], "nowhere"), (["--target", "avr"], "avr"),
        (["--json", "--summary", "-"], "stdout"), (["--flash", "64K"], "--max-flash"), (["--data", "x.npz"], "--data"),
        (["--set", "seed=1"], "--set"), (["--junit", "/proc/nothing/x.xml"], "cannot be written"),
    ],
)  # fmt: skip
def test_bad_usage(door: FrontDoor, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, _, told = check(capsys, door.out / "cortex-m4", *arguments)
    assert code == 2
    assert words in told
    assert "internal" not in told


@pytest.mark.parametrize("flags", [["--max-flash", "1K"], ["--strict"], ["--baseline", "x"], ["--min-accuracy", "1"]])
def test_a_model_has_no_limits(door: FrontDoor, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    code, _, told = check(capsys, door.model, *flags)
    assert code == 2
    assert flags[0] in told


def test_a_cut_off_file(door: FrontDoor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "cortex-m4"
    shutil.copytree(door.out / "cortex-m4", folder)
    for name in ("bench.json", "manifest.json", "program.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(whole[: len(whole) // 2])
        code, _, told = check(capsys, folder)
        assert code == 2
        assert name in told
        (folder / name).write_text(whole)
    assert check(capsys, folder)[0] == 0


def test_a_model_writes_the_files_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An obstacle is a failed testcase and a result whose logical location is the node; exit 3 as before."""
    hindered_quantised(tmp_path / "bad.onnx")
    files = {k: tmp_path / f"ci/{k}.out" for k in ("junit", "sarif", "summary")}
    arguments = [x for k, v in files.items() for x in (f"--{k}", str(v))]
    code, text, _ = check(capsys, tmp_path / "bad.onnx", *arguments, "--json")
    obstacles = json.loads(text)["obstacles"]
    assert code == 3
    assert obstacles
    xml, log = Xml.parse(files["junit"]).getroot(), json.loads(files["sarif"].read_text())
    assert junit_errors(xml) == []
    assert sarif_errors(log) == []
    assert int(xml.get("failures", "")) == len(obstacles)
    results = [r for r in log["runs"][0]["results"] if r["level"] == "error"]
    nodes = [r["locations"][0]["logicalLocations"][0]["name"] for r in results]
    assert nodes == [o["node"] for o in obstacles]
    assert {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results} == {"bad.onnx"}
    assert files["summary"].read_text().count("\n| `") == len(obstacles)


def test_a_model_that_can_be_deployed(door: FrontDoor, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    junit, log = tmp_path / "junit.xml", tmp_path / "log.sarif"
    files = ("--junit", junit, "--sarif", log, "--summary", "-")
    code, text, _ = check(capsys, door.out / "model.onnx", "--target", "cortex-m4", *files)
    assert code == 0
    assert text.startswith("### xdeploy check: deployable")
    assert Xml.parse(junit).getroot().get("failures") == "0"
    assert Xml.parse(junit).getroot().get("tests") == "1"
    assert json.loads(log.read_text())["runs"][0]["results"] == []
