"""Compiling a written package: the library or program the user gets, and the images for measuring it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from string import Template

from xdeploy.builder.levels import choosing
from xdeploy.builder.package import Package
from xdeploy.builder.stack import stack_bound
from xdeploy.builder.zig import WARNINGS, ar, cc
from xdeploy.errors import ToolchainError
from xdeploy.files import write_text
from xdeploy.process.lock import scratch_folder
from xdeploy.target import Target

_PLAIN = ("-ffunction-sections", "-fdata-sections", "-fno-sanitize=all", "-fno-unwind-tables", "-g0",
          "-fno-asynchronous-unwind-tables", "-fno-stack-protector", "-Wno-unused-command-line-argument")  # fmt: skip

# Memory maps of QEMU's boards (hw/arm/mps2.c, mps2-tz.c, mps3): where the vectors have to be, and free memory for
# code and constants, for data and stack, and for inputs and outputs.
BOARDS: dict[str, dict[str, int]] = {
    "mps2-an385": {"vectors": 0x0, "code": 0x400, "data": 0x20000000, "top": 0x20400000, "blob": 0x21000000},
    "mps2-an386": {"vectors": 0x0, "code": 0x400, "data": 0x20000000, "top": 0x20400000, "blob": 0x21000000},
    "mps2-an500": {"vectors": 0x0, "code": 0x400, "data": 0x20000000, "top": 0x20400000, "blob": 0x60000000},
    "mps2-an505": {"vectors": 0x10000000, "code": 0x10000400, "data": 0x38000000, "top": 0x38400000,
                   "blob": 0x80000000},
    "mps3-an547": {"vectors": 0x0, "code": 0x70000000, "data": 0x74000000, "top": 0x78000000, "blob": 0x78000000},
}  # fmt: skip


def common_flags(package: Package, triple: str) -> list[str]:
    """How a file of the package is compiled."""
    return [*_compile_flags(package.target, triple), "-Iinclude", "-Isrc"]


def _compile_flags(target: Target, triple: str) -> list[str]:
    flags = [str(f) for f in target.compiler.get("flags", ())]
    return ["-target", triple, "-O2", *flags, *WARNINGS, *_PLAIN]


def program_flags(target: Target, triple: str | None = None) -> list[str]:
    """How a file of a Linux target's program is compiled; `triple`: for another system than its own."""
    return _compile_flags(target, triple or str(target.compiler["triple"]))


def static_flags(triple: str) -> list[str]:
    """How what needs a C library is linked: for no CPU of the architecture in particular.

    The library is built for exactly these flags the first time (minutes of work), so they are the same for all CPUs.
    """
    return ["-target", triple, "-O2", *_PLAIN, "-static", "-Wl,--gc-sections"]


def _link_static(
    flags: Sequence[str], sources: Sequence[str | Path], triple: str, out: str, folder: Path, extra: Sequence[str]
) -> None:
    """Compile each file (an object is taken as it is) with `flags`, and link what needs a C library."""
    with scratch_folder("link") as scratch:
        parts: list[str | Path] = []
        for source in sources:
            parts.append(source)
            if Path(source).suffix != ".o":
                parts[-1] = scratch / f"{len(parts)}.o"
                cc([*flags, "-c", source, "-o", parts[-1]], folder)
        cc([*static_flags(triple), *parts, *extra, "-o", out], folder)


PROGRAM = ("-Wl,-e,xd_entry",)  # how one with linux.h is linked


def link_alone(
    flags: Callable[[str], Sequence[str]], sources: Sequence[str | Path], triple: str, out: str, folder: Path,
    extra: Sequence[str] = (), math: bool = False,
) -> None:  # fmt: skip
    """Compile and link what needs no C library: a package alone, or a program with `linux.h`.

    Args:
        flags: of the compiler, for a triple.
        sources: relative to `folder`, or absolute.
        triple: of the target.
        out: the image or program, relative to `folder`.
        folder: where it is compiled.
        extra: words for the linker.
        math: parts in float bring the mathematical functions they call along: what the compiler's runtime does not
            have, from a C library after all, which takes a minute to compile the first time.

    Raises:
        ToolchainError: the compiler is missing or fails.
    """
    extra = ["-Wl,--gc-sections", *extra]
    try:
        cc([*flags(bare_triple(triple)), *sources, "-ffreestanding", *extra, "-o", out], folder)
    except ToolchainError:
        if not math:
            raise
        triple = library_triple(triple)
        _link_static(flags(triple), sources, triple, out, folder, ["-nostartfiles", "-lm", *extra])


def bare_triple(triple: str) -> str:
    """The triple of the same CPU without an operating system."""
    parts = triple.split("-")
    return triple if "freestanding" in parts else f"{parts[0]}-freestanding{_float_abi(triple)}"


def library_triple(triple: str) -> str:
    """The triple of the same CPU with a C library that links statically."""
    return f"{triple.split('-')[0]}-linux-musl{_float_abi(triple).removeprefix('-')}"


def _float_abi(triple: str) -> str:
    """The last word of a 32-bit Arm triple, "-eabihf" or "-eabi": objects link to their like only; else nothing."""
    found = re.search(r"eabi(?:hf)?$", triple)
    return f"-{found[0]}" if found else ""


def compile_weights(package: Package, folder: Path, scratch: Path) -> Path:
    """The largest file, compiled once for all links: it holds data only, so the operating system does not matter."""
    triple = bare_triple(str(package.target.compiler["triple"]))
    cc([*common_flags(package, triple), "-c", package.weights, "-o", scratch / "weights.o"], folder)
    return scratch / "weights.o"


def link_inputs(package: Package, weights: Path) -> list[str | Path]:
    """The package as the linker takes it: its sources, the weights as the object they are already."""
    return [weights, *(s for s in package.sources if s != package.weights)]


def determine_stack(package: Package, folder: Path, scratch: Path) -> int | None:
    """Bytes of stack of xd_<m>_run by its code, or None where the assembly does not tell."""
    triple = bare_triple(str(package.target.compiler["triple"]))
    texts = [package.assembly]
    texts += [level.assembly for level in package.levels]
    for source in (s for s in package.sources if s.endswith(".c") and not s.endswith("_weights.c")):
        out = scratch / f"{Path(source).stem}.s"
        cc([*common_flags(package, triple), "-S", source, "-o", out], folder)
        texts.append(out.read_text(encoding="utf-8"))
    runs = [f"{p.name}_run" for p in (package, *package.levels)]
    bounds = [stack_bound(texts, run) for run in runs]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if len(known) == len(bounds) else None


def link_bare(package: Package, folder: Path, weights: Path) -> Path:
    """The package alone, with nothing but the compiler's runtime: what it adds to the flash of a product.

    A part in float brings the mathematical functions it calls along.
    """
    image = folder / "build" / f"{package.name}.elf"
    script = folder / "build" / "bare.ld"
    write_text(script, files("xdeploy.targets.support").joinpath("bare.ld").read_text(encoding="utf-8"))
    link_alone(
        partial(common_flags, package), link_inputs(package, weights), str(package.target.compiler["triple"]),
        _below(image, folder), folder, [f"-Wl,-e,{package.name}_run", f"-Wl,-T,{_below(script, folder)}"],
        package.has_float,
    )  # fmt: skip
    return image


def link_library(package: Package, folder: Path, weights: Path) -> Path:
    """host: lib/libxd_<m>.so with run, run_batch, the self-test and a hook after every layer."""
    name, upper = package.name, package.name.upper()
    write_text(folder / f"lib/{name}_batch.c", package.fill("batch.c"))
    write_text(folder / f"lib/{name}_hooks.h", package.fill("hooks.h"))
    library = f"lib/lib{name}.so"
    options = ["-shared", "-fPIC", "-fvisibility=hidden", f"-D{upper}_SELFTEST", "-Wl,-Bsymbolic", "-Wl,--gc-sections",
               "-Ilib", f'-D{upper}_HOOKS="{name}_hooks.h"',
               *(f'-D{p.name.upper()}_HOOKS="{name}_hooks.h"' for p in package.levels),
               f'-D{upper}_API=__attribute__((visibility("default")))']  # fmt: skip
    triple = str(package.target.compiler["triple"])
    cc(
        [
            *common_flags(package, triple),
            *link_inputs(package, weights),
            f"lib/{name}_batch.c",
            *options,
            *(["-lm"] if package.has_float else []),
            *(["-lpthread"] if package.has_worker else []),
            "-o",
            library,
        ],
        folder,
    )
    return folder / library


def link_program(package: Package, folder: Path, weights: Path) -> Path:
    """linux: bin/xd_<m>, a static program that reads inputs and writes outputs."""
    name = package.name
    write_text(folder / f"bin/{name}_main.c", package.fill("main.c"))
    write_text(folder / "bin/linux.h", files("xdeploy.targets.support").joinpath("linux.h").read_text(encoding="utf-8"))
    sources = [*link_inputs(package, weights), f"bin/{name}_main.c"]
    triple = str(package.target.compiler["triple"])

    def flags(triple: str) -> list[str]:
        return [*common_flags(package, triple), choosing(name)]

    link_alone(flags, sources, triple, f"bin/{name}", folder, PROGRAM, package.has_float)
    return folder / "bin" / name


def link_archive(package: Package, folder: Path) -> Path:
    """linux: lib/libxd_<m>.a, the package for programs of the user's own; all feature levels are in it."""
    archive = folder / "lib" / f"lib{package.name}.a"
    archive.parent.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in package.sources:
        objects.append(f"build/{Path(source).name}.o")
        triple = str(package.target.compiler["triple"])
        cc([*common_flags(package, triple), "-fPIC", "-c", source, "-o", objects[-1]], folder)
    ar(["rcsD", _below(archive, folder), *objects], folder)
    for name in objects:
        (folder / name).unlink()
    return archive


def link_board(package: Package, folder: Path, weights: Path, board: str) -> Path:
    """firmware: an image for one of QEMU's boards that reads inputs from memory and writes a file by semihosting."""
    support = files("xdeploy.targets.support")
    place, name = BOARDS[board], package.name
    script = Template(support.joinpath("board.ld").read_text(encoding="utf-8"))
    write_text(folder / "build/board.ld", script.substitute({k: f"0x{v:08x}" for k, v in place.items()}))
    write_text(folder / "build/board.c", support.joinpath("board.c").read_text(encoding="utf-8"))
    defines = [f"-DXD_HEADER=\"{name}.h\"", f"-DXD(x)={name}_##x", f"-DXD_UPPER(x)={name.upper()}_##x",
               f"-DXD_BLOB={place['blob']}U"]  # fmt: skip
    options = ["-ffreestanding", "-Wl,--gc-sections", "-Wl,-e,xd_reset", "-Wl,-T,build/board.ld"]
    triple = str(package.target.compiler["triple"])
    sources = [*link_inputs(package, weights), "build/board.c"]
    cc([*common_flags(package, triple), *defines, *sources, *options, "-o", f"build/{name}_board.elf"], folder)
    return folder / "build" / f"{name}_board.elf"


def _below(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder))
