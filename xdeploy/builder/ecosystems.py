"""What makes one folder a library for CMake, Zephyr, Arduino, PlatformIO, ESP-IDF and CMSIS-Pack at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdeploy.builder.ctext import comment

if TYPE_CHECKING:
    from xdeploy.builder.package import Package

_FORM_NOTES = {
    "tuned": "The kernels are assembly that LLVM generated for this core; everything else is C99.",
    "portable": "C99 only: it compiles for any 32-bit or 64-bit little-endian CPU.",
}
_FILES = {
    "CMakeLists.txt": "CMakeLists.txt",
    "README.md": "README.md",
    "library.properties": "library.properties",
    "library.json": "library.json",
    "zephyr/module.yml": "zephyr_module.yml",
    "zephyr/Kconfig": "zephyr_Kconfig",
    "zephyr/CMakeLists.txt": "zephyr_CMakeLists.txt",
}


def build_files(package: Package, stack: int | None) -> dict[str, str]:
    """Text by relative path of every file that a build system or package manager reads."""
    lines, sources = package.lines(), package.sources
    origin = " ".join(lines).replace("--", "- ")
    values = {
        **package.header(stack),
        "hash_banner": "\n".join(f"# {comment(line, 160)}" for line in lines),
        "sources": " ".join(sources),
        "zephyr_sources": " ".join(f"../{s}" for s in sources),
        # parts in float may call the mathematical functions
        "libraries": f"target_link_libraries({package.name} PUBLIC m)\n" if package.has_float else "",
        "languages": "C ASM" if package.assembly else "C",
        "origin": origin,
        "pack_sources": "\n".join(f"        {_pack_file(s)}" for s in sources),
        "gcc_flags": " ".join(package.target.compiler.get("gcc_flags", ())) or "none in particular",
        "form_note": _FORM_NOTES[package.program.form],
    }
    paths = {**_FILES, f"xdeploy.{package.name}.pdsc": "pack.pdsc"}
    texts = {path: package.fill(template, values) for path, template in paths.items()}
    # a README's first line is its title, its origin goes into a comment
    head = "\n".join(lines).replace("--", "- ")
    texts["README.md"] = texts["README.md"].replace(str(values["hash_banner"]), f"<!--\n{head}\n-->", 1)
    return texts


def _pack_file(path: str) -> str:
    return f'<file category="{"sourceAsm" if path.endswith(".S") else "sourceC"}" name="{path}"/>'
