"""A host artifact's files as a static program, for an emulator that counts its instructions."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from xdeploy.bench.runner import Image
from xdeploy.builder.levels import choosing
from xdeploy.builder.link import PROGRAM, link_alone, program_flags
from xdeploy.handover import Artifact
from xdeploy.target import Target


def static_program(artifact: Artifact, target: Target, folder: Path) -> Path:
    """Compile the artifact's sources and a start of our own into `folder`, without a C library.

    The kernels' assembly is the library's own; the executor, compiled without position independence, can differ from
    the library's by a few instructions per call. Parts in float bring the mathematical functions that they call along.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    name = str(artifact.manifest["symbols"]["run"]).removesuffix("_run")
    for part in ("count_main.c", "linux.h"):
        text = files("xdeploy.targets.support").joinpath(part).read_text(encoding="utf-8")
        (folder / part).write_text(text, encoding="utf-8")
    source = artifact.folder.resolve()
    defines = [f'-DXD_HEADER="{name}.h"', f"-DXD(x)={name}_##x", f"-DXD_UPPER(x)={name.upper()}_##x"]
    more = [*defines, choosing(name), f"-I{source / 'include'}", f"-I{source / 'src'}"]
    parts: list[str | Path] = [p for p in sorted((source / "src").iterdir()) if p.suffix in (".c", ".S")]
    own, math = str(target.compiler["triple"]), bool(Image(artifact).floats)
    sources = [*parts, "count_main.c"]
    link_alone(lambda triple: [*program_flags(target, triple), *more], sources, own, name, folder, PROGRAM, math)
    return folder / name
