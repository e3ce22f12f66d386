"""What makes one folder a library for CMake, Zephyr, Arduino, PlatformIO, ESP-IDF and CMSIS-Pack at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from xdeploy.builder.cores import core_of
from xdeploy.builder.ctext import comment
from xdeploy.builder.misra import deviations_table

if TYPE_CHECKING:
    from xdeploy.builder.package import Package

_FORM_NOTES = {
    "tuned": "The kernels are assembly that LLVM generated for this core; everything else is C99.",
    "portable": "C99 only: it compiles for any 32-bit or 64-bit little-endian CPU.",
}
# file of the package -> its template
_FILES = {
    "CMakeLists.txt": "CMakeLists.txt",
    "README.md": "README.md",
    "cmake/{name}Config.cmake.in": "Config.cmake.in",
    "cmake/{name}.pc.in": "pkgconfig.pc.in",
    "library.properties": "library.properties",
    "library.json": "library.json",
    "idf_component.yml": "idf_component.yml",
    "zephyr/module.yml": "zephyr_module.yml",
    "zephyr/Kconfig": "zephyr_Kconfig",
    "zephyr/CMakeLists.txt": "zephyr_CMakeLists.txt",
    "xdeploy.{name}.pdsc": "pack.pdsc",
}
_ARDUINO_NAME = 63  # characters, by the Arduino library specification
_IDF_REGISTER = "idf_component_register(SRCS $${${name}_sources} INCLUDE_DIRS include PRIV_INCLUDE_DIRS src)"


def build_files(package: Package, stack: int | None, code: Mapping[str, str]) -> dict[str, str]:
    """Text by relative path of every file that a build system or package manager reads.

    Args:
        package: what is described.
        stack: bound of the stack in bytes, None while it is not known.
        code: the package's C text by path.
    """
    lines = package.lines()
    values = {
        **package.header(stack), **_values(package), **_cmake(package), **_zephyr(package), **_pack(package),
        "misra": deviations_table(code),
    }  # fmt: skip
    texts = {path.format(name=package.name): package.fill(template, values) for path, template in _FILES.items()}
    # a README's first line is its title, its origin goes into a comment
    head = "\n".join(lines).replace("--", "- ")
    texts["README.md"] = texts["README.md"].replace(str(values["hash_banner"]), f"<!--\n{head}\n-->", 1)
    return texts


def _values(package: Package) -> dict[str, Any]:
    """What several templates say: origin, versions, the form."""
    lines, header = package.lines(), package.header(None)
    digest = re.sub(r"[^0-9A-Za-z]", "", str(header["sha256"])) or "unknown"
    return {
        "hash_banner": "\n".join(f"# {comment(line, 160)}" for line in lines),
        "origin": " ".join(lines).replace("--", "- "),
        # package managers want three numbers; a pre-release of xdeploy makes packages of its release
        "release": release(str(header["version"])),
        "arduino_name": package.name[:_ARDUINO_NAME],
        # one line of text for a person, in formats whose values end with the line
        "sentence": f"The network {header['title']} in integer C code for {package.target.name}",
        "urn": f"urn:xdeploy:model:{digest}",
        "gcc_flags": _gcc_flags(package) or "none in particular",
        "form_note": _FORM_NOTES[package.program.form],
        "library_flags": "".join(f" -l{name}" for name in _libraries(package)),
        "threads_note": package.fill("threads.md") if package.has_worker else "",
    }


def release(version: str) -> str:
    """The first three numbers of a version, as semantic versioning has them.

    Raises:
        ValueError: it does not begin with a number.
    """
    found = re.match(r"\d+(?:\.\d+){0,2}", version)
    if found is None:
        raise ValueError(f"{version!r} is not a version")
    numbers = [str(int(n)) for n in found[0].split(".")]
    return ".".join([*numbers, "0", "0"][:3])


def _gcc_flags(package: Package) -> str:
    return " ".join(str(f) for f in package.target.compiler.get("gcc_flags", ()))


def _cmake(package: Package) -> dict[str, str]:
    name, flags, used = package.name, _gcc_flags(package), _libraries(package)
    upper = name.upper()
    option = (
        f'option({upper}_CORE_FLAGS "compile with {flags}, for a toolchain file that names no core" OFF)\n'
        f"if({upper}_CORE_FLAGS)\n  target_compile_options({name} PRIVATE {flags})\nendif()\n"
    )
    esp = _IDF_REGISTER.replace("$${", "${").replace("${name}", name)
    if package.assembly:
        esp = (
            f'message(FATAL_ERROR "{name}: its kernels are assembly for {package.target.name}, '
            'build the package with --form portable for ESP-IDF")'
        )
    return {
        "sources": "\n  ".join(package.sources),
        "esp": esp,
        "languages": "C ASM" if package.assembly else "C",
        "core_flags": option if flags else "",
        "core_note": f"; `{upper}_CORE_FLAGS=ON` adds the flags above, for a toolchain file that names no core"
        if flags
        else "",
        "libraries": f"target_link_libraries({name} PUBLIC {' '.join(used)})\n" if used else "",
    }


def _libraries(package: Package) -> list[str]:
    """What programs link besides: parts in float may call the mathematical functions, the second thread is POSIX's."""
    return ["m"] * package.has_float + ["pthread"] * package.has_worker


def _zephyr(package: Package) -> dict[str, str]:
    core = core_of(package.target) if package.assembly else None
    root = "$${CMAKE_CURRENT_LIST_DIR}/.."
    return {
        "zephyr_sources": "\n    ".join(f"{root}/{s}".replace("$$", "$") for s in package.sources),
        "zephyr_depends": f"\tdepends on {core.zephyr}\n" if core and core.zephyr else "",
    }


def _pack(package: Package) -> dict[str, str]:
    """Files, and the condition: a compiler that reads GNU assembly, and a core that has the instructions."""
    core = core_of(package.target) if package.assembly else None
    if core is None or not core.pack:
        return {"pack_sources": _pack_files(package), "pack_conditions": "", "pack_condition": ""}
    cores = "\n".join(
        "      <accept " + " ".join(f"{k}={quoteattr(v)}" for k, v in accepted.items()) + "/>" for accepted in core.pack
    )
    conditions = f"""\
  <conditions>
    <condition id="instructions">
      <description>Cores that have the instructions of the kernels</description>
{cores}
    </condition>
    <condition id="assembler">
      <description>Compilers that read GNU assembly</description>
      <accept Tcompiler="GCC"/>
      <accept Tcompiler="CLANG"/>
      <accept Tcompiler="ARMCC" Toptions="AC6"/>
    </condition>
    <condition id="kernels">
      <description>What the assembly needs</description>
      <require condition="instructions"/>
      <require condition="assembler"/>
    </condition>
  </conditions>
"""
    return {
        "pack_sources": _pack_files(package),
        "pack_conditions": conditions,
        "pack_condition": ' condition="kernels"',
    }


def _pack_files(package: Package) -> str:
    kinds = (("sourceAsm" if s.endswith(".S") else "sourceC", s) for s in package.sources)
    return "\n".join(f'        <file category="{kind}" name={quoteattr(path)}/>' for kind, path in kinds)
