"""The bill of materials: valid by CycloneDX's own schema, complete, and equal for equal content."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.networks import residual_network
from xdeploy import __version__
from xdeploy.builder import build
from xdeploy.builder.package import Package
from xdeploy.builder.sbom import NAME, bill, content_digest
from xdeploy.errors import UsageError
from xdeploy.files import sha256
from xdeploy.handover import Artifact
from xdeploy.program import bind
from xdeploy.recipe import PackageOptions
from xdeploy.target import load_target

MODEL = {"name": 'a "net" */ <é>', "sha256": "0123abcd" * 8, "parameters": 12}
TOLD = {"recipe": {"seed": 0}, "packages": ["numpy"]}
FILES, TOOLS = {"src/a.c": "12" * 32, "build/a.elf": "34" * 32}, {"xdeploy": "1", "ziglang": "2"}


def drawn(model: dict[str, Any] | None = None) -> Package:
    graph, golden = residual_network()
    target = load_target("cortex-m4")
    return Package(
        bind(graph, target, "net"), graph, golden, target, {**TOLD, "model": MODEL if model is None else model}, ""
    )


def made(folder: Path) -> Artifact:
    p = drawn()
    return build(p.program, p.graph, p.golden, p.target, folder, PackageOptions(), p.provenance)


def written(artifact: Artifact) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((artifact.folder / NAME).read_text())
    return value


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SOURCE_DATE_EPOCH", raising=False)
        return made(tmp_path_factory.mktemp("sbom") / "m4")


def validate(text: str) -> str | None:
    """What CycloneDX's schema says against it, or None."""
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    return None if error is None else str(error)[:500]


def test_valid_by_the_schema(artifact: Artifact) -> None:
    text = (artifact.folder / NAME).read_text()
    assert validate(text) is None
    assert validate(text.replace('"machine-learning-model"', '"brain"')) is not None  # the validator does look
    assert validate(json.dumps(bill(drawn({}), {}, {}))) is None


def test_read_back_by_the_library(artifact: Artifact) -> None:
    pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.model.bom import Bom

    read = Bom.from_json(written(artifact))  # type: ignore[attr-defined]
    assert read.metadata.component.name == "xd_net"
    assert {c.name for c in read.components} == {MODEL["name"], "compiler-rt"}
    assert read.validate()


def test_what_it_lists(artifact: Artifact) -> None:
    value, manifest = written(artifact), artifact.manifest
    root = value["metadata"]["component"]
    files = {c["name"]: c["hashes"][0]["content"] for c in root["components"]}
    assert files == {n: h for n, h in manifest["files"].items() if n != NAME}
    assert all(sha256(artifact.folder / n) == h for n, h in files.items())
    # what `sha256sum` prints for the files, sorted by name
    lines = "".join(f"{sha256(artifact.folder / n)}  {n}\n" for n in sorted(files))
    assert root["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(lines.encode()).hexdigest()}]
    model = next(c for c in value["components"] if c["type"] == "machine-learning-model")
    assert (model["name"], model["hashes"][0]["content"]) == (MODEL["name"], MODEL["sha256"])
    assert model["modelCard"]["modelParameters"]["inputs"] == [{"format": "int8 8x8x4"}]
    tools = {c["name"]: c["version"] for c in value["metadata"]["tools"]["components"]}
    assert tools == manifest["tools"]
    assert {"xdeploy", "apache-tvm", "ziglang", "clang", "llvm", "numpy"} == set(tools)
    assert tools["xdeploy"] == __version__
    assert all(c["licenses"] for c in value["metadata"]["tools"]["components"])
    refs = [root["bom-ref"], *(c["bom-ref"] for c in [*value["components"], *root["components"]])]
    assert len(refs) == len(set(refs))
    assert {d["ref"] for d in value["dependencies"]} == {"package", *(c["bom-ref"] for c in value["components"])}


def test_equal_for_equal_content(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    listed = {n: h for n, h in artifact.manifest["files"].items() if n != NAME}
    first = written(artifact)
    assert bill(drawn(), dict(reversed(listed.items())), artifact.manifest["tools"]) == first
    other = bill(drawn(), {**listed, "README.md": "0" * 64}, artifact.manifest["tools"])
    assert uuid.UUID(first["serialNumber"].removeprefix("urn:uuid:")).version == 5
    assert first["serialNumber"] != other["serialNumber"]
    assert "timestamp" not in first["metadata"]


def test_time_of_the_build_only_when_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    told = bill(drawn(), FILES, TOOLS)
    assert told["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    assert validate(json.dumps(told)) is None
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH must be seconds since 1970, got 'yesterday'"):
        made(tmp_path / "bad")
    assert not list(tmp_path.iterdir())


def test_digest_depends_on_names_and_content() -> None:
    base = content_digest({"a": "1", "b": "2"})
    assert base == content_digest({"b": "2", "a": "1"})
    assert len({base, content_digest({"a": "2", "b": "1"}), content_digest({"a": "1"}), content_digest({})}) == 4


def test_changed_files_are_named(artifact: Artifact, tmp_path: Path) -> None:
    artifact.verify_files()
    shutil.copytree(artifact.folder, tmp_path / "m4")
    copy = Artifact.load(tmp_path / "m4")
    (copy.folder / "bench.json").write_text("beside what was built")
    copy.verify_files()
    weights = copy.folder / "src/xd_net_weights.c"
    weights.write_text(weights.read_text() + " ")
    (copy.folder / "golden.npz").unlink()
    with pytest.raises(
        UsageError, match=r"m4 is not as it was built: golden\.npz is missing, src/xd_net_weights\.c was changed"
    ):
        copy.verify_files()
