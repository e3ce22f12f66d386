"""The bill of materials of a package: CycloneDX 1.6 as JSON, equal for equal content.

What it says: the package and the hash of each of its files, the model it was made from, what of other people's work
is linked into its programs, and the tools that made it. https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from xdeploy.builder.package import Package
from xdeploy.errors import UsageError
from xdeploy.handover import IoSpec

NAME = "sbom.cdx.json"
SPEC = "1.6"
# SPDX expressions and purl types of the tools; the compilers inside the two wheels are LLVM's
_LICENCES = {
    "xdeploy": "Apache-2.0",
    "apache-tvm": "Apache-2.0",
    "ziglang": "MIT",
    "llvm": "Apache-2.0 WITH LLVM-exception",
    "clang": "Apache-2.0 WITH LLVM-exception",
    "numpy": "BSD-3-Clause",
    "onnx": "Apache-2.0",
    "onnxruntime": "MIT",
    "torch": "BSD-3-Clause",
}
_WHEELS = ("xdeploy", "apache-tvm", "ziglang", "numpy", "onnx", "onnxruntime", "torch")


def content_digest(files: Mapping[str, str]) -> str:
    """SHA-256 (hex) of what `sha256sum` prints for the files (path -> SHA-256), sorted by path."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def bill(package: Package, files: Mapping[str, str], tools: Mapping[str, str]) -> dict[str, Any]:
    """The CycloneDX document of a package.

    Args:
        package: what was printed.
        files: path below the package's folder -> SHA-256, of every file but the bill and the manifest.
        tools: name -> version.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is set and no number of seconds.
    """
    digest = content_digest(files)
    root, model, linked = _root(package, files, digest), _model(package), _linked(package, files, tools)
    others = [model, *linked]
    metadata: dict[str, Any] = {
        **build_time(),
        "lifecycles": [{"phase": "build"}],
        "tools": {"components": [_tool(name, version) for name, version in sorted(tools.items())]},
        "component": root,
    }
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        # the same content has the same number: two builds of one input give one file
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, f'xdeploy {digest}')}",
        "version": 1,
        "metadata": metadata,
        "components": others,
        "dependencies": [
            {"ref": root["bom-ref"], "dependsOn": [c["bom-ref"] for c in others]},
            *({"ref": c["bom-ref"]} for c in others),
        ],
    }


def build_time() -> dict[str, str]:
    """The entry of the time: none unless the build is told one, https://reproducible-builds.org/specs/source-date-epoch/.

    Raises:
        UsageError: SOURCE_DATE_EPOCH is set and no number of seconds.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        return {}
    try:
        return {"timestamp": datetime.fromtimestamp(int(given), UTC).isoformat().replace("+00:00", "Z")}
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH must be seconds since 1970, got {given!r}") from None


def _root(package: Package, files: Mapping[str, str], digest: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": "package",
        "name": package.name,
        "version": digest[:12],
        "description": f"A neural network in C for {package.target.name}, {package.program.form} form",
        "hashes": [_hash(digest)],
        "purl": f"pkg:generic/{package.name}@{digest[:12]}",
        "properties": _properties({
            "hash": "of the lines that sha256sum prints for the files below, sorted by path",
            "target": package.target.name, "form": package.program.form, "recipe.sha256": package.recipe_sha256,
            "weights.crc32": f"{package.weights_crc:08x}",
        }),
        "components": [
            {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": [_hash(value)]}
            for path, value in sorted(files.items())
        ],
    }  # fmt: skip


def _model(package: Package) -> dict[str, Any]:
    """The trained network; its licence is its owner's to tell."""
    told = package.provenance.get("model", {})
    digest = str(told.get("sha256", ""))
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": str(told.get("name", package.program.model)) or package.program.model,
        "modelCard": {"modelParameters": _parameters(package.graph.io)},
    }
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        found |= {"version": digest[:12], "hashes": [_hash(digest)]}
    numbers = {k: told[k] for k in ("parameters", "macs") if k in told}
    return found | ({"properties": _properties(numbers)} if numbers else {})


def _parameters(io: IoSpec) -> dict[str, Any]:
    def form(shape: tuple[int, ...]) -> str:
        return f"int8 {'x'.join(map(str, shape))}"

    return {"inputs": [{"format": form(io.device_input_shape)}], "outputs": [{"format": form(io.output_shape)}]}


def _linked(package: Package, files: Mapping[str, str], tools: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the compiler puts into the built programs and libraries beside the package's own code."""
    if not any(path.startswith(("bin/", "build/", "lib/")) for path in files):
        return []
    names = {"compiler-rt": ("MIT", "helpers for operations that the CPU lacks, as far as they are used")}
    if package.target.kind == "linux" or package.has_float:
        names["musl"] = ("MIT", "the C library of statically linked programs")
    version = tools.get("ziglang", "unknown")
    return [
        {
            "type": "library", "bom-ref": name, "name": name, "description": text,
            "version": f"of ziglang {version}", "licenses": [{"license": {"id": licence}}],
        }
        for name, (licence, text) in sorted(names.items())
    ]  # fmt: skip


def _tool(name: str, version: str) -> dict[str, Any]:
    tool: dict[str, Any] = {"type": "application", "bom-ref": f"tool:{name}", "name": name, "version": version}
    if name in _LICENCES:
        tool["licenses"] = [{"expression": _LICENCES[name]}]
    return tool | ({"purl": f"pkg:pypi/{name}@{version}"} if name in _WHEELS else {})


def _hash(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _properties(values: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"name": f"xdeploy:{name}", "value": str(value)} for name, value in values.items()]
