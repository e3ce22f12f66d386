"""A written package as a shared library that TVM's runtime loads: what runs it behind a TVM RPC server."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template

from xdeploy.builder.link import program_flags
from xdeploy.builder.zig import cc
from xdeploy.errors import UsageError
from xdeploy.files import write_text
from xdeploy.handover import Artifact
from xdeploy.process.lock import scratch_folder
from xdeploy.target import Target


def link_module(artifact: Artifact, target: Target) -> bytes:
    """Compile an artifact's sources, and the function `run` around them, for its CPU under Linux with glibc.

    Args:
        artifact: of a host or Linux target; its folder is read only.
        target: the one it was built for.

    Returns:
        The bytes of the library; it exports `__tvm_ffi_run` alone (see templates/tvm.c).

    Raises:
        UsageError: the target is firmware. ToolchainError: the compiler is missing or fails.
    """
    if target.kind == "firmware":
        raise UsageError(f"{target.name} is firmware: no TVM runtime runs there")
    manifest, folder = artifact.manifest, artifact.folder.resolve()
    triple = str(target.compiler["triple"]).replace("musl", "gnu")
    flags = [*program_flags(target, triple), "-Wl,--gc-sections"]
    text = files("xdeploy.builder.templates").joinpath("tvm.c").read_text(encoding="utf-8")
    values = {
        "run": manifest["symbols"]["run"], "input_bytes": int(manifest["input"]["bytes"]),
        "output_bytes": int(manifest["output"]["bytes"]), "arena": int(manifest["arena"]["bytes"]),
        "align": int(manifest["arena"]["align"]),
    }  # fmt: skip
    sources = sorted(p for p in (folder / "src").iterdir() if p.suffix in (".c", ".S"))
    with scratch_folder("module") as scratch:
        at = Path(scratch)
        write_text(at / "tvm.c", Template(text).substitute(values))
        # hidden: only __tvm_ffi_run leaves the library, so that --gc-sections sees what it needs
        shape = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-Bsymbolic", "-Wl,--as-needed"]
        paths = [f"-I{folder}/include", f"-I{folder}/src"]
        libraries = ["-lm", "-lpthread"] if "threads" in manifest else ["-lm"]
        cc([*flags, *shape, *paths, *sources, "tvm.c", *libraries, "-o", "module.so"], at)
        return (at / "module.so").read_bytes()
