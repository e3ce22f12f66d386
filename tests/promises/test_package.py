"""`bench` and `run` never use a package that is not as it was built: every file of it, its manifest too."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import seed
from tests.networks import Drawer
from tests.promises.damage import damages
from xdeploy import manifest
from xdeploy.builder import build
from xdeploy.cli import main
from xdeploy.errors import UsageError
from xdeploy.handover import Artifact
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

FLIPS = 600  # seeded bits of the manifest
TARGETS = ("x86-64", "cortex-m4")


@pytest.fixture(scope="module", params=TARGETS)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built package of two linear layers in portable C."""
    d = Drawer((12,))
    graph, golden = d.finish(d.linear("second", d.clamp("relu", d.linear("first", "x", 20)), 6))
    target, folder = load_target(request.param), tmp_path_factory.mktemp("package") / request.param
    options = PackageOptions(form="portable")
    build(bind(graph, target, "net", form="portable"), graph, golden, target, folder, options, {"model": {}})
    np.save(folder.parent / "x.npy", golden.input_codes)
    return folder


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "package")
    shutil.copy(package.parent / "x.npy", tmp_path)
    return tmp_path / "package"


def commands(folder: Path) -> Iterator[list[str]]:
    yield ["bench", str(folder), "--quiet", "--repeats", "1"]
    yield ["run", str(folder), "--quiet", "--inputs", str(folder.parent / "x.npy"), "-o", str(folder.parent / "y.npy")]


def code_files(folder: Path) -> list[str]:
    """The manifest, what says how it is measured, and what is run."""
    products = Artifact.load(folder).manifest["products"]
    return ["manifest.json", "program.json", "golden.npz", *products.values()]


def test_a_whole_package_runs(copy: Path) -> None:
    for command in commands(copy):
        assert main(command) == 0


def test_damage_is_told_by_both_commands(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in code_files(copy):
        path = copy / name
        whole = path.read_bytes()
        for what, data in damages(path, b"another"):
            path.write_bytes(data)
            for command in commands(copy):
                assert main(command) == 2, (name, what)
                text = capsys.readouterr().err
                assert text.count("error: ") == 1, text
                assert name in text, text
                assert "build it again" in text or "not readable JSON" in text or "schema" in text, text
        path.write_bytes(whole)
    assert not (copy.parent / "y.npy").exists()
    assert not (copy / "bench.json").exists()


def test_every_file_but_what_is_measured_counts(copy: Path) -> None:
    names = sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file())
    for name in names:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole + b" ")
        with pytest.raises(UsageError, match=r"is not as it was built: .* was changed"):
            Artifact.load(copy).verify_files()
        (copy / name).unlink()
        with pytest.raises(UsageError, match=r"is missing|has no manifest\.json"):
            Artifact.load(copy).verify_files()
        (copy / name).write_bytes(whole)
    (copy / "bench.json").write_text("beside what was built")
    Artifact.load(copy).verify_files()


def test_flipped_bits_of_the_manifest(copy: Path) -> None:
    path = copy / "manifest.json"
    whole = path.read_bytes()
    for number in random.Random(seed()).sample(range(8 * len(whole)), FLIPS):
        flipped = bytearray(whole)
        flipped[number // 8] ^= 1 << number % 8
        path.write_bytes(flipped)
        with pytest.raises(UsageError, match=r"manifest\.json"):
            Artifact.load(copy).verify_files()


def test_its_own_hash_by_its_documentation(copy: Path) -> None:
    """The last entry: the SHA-256 of the file with this value's digits as zeros."""
    text = (copy / "manifest.json").read_text()
    value = json.loads(text)
    assert list(value)[-1] == "sha256"
    assert text.count(value["sha256"]) == 1
    assert hashlib.sha256(text.replace(value["sha256"], "0" * 64).encode()).hexdigest() == value["sha256"]


@pytest.mark.parametrize("files", [{}, {"x.npy": ""}, {"../x.npy": "0" * 64}, {"/dev/zero": "0" * 64}, {"a\0b": ""}])
def test_files_that_are_no_files_of_it(tmp_path: Path, files: dict[str, str]) -> None:
    """A manifest that is sealed, but lists what is not there: told, nothing endless is read."""
    manifest.write(tmp_path, {"schema": "xdeploy.manifest/1", "files": files})
    if not files:
        return Artifact.load(tmp_path).verify_files()
    with pytest.raises(UsageError, match=r"is missing|was changed"):
        Artifact.load(tmp_path).verify_files()
    return None


@pytest.mark.parametrize("files", [[], 3, "a"])
def test_files_of_another_kind(tmp_path: Path, files: object) -> None:
    manifest.write(tmp_path, {"schema": "xdeploy.manifest/1", "files": files})
    with pytest.raises(UsageError, match="files must be an object"):
        Artifact.load(tmp_path).verify_files()
