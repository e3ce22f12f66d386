"""build: Program -> Artifact, a folder with the C package, the built library or program, and manifest.json."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xdeploy import __version__, manifest
from xdeploy.builder.elf import Elf, read_elf
from xdeploy.builder.executor import prefixed_assembly
from xdeploy.builder.harness import link_serial
from xdeploy.builder.levels import bind_levels, level_assembly
from xdeploy.builder.link import (
    BOARDS,
    compile_weights,
    determine_stack,
    link_archive,
    link_bare,
    link_board,
    link_library,
    link_program,
)
from xdeploy.builder.package import Package
from xdeploy.builder.sbom import NAME as SBOM
from xdeploy.builder.sbom import bill, build_time
from xdeploy.builder.zig import clang_version, tool_versions
from xdeploy.errors import GateError
from xdeploy.files import sha256, write_json
from xdeploy.handover import Artifact, GoldenIo
from xdeploy.kernel import Code
from xdeploy.lir.graph import LoweredGraph
from xdeploy.process.lock import scratch_folder
from xdeploy.program import Choice, Program
from xdeploy.recipe import PackageOptions
from xdeploy.target import Target

__all__ = ["build"]


def build(
    program: Program,
    graph: LoweredGraph,
    golden: GoldenIo,
    target: Target,
    folder: Path,
    options: PackageOptions,
    provenance: Mapping[str, Any],
    levels: Mapping[str, Choice] | None = None,
) -> Artifact:
    """Print and compile a program into `folder`.

    Args:
        program: what `bind` decided, for this target and the form in `options`.
        graph: the graph it was bound from.
        golden: inputs and the reference's outputs, kept beside the artifact and in the self-test.
        target: names compiler, kind and runner.
        folder: OUT/<target>; replaced as a whole when everything has been built, else left as it was.
        options: the form and name asked for.
        provenance: "recipe" and "model" (name, sha256, ...), kept in the manifest.
        levels: kernels that were chosen already for further feature levels of the target, by level.

    Raises:
        ToolchainError: the compiler is missing or fails. GateError: code and weights exceed the flash. UsageError:
        SOURCE_DATE_EPOCH is no time.
    """
    assert program.target == target.name, "bound for another target"
    assert program.form == options.form, "bound in another form"
    assert program.prefix == options.prefix, "bound with another prefix"
    build_time()  # a bad one is told before the compilers meet it
    with _beside(folder) as part, scratch_folder("build") as scratch:
        program, further = bind_levels(program, graph, target, levels or {})
        packages = tuple(
            Package(p, graph, golden, at, provenance, level_assembly(at, _assembly(p, at))) for at, p in further
        )
        package = Package(program, graph, golden, target, provenance, _assembly(program, target), packages)
        package.write(part, None)
        stack = determine_stack(package, part, Path(scratch))
        package.write(part, stack)
        weights = compile_weights(package, part, Path(scratch))
        bare = read_elf(link_bare(package, part, weights))
        _check_flash(program, bare)
        products = _products(package, part, weights)
        program.save(part / "program.json")
        for _, p in further:
            p.save(part / "levels" / f"{p.model}.json")
        golden.save(part / "golden.npz")
        tools = _tools(package)
        write_json(part / SBOM, bill(package, _hashes(part), tools))
        manifest.write(part, {**_manifest(package, bare, stack, products, tools), "files": _hashes(part)})
    return Artifact.load(folder)


def _assembly(program: Program, target: Target) -> str:
    functions: dict[str, Code] = {s: c for s, c in program.functions.items() if c.language == "tir"}
    if not functions:
        return ""
    from xdeploy.builder.tir import compile_tir

    return prefixed_assembly(program, compile_tir(functions, target).assembly())


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below the folder, by relative path."""
    return {f.relative_to(folder).as_posix(): sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


def _tools(package: Package) -> dict[str, str]:
    """Versions of all that had a part in the artifact."""
    tools = {"xdeploy": __version__, **tool_versions(), "clang": clang_version()}
    if package.assembly:
        from xdeploy.builder.tir import llvm_version

        tools["llvm"] = llvm_version()
    return tools | tool_versions(package.provenance.get("packages", ()))


def _products(package: Package, folder: Path, weights: Path) -> dict[str, str]:
    """Link what the target's kind asks for: role -> relative path."""
    kind, board = package.target.kind, package.target.runner.get("machine")
    made = {"bare": folder / "build" / f"{package.name}.elf"}
    if kind == "host":
        made["library"] = link_library(package, folder, weights)
    elif kind == "linux":
        made["program"] = link_program(package, folder, weights)
        made["archive"] = link_archive(package, folder)
    elif board in BOARDS:
        made["board"] = link_board(package, folder, weights, str(board))
        made["serial"] = link_serial(package, folder, weights, str(board))
    return {role: str(path.relative_to(folder)) for role, path in made.items()}


def _check_flash(program: Program, bare: Elf) -> None:
    limit = program.memory.get("flash")
    if limit is not None and bare.flash > limit:
        raise GateError(
            f"{program.model} does not fit {program.target}: code and constants take {bare.flash} bytes "
            f"({bare.code} code), its flash is {limit}",
            hint="plan with a smaller budget (--flash) or choose a larger target",
        )


def _manifest(
    package: Package, bare: Elf, stack: int | None, products: Mapping[str, str], tools: Mapping[str, str]
) -> dict[str, Any]:
    p, target = package.program, package.target
    told = ("recipe", "packages")
    return {
        "schema": "xdeploy.manifest/1",
        "target": target.name,
        "isa": target.isa,
        "kind": target.kind,
        "machine": str(target.compiler["triple"]).partition("-")[0],
        "model": p.model,
        "form": p.form,
        "io": package.graph.io.to_dict(),
        "input": {"bytes": package.graph.tensors[package.graph.input].size,
                  "shape": list(package.graph.tensors[package.graph.input].shape)},
        "output": {"bytes": package.graph.tensors[package.graph.output].size,
                   "shape": list(package.graph.tensors[package.graph.output].shape)},
        "arena": {"bytes": p.arena, "lower_bound": p.lower_bound, "align": p.align},
        "stack_bound": stack,
        "weight_bytes": p.weight_bytes,
        "weights_crc32": f"{package.weights_crc:08x}",
        "macs": p.macs,
        **({"threads": package.threads} if package.has_worker else {}),
        "prefix": p.prefix,
        "symbols": {**{k: f"{package.name}_{k}" for k in ("run", "run_sized", "verify", "selftest")},
                    "calls": [c.symbol for c in p.calls], "constants": list(p.constants)},
        "sections": bare.sections,
        "flash": {"code": bare.code, "constants": bare.constants, "data": bare.data, "zeros": bare.zeros},
        "levels": {level.name: {"isa": level.isa, "run": f"{other.name}_run",
                                "calls": [c.symbol for c in other.program.calls],
                                "program": f"levels/{other.program.model}.json"}
                   for level, other in zip(target.levels, package.levels, strict=False)},
        "products": dict(products),
        "golden": "golden.npz",
        "sbom": SBOM,
        "tools": dict(tools),
        "recipe": package.provenance.get("recipe", {}),
        "recipe_sha256": package.recipe_sha256,
        "provenance": {k: v for k, v in package.provenance.items() if k not in told},
    }  # fmt: skip


def _set_modes(folder: Path) -> None:
    """The same permissions whatever the user's umask: an archive of the folder is then the same too."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place on success and vanishes on failure."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield part
        _set_modes(part)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
            folder.rename(old / folder.name)
            part.rename(folder)
            shutil.rmtree(old)
        else:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
