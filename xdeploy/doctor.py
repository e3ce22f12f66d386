"""`xdeploy doctor`: what the tool needs, what is there, and the one command that mends what is not.

What Python packages are needed, and in which versions, is what the installed xdeploy itself declares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from xdeploy.errors import ToolchainError

# distribution -> (import name, what for); the names are those of the project's dependencies
PACKAGES = {
    "numpy": ("numpy", "all arithmetic"),
    "torch": ("torch", "capture, scoring, fine-tuning"),
    "captum": ("captum", "DeepLIFT"),
    "scipy": ("scipy", "planning"),
    "scikit-learn": ("sklearn", "the bundled demo"),
    "safetensors": ("safetensors", "weights"),
    "onnx": ("onnx", "export and lowering"),
    "onnxruntime": ("onnxruntime", "checking the export"),
    "apache-tvm": ("tvm", "kernels"),
    "ziglang": ("ziglang", "compiling for every target"),
    "unicorn": ("unicorn", "running Arm code"),
    "pyelftools": ("elftools", "measuring flash"),
    "capstone": ("capstone", "instruction mix"),
    "pyserial": ("serial", "boards on a serial port"),
    "constriction": ("constriction", "packed model files"),
    "matplotlib": ("matplotlib", "pictures of explain"),
    "pillow": ("PIL", "images"),
    "rich": ("rich", "progress and tables"),
    "shtab": ("shtab", "completion in shells"),
    "packaging": ("packaging", "comparing versions"),
    "optuna": ("optuna", "sweeps"),
}


class Check(NamedTuple):
    """One requirement. found: version, path or figure; mend: the command; optional: the main job goes without it."""

    name: str
    ok: bool
    found: str
    use: str
    mend: str
    optional: bool = False
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The row of the `--json` document."""
        return {
            "name": self.name, "ok": self.ok, "found": self.found, "for": self.use, "problem": self.problem,
            "mend": "" if self.ok else self.mend, "optional": self.optional,
        }  # fmt: skip


def missing_package(module: str) -> ToolchainError:
    """The error for a module that cannot be imported, with the command that installs it."""
    top = module.partition(".")[0]
    name = next((dist for dist, (imported, _) in PACKAGES.items() if imported == top), top)
    return ToolchainError(f"the Python package {name!r} is not installed", hint=f"pip install {name}")


def examine() -> list[Check]:
    """Every requirement, the needed ones first in each group."""
    from xdeploy import machine

    python = Check(
        "python", sys.version_info >= (3, 11), sys.version.split()[0], "the tool itself",
        "install Python 3.11 or newer", problem="" if sys.version_info >= (3, 11) else "older than 3.11",
    )  # fmt: skip
    return [python, *packages(), *machine.compilers(), *machine.programs(), *machine.places(), *machine.hardware()]


def packages() -> list[Check]:
    """A row per Python package that xdeploy declares to need."""
    import importlib.metadata
    import re

    try:
        declared = _declared()
    except importlib.metadata.PackageNotFoundError:
        told = "it runs from a folder and is not installed, so the versions it needs are not known"
        return [Check("xdeploy", False, "", "versions of packages", "pip install .", problem=told)]
    rows = []
    for line in declared:
        requirement, _, marker = line.partition(";")
        if "extra" not in marker:
            name, wanted = re.fullmatch(r"([\w.-]+)(?:\[[^]]*])?\s*\(?([^)]*)\)?", requirement.strip()).groups()  # type: ignore[union-attr]
            rows.append(_package(name.lower(), wanted.strip()))
    return rows


def _declared() -> list[str]:
    """Requirements as pyproject.toml has them: that of the checkout it runs from, else what was installed."""
    import importlib.metadata
    import tomllib
    from pathlib import Path

    try:
        text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text).get("project", {})
        if project.get("name") == "xdeploy":
            return [str(line) for line in project["dependencies"]]
    except (OSError, ValueError, KeyError):
        pass  # no checkout
    return importlib.metadata.requires("xdeploy") or []


def _package(name: str, wanted: str) -> Check:
    import importlib.metadata
    import importlib.util

    module, use = PACKAGES.get(name, (name.replace("-", "_"), "a part of the tool"))
    mend = f"pip install '{name}{wanted}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "", use, mend, problem="not installed")
    if importlib.util.find_spec(module) is None:
        return Check(
            name, False, version, use, f"pip install --force-reinstall '{name}{wanted}'", problem="its files are gone"
        )
    if not _fits(version, wanted):
        return Check(name, False, version, use, mend, problem=f"version {version}, needs {wanted}")
    return Check(name, True, version, use, mend)


def _fits(version: str, wanted: str) -> bool:
    """Whether a version is within a specifier such as `>=2.13,<2.14`; unknown counts as yes."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ModuleNotFoundError:
        return True  # it has a row of its own
    try:
        return SpecifierSet(wanted).contains(Version(version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion):
        return True


def is_ready(rows: Iterable[Check]) -> bool:
    """Whether nothing that the main job needs is missing."""
    return all(r.ok or r.optional for r in rows)


def describe(rows: Iterable[Check]) -> str:
    """The rows as text: a mark, the name, what was found; below what is wrong its use and what mends it."""
    lines = []
    for r in rows:
        mark = "ok" if r.ok else "missing" if r.optional else "MISSING"
        lines.append(f"{mark:8}{r.name:22} {r.found if r.ok else r.problem}".rstrip())
        if not r.ok:
            lines.append(f"{'':8}{'':22} for {r.use}: {r.mend}")
    if is_ready(rows):
        lines.append("all that a build needs is here")
    else:
        lines.append("a build needs what is marked MISSING")
    return "\n".join(lines)
