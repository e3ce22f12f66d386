"""A host artifact's files as a static program, for an emulator that counts its instructions."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from xdeploy.builder.link import library_triple, link_static, program_flags
from xdeploy.handover import Artifact
from xdeploy.target import Target


def static_program(artifact: Artifact, target: Target, folder: Path) -> Path:
    """Compile the artifact's sources and a main function into `folder`.

    The kernels' assembly is the library's own; the executor, compiled without position independence, can differ from
    the library's by a few instructions per call.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    name = str(artifact.manifest["symbols"]["run"]).removesuffix("_run")
    text = files("xdeploy.targets.support").joinpath("count_main.c").read_text(encoding="utf-8")
    (folder / "count_main.c").write_text(text, encoding="utf-8")
    source = artifact.folder.resolve()
    defines = [f'-DXD_HEADER="{name}.h"', f"-DXD(x)={name}_##x", f"-DXD_UPPER(x)={name.upper()}_##x"]
    triple = library_triple(str(target.compiler["triple"]))
    parts = [p for p in sorted((source / "src").iterdir()) if p.suffix in (".c", ".S")]
    flags = [*program_flags(target, triple), *defines, f"-I{source / 'include'}", f"-I{source / 'src'}"]
    link_static(flags, [*parts, "count_main.c"], triple, name, folder)
    return folder / name
