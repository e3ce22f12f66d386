"""`xdeploy doctor`, with pieces hidden from it: names what is wrong, what mends it, and ends with the right code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import LIMIT
from xdeploy import doctor, machine

ROOT = Path(__file__).resolve().parents[2]
# the packages' rows alone: asking compilers takes seconds
ASK = "from xdeploy import doctor; import json; print(json.dumps([r.to_dict() for r in doctor.packages()]))"


def packages(folder: Path) -> dict[str, dict]:
    """The rows of a process that finds the modules and metadata in `folder` first."""
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, env=env, timeout=LIMIT, check=True
    )
    return {row["name"]: row for row in json.loads(done.stdout)}


def installed(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_every_dependency_is_known_by_its_module():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.split(">")[0].split("=")[0].split("<")[0].strip() for line in project["dependencies"]}
    assert names <= set(doctor.PACKAGES)
    assert {r.name for r in doctor.packages()} == names


def test_all_is_well_here(tmp_path):
    rows = packages(tmp_path)
    assert rows["onnx"]["ok"]
    assert rows["onnx"]["mend"] == ""


def test_an_old_version_is_told_with_the_command(tmp_path):
    installed(tmp_path, "onnx", "1.2.0")
    row = packages(tmp_path)["onnx"]
    assert (row["ok"], row["optional"], row["found"]) == (False, False, "1.2.0")
    assert row["problem"] == "version 1.2.0, needs >=1.21"
    assert row["mend"] == "pip install 'onnx>=1.21'"


def test_a_package_whose_files_are_gone(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n_f = u.find_spec\nu.find_spec = lambda n, *a: None if n == 'tvm' else _f(n, *a)\n"
    )
    row = packages(tmp_path)["apache-tvm"]
    assert not row["ok"]
    assert row["problem"] == "its files are gone"
    assert row["mend"].startswith("pip install --force-reinstall 'apache-tvm==")


def test_a_package_that_is_not_there(monkeypatch):
    row = doctor._package("no-such-package", ">=2")
    assert (row.ok, row.problem, row.mend) == (False, "not installed", "pip install 'no-such-package>=2'")


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [("2.13.0+cpu", ">=2.13,<2.14", True), ("2.14.0", ">=2.13,<2.14", False), ("0.27.0.post1", "==0.27.0.post1", True),
     ("0.27.0", "==0.27.0.post1", False), ("3.0rc1", ">=2", True), ("1", "", True), ("odd", ">=2", True)],
)  # fmt: skip
def test_versions(version, wanted, fits):
    assert doctor._fits(version, wanted) == fits


def test_without_any_program_the_main_job_goes_on(monkeypatch):
    monkeypatch.setenv("PATH", "")
    rows = machine.programs()
    assert rows
    assert not any(r.ok for r in rows)
    assert doctor.is_ready(rows)
    assert {r.mend for r in rows if r.name == "qemu-system-arm"} == {"apt-get install qemu-system-arm"}


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path / "file" / "zig"))
    monkeypatch.setenv("XDEPLOY_CACHE", str(tmp_path / "file"))
    rows = {r.name: r for r in machine.places()}
    assert not rows["compiler's cache"].ok
    assert "ZIG_GLOBAL_CACHE_DIR" in rows["compiler's cache"].mend
    assert not doctor.is_ready(rows.values())
    assert rows["measured kernels"].optional
    assert rows["temporary files"].ok
    assert not list(tmp_path.glob("tmp*"))


def test_what_fails_to_run_is_told():
    assert machine._ask([sys.executable, "-c", "print('a'); print('b')"]) == (True, "b")
    assert machine._ask([sys.executable, "-c", "import sys; sys.exit('oh no')"]) == (False, "oh no")
    ok, said = machine._ask(["/no/such/program"])
    assert not ok
    assert "does not run" in said


def test_a_processor_without_avx2_and_little_memory(monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"sse2"})
    monkeypatch.setattr(machine, "_free_memory", lambda: 1 << 28)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    rows = {r.name: r for r in machine.hardware()}
    assert not rows["processor: avx2"].ok
    assert "0.2 GiB free" in rows["memory"].problem
    assert doctor.is_ready(rows.values())


def test_text_and_exit_code(monkeypatch, capsys):
    from xdeploy.cli import main

    good = doctor.Check("python", True, "3.11", "all", "none")
    bad = doctor.Check("zig runs", False, "", "compiling", "pip install ziglang", problem="crashed")
    minor = doctor.Check("ssh", False, "", "boards", "apt-get install openssh-client", True, "not installed")
    for rows, code in (([good, minor], 0), ([good, bad, minor], 5)):
        monkeypatch.setattr(doctor, "examine", lambda rows=rows: rows)
        assert main(["doctor"]) == code
        text = capsys.readouterr().out
        assert ("MISSING zig runs" in text) == (code == 5)
        assert "apt-get install openssh-client" in text
    assert main(["doctor", "--json"]) == 5
    found = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["ok"], r["mend"]) for r in found["checks"]][1] == ("zig runs", False, "pip install ziglang")


def test_the_whole_of_it_here(capsys):
    from xdeploy.cli import main

    assert main(["doctor", "--json"]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["checks"]}
    assert rows["LLVM inside tvm"]["found"] == "x86_64, arm, thumb, aarch64"
    assert rows["zig runs"]["found"]
